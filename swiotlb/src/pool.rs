//! The pool (Linux: `struct io_tlb_mem`).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use platform::device_memory::{copy_in, copy_out};
use platform::sync::CpuLock;
use platform::{FrameRequest, PhysAddr, Platform, Window, cpu};

use crate::area::{Area, Run};
use crate::{SEGMENT_SLOTS, SLOT_SIZE};

/// Bytes in a segment.
const SEGMENT: usize = SEGMENT_SLOTS * SLOT_SIZE;

/// A pool that would not hold one segment, or for which there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no swiotlb pool of {0} bytes: it takes at least a segment of {min} bytes in one piece", min = SEGMENT)]
pub struct PoolTooSmall(pub usize);

/// Counters of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Slots in the pool (Linux: `io_tlb_nslabs`).
    pub slots: usize,
    /// Slots in use (Linux: `io_tlb_used`).
    pub used: usize,
    /// The most that were ever in use at once in each area, added up: never less than the most in use in the whole pool
    /// (Linux: `io_tlb_used_hiwater`).
    pub high_water: usize,
    /// Mappings made.
    pub maps: u64,
}

/// A pool of bounce buffers, in one piece of memory that devices reach.
///
/// The pool is divided into areas, each with a lock of its own; a CPU begins with its own area. A mapping is a run of slots
/// within a segment.
pub struct Swiotlb {
    start: PhysAddr,
    len: usize,
    window: Window,
    platform: Arc<dyn Platform>,
    /// A power of two of them. Their segments take turns in the pool, so that finding an address's area is no division.
    areas: Box<[crossbeam_utils::CachePadded<CpuLock<Area>>]>,
}

impl Swiotlb {
    /// A pool of `size` bytes at or below `limit`, with an area for each of `cpus` CPUs as far as there are segments. The
    /// areas are a power of two and all of one size, in whole segments; `size` is rounded down to that.
    ///
    /// # Errors
    /// [`PoolTooSmall`].
    pub fn new(
        platform: &Arc<dyn Platform>,
        size: usize,
        limit: PhysAddr,
        cpus: usize,
    ) -> Result<Self, PoolTooSmall> {
        let segments = size / SEGMENT;
        if segments == 0 {
            return Err(PoolTooSmall(size));
        }
        let areas = cpus.clamp(1, segments).next_power_of_two();
        let areas = if areas > segments { areas / 2 } else { areas };
        let each = segments / areas;
        let len = areas * each * SEGMENT;
        // Aligned to a segment, so that a mapping of a segment's size keeps any boundary of that size.
        let request = FrameRequest { size: len, align: SEGMENT, limit };
        let start = platform.alloc(request).map_err(|_| PoolTooSmall(size))?;
        Ok(Self {
            start,
            len,
            window: platform.window(),
            platform: Arc::clone(platform),
            areas: (0..areas)
                .map(|_| crossbeam_utils::CachePadded::new(CpuLock::new(Area::new(each))))
                .collect(),
        })
    }

    /// Whether an address is in the pool (Linux: `is_swiotlb_buffer`).
    #[doc(alias = "is_swiotlb_buffer")]
    #[inline]
    pub fn contains(&self, phys: PhysAddr) -> bool {
        phys.get().wrapping_sub(self.start.get()) < self.len as u64
    }

    /// The longest mapping for a device, in bytes, wherever the original is (Linux: `swiotlb_max_mapping_size`).
    #[doc(alias = "swiotlb_max_mapping_size")]
    pub fn max_mapping_size(&self, parms: &DeviceParms) -> usize {
        let min_align = usize::try_from(parms.min_align_mask()).unwrap_or(usize::MAX);
        let lost = min_align.checked_next_multiple_of(SLOT_SIZE).unwrap_or(usize::MAX);
        let window = parms.segment_boundary().min(SEGMENT as u64 - 1) as usize + 1;
        window.saturating_sub(lost)
    }

    /// Counters.
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics { slots: self.len / SLOT_SIZE, ..Statistics::default() };
        for area in &self.areas {
            let area = area.lock();
            statistics.used += area.used;
            statistics.high_water += area.high_water;
            statistics.maps += area.maps;
        }
        statistics
    }

    /// Whether each slot is either free or in one mapping, and the counts agree. For tests.
    #[doc(hidden)]
    pub fn is_consistent(&self) -> bool {
        self.areas.iter().all(|area| area.lock().is_consistent())
    }

    /// Makes a copy of `len` bytes at `original` for a device, and returns where it is (Linux: `swiotlb_tbl_map_single`).
    ///
    /// The copy's address keeps the bits of the original's that the device's `min_align_mask` names, and the copy does not
    /// cross the device's segment boundary. The run of slots begins and ends at multiples of `alloc_align_mask + 1`, a power
    /// of two of at most a segment; for an untrusted device what is around the copy in the run is zeroed. The copy is filled
    /// whatever the direction, so that what the device does not write comes back as it was.
    ///
    /// # Errors
    /// [`DmaError::TooLargeForBounce`] when not even an empty pool has such a run, [`DmaError::BouncePoolFull`] when this
    /// one has none now, both with the numbers; [`DmaError::InvalidLength`] for no bytes.
    ///
    /// # Safety
    /// The original is initialised and stays valid until [`Swiotlb::unmap`]; nobody writes it meanwhile, nor reads it when
    /// the direction lets the device write.
    #[doc(alias = "swiotlb_tbl_map_single")]
    pub unsafe fn map(
        &self,
        parms: &DeviceParms,
        original: NonNull<u8>,
        len: usize,
        alloc_align_mask: u64,
        _dir: Direction,
        _attrs: Attrs,
    ) -> Result<PhysAddr, DmaError> {
        let address = original.as_ptr().addr() as u64;
        let slot_mask = SLOT_SIZE as u64 - 1;
        // Without a mask, whole pages begin at pages.
        let page_mask =
            if len >= 4096 && alloc_align_mask == 0 && parms.min_align_mask() == 0 { 4095 } else { 0 };
        let align_mask = alloc_align_mask | slot_mask;
        let offset = (address & parms.min_align_mask() & align_mask) as usize;
        let high_mask = parms.min_align_mask() & !align_mask;
        if len == 0 {
            return Err(DmaError::InvalidLength(len));
        }
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
            .ok_or(DmaError::TooLargeForBounce { size: len, max: self.max_mapping_size(parms) })?;
        let run = Run {
            original: original.as_ptr().expose_provenance(),
            // All of these are at most a segment.
            len: len as u32,
            before: offset as u32,
            slots: size.div_ceil(SLOT_SIZE) as u32,
        };
        let fixed = align_mask | page_mask | high_mask;
        let start_area = cpu::current();
        for step in 0..self.areas.len() {
            let number = (start_area + step) & (self.areas.len() - 1);
            let fits = |slot: usize| {
                let at = self.slot_phys(number, slot);
                let data = at + offset as u64;
                at & fixed == address & high_mask && len as u64 - 1 <= boundary - (data & boundary)
            };
            let taken = self.areas[number].lock().take(run, fits);
            let Some(first) = taken else { continue };
            let start = PhysAddr::new(self.slot_phys(number, first));
            let copy = start.wrapping_add(offset as u64);
            if parms.is_untrusted() {
                self.zero(start, offset);
                self.zero(copy.wrapping_add(len as u64), run.slots as usize * SLOT_SIZE - offset - len);
            }
            // SAFETY: the original is the caller's promise; the copy is this mapping's own.
            unsafe { copy_in(original.as_ptr(), self.window.ptr(copy), len) };
            return Ok(copy);
        }
        let Statistics { used, slots: total, .. } = self.statistics();
        Err(DmaError::BouncePoolFull { size: len, used, total })
    }

    /// Ends a mapping; what the device wrote is copied to the original unless [`Attrs::SKIP_CPU_SYNC`] is given (Linux:
    /// `swiotlb_tbl_unmap_single`).
    ///
    /// # Safety
    /// `copy`, `len` and `dir` are those of one [`Swiotlb::map`], ended once; the device does not use it any more.
    #[doc(alias = "swiotlb_tbl_unmap_single")]
    pub unsafe fn unmap(&self, copy: PhysAddr, len: usize, dir: Direction, attrs: Attrs) {
        if dir.device_writes() && !attrs.contains(Attrs::SKIP_CPU_SYNC) {
            // SAFETY: the whole of a live mapping.
            unsafe { self.sync_for_cpu(copy, len, dir) };
        }
        let (number, slot, _) = self.place(copy);
        if let Some(area) = self.areas.get(number) {
            area.lock().give_back(slot);
        }
    }

    /// Copies a part of a mapping to its original, when the device may have written it (Linux:
    /// `__swiotlb_sync_single_for_cpu`).
    ///
    /// # Safety
    /// The range lies in a live mapping made with `dir`.
    pub unsafe fn sync_for_cpu(&self, at: PhysAddr, len: usize, dir: Direction) {
        if dir.device_writes()
            && let Some((original, len)) = self.original(at, len)
        {
            // SAFETY: the mapping's original is valid and nobody else's while the device may write it.
            unsafe { copy_out(self.window.ptr(at), original, len) };
        }
    }

    /// Copies a part of a mapping's original to the copy, when the device may read it (Linux:
    /// `__swiotlb_sync_single_for_device`).
    ///
    /// # Safety
    /// The range lies in a live mapping made with `dir`.
    pub unsafe fn sync_for_device(&self, at: PhysAddr, len: usize, dir: Direction) {
        if dir.device_reads()
            && let Some((original, len)) = self.original(at, len)
        {
            // SAFETY: the mapping's original is valid, and nobody writes it.
            unsafe { copy_in(original, self.window.ptr(at), len) };
        }
    }

    /// The original of a part of a mapping; the length is cut to what the mapping has.
    fn original(&self, at: PhysAddr, len: usize) -> Option<(*mut u8, usize)> {
        let (number, slot, within) = self.place(at);
        let area = self.areas.get(number)?.lock();
        let mapping = area.lookup(slot, within)?;
        Some((core::ptr::with_exposed_provenance_mut(mapping.original), len.min(mapping.len)))
    }

    fn slot_phys(&self, area: usize, slot: usize) -> u64 {
        let segment = (slot / SEGMENT_SLOTS * self.areas.len()) | area;
        self.start.get() + (segment * SEGMENT + slot % SEGMENT_SLOTS * SLOT_SIZE) as u64
    }

    /// The area, the slot and the byte in it at an address of the pool.
    fn place(&self, at: PhysAddr) -> (usize, usize, usize) {
        let offset = at.get().wrapping_sub(self.start.get()) as usize;
        let segment = offset / SEGMENT;
        let slot =
            (segment >> self.areas.len().trailing_zeros()) * SEGMENT_SLOTS + offset % SEGMENT / SLOT_SIZE;
        (segment & (self.areas.len() - 1), slot, offset % SLOT_SIZE)
    }

    fn zero(&self, at: PhysAddr, len: usize) {
        const ZEROS: [u8; 256] = [0; 256];
        for done in (0..len).step_by(ZEROS.len()) {
            let piece = ZEROS.len().min(len - done);
            // SAFETY: the range is in slots that were taken just now; a device may still look at them, so atomically.
            unsafe { copy_in(ZEROS.as_ptr(), self.window.ptr(at.wrapping_add(done as u64)), piece) };
        }
    }
}

impl Drop for Swiotlb {
    fn drop(&mut self) {
        let in_use = self.areas.iter().any(|area| area.lock().used != 0);
        if !in_use {
            // SAFETY: the pool's memory is in one piece, and no device has any of it. Else it is leaked.
            unsafe { self.platform.free(self.start, self.len) };
        }
    }
}

impl fmt::Debug for Swiotlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Swiotlb({} bytes at {})", self.len, self.start)
    }
}
