//! Tables of Mali GPUs word by word, as Linux 7.3 writes them. No hardware has seen them, and there is no specification.

mod common;
mod walkers;

use std::sync::Arc;

use common::image::{Altered, Case, check, check_altered, word};
use common::{Arena, BASE};
use io_pgtable::{CfgError, IoPageTable, IoPgtableCfg, MaliLpae, PageTable, Quirks, Registers};
use walkers::mali_lpae::look;

const FULL: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x1234_5678_9000,
        phys: 0xde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x4000_1003),
            word(0x4000_1000, 0xd1, 0x4000_2003),
            word(0x4000_2000, 0xb3, 0x4000_3003),
            word(0x4000_3000, 0x189, 0xde_f012_32c5),
        ],
    },
    // 4K RO CACHE
    Case {
        iova: 0x1234_5678_a000,
        phys: 0xde_f012_4000,
        size: 0x1000,
        prot: "RC",
        words: &[word(0x4000_3000, 0x18a, 0xde_f012_4245)],
    },
    // 4K WO CACHE
    Case {
        iova: 0x1234_5678_b000,
        phys: 0xde_f012_5000,
        size: 0x1000,
        prot: "WC",
        words: &[word(0x4000_3000, 0x18b, 0xde_f012_5285)],
    },
    // 4K RW uncached NOEXEC
    Case {
        iova: 0x1234_5678_c000,
        phys: 0xde_f012_6000,
        size: 0x1000,
        prot: "RWN",
        words: &[word(0x4000_3000, 0x18c, 0x60_00de_f012_62c1)],
    },
    // 4K MMIO
    Case {
        iova: 0x1234_5678_d000,
        phys: 0xfee0_0000,
        size: 0x1000,
        prot: "RWM",
        words: &[word(0x4000_3000, 0x18d, 0xfee0_02c9)],
    },
    // 2M RW CACHE
    Case {
        iova: 0x1234_5780_0000,
        phys: 0xde_f020_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_2000, 0xbc, 0xde_f020_02c5)],
    },
    // 1G RO CACHE
    Case {
        iova: 0x1234_8000_0000,
        phys: 0xde_4000_0000,
        size: 0x4000_0000,
        prot: "RC",
        words: &[word(0x4000_1000, 0xd2, 0xde_4000_0245)],
    },
];

const SMALL: &[Case] = &[
    // 4K RW CACHE
    Case {
        iova: 0x1_fedc_b000,
        phys: 0xde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x0, 0x4000_1003),
            word(0x4000_1000, 0x7, 0x4000_2003),
            word(0x4000_2000, 0x1f6, 0x4000_3003),
            word(0x4000_3000, 0x1cb, 0xde_f012_32c5),
        ],
    },
];

#[test]
fn golden_words() {
    check::<MaliLpae>(BASE, &IoPgtableCfg::new(48), FULL);
    // A unit of 33 bits looks up one entry of the top.
    check::<MaliLpae>(BASE, &IoPgtableCfg::new(39), SMALL);
}

#[test]
fn altered_entries() {
    let leaf = |after, faults| Altered {
        iova: 0x1234_5678_9000,
        table: 0x4000_3000,
        index: 0x189,
        before: 0xde_f012_32c5,
        after,
        faults,
    };
    let altered = [
        leaf(0xde_f012_32c4, "rwx"),
        // The type of ARM's own pages.
        leaf(0xde_f012_32c7, "rwx"),
        leaf(0xde_f012_3245, "w"),
        leaf(0xde_f012_3285, "r"),
        leaf(0x0060_00de_f012_32c5, "x"),
    ];
    let cfg = IoPgtableCfg::new(48);
    check_altered::<MaliLpae>(&cfg, FULL, look, &cfg, &altered);
}

#[test]
fn registers_and_refusals() {
    let table = |cfg| PageTable::<MaliLpae>::new(Arc::new(Arena::new(8)), &cfg);
    let registers = table(IoPgtableCfg::new(48)).expect("a table").registers();
    assert_eq!(registers, Registers::MaliLpae { transtab: BASE | 0x17, memattr: 0x88_8d88 });
    for bits in [33, 38, 49] {
        assert_eq!(table(IoPgtableCfg::new(bits)).map(drop), Err(CfgError::InputSize));
    }
    let quirky = IoPgtableCfg::new(48).with_quirks(Quirks::ARM_NS);
    assert_eq!(table(quirky).map(drop), Err(CfgError::Quirks));
}
