//! The formats, a file each, and the choice among them at run time.

mod amdv1;
mod riscv;
mod vtdss;
mod x86_64;

pub use amdv1::AmdV1;
pub use riscv::RiscV;
pub use vtdss::VtdSs;
pub use x86_64::X86_64;

use alloc::boxed::Box;

use crate::cfg::{CfgError, IoPgtableCfg};
use crate::engine::{PageTable, Parts};
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
    /// [`RiscV`].
    RiscV,
    /// [`VtdSs`].
    VtdSs,
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
    Ok(match format {
        IoPgtableFmt::AmdV1 => Box::new(PageTable::<AmdV1>::with_parts(parts, cfg)?),
        IoPgtableFmt::X86_64 => Box::new(PageTable::<X86_64>::with_parts(parts, cfg)?),
        IoPgtableFmt::VtdSs => Box::new(PageTable::<VtdSs>::with_parts(parts, cfg)?),
        IoPgtableFmt::RiscV => Box::new(PageTable::<RiscV>::with_parts(parts, cfg)?),
    })
}
