//! The formats, a file each, and the choice among them at run time.

mod amdv1;
mod arm_lpae;
mod arm_lpae_s1;
mod arm_lpae_s2;
mod arm_v7s;
mod dart;
mod mali_lpae;
mod riscv;
mod vtdss;
mod x86_64;

pub use amdv1::AmdV1;
pub use arm_lpae_s1::{Arm32LpaeS1, ArmLpa2S1, ArmLpaeS1};
pub use arm_lpae_s2::{Arm32LpaeS2, ArmLpaeS2};
pub use arm_v7s::ArmV7s;
pub use dart::{Dart, Dart1, Dart2};
pub use mali_lpae::MaliLpae;
pub use riscv::{RiscV, RiscV32};
pub use vtdss::VtdSs;
pub use x86_64::X86_64;

use alloc::boxed::Box;

use crate::cfg::{CfgError, IoPgtableCfg};
use crate::engine::{PageTable, Parts};
use crate::format::Format;
use crate::table::IoPageTable;

/// A format by name, for a choice at run time (Linux: `enum io_pgtable_fmt`).
#[doc(alias = "io_pgtable_fmt")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum IoPgtableFmt {
    /// [`AmdV1`] (`AMD_IOMMU_V1`).
    AmdV1,
    /// [`X86_64`] (`AMD_IOMMU_V2`).
    X86_64,
    /// [`VtdSs`].
    VtdSs,
    /// [`RiscV`], or [`RiscV32`] for 32 bits of I/O address.
    RiscV,
    /// [`ArmLpaeS1`] (`ARM_64_LPAE_S1`). Its granule is the smallest of 4, 16 and 64 KiB that the configuration has.
    Arm64LpaeS1,
    /// [`ArmLpa2S1`]. Its granule is 4 KiB if the configuration has them, else 16 KiB.
    Arm64Lpa2S1,
    /// [`ArmLpaeS2`] (`ARM_64_LPAE_S2`), the granule as for stage 1.
    Arm64LpaeS2,
    /// [`Arm32LpaeS1`] (`ARM_32_LPAE_S1`).
    Arm32LpaeS1,
    /// [`Arm32LpaeS2`] (`ARM_32_LPAE_S2`).
    Arm32LpaeS2,
    /// [`ArmV7s`] (`ARM_V7S`).
    ArmV7s,
    /// [`MaliLpae`] (`ARM_MALI_LPAE`).
    MaliLpae,
    /// [`Dart1`] (`APPLE_DART`). Pages are of 4 KiB if the configuration has them, else of 16 KiB.
    AppleDart,
    /// [`Dart2`] (`APPLE_DART2`).
    AppleDart2,
}

/// An empty table of a format that is chosen at run time (Linux: `alloc_io_pgtable_ops`). Who knows the format when he writes
/// the code takes a [`PageTable`].
///
/// # Errors
/// As [`PageTable::with_parts`].
pub fn alloc_io_pgtable_ops(
    format: IoPgtableFmt,
    parts: Parts,
    cfg: &IoPgtableCfg,
) -> Result<Box<dyn IoPageTable>, CfgError> {
    let granule_shift = [12, 14, 16].into_iter().find(|shift| cfg.page_sizes.contains(1 << shift));
    match (format, granule_shift) {
        (IoPgtableFmt::AmdV1, _) => boxed::<AmdV1>(parts, cfg),
        (IoPgtableFmt::X86_64, _) => boxed::<X86_64>(parts, cfg),
        (IoPgtableFmt::VtdSs, _) => boxed::<VtdSs>(parts, cfg),
        (IoPgtableFmt::RiscV, _) if cfg.ias == 32 => boxed::<RiscV32>(parts, cfg),
        (IoPgtableFmt::RiscV, _) => boxed::<RiscV>(parts, cfg),
        (IoPgtableFmt::Arm64LpaeS1, Some(14)) => boxed::<ArmLpaeS1<14>>(parts, cfg),
        (IoPgtableFmt::Arm64LpaeS1, Some(16)) => boxed::<ArmLpaeS1<16>>(parts, cfg),
        (IoPgtableFmt::Arm64LpaeS1, _) => boxed::<ArmLpaeS1<12>>(parts, cfg),
        (IoPgtableFmt::Arm64Lpa2S1, Some(12)) => boxed::<ArmLpa2S1<12>>(parts, cfg),
        (IoPgtableFmt::Arm64Lpa2S1, _) => boxed::<ArmLpa2S1<14>>(parts, cfg),
        (IoPgtableFmt::Arm64LpaeS2, Some(14)) => boxed::<ArmLpaeS2<14>>(parts, cfg),
        (IoPgtableFmt::Arm64LpaeS2, Some(16)) => boxed::<ArmLpaeS2<16>>(parts, cfg),
        (IoPgtableFmt::Arm64LpaeS2, _) => boxed::<ArmLpaeS2<12>>(parts, cfg),
        (IoPgtableFmt::Arm32LpaeS1, _) => boxed::<Arm32LpaeS1>(parts, cfg),
        (IoPgtableFmt::Arm32LpaeS2, _) => boxed::<Arm32LpaeS2>(parts, cfg),
        (IoPgtableFmt::ArmV7s, _) => boxed::<ArmV7s>(parts, cfg),
        (IoPgtableFmt::MaliLpae, _) => boxed::<MaliLpae>(parts, cfg),
        (IoPgtableFmt::AppleDart, Some(12)) => boxed::<Dart1<12>>(parts, cfg),
        (IoPgtableFmt::AppleDart, _) => boxed::<Dart1<14>>(parts, cfg),
        (IoPgtableFmt::AppleDart2, _) => boxed::<Dart2>(parts, cfg),
    }
}

fn boxed<F: Format>(parts: Parts, cfg: &IoPgtableCfg) -> Result<Box<dyn IoPageTable>, CfgError> {
    Ok(Box::new(PageTable::<F>::with_parts(parts, cfg)?))
}
