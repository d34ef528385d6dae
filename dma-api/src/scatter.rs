//! Scatter lists.

use platform::{DmaAddr, PhysAddr};

/// One element of a scatter list (Linux: `struct scatterlist`): memory going in, device segments coming out.
///
/// As in Linux a map writes its segments into the entries' `dma` fields from the front, and there may be fewer segments
/// than elements: the two halves of an entry then have nothing to do with each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SgEntry {
    /// Physical address of the element.
    pub phys: PhysAddr,
    /// Its length in bytes.
    pub len: usize,
    /// Where the device finds a segment, after a map.
    pub dma_address: DmaAddr,
    /// The segment's length in bytes; 0 in the first entry after the last segment.
    pub dma_len: usize,
}

impl SgEntry {
    /// An element not mapped yet.
    pub const fn new(phys: PhysAddr, len: usize) -> Self {
        Self { phys, len, dma_address: DmaAddr::new(0), dma_len: 0 }
    }
}
