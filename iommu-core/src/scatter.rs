//! How a scatter list lies in one block of I/O addresses, and which segments a device sees (Linux: `iommu_dma_map_sg`,
//! `__finalise_sg`).

use dma_api::SgEntry;
use platform::{DmaAddr, PhysAddr};

/// Lays elements out one after the other, each in granules of its own. An element that would cross the device's segment
/// boundary is moved up to it: the block is aligned to its size rounded up to a power of two, so offsets keep their place
/// relative to the boundary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    granule: u64,
    boundary_mask: u64,
    /// Bytes laid out so far.
    pub(crate) size: u64,
}

/// An element's granules in the block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Layout {
    pub(crate) fn new(granule: u64, boundary_mask: u64) -> Self {
        Self { granule, boundary_mask, size: 0 }
    }

    /// The same rules for the same list, from its start.
    pub(crate) fn restart(self) -> Self {
        Self { size: 0, ..self }
    }

    /// The layout of a whole list. `None` when the list is empty, has an empty element, or is too long.
    pub(crate) fn of(list: &[SgEntry], granule: u64, boundary_mask: u64) -> Option<Self> {
        let mut layout = Self::new(granule, boundary_mask);
        for entry in list {
            layout.place(entry)?;
        }
        (layout.size != 0).then_some(layout)
    }

    /// Places the next element.
    pub(crate) fn place(&mut self, entry: &SgEntry) -> Option<Place> {
        if entry.len == 0 {
            return None;
        }
        let len = entry.phys.span_in(entry.len as u64, self.granule)?;
        // The bytes left until the next boundary; 0 at a boundary, where nothing needs to move.
        let left = self.boundary_mask.wrapping_sub(self.size).wrapping_add(1) & self.boundary_mask;
        let offset = if left != 0 && left < len { self.size.checked_add(left)? } else { self.size };
        self.size = offset.checked_add(len)?;
        Some(Place { offset, len })
    }
}

/// Elements that follow each other in memory and in the block: one mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// How many elements are before it.
    pub(crate) before: usize,
    pub(crate) at: DmaAddr,
    pub(crate) phys: PhysAddr,
    pub(crate) len: u64,
}

/// The runs of a list, laid out from `iova` on.
pub(crate) fn runs(list: &[SgEntry], iova: DmaAddr, layout: Layout) -> impl Iterator<Item = Run> {
    let granule = layout.granule;
    let mut places = layout.restart();
    let elements = list.iter().enumerate().map_while(move |(before, entry)| {
        let Place { offset, len } = places.place(entry)?;
        Some(Run { before, at: iova.wrapping_add(offset), phys: entry.phys.align_down(granule), len })
    });
    let mut elements = elements.peekable();
    core::iter::from_fn(move || {
        let mut run = elements.next()?;
        let joins = |run: &Run, next: &Run| {
            run.at.wrapping_add(run.len) == next.at && run.phys.checked_add(run.len) == Some(next.phys)
        };
        while let Some(next) = elements.next_if(|next| joins(&run, next)) {
            run.len += next.len;
        }
        Some(run)
    })
}

/// Writes the device's segments into the list and returns how many there are. Elements that follow each other without a
/// gap join, as long as the segment is not longer than the device takes and does not begin anew at a boundary.
pub(crate) fn finalise(list: &mut [SgEntry], iova: DmaAddr, layout: Layout, max_segment: u64) -> usize {
    let Layout { granule, boundary_mask, .. } = layout;
    let mut layout = layout.restart();
    let mut segments = 0usize;
    let mut open = false;
    for index in 0..list.len() {
        let Some(place) = layout.place(&list[index]) else { break };
        let (phys, len) = (list[index].phys, list[index].len);
        let offset = phys.offset_in(granule);
        let start = iova.wrapping_add(place.offset);
        let joins = open && offset == 0 && start.get() & boundary_mask != 0 && segments > 0 && {
            let last = &list[segments - 1];
            last.dma_address.wrapping_add(last.dma_len as u64) == start
                && max_segment.saturating_sub(last.dma_len as u64) >= len as u64
        };
        if joins {
            list[segments - 1].dma_len += len;
        } else {
            list[segments].dma_address = start.wrapping_add(offset);
            list[segments].dma_len = len;
            segments += 1;
        }
        open = (offset + len as u64).is_multiple_of(granule);
    }
    if let Some(end) = list.get_mut(segments) {
        end.dma_len = 0;
    }
    segments
}
