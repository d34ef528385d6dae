//! Counting what goes through a device's operations.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use platform::sync::atomic::{AtomicU64, Ordering};
use platform::{DmaAddr, PhysAddr};

use crate::forward::forward_members;
use crate::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, IovaOps, IovaPart, IovaRange,
    PageMemory, Quarantined, SgEntry,
};

/// What went through [`Counted`] ops so far. Mappings and allocations are told apart in their numbers; what lives now,
/// the high water and the sizes are those of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpsStatistics {
    /// Mappings made; a scatter list is one, and so is a range of I/O addresses.
    pub maps: u64,
    /// Bytes in them.
    pub mapped_bytes: u64,
    /// Mappings ended, those that were quarantined included.
    pub unmaps: u64,
    /// Allocations, of coherent memory and of pages.
    pub allocations: u64,
    /// Bytes in them.
    pub allocated_bytes: u64,
    /// Allocations freed, those that were quarantined included.
    pub frees: u64,
    /// Maps and allocations that failed.
    pub failures: u64,
    /// Unmaps and frees whose memory was quarantined.
    pub quarantines: u64,
    /// Mappings and allocations that have not ended.
    pub live: u64,
    /// Bytes in them.
    pub live_bytes: u64,
    /// The most that lived at once.
    pub high_water: u64,
    /// The most bytes that lived at once.
    pub high_water_bytes: u64,
    /// How long the mappings and allocations were.
    pub sizes: SizeHistogram,
}

const BUCKETS: usize = u64::BITS as usize;

/// How many sizes there were of each power of two.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SizeHistogram([u64; BUCKETS]);

impl SizeHistogram {
    /// How many sizes have the same highest bit as `size`, in bytes: they are at least that power of two and less than the
    /// next.
    pub fn count(&self, size: u64) -> u64 {
        self.0[bucket(size)]
    }

    /// The powers of two of which there were sizes, in bytes, and how many, in rising order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().enumerate().filter(|&(_, &count)| count != 0).map(|(bit, &count)| (1 << bit, count))
    }
}

impl Default for SizeHistogram {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl fmt::Debug for SizeHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

fn bucket(size: u64) -> usize {
    size.checked_ilog2().unwrap_or(0) as usize
}

/// Counters that any number of devices share.
#[derive(Debug)]
pub struct OpsCounters {
    maps: AtomicU64,
    mapped_bytes: AtomicU64,
    unmaps: AtomicU64,
    allocations: AtomicU64,
    allocated_bytes: AtomicU64,
    frees: AtomicU64,
    failures: AtomicU64,
    quarantines: AtomicU64,
    live: Level,
    live_bytes: Level,
    sizes: [AtomicU64; BUCKETS],
}

/// A number that rises and falls, and the highest it has been.
#[derive(Debug, Default)]
struct Level {
    now: AtomicU64,
    highest: AtomicU64,
}

impl Level {
    fn rise(&self, by: u64) {
        let now = self.now.fetch_add(by, Ordering::Relaxed).wrapping_add(by);
        // Read first: once the level has been as high, nothing is written.
        if now > self.highest.load(Ordering::Relaxed) {
            self.highest.fetch_max(now, Ordering::Relaxed);
        }
    }

    fn fall(&self, by: u64) {
        self.now.fetch_sub(by, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Default for OpsCounters {
    fn default() -> Self {
        Self {
            maps: AtomicU64::default(),
            mapped_bytes: AtomicU64::default(),
            unmaps: AtomicU64::default(),
            allocations: AtomicU64::default(),
            allocated_bytes: AtomicU64::default(),
            frees: AtomicU64::default(),
            failures: AtomicU64::default(),
            quarantines: AtomicU64::default(),
            live: Level::default(),
            live_bytes: Level::default(),
            sizes: core::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl OpsCounters {
    /// Their values now.
    pub fn statistics(&self) -> OpsStatistics {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OpsStatistics {
            maps: load(&self.maps),
            mapped_bytes: load(&self.mapped_bytes),
            unmaps: load(&self.unmaps),
            allocations: load(&self.allocations),
            allocated_bytes: load(&self.allocated_bytes),
            frees: load(&self.frees),
            failures: load(&self.failures),
            quarantines: load(&self.quarantines),
            live: load(&self.live.now),
            live_bytes: load(&self.live_bytes.now),
            high_water: load(&self.live.highest),
            high_water_bytes: load(&self.live_bytes.highest),
            sizes: SizeHistogram(core::array::from_fn(|bit| load(&self.sizes[bit]))),
        }
    }

    fn mapped<R>(&self, size: u64, result: &Result<R, DmaError>) {
        self.made(&self.maps, &self.mapped_bytes, size, result.is_ok());
    }

    fn allocated<R>(&self, size: u64, result: &Result<R, DmaError>) {
        self.made(&self.allocations, &self.allocated_bytes, size, result.is_ok());
    }

    fn made(&self, counter: &AtomicU64, bytes: &AtomicU64, size: u64, made: bool) {
        if !made {
            return add(&self.failures, 1);
        }
        add(counter, 1);
        add(bytes, size);
        add(&self.sizes[bucket(size)], 1);
        self.live.rise(1);
        self.live_bytes.rise(size);
    }

    fn ended(&self, counter: &AtomicU64, size: u64, result: Result<(), Quarantined>) {
        add(counter, 1);
        if result.is_err() {
            add(&self.quarantines, 1);
        }
        self.live.fall(1);
        self.live_bytes.fall(size);
    }
}

/// The bytes of a scatter list.
fn total(list: &[SgEntry]) -> u64 {
    list.iter().map(|entry| entry.len as u64).sum()
}

/// A decorator over any [`DmaMapOps`] that counts. For backends that keep no counts of their own: it adds atomic additions to
/// each call, to counters that all CPUs share.
#[derive(Debug)]
pub struct Counted<T> {
    ops: T,
    counters: Arc<OpsCounters>,
}

impl<T: DmaMapOps> Counted<T> {
    /// Counts in `counters` what goes through `ops`.
    pub fn new(ops: T, counters: Arc<OpsCounters>) -> Self {
        Self { ops, counters }
    }
}

// SAFETY: every member is handed to the ops within, whose promises hold.
unsafe impl<T: DmaMapOps> DmaMapOps for Counted<T> {
    forward_members!(self => self.ops;
        sync_for_cpu, sync_for_device, sync_sg_for_cpu, sync_sg_for_device, dma_supported, required_mask,
        max_mapping_size, opt_mapping_size, merge_boundary
    );

    fn iova_ops(&self) -> Option<Box<dyn IovaOps + '_>> {
        let ops = self.ops.iova_ops()?;
        Some(Box::new(CountedIova { ops, counters: &self.counters }))
    }

    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        let result = self.ops.alloc(dev, size, attrs);
        self.counters.allocated(size as u64, &result);
        result
    }

    unsafe fn free(
        &self,
        dev: &DeviceParms,
        memory: CoherentMemory,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.free(dev, memory, attrs) };
        self.counters.ended(&self.counters.frees, memory.size as u64, result);
        result
    }

    fn alloc_pages(
        &self,
        dev: &DeviceParms,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        let result = self.ops.alloc_pages(dev, size, dir, attrs);
        self.counters.allocated(size as u64, &result);
        result
    }

    unsafe fn free_pages(
        &self,
        dev: &DeviceParms,
        memory: PageMemory,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let size = memory.size as u64;
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.free_pages(dev, memory, dir, attrs) };
        self.counters.ended(&self.counters.frees, size, result);
        result
    }

    unsafe fn map_phys(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.map_phys(dev, phys, len, dir, attrs) };
        self.counters.mapped(len as u64, &result);
        result
    }

    unsafe fn unmap_phys(
        &self,
        dev: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.unmap_phys(dev, address, len, dir, attrs) };
        self.counters.ended(&self.counters.unmaps, len as u64, result);
        result
    }

    unsafe fn map_foreign(
        &self,
        dev: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.map_foreign(dev, cpu, len, dir, attrs) };
        self.counters.mapped(len as u64, &result);
        result
    }

    unsafe fn map_sg(
        &self,
        dev: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.map_sg(dev, list, dir, attrs) };
        self.counters.mapped(total(list), &result);
        result
    }

    unsafe fn unmap_sg(
        &self,
        dev: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.unmap_sg(dev, list, dir, attrs) };
        self.counters.ended(&self.counters.unmaps, total(list), result);
        result
    }
}

/// The two-step interface: a range is one mapping, and its bytes are those that are linked. A range that is given up counts as
/// ended; what is still linked in it, and reached, as bytes that live.
#[derive(Debug)]
struct CountedIova<'a> {
    ops: Box<dyn IovaOps + 'a>,
    counters: &'a OpsCounters,
}

impl CountedIova<'_> {
    fn given_up(&self) {
        add(&self.counters.unmaps, 1);
        add(&self.counters.quarantines, 1);
        self.counters.live.fall(1);
    }
}

// SAFETY: every member is handed to the ops within, whose promises hold.
unsafe impl IovaOps for CountedIova<'_> {
    fn try_alloc(&self, dev: &DeviceParms, phys: PhysAddr, size: usize) -> Result<IovaRange, DmaError> {
        let result = self.ops.try_alloc(dev, phys, size);
        match result {
            Ok(_) => {
                add(&self.counters.maps, 1);
                add(&self.counters.sizes[bucket(size as u64)], 1);
                self.counters.live.rise(1);
            }
            Err(_) => add(&self.counters.failures, 1),
        }
        result
    }

    unsafe fn link(
        &self,
        dev: &DeviceParms,
        part: IovaPart,
        phys: PhysAddr,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), DmaError> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.link(dev, part, phys, dir, attrs) };
        match result {
            Ok(()) => {
                add(&self.counters.mapped_bytes, part.len as u64);
                self.counters.live_bytes.rise(part.len as u64);
            }
            Err(error) => {
                add(&self.counters.failures, 1);
                if let DmaError::NotUndone(_) = error {
                    self.given_up();
                }
            }
        }
        result
    }

    fn sync(&self, dev: &DeviceParms, part: IovaPart) -> Result<(), DmaError> {
        self.ops.sync(dev, part)
    }

    unsafe fn unlink(
        &self,
        dev: &DeviceParms,
        part: IovaPart,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.unlink(dev, part, dir, attrs) };
        match result {
            Ok(()) => self.counters.live_bytes.fall(part.len as u64),
            Err(_) => self.given_up(),
        }
        result
    }

    unsafe fn destroy(
        &self,
        dev: &DeviceParms,
        range: IovaRange,
        linked: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise, handed on.
        let result = unsafe { self.ops.destroy(dev, range, linked, dir, attrs) };
        self.counters.ended(&self.counters.unmaps, linked as u64, result);
        result
    }
}
