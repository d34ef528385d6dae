//! What a table of ARM's stage 1 is told, and what it tells registers (Arm Architecture Reference Manual, TCR_EL1, MAIR_EL1).

mod common;
mod walkers;

use std::sync::Arc;

use common::{Arena, BASE, Bed};
use io_pgtable::{
    Arm32LpaeS1, ArmLpaeS1, ArmTcr, CfgError, Format, IoPageTable, IoPgtableCfg, PageTable, Parts, Quirks,
    Registers,
};

fn with(ias: u32, quirk: Quirks) -> IoPgtableCfg {
    IoPgtableCfg::new(ias).with_quirks(quirk)
}

fn registers<F: Format>(cfg: &IoPgtableCfg) -> (u64, ArmTcr, u64) {
    let table = PageTable::<F>::new(Arc::new(Arena::new(32)), cfg).expect("a table");
    let Registers::ArmLpaeS1 { ttbr, tcr, mair } = table.registers() else { panic!("others'") };
    assert_eq!(ttbr, table.root().phys.get());
    (ttbr, tcr, mair)
}

#[test]
fn registers_say_what_the_table_is() {
    let (ttbr, tcr, mair) = registers::<ArmLpaeS1<12>>(&IoPgtableCfg::new(48));
    assert_eq!((ttbr, mair), (BASE, 0xf404_ff44));
    let plain = ArmTcr { ps: 5, tg: 0, sh: 3, orgn: 1, irgn: 1, tsz: 16, ds: false };
    assert_eq!(tcr, plain);
    let tcr_of = |cfg| registers::<ArmLpaeS1<12>>(&cfg).1;
    assert_eq!(tcr_of(with(39, Quirks::ARM_TTBR1)), ArmTcr { tg: 2, tsz: 25, ..plain });
    let granule_16k = registers::<ArmLpaeS1<14>>(&IoPgtableCfg { oas: 40, ..IoPgtableCfg::new(40) }).1;
    assert_eq!(granule_16k, ArmTcr { ps: 2, tg: 2, tsz: 24, ..plain });
    let upper_16k = registers::<ArmLpaeS1<14>>(&with(48, Quirks::ARM_TTBR1)).1;
    assert_eq!(upper_16k, ArmTcr { tg: 1, ..plain });
    let granule_64k = registers::<ArmLpaeS1<16>>(&IoPgtableCfg::new(52)).1;
    assert_eq!(granule_64k, ArmTcr { ps: 6, tg: 1, tsz: 12, ..plain });
    let upper_64k = registers::<ArmLpaeS1<16>>(&with(52, Quirks::ARM_TTBR1)).1;
    assert_eq!(upper_64k, ArmTcr { ps: 6, tg: 3, tsz: 12, ..plain });
    let narrow = registers::<Arm32LpaeS1>(&IoPgtableCfg::new(32)).1;
    assert_eq!(narrow, ArmTcr { ps: 2, tsz: 32, ..plain });
}

#[test]
fn walks_that_do_not_snoop_may_use_the_outer_cache() {
    #[derive(Debug)]
    struct NoCaches;
    impl platform::CacheMaintenance for NoCaches {
        fn clean(&self, _at: *const u8, _len: usize) {}
    }
    let tcr = |quirks| {
        let cfg = IoPgtableCfg { coherent_walk: false, ..with(48, quirks) };
        let parts =
            Parts { frames: Arc::new(Arena::new(1)), cache: Some(Arc::new(NoCaches)), change_top: None };
        let table = PageTable::<ArmLpaeS1<12>>::with_parts(parts, &cfg).expect("a table");
        let Registers::ArmLpaeS1 { tcr, .. } = table.registers() else { panic!("others'") };
        (tcr.sh, tcr.orgn, tcr.irgn)
    };
    assert_eq!(tcr(Quirks::empty()), (2, 0, 0));
    assert_eq!(tcr(Quirks::ARM_OUTER_WBWA), (2, 1, 0));
}

#[test]
fn what_stage_1_lacks_is_refused() {
    fn refused<F: Format>(cfg: IoPgtableCfg) -> Result<(), CfgError> {
        PageTable::<F>::new(Arc::new(Arena::new(1)), &cfg).map(drop)
    }
    for bits in [0, 24, 49, 64] {
        assert_eq!(
            refused::<ArmLpaeS1<12>>(IoPgtableCfg::new(bits)),
            Err(CfgError::InputSize),
            "{bits} bits"
        );
    }
    assert_eq!(refused::<ArmLpaeS1<14>>(IoPgtableCfg::new(49)), Err(CfgError::InputSize));
    assert_eq!(refused::<ArmLpaeS1<16>>(IoPgtableCfg::new(53)), Err(CfgError::InputSize));
    assert_eq!(refused::<Arm32LpaeS1>(IoPgtableCfg::new(33)), Err(CfgError::InputSize));
    let odd = IoPgtableCfg { oas: 39, ..IoPgtableCfg::new(39) };
    assert_eq!(refused::<ArmLpaeS1<12>>(odd), Err(CfgError::OutputSize), "no code of IPS");
    for quirk in [Quirks::ARM_OUTER_WBWA, Quirks::ARM_S2FWB, Quirks::SIGN_EXTEND] {
        assert_eq!(refused::<ArmLpaeS1<12>>(with(48, quirk)), Err(CfgError::Quirks), "{quirk:?}");
    }
    assert_eq!(refused::<Arm32LpaeS1>(with(32, Quirks::ARM_HD)), Err(CfgError::Quirks));
}

/// Blocks of 4 TiB take physical addresses of 52 bits; a small top takes the larger pages away.
#[test]
fn page_sizes_follow_the_addresses() {
    fn largest<F: Format>(ias: u32, oas: u32) -> u32 {
        Bed::<F>::of(&IoPgtableCfg { oas, ..IoPgtableCfg::new(ias) }, 32).table.page_sizes().bits().ilog2()
    }
    assert_eq!(largest::<ArmLpaeS1<16>>(52, 52), 42);
    assert_eq!(largest::<ArmLpaeS1<16>>(52, 48), 34);
    assert_eq!(largest::<ArmLpaeS1<12>>(48, 48), 30);
    assert_eq!(largest::<ArmLpaeS1<12>>(25, 48), 21);
}
