//! Bounce buffers from one pool or several (Linux: `struct io_tlb_mem`).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use once_cell::race::OnceBox;
use platform::device_memory::{copy_in, copy_out};
use platform::frames::FRAME_SIZE;
use platform::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use platform::{FrameRequest, PhysAddr, Platform, Window, trace};

use crate::pool::Pool;
use crate::request::{self, Request};
use crate::transient::Transients;
use crate::{Config, SEGMENT, SLOT_SIZE};

/// The smallest pool to grow by (Linux: `IO_TLB_MIN_SLABS`).
const MIN_GROWTH: usize = 1 << 20;

/// A pool that would not hold one segment, or for which there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no swiotlb pool of {0} bytes: it takes at least a segment of {min} bytes in one piece", min = SEGMENT)]
pub struct PoolTooSmall(pub usize);

/// Counters of all pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Slots of the pools that stay, those that were grown by included (Linux: `io_tlb_nslabs`).
    pub slots: usize,
    /// Those of them in use (Linux: `io_tlb_used`).
    pub used: usize,
    /// The most that were in use at once in each area since the last reset, added up: with one area the true peak, with
    /// several never less than that. A count of the whole would cost each mapping a shared counter (Linux:
    /// `io_tlb_used_hiwater`).
    pub high_water: usize,
    /// Slots of transient pools, all in use (Linux: `io_tlb_transient_nslabs`).
    pub transient_slots: usize,
    /// Mappings made.
    pub maps: u64,
    /// Syncs and unmaps that reached beyond their mapping, and were cut to it: a driver is wrong.
    pub clamped: u64,
}

/// Bounce buffers in memory that devices reach.
///
/// The memory is a pool in one piece. It is divided into areas, each with a lock of its own; a CPU begins with its own area. A
/// mapping is a run of slots within a segment. If [`Config::max_size`] allows, a mapping that finds no run gets a transient
/// pool of its own, and asks for a further pool, which [`Swiotlb::grow`] makes.
pub struct Swiotlb {
    default: Pool,
    window: Window,
    platform: Arc<dyn Platform>,
    config: Config,
    /// Further pools, set in order. None of them ever goes, so that a lookup takes no lock.
    grown: Box<[OnceBox<Pool>]>,
    transients: Transients,
    /// Bytes that further and transient pools may still take.
    spare: AtomicUsize,
    /// Whether a mapping has found no run since the last growth.
    wants_growth: AtomicBool,
    clamped: AtomicU64,
}

impl Swiotlb {
    /// Bounce buffers as `config` says, with the default pool (Linux: `swiotlb_init`).
    ///
    /// # Errors
    /// [`PoolTooSmall`].
    #[doc(alias = "swiotlb_init")]
    pub fn new(platform: &Arc<dyn Platform>, config: &Config) -> Result<Self, PoolTooSmall> {
        let default = Pool::new(&**platform, config.size, config.limit, config.areas);
        let default = default.ok_or(PoolTooSmall(config.size))?;
        let spare = config.max_size.saturating_sub(default.len());
        Ok(Self {
            default,
            window: platform.window(),
            platform: Arc::clone(platform),
            config: *config,
            grown: (0..spare / MIN_GROWTH).map(|_| OnceBox::new()).collect(),
            transients: Transients::new(spare != 0),
            spare: AtomicUsize::new(spare),
            wants_growth: AtomicBool::new(false),
            clamped: AtomicU64::new(0),
        })
    }

    /// Whether an address is in a bounce buffer's memory (Linux: `is_swiotlb_buffer`).
    #[doc(alias = "is_swiotlb_buffer")]
    #[doc(alias = "swiotlb_find_pool")]
    #[inline]
    pub fn contains(&self, phys: PhysAddr) -> bool {
        self.pool_of(phys).is_some() || self.transients.contains(phys)
    }

    /// The longest mapping for a device, in bytes, wherever the original is (Linux: `swiotlb_max_mapping_size`). 0 for a device
    /// that keeps more address bits than a segment has, to which no length can be promised.
    #[doc(alias = "swiotlb_max_mapping_size")]
    pub fn max_mapping_size(&self, parms: &DeviceParms) -> usize {
        request::max_mapping_size(parms)
    }

    /// Whether everything is to be bounced, see [`Config::force`] (Linux: `is_swiotlb_force_bounce`).
    #[doc(alias = "is_swiotlb_force_bounce")]
    pub fn is_forced(&self) -> bool {
        self.config.force
    }

    /// Counters.
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics {
            transient_slots: self.transients.size() / SLOT_SIZE,
            maps: self.transients.maps(),
            clamped: self.clamped.load(Ordering::Relaxed),
            ..Statistics::default()
        };
        self.pools().for_each(|pool| pool.count(&mut statistics));
        statistics
    }

    /// Begins [`Statistics::high_water`] again, from what is in use now: 0, if nothing is (Linux: 0 written to
    /// `io_tlb_used_hiwater`).
    pub fn reset_high_water(&self) {
        self.pools().for_each(Pool::reset_high_water);
    }

    /// Whether each slot is either free or in one mapping, and the counts agree. For tests.
    #[doc(hidden)]
    pub fn is_consistent(&self) -> bool {
        self.pools().all(Pool::is_consistent)
    }

    /// Makes the further pool that a mapping has asked for since the last call, if one has: of the default pool's size, of
    /// half of it where that is too much, and so on down to 1 MiB (Linux: `swiotlb_dyn_alloc`). Call it where waiting for
    /// memory is no harm, every few milliseconds. Pools that were grown by stay.
    ///
    /// Returns the bytes of the new pool. 0: nobody asked, [`Config::max_size`] is reached, or there is no memory; the next
    /// mapping that finds no run asks again.
    #[doc(alias = "swiotlb_dyn_alloc")]
    pub fn grow(&self) -> usize {
        if !self.wants_growth.swap(false, Ordering::Relaxed) {
            return 0;
        }
        let first = self.default.len().max(MIN_GROWTH);
        let sizes = core::iter::successors(Some(first), |size| Some(size / 2));
        for size in sizes.take_while(|&size| size >= MIN_GROWTH) {
            if !self.reserve(size) {
                continue;
            }
            if let Some(pool) = Pool::new(&*self.platform, size, self.config.limit, self.config.areas) {
                let len = pool.len();
                self.unreserve(size - len);
                trace::event("swiotlb_dyn_alloc", 0, len as u64);
                self.add(pool);
                return len;
            }
            self.unreserve(size);
        }
        0
    }

    /// Makes a copy of `len` bytes at `original` for a device, and returns where it is (Linux: `swiotlb_tbl_map_single`).
    ///
    /// The copy's address keeps the bits of the original's that the device's `min_align_mask` names, and the copy does not
    /// cross the device's segment boundary. The run of slots begins and ends at multiples of `alloc_align_mask + 1`, a power
    /// of two of at most a segment; for an untrusted device what is around the copy in the run is zeroed. The copy is filled
    /// whatever the direction, so that what the device does not write comes back as it was.
    ///
    /// # Errors
    /// [`DmaError::TooLargeForBounce`] when not even an empty pool has such a run, [`DmaError::BouncePoolFull`] when these
    /// have none now, and there is no transient pool either, both with the numbers; [`DmaError::InvalidLength`] for no bytes;
    /// [`DmaError::InvalidAlignment`] when the device keeps more address bits than a segment has, and no free run has them.
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
        attrs: Attrs,
    ) -> Result<PhysAddr, DmaError> {
        let request = Request::copy(parms, original.as_ptr(), len, alloc_align_mask)?;
        let start = match self.default.take(&request) {
            Some(start) => start,
            None => self.take_anywhere(&request, len, attrs)?,
        };
        let offset = request.run.before as usize;
        let copy = start.wrapping_add(offset as u64);
        if parms.is_untrusted() {
            self.zero(start, offset);
            self.zero(copy.wrapping_add(len as u64), request.size() - offset - len);
        }
        // SAFETY: the original is the caller's promise; the copy is this mapping's own.
        unsafe { copy_in(original.as_ptr(), self.window.ptr(copy), len) };
        Ok(copy)
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
        self.give_back(copy);
    }

    /// Copies a part of a mapping to its original, when the device may have written it (Linux:
    /// `__swiotlb_sync_single_for_cpu`). What lies beyond the mapping is left alone, and counted.
    ///
    /// # Safety
    /// The range begins in a live mapping made with `dir`.
    #[doc(alias = "swiotlb_sync_single_for_cpu")]
    pub unsafe fn sync_for_cpu(&self, at: PhysAddr, len: usize, dir: Direction) {
        if dir.device_writes()
            && let Some((original, len)) = self.original(at, len)
        {
            // SAFETY: the mapping's original is valid and nobody else's while the device may write it.
            unsafe { copy_out(self.window.ptr(at), original, len) };
        }
    }

    /// Copies a part of a mapping's original to the copy, when the device may read it (Linux:
    /// `__swiotlb_sync_single_for_device`). What lies beyond the mapping is left alone, and counted.
    ///
    /// # Safety
    /// The range begins in a live mapping made with `dir`.
    #[doc(alias = "swiotlb_sync_single_for_device")]
    pub unsafe fn sync_for_device(&self, at: PhysAddr, len: usize, dir: Direction) {
        if dir.device_reads()
            && let Some((original, len)) = self.original(at, len)
        {
            // SAFETY: the mapping's original is valid, and nobody writes it.
            unsafe { copy_in(original, self.window.ptr(at), len) };
        }
    }

    /// Zeroed memory that is no copy of anything, aligned to the power of two that holds it (Linux: `swiotlb_alloc`).
    pub(crate) fn alloc(&self, size: usize) -> Result<PhysAddr, DmaError> {
        let request = Request::memory(size)?;
        let start = self.take_anywhere(&request, size, Attrs::empty())?;
        self.zero(start, request.size());
        Ok(start)
    }

    /// Takes back the run that has an address (Linux: `swiotlb_free`).
    // A part of each unmap; its other callers are rare.
    #[inline(always)]
    pub(crate) fn give_back(&self, at: PhysAddr) {
        match self.pool_of(at) {
            Some(pool) => pool.give_back(at),
            None => self.end_transient(at),
        }
    }

    /// Adds a pool, whose bytes are reserved: there is a place for each [`MIN_GROWTH`] of them.
    fn add(&self, pool: Pool) {
        let mut pool = Box::new(pool);
        for place in &self.grown {
            match place.set(pool) {
                Ok(()) => return,
                Err(back) => pool = back,
            }
        }
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        core::iter::once(&self.default).chain(self.grown())
    }

    fn grown(&self) -> impl Iterator<Item = &Pool> {
        self.grown.iter().map_while(OnceBox::get)
    }

    /// The pool that an address is in, if it is none of the transient ones.
    #[inline]
    fn pool_of(&self, at: PhysAddr) -> Option<&Pool> {
        if self.default.contains(at) {
            return Some(&self.default);
        }
        self.grown().find(|pool| pool.contains(at))
    }

    /// A run from any pool, or from a new one.
    #[cold]
    fn take_anywhere(&self, request: &Request, len: usize, attrs: Attrs) -> Result<PhysAddr, DmaError> {
        if let Some(start) = self.pools().find_map(|pool| pool.take(request)) {
            return Ok(start);
        }
        if let Some(alignment) = request.beyond_segment() {
            return Err(DmaError::InvalidAlignment(alignment));
        }
        self.wants_growth.store(true, Ordering::Relaxed);
        if let Some(start) = self.take_transient(request) {
            return Ok(start);
        }
        let Statistics { used, slots: total, .. } = self.statistics();
        if !attrs.contains(Attrs::NO_WARN) {
            trace::event("swiotlb_full", used as u64, len as u64);
        }
        Err(DmaError::BouncePoolFull { size: len, used, total })
    }

    /// A run in memory of its own.
    fn take_transient(&self, request: &Request) -> Option<PhysAddr> {
        let size = (request.skip() + request.size()).next_multiple_of(FRAME_SIZE);
        if !self.reserve(size) {
            return None;
        }
        let frames = FrameRequest { size, align: request.alignment(), limit: self.config.limit };
        if let Ok(at) = self.platform.alloc(frames) {
            let start = at.wrapping_add(request.skip() as u64);
            if request.fits(start.get()) && self.transients.insert(at, size, request.skip(), request.run) {
                trace::event("swiotlb_alloc_pool", at.get(), size as u64);
                return Some(start);
            }
            // SAFETY: taken just now, and nobody has seen them.
            unsafe { self.platform.free(at, size) };
        }
        self.unreserve(size);
        None
    }

    #[cold]
    fn end_transient(&self, at: PhysAddr) {
        if let Some((frames, size)) = self.transients.remove(at) {
            // SAFETY: they were taken by `take_transient`, and the device's turn is over.
            unsafe { self.platform.free(frames, size) };
            self.unreserve(size);
        }
    }

    /// Takes bytes from those that further pools may have.
    fn reserve(&self, size: usize) -> bool {
        let rest = |spare: usize| spare.checked_sub(size);
        self.spare.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok()
    }

    fn unreserve(&self, size: usize) {
        self.spare.fetch_add(size, Ordering::Relaxed);
    }

    /// The original of a part of a mapping; the length is cut to what the mapping has.
    fn original(&self, at: PhysAddr, len: usize) -> Option<(*mut u8, usize)> {
        let mapping = match self.pool_of(at) {
            Some(pool) => pool.lookup(at),
            None => self.transients.lookup(at),
        };
        let left = mapping.map_or(0, |mapping| mapping.len);
        if left < len {
            self.clamp(at, len);
        }
        Some((core::ptr::with_exposed_provenance_mut(mapping?.original), len.min(left)))
    }

    #[cold]
    fn clamp(&self, at: PhysAddr, len: usize) {
        trace::event("swiotlb_bounce_overflow", at.get(), len as u64);
        self.clamped.fetch_add(1, Ordering::Relaxed);
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
    /// Transient pools are in use, and leaked.
    fn drop(&mut self) {
        self.pools().for_each(|pool| pool.release(&*self.platform));
    }
}

impl fmt::Debug for Swiotlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swiotlb")
            .field("config", &self.config)
            .field("statistics", &self.statistics())
            .finish()
    }
}
