//! RISC-V tables word by word, as Linux 7.3 writes them and the reference model of the RISC-V IOMMU reads them. Bits: Privileged
//! Architecture, sections Sv39, Sv48, Sv57, Svnapot and Svpbmt.

mod common;
mod walkers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Arena;
use common::image::{Case, check, word, words};
use io_pgtable::{IoPageTable, IoPgtableCfg, PageTable, Quirks, RiscV, RiscV32};
use platform::{Extent, FrameRequest, Frames, OutOfFrames, PhysAddr, Prot, Window};

const BASE: u64 = 0x4000_0000;

#[test]
fn sv39() {
    let cfg = IoPgtableCfg::new(39);
    const CASES: &[Case] = &[
        // 4K RW NOEXEC
        Case {
            iova: 0x12_3456_7000,
            phys: 0xab_cdef_0123_4000,
            size: 0x1000,
            prot: "RWN",
            words: &[
                word(0x4000_0000, 0x48, 0x1000_0401),
                word(0x4000_1000, 0x1a2, 0x1000_0801),
                word(0x4000_2000, 0x167, 0x2a_f37b_c048_d0d7),
            ],
        },
        // 4K RWX
        Case {
            iova: 0x12_3456_8000,
            phys: 0xab_cdef_0123_5000,
            size: 0x1000,
            prot: "RW",
            words: &[word(0x4000_2000, 0x168, 0x2a_f37b_c048_d4df)],
        },
        // 4K RO NOEXEC
        Case {
            iova: 0x12_3456_9000,
            phys: 0xab_cdef_0123_6000,
            size: 0x1000,
            prot: "RN",
            words: &[word(0x4000_2000, 0x169, 0x2a_f37b_c048_d853)],
        },
        // 4K WO flags NOEXEC
        Case {
            iova: 0x12_3456_a000,
            phys: 0xab_cdef_0123_7000,
            size: 0x1000,
            prot: "WN",
            words: &[word(0x4000_2000, 0x16a, 0x2a_f37b_c048_dcd7)],
        },
        // 4K MMIO
        Case {
            iova: 0x12_3456_b000,
            phys: 0xfee0_0000,
            size: 0x1000,
            prot: "WNM",
            words: &[word(0x4000_2000, 0x16b, 0x3fb8_00d7)],
        },
        // 64K NAPOT RW
        Case {
            iova: 0x12_3457_0000,
            phys: 0xab_cdef_0124_0000,
            size: 0x1_0000,
            prot: "RWN",
            words: &[words(0x4000_2000, 0x170, 0x802a_f37b_c049_20d7, 16, 0)],
        },
        // 2M RW
        Case {
            iova: 0x12_3460_0000,
            phys: 0xab_cdef_0140_0000,
            size: 0x20_0000,
            prot: "RWN",
            words: &[word(0x4000_1000, 0x1a3, 0x2a_f37b_c050_00d7)],
        },
        // 1G RO
        Case {
            iova: 0x12_8000_0000,
            phys: 0xab_cdef_4000_0000,
            size: 0x4000_0000,
            prot: "RN",
            words: &[word(0x4000_0000, 0x4a, 0x2a_f37b_d000_0053)],
        },
        // 4K RW upper half
        Case {
            iova: 0xffff_ffd2_3456_7000,
            phys: 0x8000_5000,
            size: 0x1000,
            prot: "RWN",
            words: &[
                word(0x4000_0000, 0x148, 0x1000_0c01),
                word(0x4000_3000, 0x1a2, 0x1000_1001),
                word(0x4000_4000, 0x167, 0x2000_14d7),
            ],
        },
    ];
    check::<RiscV>(BASE, &cfg, CASES);
}

#[test]
fn sv48() {
    let cfg = IoPgtableCfg::new(48);
    const CASES: &[Case] = &[
        // 4K RW NOEXEC
        Case {
            iova: 0x1234_5678_9000,
            phys: 0xab_cdef_0123_4000,
            size: 0x1000,
            prot: "RWN",
            words: &[
                word(0x4000_0000, 0x24, 0x1000_0401),
                word(0x4000_1000, 0xd1, 0x1000_0801),
                word(0x4000_2000, 0xb3, 0x1000_0c01),
                word(0x4000_3000, 0x189, 0x2a_f37b_c048_d0d7),
            ],
        },
        // 64K NAPOT RO
        Case {
            iova: 0x1234_5679_0000,
            phys: 0xab_cdef_0124_0000,
            size: 0x1_0000,
            prot: "RN",
            words: &[words(0x4000_3000, 0x190, 0x802a_f37b_c049_2053, 16, 0)],
        },
        // 2M RW
        Case {
            iova: 0x1234_5780_0000,
            phys: 0xab_cdef_0140_0000,
            size: 0x20_0000,
            prot: "RWN",
            words: &[word(0x4000_2000, 0xbc, 0x2a_f37b_c050_00d7)],
        },
        // 1G RW
        Case {
            iova: 0x1234_8000_0000,
            phys: 0xab_cdef_4000_0000,
            size: 0x4000_0000,
            prot: "RWN",
            words: &[word(0x4000_1000, 0xd2, 0x2a_f37b_d000_00d7)],
        },
        // 512G RW
        Case {
            iova: 0x1300_0000_0000,
            phys: 0xab_cd80_0000_0000,
            size: 0x80_0000_0000,
            prot: "RWN",
            words: &[word(0x4000_0000, 0x26, 0x2a_f360_0000_00d7)],
        },
    ];
    check::<RiscV>(BASE, &cfg, CASES);
}

#[test]
fn sv57() {
    let cfg = IoPgtableCfg::new(57);
    const CASES: &[Case] = &[
        // 4K RW NOEXEC
        Case {
            iova: 0xfe_dcba_9876_5000,
            phys: 0xab_cdef_0123_4000,
            size: 0x1000,
            prot: "RWN",
            words: &[
                word(0x4000_0000, 0xfe, 0x1000_0401),
                word(0x4000_1000, 0x1b9, 0x1000_0801),
                word(0x4000_2000, 0xea, 0x1000_0c01),
                word(0x4000_3000, 0xc3, 0x1000_1001),
                word(0x4000_4000, 0x165, 0x2a_f37b_c048_d0d7),
            ],
        },
        // 512G RO
        Case {
            iova: 0xfe_dd00_0000_0000,
            phys: 0xab_cd80_0000_0000,
            size: 0x80_0000_0000,
            prot: "RN",
            words: &[word(0x4000_1000, 0x1ba, 0x2a_f360_0000_0053)],
        },
        // 256T RW
        Case {
            iova: 0x1_0000_0000_0000,
            phys: 0xab_0000_0000_0000,
            size: 0x1_0000_0000_0000,
            prot: "RWN",
            words: &[word(0x4000_0000, 0x1, 0x2a_c000_0000_00d7)],
        },
        // 4K upper half
        Case {
            iova: 0xff00_0000_0000_0000,
            phys: 0x5000,
            size: 0x1000,
            prot: "RWN",
            words: &[
                word(0x4000_0000, 0x100, 0x1000_1401),
                word(0x4000_5000, 0x0, 0x1000_1801),
                word(0x4000_6000, 0x0, 0x1000_1c01),
                word(0x4000_7000, 0x0, 0x1000_2001),
                word(0x4000_8000, 0x0, 0x14d7),
            ],
        },
    ];
    check::<RiscV>(BASE, &cfg, CASES);
}

#[test]
fn sv48_with_memory_types() {
    let cfg = IoPgtableCfg::new(48).with_quirks(Quirks::RISCV_SVPBMT);
    const CASES: &[Case] = &[
        // 4K RW CACHE (PMA)
        Case {
            iova: 0x1234_5678_9000,
            phys: 0xab_cdef_0123_4000,
            size: 0x1000,
            prot: "RWCN",
            words: &[
                word(0x4000_0000, 0x24, 0x1000_0401),
                word(0x4000_1000, 0xd1, 0x1000_0801),
                word(0x4000_2000, 0xb3, 0x1000_0c01),
                word(0x4000_3000, 0x189, 0x2a_f37b_c048_d0d7),
            ],
        },
        // 4K RW non-cached (NC)
        Case {
            iova: 0x1234_5678_a000,
            phys: 0xab_cdef_0123_5000,
            size: 0x1000,
            prot: "RWN",
            words: &[word(0x4000_3000, 0x18a, 0x202a_f37b_c048_d4d7)],
        },
        // 4K MMIO (IO)
        Case {
            iova: 0x1234_5678_b000,
            phys: 0xfee0_0000,
            size: 0x1000,
            prot: "RWNM",
            words: &[word(0x4000_3000, 0x18b, 0x4000_0000_3fb8_00d7)],
        },
        // 64K NAPOT NC
        Case {
            iova: 0x1234_5679_0000,
            phys: 0xab_cdef_0124_0000,
            size: 0x1_0000,
            prot: "RWN",
            words: &[words(0x4000_3000, 0x190, 0xa02a_f37b_c049_20d7, 16, 0)],
        },
        // 2M RW CACHE
        Case {
            iova: 0x1234_5780_0000,
            phys: 0xab_cdef_0140_0000,
            size: 0x20_0000,
            prot: "RWCN",
            words: &[word(0x4000_2000, 0xbc, 0x2a_f37b_c050_00d7)],
        },
    ];
    check::<RiscV>(BASE, &cfg, CASES);
}

/// The reference model reads them so.
#[test]
fn sv32() {
    const CASES: &[Case] = &[
        // 4K RW NOEXEC
        Case {
            iova: 0x1234_5000,
            phys: 0x2_abcd_e000,
            size: 0x1000,
            prot: "RWN",
            words: &[word(0x4000_0000, 0x48, 0x1000_0401), word(0x4000_1000, 0x345, 0xaaf3_78d7)],
        },
        // 4K RWX
        Case {
            iova: 0x1234_6000,
            phys: 0x2_abcd_f000,
            size: 0x1000,
            prot: "RW",
            words: &[word(0x4000_1000, 0x346, 0xaaf3_7cdf)],
        },
        // 4K RO
        Case {
            iova: 0x1234_7000,
            phys: 0x2_abce_0000,
            size: 0x1000,
            prot: "RN",
            words: &[word(0x4000_1000, 0x347, 0xaaf3_8053)],
        },
        // 4K WO flags
        Case {
            iova: 0x1234_8000,
            phys: 0x2_abce_1000,
            size: 0x1000,
            prot: "WN",
            words: &[word(0x4000_1000, 0x348, 0xaaf3_84d7)],
        },
        // 4K MMIO
        Case {
            iova: 0x1234_9000,
            phys: 0xfee0_0000,
            size: 0x1000,
            prot: "RWNM",
            words: &[word(0x4000_1000, 0x349, 0x3fb8_00d7)],
        },
        // 4M RW
        Case {
            iova: 0x1240_0000,
            phys: 0x3_ffc0_0000,
            size: 0x40_0000,
            prot: "RWN",
            words: &[word(0x4000_0000, 0x49, 0xfff0_00d7)],
        },
        // 4M RO
        Case {
            iova: 0xffc0_0000,
            phys: 0x1_5540_0000,
            size: 0x40_0000,
            prot: "RN",
            words: &[word(0x4000_0000, 0x3ff, 0x5550_0053)],
        },
    ];
    check::<RiscV32>(BASE, &IoPgtableCfg::new(32), CASES);
}

/// Frames whose reach is written down.
#[derive(Debug)]
struct Reach {
    arena: Arena,
    limit: AtomicU64,
}

// SAFETY: the frames are the arena's.
unsafe impl Frames for Reach {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        self.limit.fetch_max(request.limit.get(), Ordering::Relaxed);
        self.arena.alloc(request)
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.arena.free(at, size) };
    }

    fn window(&self) -> Window {
        self.arena.window()
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        self.arena.translate(at, len)
    }
}

/// The upper half of a link between tables that wait to be freed must read as an empty entry.
#[test]
fn tables_of_sv32_lie_below_4_gib() {
    let frames = Arc::new(Reach { arena: Arena::new(8), limit: AtomicU64::new(0) });
    let table = PageTable::<RiscV32>::new(frames.clone(), &IoPgtableCfg::new(32)).expect("a table");
    // SAFETY: nothing walks the table.
    let mapped = unsafe { table.map_pages(0x1000.into(), 0x3_ffff_f000.into(), 0x1000, 1, Prot::READ) };
    assert_eq!((mapped, table.table_pages()), ((0x1000, Ok(())), 2));
    assert_eq!(frames.limit.load(Ordering::Relaxed), 0xffff_ffff);
}
