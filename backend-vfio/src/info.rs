//! What the kernel says of a container's IOMMU (`VFIO_IOMMU_GET_INFO`).

use std::ops::RangeInclusive;

use iommu_core::{ResvRegion, ResvType};
use platform::{DmaAddr, PageSizes, Prot};
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};

use crate::capability::{chain, long, word};

/// What a container's IOMMU can do: from the kernel, nothing of it guessed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IommuInfo {
    /// The page sizes of its tables (`iova_pgsizes`).
    pub page_sizes: PageSizes,
    /// The I/O addresses that can be mapped, in rising order (`VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`).
    pub ranges: Vec<RangeInclusive<u64>>,
    /// How many more mappings the container has room for (`VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`), where the kernel says that.
    pub available: Option<u32>,
}

impl IommuInfo {
    /// Reads an answer of `VFIO_IOMMU_GET_INFO`, as long as the kernel made it: a header of 24 bytes, and capabilities.
    /// `None` when it names no page size or no range of I/O addresses: without these nobody knows what can be mapped.
    pub fn parse(answer: &[u8]) -> Option<Self> {
        let page_sizes = long(answer, 8)?;
        let has_capabilities = word(answer, 4)? & VFIO_IOMMU_INFO_CAPS != 0;
        let first = word(answer, 16).filter(|_| has_capabilities)?;
        let mut ranges = Vec::new();
        let mut available = None;
        for capability in chain(answer, first) {
            match u32::from(capability.id) {
                VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    let count = capability.word(8)? as usize;
                    for index in 0..count {
                        let at = 16 + 16 * index;
                        ranges.push(capability.long(at)?..=capability.long(at + 8)?);
                    }
                }
                VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => available = capability.word(8),
                _ => {}
            }
        }
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| *range.start());
        let known = page_sizes != 0 && !ranges.is_empty();
        known.then_some(Self { page_sizes: PageSizes::from_bits(page_sizes), ranges, available })
    }

    /// First and last I/O address that can be mapped; between them there may be holes.
    pub fn aperture(&self) -> (DmaAddr, DmaAddr) {
        let first = self.ranges.first().map_or(0, |range| *range.start());
        let last = self.ranges.iter().map(|range| *range.end()).max().unwrap_or(0);
        (DmaAddr::new(first), DmaAddr::new(last))
    }

    /// The holes: what firmware and hardware have taken, windows for message interrupts among it. (VFIO does not say which
    /// is which.)
    pub fn reserved(&self) -> Vec<ResvRegion> {
        let mut holes = Vec::new();
        let mut next = self.ranges.first().map(|range| *range.start());
        for range in &self.ranges {
            if let Some(start) = next.filter(|start| start < range.start()) {
                holes.push(ResvRegion {
                    start: DmaAddr::new(start),
                    len: range.start() - start,
                    kind: ResvType::Reserved,
                    prot: Prot::empty(),
                });
            }
            next = next.max(range.end().checked_add(1));
        }
        holes
    }
}
