//! Memory for a device: frames in one piece, or in as many as the machine has left, behind one run of I/O addresses (Linux:
//! `__iommu_dma_alloc_pages`).

use alloc::vec::Vec;
use core::ptr::NonNull;

use dma_api::{Attrs, CoherentMemory, DeviceParms, DmaError, PageMemory, PagePiece, Quarantined};
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

    /// Takes frames one by one and shows them to the CPU in one piece, where the platform can (Linux: `iommu_dma_alloc_remap`).
    ///
    /// # Errors
    /// As [`IommuDma::alloc_frames`]; [`DmaError::NotUndone`] when the platform could not and the IOMMU did not answer.
    #[doc(alias = "iommu_dma_alloc_remap")]
    #[cold]
    pub(super) fn alloc_remapped(
        &self,
        parms: &DeviceParms,
        size: usize,
        prot: Prot,
        attrs: Attrs,
    ) -> Result<CoherentMemory, DmaError> {
        let memory = self.alloc_frames(parms, size, prot, attrs | Attrs::ALLOC_SINGLE_PAGES)?;
        let dma = memory.dma;
        let pieces = memory.pieces.iter();
        let pieces: Vec<_> = pieces.map(|piece| (self.window.phys(piece.cpu.as_ptr()), piece.len)).collect();
        // SAFETY: the frames are this allocation's until it is freed, which ends the mapping first.
        let Some(cpu) = (unsafe { self.platform.vmap(&pieces) }) else {
            // SAFETY: taken just now, and nobody has been told.
            unsafe { self.free_frames(memory) }.map_err(DmaError::NotUndone)?;
            return Err(DmaError::OutOfMemory);
        };
        self.remapped.lock().insert(dma, memory);
        Ok(CoherentMemory { cpu, dma, size })
    }

    /// The frames of remapped memory, which the CPU sees in one piece no more; `None` for memory that was not remapped.
    ///
    /// # Safety
    /// The memory is of this allocator, and the CPU does not use it any more.
    pub(super) unsafe fn take_remapped(&self, memory: &CoherentMemory) -> Option<PageMemory> {
        let pages = self.remapped.lock().remove(&memory.dma)?;
        let len = pages.pieces.iter().map(|piece| piece.len).sum();
        // SAFETY: the caller's promise; it was made of these pieces.
        unsafe { self.platform.vunmap(memory.cpu, len) };
        Some(pages)
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
