//! ARM stage 2 tables word by word, as Linux 7.3 writes them, those with the contiguous hint as other implementations do; QEMU's
//! CPU walker reads them so. Bits: Arm Architecture Reference Manual, section D8.3 "Translation table descriptor formats";
//! concatenated tables: section D8.2 "Translation process".

mod common;
mod walkers;

use std::sync::Arc;

use common::image::{Altered, Case, check, check_altered, word, words};
use common::{Arena, BASE};
use io_pgtable::{
    Arm32LpaeS2, ArmLpaeS2, ArmTcr, CfgError, Format, IoPageTable, IoPgtableCfg, PageTable, Quirks, Registers,
};
use walkers::arm_lpae::stage2;

const PAGE_4K: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x9234_5678_9000,
        phys: 0xbcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x124, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            word(0x4000_3000, 0x189, 0xbcde_f012_37ff),
        ],
    },
    // 4K RO CACHE
    Case {
        iova: 0x9234_5678_a000,
        phys: 0xbcde_f012_4000,
        size: 0x1000,
        prot: "RC",
        words: &[word(0x4000_3000, 0x18a, 0xbcde_f012_477f)],
    },
    // 4K WO CACHE
    Case {
        iova: 0x9234_5678_b000,
        phys: 0xbcde_f012_5000,
        size: 0x1000,
        prot: "WC",
        words: &[word(0x4000_3000, 0x18b, 0xbcde_f012_57bf)],
    },
    // 4K RW uncached
    Case {
        iova: 0x9234_5678_c000,
        phys: 0xbcde_f012_6000,
        size: 0x1000,
        prot: "RW",
        words: &[word(0x4000_3000, 0x18c, 0xbcde_f012_66d7)],
    },
    // 4K MMIO
    Case {
        iova: 0x9234_5678_d000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "RWM",
        words: &[word(0x4000_3000, 0x18d, 0xfee0_06c7)],
    },
    // 4K RW CACHE NOEXEC
    Case {
        iova: 0x9234_5678_e000,
        phys: 0xbcde_f012_7000,
        size: 0x1000,
        prot: "RWCN",
        words: &[word(0x4000_3000, 0x18e, 0x60_bcde_f012_77ff)],
    },
    // 2M RW CACHE
    Case {
        iova: 0x9234_5780_0000,
        phys: 0xbcde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_2000, 0xbc, 0xbcde_f020_07fd)],
    },
    // 1G RO CACHE
    Case {
        iova: 0x9234_8000_0000,
        phys: 0xbcde_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_1000, 0xd2, 0xbcde_4000_077d)],
    },
];

const FORCE_WRITE_BACK: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x9234_5678_9000,
        phys: 0xbcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x124, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            word(0x4000_3000, 0x189, 0xbcde_f012_37db),
        ],
    },
    // 4K RW uncached
    Case {
        iova: 0x9234_5678_c000,
        phys: 0xbcde_f012_6000,
        size: 0x1000,
        prot: "RW",
        words: &[word(0x4000_3000, 0x18c, 0xbcde_f012_66d7)],
    },
    // 4K MMIO
    Case {
        iova: 0x9234_5678_d000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "RWM",
        words: &[word(0x4000_3000, 0x18d, 0xfee0_06c7)],
    },
    // 2M RW CACHE
    Case {
        iova: 0x9234_5780_0000,
        phys: 0xbcde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_2000, 0xbc, 0xbcde_f020_07d9)],
    },
];

const BITS_36: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0xf_edcb_a000,
        phys: 0xe_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x3f, 0x4000_1003),
            word(0x4000_1000, 0x16e, 0x4000_2003),
            word(0x4000_2000, 0xba, 0xe_f012_37ff),
        ],
    },
    // 1G RO CACHE
    Case {
        iova: 0xe_8000_0000,
        phys: 0xe_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_0000, 0x3a, 0xe_4000_077d)],
    },
];

const CONCATENATED_2: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0xfe_dcba_9000,
        phys: 0xde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x3fb, 0x4000_2003),
            word(0x4000_2000, 0xe5, 0x4000_3003),
            word(0x4000_3000, 0x1a9, 0xde_f012_37ff),
        ],
    },
    // 1G RO CACHE
    Case {
        iova: 0x80_4000_0000,
        phys: 0xde_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_0000, 0x201, 0xde_4000_077d)],
    },
    // 4K low table
    Case {
        iova: 0x1234_5000,
        phys: 0xde_f012_4000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x0, 0x4000_4003),
            word(0x4000_4000, 0x91, 0x4000_5003),
            word(0x4000_5000, 0x145, 0xde_f012_47ff),
        ],
    },
];

const CONCATENATED_8: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x3fe_dcba_9000,
        phys: 0x2de_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0xffb, 0x4000_8003),
            word(0x4000_8000, 0xe5, 0x4000_9003),
            word(0x4000_9000, 0x1a9, 0x2de_f012_37ff),
        ],
    },
    // 1G RO CACHE
    Case {
        iova: 0x380_4000_0000,
        phys: 0x2de_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_0000, 0xe01, 0x2de_4000_077d)],
    },
    // 2M RW
    Case {
        iova: 0x8_1220_0000,
        phys: 0x2de_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x20, 0x4000_a003), word(0x4000_a000, 0x91, 0x2de_f020_07fd)],
    },
];

const BITS_44: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0xfed_cba9_8000,
        phys: 0xade_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x1f, 0x4000_1003),
            word(0x4000_1000, 0x1b7, 0x4000_2003),
            word(0x4000_2000, 0x5d, 0x4000_3003),
            word(0x4000_3000, 0x98, 0xade_f012_37ff),
        ],
    },
    // 1G RO CACHE
    Case {
        iova: 0x800_4000_0000,
        phys: 0xade_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_0000, 0x10, 0x4000_4003), word(0x4000_4000, 0x1, 0xade_4000_077d)],
    },
];

const CONCATENATED_16: &[Case] = &[
    // 16K RW CACHE
    Case {
        iova: 0xfe_dcba_8000,
        phys: 0xde_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x7f6e, 0x4004_0003), word(0x4004_0000, 0x2ea, 0xde_f012_47ff)],
    },
    // 32M RO CACHE
    Case {
        iova: 0xf0_0200_0000,
        phys: 0xde_f200_0000,
        size: 0x200_0000,
        prot: "RC",
        words: &[word(0x4000_0000, 0x7801, 0xde_f200_077d)],
    },
    // 16K low table
    Case {
        iova: 0x1234_4000,
        phys: 0xde_f012_8000,
        size: 0x4000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x9, 0x4004_4003), word(0x4004_4000, 0xd1, 0xde_f012_87ff)],
    },
];

const PAGE_16K: &[Case] = &[
    // 16K RW CACHE
    Case {
        iova: 0x9234_5678_c000,
        phys: 0xbcde_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x923, 0x4000_8003),
            word(0x4000_8000, 0x22b, 0x4000_c003),
            word(0x4000_c000, 0x1e3, 0xbcde_f012_47ff),
        ],
    },
    // 32M RO CACHE
    Case {
        iova: 0x9234_5800_0000,
        phys: 0xbcde_f200_0000,
        size: 0x200_0000,
        prot: "RC",
        words: &[word(0x4000_8000, 0x22c, 0xbcde_f200_077d)],
    },
    // 16K low table
    Case {
        iova: 0x1234_5678_c000,
        phys: 0xbcde_f012_8000,
        size: 0x4000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x123, 0x4001_0003),
            word(0x4001_0000, 0x22b, 0x4001_4003),
            word(0x4001_4000, 0x1e3, 0xbcde_f012_87ff),
        ],
    },
];

const PAGE_64K: &[Case] = &[
    // 64K RW CACHE
    Case {
        iova: 0x9234_5678_0000,
        phys: 0xbcde_f012_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x4001_0003),
            word(0x4001_0000, 0x11a2, 0x4002_0003),
            word(0x4002_0000, 0x1678, 0xbcde_f012_07ff),
        ],
    },
    // 512M RO CACHE
    Case {
        iova: 0x9234_6000_0000,
        phys: 0xbcdf_0000_0000,
        size: 0x2000_0000,
        prot: "RC",
        words: &[word(0x4001_0000, 0x11a3, 0xbcdf_0000_077d)],
    },
];

const BITS_52: &[Case] = &[
    // 64K RW CACHE
    Case {
        iova: 0xa_9234_5678_0000,
        phys: 0xa_bcde_f012_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x2a4, 0x4001_0003),
            word(0x4001_0000, 0x11a2, 0x4002_0003),
            word(0x4002_0000, 0x1678, 0xbcde_f012_a7ff),
        ],
    },
    // 4T RW CACHE
    Case {
        iova: 0xa_c000_0000_0000,
        phys: 0x5_4000_0000_0000,
        size: 0x400_0000_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x2b0, 0x4000_0000_57fd)],
    },
];

const CONTIGUOUS: &[Case] = &[
    // 64K contig RW CACHE
    Case {
        iova: 0x1234_5678_0000,
        phys: 0xbcde_f012_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            words(0x4000_3000, 0x180, 0x10_bcde_f012_07ff, 16, 0x1000),
        ],
    },
    // 32M contig RO CACHE
    Case {
        iova: 0x1234_5800_0000,
        phys: 0xbcde_f200_0000,
        size: 0x200_0000,
        prot: "RC",
        words: &[words(0x4000_2000, 0xc0, 0x10_bcde_f200_077d, 16, 0x20_0000)],
    },
];

const OF_32_BITS: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0xfe_dcba_9000,
        phys: 0xde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x3fb, 0x4000_2003),
            word(0x4000_2000, 0xe5, 0x4000_3003),
            word(0x4000_3000, 0x1a9, 0xde_f012_37ff),
        ],
    },
    // 4K RO CACHE
    Case {
        iova: 0xfe_dcba_a000,
        phys: 0xde_f012_4000,
        size: 0x1000,
        prot: "RC",
        words: &[word(0x4000_3000, 0x1aa, 0xde_f012_477f)],
    },
    // 4K WO CACHE
    Case {
        iova: 0xfe_dcba_b000,
        phys: 0xde_f012_5000,
        size: 0x1000,
        prot: "WC",
        words: &[word(0x4000_3000, 0x1ab, 0xde_f012_57bf)],
    },
    // 4K MMIO
    Case {
        iova: 0xfe_dcba_c000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "RWM",
        words: &[word(0x4000_3000, 0x1ac, 0xfee0_06c7)],
    },
    // 2M RW uncached
    Case {
        iova: 0xfe_dcc0_0000,
        phys: 0xde_f020_0000,
        size: 0x20_0000,
        prot: "RW",
        words: &[word(0x4000_2000, 0xe6, 0xde_f020_06d5)],
    },
    // 1G RO CACHE
    Case {
        iova: 0x80_4000_0000,
        phys: 0xde_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_0000, 0x201, 0xde_4000_077d)],
    },
];

fn both(bits: u32) -> IoPgtableCfg {
    IoPgtableCfg { oas: bits, ..IoPgtableCfg::new(bits) }
}

#[test]
fn golden_words() {
    check::<ArmLpaeS2<12>>(BASE, &both(48), PAGE_4K);
    check::<ArmLpaeS2<12>>(BASE, &both(48).with_quirks(Quirks::ARM_S2FWB), FORCE_WRITE_BACK);
    check::<ArmLpaeS2<12>>(BASE, &both(36), BITS_36);
    check::<ArmLpaeS2<12>>(BASE, &both(44), BITS_44);
    check::<ArmLpaeS2<16>>(BASE, &both(48), PAGE_64K);
    check::<ArmLpaeS2<16>>(BASE, &both(52), BITS_52);
    check::<ArmLpaeS2<12>>(BASE, &both(48), CONTIGUOUS);
}

#[test]
fn golden_words_of_concatenated_tables() {
    check::<ArmLpaeS2<12>>(BASE, &both(40), CONCATENATED_2);
    check::<ArmLpaeS2<12>>(BASE, &both(42), CONCATENATED_8);
    check::<ArmLpaeS2<14>>(BASE, &both(40), CONCATENATED_16);
    check::<ArmLpaeS2<14>>(BASE, &both(48), PAGE_16K);
    check::<Arm32LpaeS2>(BASE, &both(40), OF_32_BITS);
}

/// As QEMU's CPU walker does.
#[test]
fn altered_entries() {
    let leaf = |after, faults| Altered {
        iova: 0x9234_5678_9000,
        table: 0x4000_3000,
        index: 0x189,
        before: 0xbcde_f012_37ff,
        after,
        faults,
    };
    let altered = [
        // S2AP.
        leaf(0xbcde_f012_373f, "rw"),
        // AF.
        leaf(0xbcde_f012_33ff, "rwx"),
        // XN.
        leaf(0x0040_bcde_f012_37ff, "x"),
        // Bit 11, nG of stage 1.
        leaf(0xbcde_f012_3fff, ""),
        // Attributes of tables are stage 1's.
        Altered { table: 0x4000_1000, index: 0xd1, before: 0x4000_2003, ..leaf(0xf800_0000_4000_2003, "") },
    ];
    check_altered::<ArmLpaeS2<12>>(&both(48), PAGE_4K, stage2::<12>, &both(48), &altered);
}

/// The start level as ARM counts it, log2 of the top's entries, and SL0.
fn start<F: Format>(bits: u32) -> (u32, u32, u8) {
    let arena = Arc::new(Arena::new(64));
    let table = PageTable::<F>::new(arena.clone(), &both(bits)).expect("a table");
    let Registers::ArmLpaeS2 { vttbr, vtcr, sl } = table.registers() else { panic!("others'") };
    assert_eq!((vttbr, u32::from(vtcr.tsz)), (table.root().phys.get(), 64 - bits));
    let level = table.root().level;
    (4 - level, bits - F::level_shift(level), sl)
}

#[test]
fn hardware_with_few_addresses_starts_lower() {
    let starts =
        |bits| (start::<ArmLpaeS2<12>>(bits), start::<ArmLpaeS2<14>>(bits), start::<ArmLpaeS2<16>>(bits));
    assert_eq!(starts(32), ((1, 2, 1), (2, 7, 1), (2, 3, 1)));
    assert_eq!(starts(36), ((1, 6, 1), (2, 11, 1), (2, 7, 1)));
    assert_eq!(starts(40), ((1, 10, 1), (2, 15, 1), (2, 11, 1)));
    assert_eq!(starts(42), ((1, 12, 1), (1, 6, 2), (2, 13, 1)));
    assert_eq!(starts(44), ((0, 5, 2), (1, 8, 2), (1, 2, 2)));
    assert_eq!(starts(48), ((0, 9, 2), (1, 12, 2), (1, 6, 2)));
    assert_eq!(start::<ArmLpaeS2<16>>(52), (1, 10, 2));
    assert_eq!(start::<Arm32LpaeS2>(40), (1, 10, 1));
}

#[test]
fn registers_say_what_the_table_is() {
    fn vtcr<F: Format>(bits: u32) -> ArmTcr {
        let table = PageTable::<F>::new(Arc::new(Arena::new(64)), &both(bits)).expect("a table");
        let Registers::ArmLpaeS2 { vtcr, .. } = table.registers() else { panic!("others'") };
        vtcr
    }
    let plain = ArmTcr { ps: 5, tg: 0, sh: 3, orgn: 1, irgn: 1, tsz: 16, ds: false };
    assert_eq!(vtcr::<ArmLpaeS2<12>>(48), plain);
    assert_eq!(vtcr::<ArmLpaeS2<14>>(42), ArmTcr { ps: 3, tg: 2, tsz: 22, ..plain });
    assert_eq!(vtcr::<ArmLpaeS2<16>>(52), ArmTcr { ps: 6, tg: 1, tsz: 12, ..plain });
}

#[test]
fn what_stage_2_lacks_is_refused() {
    fn refused<F: Format>(cfg: IoPgtableCfg) -> Result<(), CfgError> {
        PageTable::<F>::new(Arc::new(Arena::new(64)), &cfg).map(drop)
    }
    // More than sixteen tables side by side.
    let too_wide = IoPgtableCfg { oas: 40, ..IoPgtableCfg::new(44) };
    assert_eq!(refused::<ArmLpaeS2<12>>(too_wide), Err(CfgError::InputSize));
    assert_eq!(refused::<ArmLpaeS2<12>>(IoPgtableCfg { oas: 42, ..IoPgtableCfg::new(43) }), Ok(()));
    assert_eq!(refused::<Arm32LpaeS2>(IoPgtableCfg::new(41)), Err(CfgError::InputSize));
    assert_eq!(refused::<ArmLpaeS2<12>>(IoPgtableCfg::new(24)), Err(CfgError::InputSize));
    for quirk in [Quirks::ARM_NS, Quirks::ARM_TTBR1, Quirks::ARM_OUTER_WBWA, Quirks::ARM_HD] {
        assert_eq!(refused::<ArmLpaeS2<12>>(both(48).with_quirks(quirk)), Err(CfgError::Quirks), "{quirk:?}");
    }
}
