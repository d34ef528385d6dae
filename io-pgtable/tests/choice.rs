//! Formats that are chosen at run time.

mod common;
mod walkers;

use std::sync::Arc;

use common::{Arena, BASE, RW};
use io_pgtable::{IoPgtableCfg, IoPgtableFmt, Parts, Quirks, Registers, Root, alloc_io_pgtable_ops};
use platform::PageSizes;
use walkers::{Walk, amdv1, arm_lpae, arm_v7s, dart, mali_lpae, riscv, sound, vtdss, x86_64};

/// A page of the smallest size goes where the format's own walker finds it.
#[test]
fn each_name_is_its_format() {
    let sizes = |bits| PageSizes::from_bits(bits);
    let cfg = |bits| IoPgtableCfg { oas: 36, ..IoPgtableCfg::new(bits) };
    let from_16k = |bits| IoPgtableCfg { page_sizes: sizes(!0 << 14), ..cfg(bits) };
    let from_64k = |bits| IoPgtableCfg { page_sizes: sizes(!0 << 16), ..cfg(bits) };
    let formats: [(IoPgtableFmt, IoPgtableCfg, u64, Walk); 20] = [
        (IoPgtableFmt::AmdV1, cfg(39), 1 << 12, amdv1::walk_byte),
        (IoPgtableFmt::X86_64, cfg(48).with_quirks(Quirks::SIGN_EXTEND), 1 << 12, x86_64::walk),
        (IoPgtableFmt::VtdSs, cfg(39), 1 << 12, vtdss::look),
        (IoPgtableFmt::RiscV, cfg(39), 1 << 12, riscv::walk),
        (IoPgtableFmt::RiscV, cfg(32), 1 << 12, riscv::sv32),
        (IoPgtableFmt::Arm64Lpa2S1, cfg(52), 1 << 12, arm_lpae::stage1_lpa2::<12>),
        (IoPgtableFmt::Arm64Lpa2S1, from_16k(52), 1 << 14, arm_lpae::stage1_lpa2::<14>),
        (IoPgtableFmt::Arm64LpaeS1, cfg(39), 1 << 12, arm_lpae::stage1::<12>),
        (IoPgtableFmt::Arm64LpaeS1, from_16k(39), 1 << 14, arm_lpae::stage1::<14>),
        (IoPgtableFmt::Arm64LpaeS1, from_64k(39), 1 << 16, arm_lpae::stage1::<16>),
        (IoPgtableFmt::Arm64LpaeS2, cfg(36), 1 << 12, arm_lpae::stage2::<12>),
        (IoPgtableFmt::Arm64LpaeS2, from_16k(36), 1 << 14, arm_lpae::stage2::<14>),
        (IoPgtableFmt::Arm64LpaeS2, from_64k(36), 1 << 16, arm_lpae::stage2::<16>),
        (IoPgtableFmt::Arm32LpaeS1, cfg(32), 1 << 12, arm_lpae::stage1_of_32),
        (IoPgtableFmt::Arm32LpaeS2, cfg(36), 1 << 12, arm_lpae::stage2_of_32),
        (IoPgtableFmt::ArmV7s, cfg(32), 1 << 12, arm_v7s::look),
        (IoPgtableFmt::MaliLpae, cfg(39), 1 << 12, mali_lpae::look),
        (IoPgtableFmt::AppleDart, cfg(32), 1 << 12, dart::t8020_4k),
        (IoPgtableFmt::AppleDart, from_16k(32), 1 << 14, dart::t8020_16k),
        (IoPgtableFmt::AppleDart2, from_16k(36), 1 << 14, dart::t8110),
    ];
    for (format, cfg, size, walk) in formats {
        let arena = Arc::new(Arena::new(256));
        let parts = Parts { frames: arena.clone(), cache: None, change_top: None };
        let table = alloc_io_pgtable_ops(format, parts, &cfg).expect("a table");
        assert_eq!(table.page_sizes().smallest(), size, "{format:?}");
        let (iova, phys) = (0x1234_0000, 0xf012_0000);
        // SAFETY: nothing walks the table but this thread.
        let mapped = unsafe { table.map_pages(iova.into(), phys.into(), size, 1, RW) };
        assert_eq!(mapped, (size, Ok(())), "{format:?}");
        let found = sound(walk(&arena, table.root(), &cfg, iova + 0x123)).expect("a page");
        assert_eq!((found.phys, found.size, found.write), (phys + 0x123, size, true), "{format:?}");
        drop(table);
        assert_eq!(arena.live(), 0, "{format:?}");
    }
}

#[test]
fn formats_without_registers_of_their_own_tell_the_top() {
    let parts = Parts { frames: Arc::new(Arena::new(1)), cache: None, change_top: None };
    let table = alloc_io_pgtable_ops(IoPgtableFmt::AmdV1, parts, &IoPgtableCfg::new(48)).expect("a table");
    assert_eq!(table.registers(), Registers::Root(Root { phys: BASE.into(), level: 4 }));
}
