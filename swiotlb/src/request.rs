//! What a mapping asks of the place for its copy: address bits to keep, alignment, boundary, room.

use dma_api::{DeviceParms, DmaError};
use platform::frames::FRAME_SIZE;

use crate::area::Run;
use crate::{SEGMENT, SLOT_SIZE};

/// A run of slots to be found, and where it may begin.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) run: Run,
    /// The bits of the run's address that are not free to choose, and what they must be.
    fixed: u64,
    wanted: u64,
    /// The mask of the window that the data must not leave.
    boundary: u64,
}

/// The longest copy of an original that may be anywhere.
///
/// The bits to keep may put that many bytes before the data, in its segment as well as in the device's window. Linux takes
/// whole slots off, and forgets the window.
pub(crate) fn max_mapping_size(parms: &DeviceParms) -> usize {
    let (kept, boundary) = (parms.min_align_mask(), parms.segment_boundary());
    let segment = (SEGMENT as u64).saturating_sub(kept);
    segment.min((boundary - (kept & boundary)).saturating_add(1)) as usize
}

impl Request {
    /// A copy of `len` bytes for a device.
    #[inline]
    pub(crate) fn copy(
        parms: &DeviceParms,
        original: *mut u8,
        len: usize,
        alloc_align_mask: u64,
    ) -> Result<Self, DmaError> {
        if len == 0 {
            return Err(DmaError::InvalidLength(len));
        }
        let address = original.addr() as u64;
        // Without a mask, whole pages begin at pages.
        let page_mask =
            if len >= 4096 && alloc_align_mask == 0 && parms.min_align_mask() == 0 { 4095 } else { 0 };
        let align_mask = alloc_align_mask | (SLOT_SIZE as u64 - 1);
        let offset = (address & parms.min_align_mask() & align_mask) as usize;
        let high_mask = parms.min_align_mask() & !align_mask;
        // The least that the bits to keep put before the run in its segment, and before the data in the device's window:
        // when that leaves too little room, there is no place for it in any pool.
        let boundary = parms.segment_boundary();
        let before_run = (address & high_mask) as usize % SEGMENT;
        let before_data = address & parms.min_align_mask() & boundary;
        let size = len
            .checked_add(offset)
            // Up to a multiple: the mask stands for a power of two, so this is no division.
            .and_then(|size| size.checked_add(alloc_align_mask as usize))
            .map(|size| size & !(alloc_align_mask as usize))
            .filter(|&size| size <= SEGMENT - before_run && len as u64 - 1 <= boundary - before_data)
            .ok_or(DmaError::TooLargeForBounce { size: len, max: max_mapping_size(parms) })?;
        let run = Run {
            original: original.expose_provenance(),
            // All of these are at most a segment.
            len: len as u32,
            before: offset as u32,
            slots: size.div_ceil(SLOT_SIZE) as u32,
        };
        let fixed = align_mask | page_mask | high_mask;
        Ok(Self { run, fixed, wanted: address & high_mask, boundary })
    }

    /// Memory that is no copy of anything, aligned to the power of two that holds it (Linux: `swiotlb_alloc`).
    pub(crate) fn memory(size: usize) -> Result<Self, DmaError> {
        let whole = match size {
            0 => return Err(DmaError::InvalidLength(size)),
            1..=SEGMENT => size.next_power_of_two().max(FRAME_SIZE),
            _ => return Err(DmaError::TooLargeForBounce { size, max: SEGMENT }),
        };
        // No byte of it has an original.
        let run =
            Run { slots: size.next_multiple_of(FRAME_SIZE).div_ceil(SLOT_SIZE) as u32, ..Run::default() };
        Ok(Self { run, fixed: whole as u64 - 1, wanted: 0, boundary: u64::MAX })
    }

    /// Bytes of the run.
    pub(crate) fn size(&self) -> usize {
        self.run.slots as usize * SLOT_SIZE
    }

    /// Whether the run may begin at an address.
    #[inline]
    pub(crate) fn fits(&self, at: u64) -> bool {
        let data = at + u64::from(self.run.before);
        at & self.fixed == self.wanted
            && u64::from(self.run.len).saturating_sub(1) <= self.boundary - (data & self.boundary)
    }

    /// The bits to keep, if they are more than a place in a segment has.
    pub(crate) fn beyond_segment(&self) -> Option<usize> {
        (self.fixed >= SEGMENT as u64).then_some(self.fixed as usize)
    }

    /// The alignment of memory of its own, in which the run begins at [`Request::skip`].
    pub(crate) fn alignment(&self) -> usize {
        let fixed = (self.fixed as usize % SEGMENT + 1).next_power_of_two();
        (self.skip() + self.size()).next_power_of_two().max(fixed).max(FRAME_SIZE)
    }

    /// Bytes before the run in memory that is aligned for it.
    pub(crate) fn skip(&self) -> usize {
        self.wanted as usize % SEGMENT
    }
}
