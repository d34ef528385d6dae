//! Reserved regions: I/O addresses that are not for everybody.

use alloc::vec::Vec;
use core::fmt;

use platform::{DmaAddr, Prot};

/// What a reserved region is for (Linux: `enum iommu_resv_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum ResvType {
    /// Must be mapped to itself always (`IOMMU_RESV_DIRECT`).
    Direct,
    /// Must be mapped to itself until a driver takes over (`IOMMU_RESV_DIRECT_RELAXABLE`).
    DirectRelaxable,
    /// Must never be mapped (`IOMMU_RESV_RESERVED`).
    Reserved,
    /// Message interrupts, which hardware does not translate (`IOMMU_RESV_MSI`).
    Msi,
    /// A window in which software maps where message interrupts go, for hardware that translates them
    /// (`IOMMU_RESV_SW_MSI`).
    SwMsi,
}

impl fmt::Display for ResvType {
    /// As Linux's sysfs shows it: both kinds of windows for messages are one there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::DirectRelaxable => "direct-relaxable",
            Self::Reserved => "reserved",
            Self::Msi | Self::SwMsi => "msi",
        })
    }
}

/// A range of I/O addresses that is not for everybody (Linux: `struct iommu_resv_region`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResvRegion {
    /// First address.
    pub start: DmaAddr,
    /// Length in bytes.
    pub len: u64,
    /// What it is for.
    pub kind: ResvType,
    /// Permissions of a direct mapping.
    pub prot: Prot,
}

impl fmt::Display for ResvRegion {
    /// As a line of Linux's sysfs: first address, last address, type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.start.get().wrapping_add(self.len.wrapping_sub(1));
        write!(f, "{:#018x} {last:#018x} {}", self.start.get(), self.kind)
    }
}

/// Regions in order of their addresses, those of one type that touch or overlap as one (Linux: `iommu_insert_resv_region`).
/// What is empty, or wraps around, is left out.
pub(crate) fn merged(regions: impl IntoIterator<Item = ResvRegion>) -> Vec<ResvRegion> {
    let last = |region: &ResvRegion| region.start.last_of(region.len);
    let mut regions: Vec<_> = regions.into_iter().filter(|region| last(region).is_some()).collect();
    regions.sort_by_key(|region| (region.start, region.kind, region.len));
    let mut merged: Vec<ResvRegion> = Vec::new();
    for region in regions {
        let same = merged.iter_mut().rev().find(|before| before.kind == region.kind);
        match same {
            Some(before)
                if last(before).is_some_and(|end| region.start.get() <= end.get().saturating_add(1)) =>
            {
                let end = last(before).max(last(&region)).map_or(0, DmaAddr::get);
                before.len = (end - before.start.get()).saturating_add(1);
                before.prot |= region.prot;
            }
            _ => merged.push(region),
        }
    }
    merged
}
