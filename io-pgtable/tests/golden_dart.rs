//! DART tables word by word, as Linux 7.3 writes them; m1n1's translation reads most of them so. No hardware has seen them, and
//! there is no specification.

mod common;
mod walkers;

use std::sync::Arc;

use common::image::{Altered, Case, check, check_altered, word};
use common::{Arena, BASE};
use io_pgtable::{CfgError, Dart1, Dart2, Format, IoPageTable, IoPgtableCfg, PageTable, Quirks, Registers};
use walkers::dart;

const FIRST_16K: &[Case] = &[
    // 16K RW CACHE
    Case {
        iova: 0x9234_c000,
        phys: 0xe_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x49, 0x4000_4001), word(0x4000_4000, 0xd3, 0xf_ff0e_f012_4003)],
    },
    // 16K RO
    Case {
        iova: 0x9235_0000,
        phys: 0xe_f012_8000,
        size: 0x4000,
        prot: "R",
        words: &[word(0x4000_4000, 0xd4, 0xf_ff0e_f012_8083)],
    },
    // 16K WO
    Case {
        iova: 0x9235_4000,
        phys: 0xe_f012_c000,
        size: 0x4000,
        prot: "W",
        words: &[word(0x4000_4000, 0xd5, 0xf_ff0e_f012_c103)],
    },
    // 16K RW uncached
    Case {
        iova: 0x9235_8000,
        phys: 0xe_f013_0000,
        size: 0x4000,
        prot: "RW",
        words: &[word(0x4000_4000, 0xd6, 0xf_ff0e_f013_0003)],
    },
    // 16K MMIO
    Case {
        iova: 0x9235_c000,
        phys: 0x2_bd00_0000,
        size: 0x4000,
        prot: "RWM",
        words: &[word(0x4000_4000, 0xd7, 0xf_ff02_bd00_0003)],
    },
    // 16K RW last
    Case {
        iova: 0xffff_c000,
        phys: 0xe_f013_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x7f, 0x4000_8001), word(0x4000_8000, 0x7ff, 0xf_ff0e_f013_4003)],
    },
];

const FIRST_36_BITS: &[Case] = &[
    // 16K RW
    Case {
        iova: 0xf_9234_c000,
        phys: 0xe_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x7c9, 0x4000_4001), word(0x4000_4000, 0xd3, 0xf_ff0e_f012_4003)],
    },
    // 16K RO
    Case {
        iova: 0xf_9235_0000,
        phys: 0xe_f012_8000,
        size: 0x4000,
        prot: "R",
        words: &[word(0x4000_4000, 0xd4, 0xf_ff0e_f012_8083)],
    },
];

const FIRST_4K: &[Case] = &[
    // 4K RW TTBR0
    Case {
        iova: 0x1234_5000,
        phys: 0xe_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x91, 0x4000_4001), word(0x4000_4000, 0x145, 0xf_ff0e_f012_3003)],
    },
    // 4K RO TTBR1
    Case {
        iova: 0x5234_5000,
        phys: 0xe_f012_4000,
        size: 0x1000,
        prot: "R",
        words: &[word(0x4000_1000, 0x91, 0x4000_5001), word(0x4000_5000, 0x145, 0xf_ff0e_f012_4083)],
    },
    // 4K WO TTBR2
    Case {
        iova: 0x9234_5000,
        phys: 0xe_f012_5000,
        size: 0x1000,
        prot: "W",
        words: &[word(0x4000_2000, 0x91, 0x4000_6001), word(0x4000_6000, 0x145, 0xf_ff0e_f012_5103)],
    },
    // 4K RW TTBR3
    Case {
        iova: 0xd234_5000,
        phys: 0xe_f012_6000,
        size: 0x1000,
        prot: "RW",
        words: &[word(0x4000_3000, 0x91, 0x4000_7001), word(0x4000_7000, 0x145, 0xf_ff0e_f012_6003)],
    },
];

const SECOND: &[Case] = &[
    // 16K RW CACHE
    Case {
        iova: 0xf_9234_c000,
        phys: 0xde_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x7c9, 0x400_0401), word(0x4000_4000, 0xd3, 0xf_ff0d_ef01_2401)],
    },
    // 16K RO CACHE
    Case {
        iova: 0xf_9235_0000,
        phys: 0x3de_f012_8000,
        size: 0x4000,
        prot: "RC",
        words: &[word(0x4000_4000, 0xd4, 0xf_ff3d_ef01_2805)],
    },
    // 16K WO CACHE
    Case {
        iova: 0xf_9235_4000,
        phys: 0x1de_f012_c000,
        size: 0x4000,
        prot: "WC",
        words: &[word(0x4000_4000, 0xd5, 0xf_ff1d_ef01_2c09)],
    },
    // 16K RW uncached
    Case {
        iova: 0xf_9235_8000,
        phys: 0x2de_f013_0000,
        size: 0x4000,
        prot: "RW",
        words: &[word(0x4000_4000, 0xd6, 0xf_ff2d_ef01_3003)],
    },
    // 16K MMIO
    Case {
        iova: 0xf_9235_c000,
        phys: 0x2_bd00_0000,
        size: 0x4000,
        prot: "RWM",
        words: &[word(0x4000_4000, 0xd7, 0xf_ff00_2bd0_0003)],
    },
];

const SECOND_42_BITS: &[Case] = &[
    // 16K RW CACHE
    Case {
        iova: 0x29f_9234_c000,
        phys: 0x3de_f012_4000,
        size: 0x4000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x29, 0x400_0401),
            word(0x4000_4000, 0x7c9, 0x400_0801),
            word(0x4000_8000, 0xd3, 0xf_ff3d_ef01_2401),
        ],
    },
    // 16K RO CACHE
    Case {
        iova: 0x29f_9235_0000,
        phys: 0x3de_f012_8000,
        size: 0x4000,
        prot: "RC",
        words: &[word(0x4000_8000, 0xd4, 0xf_ff3d_ef01_2805)],
    },
    // 16K RW low
    Case {
        iova: 0x4000,
        phys: 0x3de_f012_c000,
        size: 0x4000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x0, 0x400_0c01),
            word(0x4000_c000, 0x0, 0x400_1001),
            word(0x4001_0000, 0x1, 0xf_ff3d_ef01_2c01),
        ],
    },
];

#[test]
fn golden_words() {
    check::<Dart1<14>>(BASE, &IoPgtableCfg::new(32), FIRST_16K);
    check::<Dart1<14>>(BASE, &IoPgtableCfg::new(36), FIRST_36_BITS);
    check::<Dart1<12>>(BASE, &IoPgtableCfg::new(32), FIRST_4K);
    check::<Dart2>(BASE, &IoPgtableCfg::new(36), SECOND);
    check::<Dart2>(BASE, &IoPgtableCfg::new(42), SECOND_42_BITS);
}

#[test]
fn altered_entries() {
    let first = |after, faults| Altered {
        iova: 0x9234_c000,
        table: 0x4000_4000,
        index: 0xd3,
        before: 0xf_ff0e_f012_4003,
        after,
        faults,
    };
    let altered = [
        first(0xf_ff0e_f012_4002, "rwx"),
        first(0xf_ff0e_f012_4083, "w"),
        first(0xf_ff0e_f012_4103, "rx"),
        first(0xf_ff0e_f012_4183, "rwx"),
    ];
    let cfg = IoPgtableCfg::new(32);
    check_altered::<Dart1<14>>(&cfg, FIRST_16K, dart::t8020_16k, &cfg, &altered);
    let second =
        |after, faults| Altered { iova: 0xf_9234_c000, before: 0xf_ff0d_ef01_2401, ..first(after, faults) };
    let altered = [
        second(0xf_ff0d_ef01_2400, "rwx"),
        second(0xf_ff0d_ef01_2405, "w"),
        second(0xf_ff0d_ef01_2409, "rx"),
        second(0xf_ff0d_ef01_240d, "rwx"),
        // Not cached.
        second(0xf_ff0d_ef01_2403, ""),
    ];
    let cfg = IoPgtableCfg::new(36);
    check_altered::<Dart2>(&cfg, SECOND, dart::t8110, &cfg, &altered);
}

fn registers<F: Format>(bits: u32) -> Registers {
    PageTable::<F>::new(Arc::new(Arena::new(16)), &IoPgtableCfg::new(bits)).expect("a table").registers()
}

#[test]
fn root_pointers_are_told() {
    let one = |levels| Registers::Dart { ttbr: [BASE, 0, 0, 0], ttbrs: 1, levels };
    assert_eq!(registers::<Dart1<14>>(32), one(2));
    assert_eq!(registers::<Dart1<14>>(36), one(2));
    assert_eq!(registers::<Dart1<12>>(30), one(2));
    let ttbr = [BASE, BASE + 0x1000, BASE + 0x2000, BASE + 0x3000];
    assert_eq!(registers::<Dart1<12>>(32), Registers::Dart { ttbr, ttbrs: 4, levels: 2 });
    assert_eq!(registers::<Dart2>(36), one(2));
    assert_eq!(registers::<Dart2>(42), one(3));
}

#[test]
fn what_a_dart_lacks_is_refused() {
    fn refused<F: Format>(cfg: IoPgtableCfg) -> Result<(), CfgError> {
        PageTable::<F>::new(Arc::new(Arena::new(16)), &cfg).map(drop)
    }
    assert_eq!(refused::<Dart1<12>>(IoPgtableCfg::new(33)), Err(CfgError::InputSize));
    assert_eq!(refused::<Dart1<12>>(IoPgtableCfg::new(21)), Err(CfgError::InputSize));
    assert_eq!(refused::<Dart1<14>>(IoPgtableCfg::new(37)), Err(CfgError::InputSize));
    assert_eq!(refused::<Dart2>(IoPgtableCfg::new(43)), Err(CfgError::InputSize));
    assert_eq!(refused::<Dart2>(IoPgtableCfg::new(36).with_quirks(Quirks::ARM_NS)), Err(CfgError::Quirks));
    let small = IoPgtableCfg { page_sizes: platform::PageSizes::from_bits(1 << 12), ..IoPgtableCfg::new(36) };
    assert_eq!(refused::<Dart2>(small), Err(CfgError::PageSizes));
}
