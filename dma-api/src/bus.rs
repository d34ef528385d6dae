//! Which memory a bus shows to its devices, and where.

use alloc::boxed::Box;
use alloc::vec::Vec;

use platform::{DmaAddr, PhysAddr};

/// Memory that a bus shows to its devices in one piece, at a constant distance (Linux: `struct bus_dma_region`; a
/// `dma-ranges` entry of a device tree).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusRange {
    /// Where it begins in memory.
    pub phys: PhysAddr,
    /// Where it begins for a device.
    pub dma: DmaAddr,
    /// Bytes in it.
    pub size: u64,
}

impl BusRange {
    /// All of memory but its last byte, at the addresses that it has.
    const IDENTITY: Self = Self { phys: PhysAddr::new(0), dma: DmaAddr::new(0), size: u64::MAX };

    /// The last address for a device, of a range that has been checked.
    fn last_dma(&self) -> DmaAddr {
        self.dma.wrapping_add(self.size - 1)
    }

    /// The last physical address that a device with this mask reaches.
    fn last_phys(&self, mask: u64) -> Option<PhysAddr> {
        let span = mask.checked_sub(self.dma.get())?;
        Some(self.phys.wrapping_add(span.min(self.size - 1)))
    }
}

/// What a bus shows to its devices (Linux: `dev->dma_range_map`).
#[derive(Clone, PartialEq, Eq, Debug)]
#[doc(alias = "dma_range_map")]
pub struct BusRanges(Option<Box<[BusRange]>>);

/// A range without bytes, one that leaves the 64-bit space, or one that has device addresses of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the bus cannot show {} bytes of memory at {} as {}", .0.size, .0.phys, .0.dma)]
pub struct InvalidBusRange(pub BusRange);

impl BusRanges {
    /// Memory at its physical addresses, as on most machines.
    pub const fn identity() -> Self {
        Self(None)
    }

    /// Several ranges. Memory that is in more than one is mapped through the first.
    ///
    /// # Errors
    /// [`InvalidBusRange`] with the first range that cannot be.
    pub fn new(ranges: impl Into<Box<[BusRange]>>) -> Result<Self, InvalidBusRange> {
        let ranges = ranges.into();
        for (index, range) in ranges.iter().enumerate() {
            let last = range.phys.last_of(range.size).and(range.dma.last_of(range.size));
            let last = last.ok_or(InvalidBusRange(*range))?;
            // Otherwise an address would not say which memory it leads to.
            if ranges[..index].iter().any(|other| other.dma <= last && range.dma <= other.last_dma()) {
                return Err(InvalidBusRange(*range));
            }
        }
        Ok(Self(Some(ranges)))
    }

    #[inline]
    fn ranges(&self) -> &[BusRange] {
        self.0.as_deref().unwrap_or(&[BusRange::IDENTITY])
    }

    /// Where a device finds memory from `phys` to `last`, when one of the ranges holds all of it (Linux: `phys_to_dma`).
    #[doc(alias = "phys_to_dma")]
    #[inline]
    pub fn to_dma(&self, phys: PhysAddr, last: PhysAddr) -> Option<DmaAddr> {
        self.ranges().iter().find_map(|range| {
            let offset = phys.get().checked_sub(range.phys.get())?;
            let end = last.get().checked_sub(range.phys.get())?;
            (end < range.size).then(|| range.dma.wrapping_add(offset))
        })
    }

    /// The memory at a device's address (Linux: `dma_to_phys`).
    #[doc(alias = "dma_to_phys")]
    #[inline]
    pub fn to_phys(&self, address: DmaAddr) -> Option<PhysAddr> {
        self.ranges().iter().find_map(|range| {
            let offset = address.get().checked_sub(range.dma.get())?;
            (offset < range.size).then(|| range.phys.wrapping_add(offset))
        })
    }

    /// The addresses, first and last, at which a device finds no memory; none on a bus that shows all of it.
    pub fn gaps(&self) -> Vec<(DmaAddr, DmaAddr)> {
        let Some(ranges) = self.0.as_deref() else { return Vec::new() };
        let mut shown: Vec<_> = ranges.iter().map(|range| (range.dma, range.last_dma())).collect();
        shown.sort_unstable();
        let mut gaps = Vec::new();
        let mut next = Some(DmaAddr::new(0));
        for (first, last) in shown {
            if let Some(start) = next.filter(|start| *start < first) {
                gaps.push((start, first.wrapping_add(u64::MAX)));
            }
            next = last.checked_add(1);
        }
        gaps.extend(next.map(|start| (start, DmaAddr::new(u64::MAX))));
        gaps
    }

    /// For each range of which a device with this mask reaches something, the last physical address that it reaches.
    pub(crate) fn limits(&self, mask: u64) -> impl Iterator<Item = PhysAddr> + '_ {
        self.ranges().iter().filter_map(move |range| range.last_phys(mask))
    }

    /// Where a device finds the highest byte of RAM, which ends at `last`. `None` when it finds none.
    pub(crate) fn last_dma(&self, last: PhysAddr) -> Option<DmaAddr> {
        let lasts = self.ranges().iter().filter_map(|range| {
            let span = last.get().checked_sub(range.phys.get())?;
            Some(range.dma.wrapping_add(span.min(range.size - 1)))
        });
        lasts.max()
    }
}
