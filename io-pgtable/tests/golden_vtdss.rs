//! VT-d second-stage tables word by word, as Linux 7.3 writes them; QEMU's VT-d walker reads the three- and four-level ones so.
//! Bits: VT-d specification, section 9.8 "Second-Stage Paging Entries".

mod common;
mod walkers;

use common::image::{Altered, Case, check, check_altered, word};
use common::{BASE, Bed, RW};
use io_pgtable::{CfgError, IoPageTable, IoPgtableCfg, PageTable, Quirks, VtdSs};
use platform::{DmaAddr, MapError, Prot};
use walkers::vtdss::look;

const THREE_LEVELS: &[Case] = &[
    // 4K RW
    Case {
        iova: 0x7e_dcba_9000,
        phys: 0xa_bcde_f012_3000,
        size: 0x1000,
        prot: "RW",
        words: &[
            word(0x4000_0000, 0x1fb, 0x4000_1003),
            word(0x4000_1000, 0xe5, 0x4000_2003),
            word(0x4000_2000, 0x1a9, 0xa_bcde_f012_3003),
        ],
    },
    // 2M RO
    Case {
        iova: 0x7e_dcc0_0000,
        phys: 0xa_bcde_f020_0000,
        size: 0x20_0000,
        prot: "R",
        words: &[word(0x4000_1000, 0xe6, 0xa_bcde_f020_0081)],
    },
    // 1G WO
    Case {
        iova: 0x7f_c000_0000,
        phys: 0xa_bcde_4000_0000,
        size: 0x4000_0000,
        prot: "W",
        words: &[word(0x4000_0000, 0x1ff, 0xa_bcde_4000_0082)],
    },
];

const FOUR_LEVELS: &[Case] = &[
    // 4K RW
    Case {
        iova: 0x1234_5678_9000,
        phys: 0xa_bcde_f012_3000,
        size: 0x1000,
        prot: "RW",
        words: &[
            word(0x4000_0000, 0x24, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            word(0x4000_3000, 0x189, 0xa_bcde_f012_3003),
        ],
    },
    // 4K RO
    Case {
        iova: 0x1234_5678_a000,
        phys: 0xa_bcde_f012_4000,
        size: 0x1000,
        prot: "R",
        words: &[word(0x4000_3000, 0x18a, 0xa_bcde_f012_4001)],
    },
    // 4K WO
    Case {
        iova: 0x1234_5678_b000,
        phys: 0xa_bcde_f012_5000,
        size: 0x1000,
        prot: "W",
        words: &[word(0x4000_3000, 0x18b, 0xa_bcde_f012_5002)],
    },
    // 4K MMIO
    Case {
        iova: 0x1234_5678_c000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "WM",
        words: &[word(0x4000_3000, 0x18c, 0xfee0_0002)],
    },
    // 2M RW
    Case {
        iova: 0x1234_5780_0000,
        phys: 0xa_bcde_f020_0000,
        size: 0x20_0000,
        prot: "RW",
        words: &[word(0x4000_2000, 0xbc, 0xa_bcde_f020_0083)],
    },
    // 1G RO
    Case {
        iova: 0x1234_8000_0000,
        phys: 0xa_bcde_4000_0000,
        size: 0x4000_0000,
        prot: "R",
        words: &[word(0x4000_1000, 0xd2, 0xa_bcde_4000_0081)],
    },
];

const SNOOPED: &[Case] = &[
    // 4K RW
    Case {
        iova: 0x1234_5678_9000,
        phys: 0xa_bcde_f012_3000,
        size: 0x1000,
        prot: "RW",
        words: &[
            word(0x4000_0000, 0x24, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            word(0x4000_3000, 0x189, 0xa_bcde_f012_3803),
        ],
    },
    // 2M RW
    Case {
        iova: 0x1234_5780_0000,
        phys: 0xa_bcde_f020_0000,
        size: 0x20_0000,
        prot: "RW",
        words: &[word(0x4000_2000, 0xbc, 0xa_bcde_f020_0883)],
    },
    // 1G RO
    Case {
        iova: 0x1234_8000_0000,
        phys: 0xa_bcde_4000_0000,
        size: 0x4000_0000,
        prot: "R",
        words: &[word(0x4000_1000, 0xd2, 0xa_bcde_4000_0881)],
    },
];

const FIVE_LEVELS: &[Case] = &[
    // 4K RW
    Case {
        iova: 0x1fe_dcba_9876_5000,
        phys: 0xa_bcde_f012_3000,
        size: 0x1000,
        prot: "RW",
        words: &[
            word(0x4000_0000, 0x1fe, 0x4000_1003),
            word(0x4000_1000, 0x1b9, 0x4000_2003),
            word(0x4000_2000, 0xea, 0x4000_3003),
            word(0x4000_3000, 0xc3, 0x4000_4003),
            word(0x4000_4000, 0x165, 0xa_bcde_f012_3003),
        ],
    },
    // 2M RO
    Case {
        iova: 0x1fe_dcba_9880_0000,
        phys: 0xa_bcde_f020_0000,
        size: 0x20_0000,
        prot: "R",
        words: &[word(0x4000_3000, 0xc4, 0xa_bcde_f020_0081)],
    },
    // 1G RW
    Case {
        iova: 0x1fe_dcba_c000_0000,
        phys: 0xa_bcde_4000_0000,
        size: 0x4000_0000,
        prot: "RW",
        words: &[word(0x4000_2000, 0xeb, 0xa_bcde_4000_0083)],
    },
];

#[test]
fn golden_words() {
    check::<VtdSs>(BASE, &IoPgtableCfg::new(39), THREE_LEVELS);
    check::<VtdSs>(BASE, &IoPgtableCfg::new(48), FOUR_LEVELS);
    check::<VtdSs>(BASE, &snooping(), SNOOPED);
    check::<VtdSs>(BASE, &IoPgtableCfg::new(57), FIVE_LEVELS);
}

fn snooping() -> IoPgtableCfg {
    IoPgtableCfg::new(48).with_quirks(Quirks::FORCE_COHERENCE)
}

/// As QEMU's walker with its reserved-bit masks does.
#[test]
fn altered_entries() {
    let leaf = |after, faults| Altered {
        iova: 0x1234_5678_9000,
        table: 0x4000_3000,
        index: 0x189,
        before: 0xa_bcde_f012_3003,
        after,
        faults,
    };
    let altered = [
        leaf(0xa_bcde_f012_3002, "r"),
        leaf(0xa_bcde_f012_3001, "w"),
        // Neither R nor W.
        leaf(0xa_bcde_f012_3000, "rwx"),
        // SNP without snoop control.
        leaf(0xa_bcde_f012_3803, "rwx"),
        // Bit 62.
        leaf(0x400a_bcde_f012_3003, "rwx"),
        // Bits 61:52 and bit 63 are software's.
        leaf(0x3ffa_bcde_f012_3003, ""),
        leaf(0x800a_bcde_f012_3003, ""),
        // A, D, and bit 10.
        leaf(0xa_bcde_f012_3703, ""),
        // EMT and IPAT.
        leaf(0xa_bcde_f012_307b, ""),
        // PS in the fourth level.
        Altered { table: 0x4000_0000, index: 0x24, before: 0x4000_1003, ..leaf(0x4000_1083, "rwx") },
        // A pointer takes rights from all below it.
        Altered { table: 0x4000_1000, index: 0xd1, before: 0x4000_2003, ..leaf(0x4000_2002, "r") },
        Altered { table: 0x4000_1000, index: 0xd1, before: 0x4000_2003, ..leaf(0x4000_2001, "w") },
        // Bit 12 of a page of 2 MiB.
        Altered {
            iova: 0x1234_5780_0000,
            table: 0x4000_2000,
            index: 0xbc,
            before: 0xa_bcde_f020_0083,
            ..leaf(0xa_bcde_f020_1083, "rwx")
        },
    ];
    let cfg = IoPgtableCfg::new(48);
    check_altered::<VtdSs>(&cfg, FOUR_LEVELS, look, &cfg, &altered);
    check_altered::<VtdSs>(&cfg, FOUR_LEVELS, look, &snooping(), &[leaf(0xa_bcde_f012_3803, "")]);
    // Memory ends at 2^48.
    let narrow = IoPgtableCfg { oas: 48, ..cfg };
    check_altered::<VtdSs>(&cfg, FOUR_LEVELS, look, &narrow, &[leaf(0xa_bcde_f012_3003, "rwx")]);
}

#[test]
fn hardware_that_must_write_gets_no_page_that_it_may_only_read() {
    let bed = Bed::<VtdSs>::of(&IoPgtableCfg::new(39).with_quirks(Quirks::FORCE_WRITEABLE), 8);
    assert_eq!(bed.map(0x1000, 0x5000, 0x1000, 1, Prot::READ), (0, Err(MapError::NoAccess)));
    bed.must_map(0x1000, 0x5000, 0x1000, 1);
    assert_eq!(bed.map(0x2000, 0x6000, 0x1000, 1, Prot::WRITE), (0x1000, Ok(())));
    let rights = |at: u64| bed.table.iova_to_phys(DmaAddr::new(at)).map(|found| found.prot);
    assert_eq!((rights(0x1000), rights(0x2000)), (Some(RW), Some(Prot::WRITE)));
}

/// MGAW may be less than AW; the number of levels is one of the three that hardware knows.
#[test]
fn sizes_of_an_address() {
    for (bits, levels) in [(31, 3), (39, 3), (40, 4), (46, 4), (48, 4), (49, 5), (57, 5)] {
        let bed = Bed::<VtdSs>::of(&IoPgtableCfg::new(bits), 1);
        assert_eq!(bed.levels(), levels, "{bits} bits");
        assert_eq!(bed.table.aperture().1.get(), (1 << bits) - 1);
    }
    let refused = |cfg| PageTable::<VtdSs>::new(std::sync::Arc::new(common::Arena::new(1)), &cfg).map(drop);
    for bits in [0, 12, 30, 58, 64, 65] {
        assert_eq!(refused(IoPgtableCfg::new(bits)), Err(CfgError::InputSize), "{bits} bits");
    }
    assert_eq!(refused(IoPgtableCfg::new(48).with_quirks(Quirks::ARM_NS)), Err(CfgError::Quirks));
    assert_eq!(refused(IoPgtableCfg { encryption: 1 << 47, ..IoPgtableCfg::new(48) }), Err(CfgError::Quirks));
}
