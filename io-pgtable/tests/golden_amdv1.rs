//! Tables word by word, against bits that other code than ours made: Linux 7.3 wrote the first two images, the rest are
//! the examples that Linux, QEMU, openvmm and VirtualBox read alike.

mod common;
mod walkers;

use std::sync::Arc;

use common::Arena;
use common::image::{Case, check, word, words as run};
use io_pgtable::{AmdV1, IoPageTable, IoPgtableCfg, PageTable, Quirks};
use platform::{DmaAddr, PhysAddr, Prot};

const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Read, write and forced coherence; Linux forces it for every page.
const RWC: Prot = RW.union(Prot::CACHE);

fn table(levels: u32) -> (Arc<Arena>, PageTable<AmdV1>) {
    let arena = Arc::new(Arena::new(32));
    let table = PageTable::new(arena.clone(), &common::amdv1_cfg(levels)).unwrap();
    (arena, table)
}

fn map(table: &PageTable<AmdV1>, iova: u64, phys: u64, size: u64, prot: Prot) {
    // SAFETY: no device walks the table.
    let (done, result) = unsafe { table.map_pages(DmaAddr::new(iova), PhysAddr::new(phys), size, 1, prot) };
    assert_eq!((done, result), (size, Ok(())));
}

/// `count` equal words from entry `index` of the table at `at` on.
fn words(at: u64, index: u64, count: u64, value: u64) -> impl Iterator<Item = (u64, u64)> {
    (index..index + count).map(move |index| (at + 8 * index, value))
}

fn assert_image(arena: &Arena, mut expected: Vec<(u64, u64)>) {
    expected.sort_unstable();
    let found = arena.non_zero();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "found {:#x?}, expected {:#x?}", found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

const THREE_LEVELS: &[Case] = &[
    // 4K RW
    Case {
        iova: 0x76_5432_1000,
        phys: 0xa_bcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x1d9, 0x6000_0000_4000_1401),
            word(0x4000_1000, 0xa1, 0x6000_0000_4000_2201),
            word(0x4000_2000, 0x121, 0x700a_bcde_f012_3001),
        ],
    },
    // 4K RO
    Case {
        iova: 0x76_5432_2000,
        phys: 0xa_bcde_f012_4000,
        size: 0x1000,
        prot: "RC",
        words: &[word(0x4000_2000, 0x122, 0x300a_bcde_f012_4001)],
    },
    // 4K WO
    Case {
        iova: 0x76_5432_3000,
        phys: 0xa_bcde_f012_5000,
        size: 0x1000,
        prot: "WC",
        words: &[word(0x4000_2000, 0x123, 0x500a_bcde_f012_5001)],
    },
    // 8K RW
    Case {
        iova: 0x76_5432_4000,
        phys: 0xa_bcde_f012_4000,
        size: 0x2000,
        prot: "RWC",
        words: &[run(0x4000_2000, 0x124, 0x700a_bcde_f012_4e01, 2, 0x0)],
    },
    // 64K RW
    Case {
        iova: 0x76_5433_0000,
        phys: 0xa_bcde_f013_0000,
        size: 0x1_0000,
        prot: "RWC",
        words: &[run(0x4000_2000, 0x130, 0x700a_bcde_f013_7e01, 16, 0x0)],
    },
    // 1M RO
    Case {
        iova: 0x76_5440_0000,
        phys: 0xa_bcde_f020_0000,
        size: 0x10_0000,
        prot: "RC",
        words: &[
            word(0x4000_1000, 0xa2, 0x6000_0000_4000_3201),
            run(0x4000_3000, 0x0, 0x300a_bcde_f027_fe01, 256, 0x0),
        ],
    },
    // 2M RW
    Case {
        iova: 0x76_5460_0000,
        phys: 0xa_bcde_f040_0000,
        size: 0x20_0000,
        prot: "RWC",
        words: &[word(0x4000_1000, 0xa3, 0x700a_bcde_f040_0001)],
    },
    // 4M RW
    Case {
        iova: 0x76_5480_0000,
        phys: 0xa_bcde_f080_0000,
        size: 0x40_0000,
        prot: "RWC",
        words: &[run(0x4000_1000, 0xa4, 0x700a_bcde_f09f_fe01, 2, 0x0)],
    },
    // 1G RW
    Case {
        iova: 0x56_4000_0000,
        phys: 0xa_bcde_4000_0000,
        size: 0x4000_0000,
        prot: "RWC",
        words: &[word(0x4000_0000, 0x159, 0x700a_bcde_4000_0001)],
    },
];

const FOUR_LEVELS: &[Case] = &[
    // 4K RW
    Case {
        iova: 0x1234_5678_9000,
        phys: 0xa_bcde_f012_3000,
        size: 0x1000,
        prot: "RWC",
        words: &[
            word(0x4000_0000, 0x24, 0x6000_0000_4000_1601),
            word(0x4000_1000, 0xd1, 0x6000_0000_4000_2401),
            word(0x4000_2000, 0xb3, 0x6000_0000_4000_3201),
            word(0x4000_3000, 0x189, 0x700a_bcde_f012_3001),
        ],
    },
    // 256G RW
    Case {
        iova: 0x1240_0000_0000,
        phys: 0xa_bc00_0000_0000,
        size: 0x40_0000_0000,
        prot: "RWC",
        words: &[run(0x4000_1000, 0x100, 0x700a_bc1f_ffff_fe01, 256, 0x0)],
    },
    // 1T RW
    Case {
        iova: 0x1300_0000_0000,
        phys: 0xa_0000_0000_0000,
        size: 0x100_0000_0000,
        prot: "RWC",
        words: &[run(0x4000_0000, 0x26, 0x700a_007f_ffff_fe01, 2, 0x0)],
    },
];

#[test]
fn three_and_four_levels_as_linux_writes_them() {
    check::<AmdV1>(0x4000_0000, &common::amdv1_cfg(3), THREE_LEVELS);
    check::<AmdV1>(0x4000_0000, &common::amdv1_cfg(4), FOUR_LEVELS);
}

/// One row: log2 of the size, its level, how many copies, and the entry for read and write at 12_4000_0000h.
const SIZES: [(u32, u32, u64, u64); 13] = [
    (12, 1, 1, 0x6000_0012_4000_0001),
    (13, 1, 2, 0x6000_0012_4000_0e01),
    (14, 1, 4, 0x6000_0012_4000_1e01),
    (15, 1, 8, 0x6000_0012_4000_3e01),
    (16, 1, 16, 0x6000_0012_4000_7e01),
    (17, 1, 32, 0x6000_0012_4000_fe01),
    (18, 1, 64, 0x6000_0012_4001_fe01),
    (19, 1, 128, 0x6000_0012_4003_fe01),
    (20, 1, 256, 0x6000_0012_4007_fe01),
    (21, 2, 1, 0x6000_0012_4000_0001),
    (22, 2, 2, 0x6000_0012_401f_fe01),
    (29, 2, 256, 0x6000_0012_4fff_fe01),
    (30, 3, 1, 0x6000_0012_4000_0001),
];

#[test]
fn every_size_and_right() {
    // Bits 62:60 of each entry: IW, IR, FC.
    let rights = [
        (RW, 0x6000_0000_0000_0000_u64),
        (Prot::READ, 0x2000_0000_0000_0000),
        (Prot::WRITE, 0x4000_0000_0000_0000),
        (RWC, 0x7000_0000_0000_0000),
        // What AMD's format has no bit for changes nothing.
        (RW | Prot::NOEXEC | Prot::MMIO | Prot::PRIV, 0x6000_0000_0000_0000),
    ];
    for (shift, level, copies, entry) in SIZES {
        for (prot, bits) in rights {
            // A top of the very level that holds the page: no other words are in memory.
            let (arena, table) = table(level);
            map(&table, 0, 0x12_4000_0000, 1 << shift, prot);
            let entry = entry & 0x0fff_ffff_ffff_ffff | bits;
            assert_image(&arena, words(0x4000_0000, 0, copies, entry).collect());
        }
    }
}

#[test]
fn the_size_code_stands_beside_the_address() {
    let places = [
        (13, 1, 0x12_4000_2000, 0x6000_0012_4000_2e01),
        (14, 1, 0x12_4000_4000, 0x6000_0012_4000_5e01),
        (15, 1, 0x12_4000_8000, 0x6000_0012_4000_be01),
        (16, 1, 0x12_4003_0000, 0x6000_0012_4003_7e01),
        (16, 1, 0x12_345f_0000, 0x6000_0012_345f_7e01),
        (20, 1, 0x12_4030_0000, 0x6000_0012_4037_fe01),
        (22, 2, 0x12_4040_0000, 0x6000_0012_405f_fe01),
        (31, 3, 0x12_0000_0000, 0x6000_0012_3fff_fe01),
        (32, 3, 0x12_0000_0000, 0x6000_0012_7fff_fe01),
        // The largest page, at the highest address: bit 51 is the address, bit 50 the zero, below it ones.
        (51, 5, 0x8_0000_0000_0000, 0x600b_ffff_ffff_fe01),
    ];
    for (shift, level, phys, entry) in places {
        let (arena, table) = table(level);
        map(&table, 0, phys, 1 << shift, RW);
        let copies = 1 << ((shift - 12) % 9);
        assert_image(&arena, words(0x4000_0000, 0, copies, entry).collect());
    }
}

#[test]
fn pointers_name_the_level_below() {
    let (arena, table) = table(6);
    map(&table, 0, 0x12_4000_0000, 0x1000, RW);
    let image = vec![
        (0x4000_0000, 0x6000_0000_4000_1a01),
        (0x4000_1000, 0x6000_0000_4000_2801),
        (0x4000_2000, 0x6000_0000_4000_3601),
        (0x4000_3000, 0x6000_0000_4000_4401),
        (0x4000_4000, 0x6000_0000_4000_5201),
        (0x4000_5000, 0x6000_0012_4000_0001),
    ];
    assert_image(&arena, image);
}

#[test]
fn each_level_has_its_index_bits() {
    let (arena, table) = table(6);
    // 63:57, 56:48, 47:39, 38:30, 29:21, 20:12: a different index at each.
    map(
        &table,
        0x7f << 57 | 0x1fe << 48 | 0x1fd << 39 | 0x1fc << 30 | 0x1fb << 21 | 0x1fa << 12,
        0,
        0x1000,
        RW,
    );
    let places: Vec<u64> = arena.non_zero().iter().map(|(at, _)| at & 0xfff).collect();
    assert_eq!(places, [0x7f, 0x1fe, 0x1fd, 0x1fc, 0x1fb, 0x1fa].map(|index| 8 * index));
}

#[test]
fn the_page_sizes_are_all_powers_of_two_but_512_gib() {
    // Bits 12 to 51 but 39, cut to what a top of so many levels can hold: 12 + 9 bits and so on.
    let sizes = [
        (1, 0x1f_f000),
        (2, 0x3fff_f000),
        (3, 0x7f_ffff_f000),
        (4, 0xff7f_ffff_f000),
        (5, 0xf_ff7f_ffff_f000),
        (6, 0xf_ff7f_ffff_f000),
    ];
    for (levels, bits) in sizes {
        assert_eq!(table(levels).1.page_sizes().bits(), bits, "{levels} levels");
    }
}

#[test]
fn three_encrypted_levels() {
    let cfg = IoPgtableCfg {
        encryption: 1 << 47,
        oas: 47,
        ..IoPgtableCfg::new(39).with_quirks(Quirks::FORCE_COHERENCE)
    };
    const CASES: &[Case] = &[
        // 4K RW enc
        Case {
            iova: 0x76_5432_1000,
            phys: 0x1_2345_6000,
            size: 0x1000,
            prot: "RW",
            words: &[
                word(0x4000_0000, 0x1d9, 0x6000_8000_4000_1401),
                word(0x4000_1000, 0xa1, 0x6000_8000_4000_2201),
                word(0x4000_2000, 0x121, 0x7000_8001_2345_6001),
            ],
        },
        // 4K MMIO plain
        Case {
            iova: 0x76_5432_2000,
            phys: 0xfee0_0000,
            size: 0x1000,
            prot: "WM",
            words: &[word(0x4000_2000, 0x122, 0x5000_0000_fee0_0001)],
        },
        // 64K RW enc
        Case {
            iova: 0x76_5433_0000,
            phys: 0x1_2346_0000,
            size: 0x1_0000,
            prot: "RW",
            words: &[run(0x4000_2000, 0x130, 0x7000_8001_2346_7e01, 16, 0)],
        },
    ];
    check::<AmdV1>(0x4000_0000, &cfg, CASES);
}
