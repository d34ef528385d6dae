//! The table of operations behind a device.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use platform::{DmaAddr, PhysAddr};

use crate::forward::forward_members;
use crate::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, IovaOps, PageMemory, Quarantined, SgEntry,
};

/// How memory becomes visible to a device (Linux: `struct dma_map_ops`; an IOMMU's, a bounce pool's, or none at all).
///
/// Drivers use [`crate::Device`] and the safe types; this is what backends implement. Linux's other names are methods over
/// these: `map_page` and `map_resource` (members before 6.18) are [`crate::Device::map_page`] and
/// [`crate::Device::map_resource`]; `get_sgtable` is [`crate::Device::sg_table`], since coherent memory is where the platform
/// says that it is; and `mmap`, which lets others see coherent memory, is [`crate::CoherentView`].
///
/// The members that map are `#[track_caller]`, and so is every implementation of them: [`crate::Checked`] knows which line of
/// the driver called, also through `dyn`.
///
/// # Safety
/// Safe types rely on what these calls return:
/// - memory from `alloc` and `alloc_pages` is zeroed RAM that nobody else uses, mapped for the device at the returned address,
///   until it is freed;
/// - `map_phys` and `map_sg` return addresses at which the device reaches exactly the given memory (or a copy that is copied
///   back by the unmap), in the given direction only where an IOMMU enforces it;
/// - `map_foreign` always makes a copy: the device never reaches the given memory, which is read, and where the device
///   writes is written, only during this call, the syncs and an unmap that returns `Ok`;
/// - when an unmap or `free` returns `Ok`, the device cannot reach the memory any more, to the extent that the backend's
///   documentation promises (DESIGN: strict behind an IOMMU always; elsewhere on trust).
pub unsafe trait DmaMapOps: Send + Sync + fmt::Debug {
    /// Allocates zeroed memory for CPU and device together, aligned to a page (Linux: `alloc`; `dma_alloc_attrs`).
    ///
    /// # Errors
    /// [`DmaError`] with the reason.
    #[track_caller]
    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError>;

    /// Frees it (Linux: `free`; `dma_free_attrs`).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory: it is kept and never reused.
    ///
    /// # Safety
    /// `memory` and `attrs` are from one `alloc` of these ops, freed once; the CPU does not use it any more.
    unsafe fn free(&self, dev: &DeviceParms, memory: CoherentMemory, attrs: Attrs)
    -> Result<(), Quarantined>;

    /// Allocates zeroed pages that CPU and device use in turns: mapped at one run of device addresses, but with
    /// [`Attrs::FORCE_CONTIGUOUS`] only also in one piece of memory (Linux: `alloc_pages_op`, and `dma_alloc_noncontiguous`).
    /// By default they are coherent memory, which is all of that.
    ///
    /// # Errors
    /// [`DmaError`] with the reason.
    #[track_caller]
    fn alloc_pages(
        &self,
        dev: &DeviceParms,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        let _ = dir;
        self.alloc(dev, size, attrs).map(PageMemory::from)
    }

    /// Frees them (Linux: `free_pages`, and `dma_free_noncontiguous`).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory: it is kept and never reused.
    ///
    /// # Safety
    /// The arguments are those of one `alloc_pages` of these ops, freed once; the CPU does not use the memory any more.
    unsafe fn free_pages(
        &self,
        dev: &DeviceParms,
        memory: PageMemory,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let _ = dir;
        let PageMemory { dma, size, pieces } = memory;
        // SAFETY: the default `alloc_pages` made the one piece, by `alloc`.
        pieces.iter().try_for_each(|piece| unsafe {
            self.free(dev, CoherentMemory { cpu: piece.cpu, dma, size }, attrs)
        })
    }

    /// Maps `len` bytes of physical memory for streaming (Linux: `map_phys`; `dma_map_phys`).
    ///
    /// # Errors
    /// [`DmaError`] with the reason; nothing stays mapped.
    ///
    /// # Safety
    /// The memory stays valid, and nobody has a reference to it that the direction forbids, until it is unmapped.
    #[track_caller]
    unsafe fn map_phys(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError>;

    /// Ends a mapping of [`DmaMapOps::map_phys`] or [`DmaMapOps::map_foreign`] (Linux: `unmap_phys`).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory.
    ///
    /// # Safety
    /// The arguments are those of one map of these ops, unmapped once.
    unsafe fn unmap_phys(
        &self,
        dev: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined>;

    /// Maps `len` bytes at `cpu` that are not the machine's RAM, or not in one piece, through a bounce pool: the data is
    /// copied now and by the syncs and the unmap. No counterpart in Linux, whose heap is RAM.
    ///
    /// # Errors
    /// [`DmaError::NotRam`] by default; [`DmaError::TooLargeForBounce`] and [`DmaError::BouncePoolFull`].
    ///
    /// # Safety
    /// As [`DmaMapOps::map_phys`], and the memory is initialised.
    #[track_caller]
    unsafe fn map_foreign(
        &self,
        dev: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        let _ = (dev, cpu, len, dir, attrs);
        Err(DmaError::NotRam)
    }

    /// Maps a scatter list and writes the segments into the entries' `dma` fields; returns how many there are (Linux:
    /// `map_sg`). By default each element is mapped for itself.
    ///
    /// # Errors
    /// [`DmaError`] with the reason, [`DmaError::InvalidLength`] for an empty list or element; nothing stays mapped, but with
    /// [`DmaError::NotUndone`] the device may still reach any of the memory.
    ///
    /// # Safety
    /// As [`DmaMapOps::map_phys`], for each element.
    #[track_caller]
    unsafe fn map_sg(
        &self,
        dev: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        // A segment of no bytes ends the list for the unmap.
        if list.is_empty() || list.iter().any(|entry| entry.len == 0) {
            return Err(DmaError::InvalidLength(0));
        }
        for index in 0..list.len() {
            let SgEntry { phys, len, .. } = list[index];
            // SAFETY: the caller's promise holds for each element.
            match unsafe { self.map_phys(dev, phys, len, dir, attrs) } {
                Ok(address) => {
                    list[index].dma_address = address;
                    list[index].dma_len = len;
                }
                Err(error) => {
                    // SAFETY: these were mapped just now, by the same ops with the same direction.
                    let undone =
                        unsafe { self.unmap_sg(dev, &list[..index], dir, attrs | Attrs::SKIP_CPU_SYNC) };
                    return Err(undone.err().map_or(error, DmaError::NotUndone));
                }
            }
        }
        Ok(list.len())
    }

    /// Ends a mapping of [`DmaMapOps::map_sg`] (Linux: `unmap_sg`). `list` is the whole list that was mapped, not only
    /// its segments.
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach a part of the memory, for the first such part.
    ///
    /// # Safety
    /// The list is as `map_sg` left it, unmapped once, with the same direction.
    unsafe fn unmap_sg(
        &self,
        dev: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let mut result = Ok(());
        for entry in list.iter().take_while(|entry| entry.dma_len != 0) {
            // SAFETY: each segment was mapped for itself by the default `map_sg`.
            let unmapped = unsafe { self.unmap_phys(dev, entry.dma_address, entry.dma_len, dir, attrs) };
            result = result.and(unmapped);
        }
        result
    }

    /// Hands a part of a mapping to the CPU: what the device wrote is seen (Linux: `sync_single_for_cpu`).
    ///
    /// # Safety
    /// The range lies in one live mapping of these ops, made with `dir`.
    unsafe fn sync_for_cpu(&self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        let _ = (dev, address, len, dir);
    }

    /// Hands a part of a mapping to the device: what the CPU wrote is seen (Linux: `sync_single_for_device`).
    ///
    /// # Safety
    /// The range lies in one live mapping of these ops, made with `dir`.
    unsafe fn sync_for_device(&self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        let _ = (dev, address, len, dir);
    }

    /// Hands a mapped list to the CPU (Linux: `sync_sg_for_cpu`). By default each segment for itself.
    ///
    /// # Safety
    /// The list is as `map_sg` left it, still mapped, with the same direction.
    unsafe fn sync_sg_for_cpu(&self, dev: &DeviceParms, list: &[SgEntry], dir: Direction) {
        for segment in list.iter().take_while(|entry| entry.dma_len != 0) {
            // SAFETY: the caller's promise: each segment is part of a live mapping.
            unsafe { self.sync_for_cpu(dev, segment.dma_address, segment.dma_len, dir) };
        }
    }

    /// Hands a mapped list to the device (Linux: `sync_sg_for_device`). By default each segment for itself.
    ///
    /// # Safety
    /// As [`DmaMapOps::sync_sg_for_cpu`].
    unsafe fn sync_sg_for_device(&self, dev: &DeviceParms, list: &[SgEntry], dir: Direction) {
        for segment in list.iter().take_while(|entry| entry.dma_len != 0) {
            // SAFETY: the caller's promise: each segment is part of a live mapping.
            unsafe { self.sync_for_device(dev, segment.dma_address, segment.dma_len, dir) };
        }
    }

    /// The two-step interface, for ops that have I/O addresses to take (Linux: `use_dma_iommu`). Without it
    /// [`crate::DmaIova`] maps piece by piece.
    fn iova_ops(&self) -> Option<Box<dyn IovaOps + '_>> {
        None
    }

    /// Whether a device with this mask can be served (Linux: `dma_supported`).
    fn dma_supported(&self, dev: &DeviceParms, mask: u64) -> bool {
        let _ = (dev, mask);
        true
    }

    /// The smallest mask that reaches everything that these ops may hand out (Linux: `get_required_mask`).
    fn required_mask(&self, dev: &DeviceParms) -> u64 {
        let _ = dev;
        u64::MAX
    }

    /// The longest single mapping, in bytes (Linux: `max_mapping_size`).
    fn max_mapping_size(&self, dev: &DeviceParms) -> usize {
        let _ = dev;
        usize::MAX
    }

    /// The longest mapping that is still fast, in bytes (Linux: `opt_mapping_size`).
    fn opt_mapping_size(&self) -> usize {
        usize::MAX
    }

    /// The mask of the granule in which elements of a scatter list can be merged; 0 when they cannot (Linux:
    /// `get_merge_boundary`).
    fn merge_boundary(&self) -> u64 {
        0
    }
}

// SAFETY: every member is handed to the ops behind the pointer, whose promises hold.
unsafe impl<T: DmaMapOps + ?Sized> DmaMapOps for &T {
    forward_members!(self => (**self));
}

// SAFETY: as above.
unsafe impl<T: DmaMapOps + ?Sized> DmaMapOps for Arc<T> {
    forward_members!(self => (**self));
}
