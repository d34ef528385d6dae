//! Memory for a device: frames in one piece, or in as many as the machine has left, behind one run of I/O addresses (Linux:
//! `__iommu_dma_alloc_pages`).

use alloc::vec::Vec;
use core::ptr::NonNull;

use dma_api::{Attrs, DeviceParms, DmaError, PageMemory, PagePiece, Quarantined};
use platform::{DmaAddr, FrameRequest, PhysAddr, Prot, trace};

use super::IommuDma;

/// No larger piece is looked for, in bytes: it is hard to find.
const LARGEST_PIECE: usize = 2 << 20;

impl IommuDma {
    /// Takes frames and maps them one after the other.
    ///
    /// # Errors
    /// [`DmaError`] with the reason; nothing is taken.
    pub(super) fn alloc_frames(
        &self,
        parms: &DeviceParms,
        size: usize,
        prot: Prot,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        self.check_alive()?;
        if size == 0 {
            return Err(DmaError::InvalidLength(size));
        }
        let granule = usize::try_from(self.granule).map_err(|_| DmaError::InvalidLength(size))?;
        let bytes = size.checked_next_multiple_of(granule).ok_or(DmaError::InvalidLength(size))?;
        let (first, smallest) = if attrs.contains(Attrs::FORCE_CONTIGUOUS) {
            (bytes, bytes)
        } else if attrs.contains(Attrs::ALLOC_SINGLE_PAGES) {
            (granule, granule)
        } else {
            (LARGEST_PIECE, granule)
        };
        let mut pieces = Vec::new();
        let taken = self.take_frames(bytes, first, smallest, &mut pieces);
        let mapped = taken.and_then(|()| self.map_frames(parms.coherent_limit(), &pieces, bytes, prot));
        match mapped {
            Ok(dma) => Ok(PageMemory { dma, size, pieces: pieces.into() }),
            Err(error) => {
                // SAFETY: they were taken just now, and no device reaches them: a failed map was taken back.
                unsafe { self.give_frames_back(&pieces) };
                Err(error)
            }
        }
    }

    /// Unmaps and frees them.
    ///
    /// # Safety
    /// The memory is of one `alloc_frames`, freed once, and the CPU does not use it any more.
    pub(super) unsafe fn free_frames(&self, memory: PageMemory) -> Result<(), Quarantined> {
        let bytes = memory.size.next_multiple_of(self.granule as usize);
        // SAFETY: the caller's promise.
        unsafe { self.unmap_range(memory.dma, bytes) }?;
        if self.domain.is_lazy() {
            // Unlike a driver's buffer, pages that go back to the allocator must be out of reach at once.
            self.cookie().queue.drain(&self.domain, &self.cookie().iovas);
            if self.cookie().queue.has_failed() {
                return Err(Quarantined { address: memory.dma, len: memory.size });
            }
        }
        // SAFETY: the frames were taken by `alloc_frames`, and no device reaches them any more.
        unsafe { self.give_frames_back(&memory.pieces) };
        Ok(())
    }

    /// Takes `bytes` in pieces of at most `largest`, smaller ones when the machine has no such piece left.
    fn take_frames(
        &self,
        bytes: usize,
        mut largest: usize,
        smallest: usize,
        pieces: &mut Vec<PagePiece>,
    ) -> Result<(), DmaError> {
        let granule = self.granule as usize;
        let mut left = bytes;
        while left != 0 {
            let len = largest.min(left);
            let request = FrameRequest { align: granule, ..FrameRequest::anywhere(len) };
            match self.platform.alloc(request) {
                Ok(phys) => {
                    let Some(cpu) = NonNull::new(self.window.ptr(phys)) else {
                        // SAFETY: they were taken just now, and nobody has seen them.
                        unsafe { self.platform.free(phys, len) };
                        return Err(DmaError::OutOfMemory);
                    };
                    pieces.push(PagePiece { cpu, len });
                    left -= len;
                }
                // What was not found is not looked for again.
                Err(_) if len > smallest => largest = (len.next_power_of_two() / 2).max(smallest),
                Err(_) => return Err(DmaError::OutOfMemory),
            }
        }
        Ok(())
    }

    /// Maps pieces at one run of new I/O addresses.
    fn map_frames(
        &self,
        limit: u64,
        pieces: &[PagePiece],
        bytes: usize,
        prot: Prot,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("__iommu_dma_map", 0, bytes as u64);
        let (iova, size, _) = self.take_iova(limit, PhysAddr::new(0), bytes)?;
        let frames = pieces.iter().map(|piece| (self.window.phys(piece.cpu.as_ptr()), piece.len as u64));
        // SAFETY: the frames are this allocation's own until they are freed, and so are the addresses.
        let (done, result) = unsafe { self.domain.map_sg(iova, frames, prot) };
        match result {
            Ok(()) => Ok(iova),
            Err(error) => Err(self.undo(iova, done, size, error)),
        }
    }

    /// # Safety
    /// The pieces are of one `take_frames`, given back once, and nobody reaches them.
    unsafe fn give_frames_back(&self, pieces: &[PagePiece]) {
        for piece in pieces {
            // SAFETY: the caller's promise.
            unsafe { self.platform.free(self.window.phys(piece.cpu.as_ptr()), piece.len) };
        }
    }
}
