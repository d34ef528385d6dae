//! The mock format word by word: the entries were computed apart.

mod common;
mod mock2k;
mod walkers;

use common::image::{Altered, Case, check, check_altered, word, words};
use common::{BASE, Bed};
use io_pgtable::IoPgtableCfg;
use mock2k::Mock2k;
use walkers::mock2k::look;

const CASES: &[Case] = &[
    // 2K RW
    Case {
        iova: 0x7ed_cba9_8800,
        phys: 0x5_abcd_ef01_2800,
        size: 0x800,
        prot: "RW",
        words: &[
            word(0x4000_0000, 0xf, 0x400_0100_0001),
            word(0x4000_1000, 0x6d, 0x400_0140_0001),
            word(0x4000_1400, 0x65, 0x400_0180_0001),
            word(0x4000_1800, 0x6a, 0x400_01c0_0001),
            word(0x4000_1c00, 0x31, 0x5abc_def0_1280_0003),
        ],
    },
    // 2K RO CACHE
    Case {
        iova: 0x7ed_cba9_9000,
        phys: 0x5_abcd_ef01_3000,
        size: 0x800,
        prot: "RC",
        words: &[word(0x4000_1c00, 0x32, 0x5abc_def0_1300_004b)],
    },
    // 2K WO
    Case {
        iova: 0x7ed_cba9_9800,
        phys: 0x5_abcd_ef01_3800,
        size: 0x800,
        prot: "W",
        words: &[word(0x4000_1c00, 0x33, 0x5abc_def0_1380_0007)],
    },
    // 2K MMIO NOEXEC
    Case {
        iova: 0x7ed_cba9_a000,
        phys: 0xfee0_0000,
        size: 0x800,
        prot: "RWNM",
        words: &[word(0x4000_1c00, 0x34, 0xfee_0000_0033)],
    },
    // 2K PRIV
    Case {
        iova: 0x7ed_cba9_a800,
        phys: 0x5_abcd_ef01_4800,
        size: 0x800,
        prot: "RWP",
        words: &[word(0x4000_1c00, 0x35, 0x5abc_def0_1480_0083)],
    },
    // 8K contig RW
    Case {
        iova: 0x7ed_cba9_c000,
        phys: 0x5_abcd_ef01_6000,
        size: 0x2000,
        prot: "RW",
        words: &[words(0x4000_1c00, 0x38, 0x5abc_def0_1600_0803, 4, 0x80_0000)],
    },
    // 32K contig RO
    Case {
        iova: 0x7ed_cbaa_0000,
        phys: 0x5_abcd_ef02_0000,
        size: 0x8000,
        prot: "R",
        words: &[words(0x4000_1c00, 0x40, 0x5abc_def0_2000_100b, 16, 0x80_0000)],
    },
    // 256K RW
    Case {
        iova: 0x7ed_cbac_0000,
        phys: 0x5_abcd_ef04_0000,
        size: 0x4_0000,
        prot: "RW",
        words: &[word(0x4000_1800, 0x6b, 0x5abc_def0_4000_0003)],
    },
    // 1M contig RW
    Case {
        iova: 0x7ed_cbb0_0000,
        phys: 0x5_abcd_ef10_0000,
        size: 0x10_0000,
        prot: "RW",
        words: &[words(0x4000_1800, 0x6c, 0x5abc_def1_0000_0803, 4, 0x4000_0000)],
    },
    // 32M RO
    Case {
        iova: 0x7ed_ce00_0000,
        phys: 0x5_abcd_ee00_0000,
        size: 0x200_0000,
        prot: "R",
        words: &[word(0x4000_1400, 0x67, 0x5abc_dee0_0000_000b)],
    },
    // 4M contig RW
    Case {
        iova: 0x7ed_cbc0_0000,
        phys: 0x5_abcd_ef40_0000,
        size: 0x40_0000,
        prot: "RW",
        words: &[words(0x4000_1800, 0x70, 0x5abc_def4_0000_1003, 16, 0x4000_0000)],
    },
    // 2K last page
    Case {
        iova: 0xfff_ffff_f800,
        phys: 0x7_ffff_ffff_f800,
        size: 0x800,
        prot: "RW",
        words: &[
            word(0x4000_0000, 0x1f, 0x400_0200_0001),
            word(0x4000_2000, 0x7f, 0x400_0240_0001),
            word(0x4000_2400, 0x7f, 0x400_0280_0001),
            word(0x4000_2800, 0x7f, 0x400_02c0_0001),
            word(0x4000_2c00, 0x7f, 0x7fff_ffff_ff80_0003),
        ],
    },
];

#[test]
fn golden_words() {
    check::<Mock2k>(BASE, &IoPgtableCfg::new(44), CASES);
}

#[test]
fn altered_entries() {
    let leaf = |after, faults| Altered {
        iova: 0x7ed_cba9_8800,
        table: 0x4000_1c00,
        index: 0x31,
        before: 0x5abc_def0_1280_0003,
        after,
        faults,
    };
    let altered = [
        leaf(0x5abc_def0_1280_0002, "rwx"),
        leaf(0x5abc_def0_1280_0007, "r"),
        leaf(0x5abc_def0_1280_000b, "w"),
        leaf(0x5abc_def0_1280_000f, "rwx"),
        leaf(0x5abc_def0_1280_0013, "x"),
        leaf(0x5abc_def0_1280_0083, "rwx"),
        // A, D, and software's bits.
        leaf(0x5abc_def0_1280_0303, ""),
        leaf(0x5abc_def0_12bf_e003, ""),
        // A run without its others.
        leaf(0x5abc_def0_1280_0803, "rwx"),
        // A pointer in the lowest level, bit 63.
        leaf(0x5abc_def0_1280_0001, "rwx"),
        leaf(0xdabc_def0_1280_0003, "rwx"),
    ];
    let cfg = IoPgtableCfg::new(44);
    check_altered::<Mock2k>(&cfg, CASES, look, &cfg, &altered);
}

/// A table is a quarter of a page frame, and so is what it takes.
#[test]
fn tables_are_smaller_than_pages() {
    let bed = Bed::<Mock2k>::of(&IoPgtableCfg::new(44), 8);
    bed.must_map(0, 0x800, 0x800, 1);
    assert_eq!(bed.arena.live_bytes(), 4096 + 4 * 1024);
    assert_eq!(bed.root() % 256, 0);
}
