//! Counting what goes through a device's operations.

use alloc::sync::Arc;
use core::ptr::NonNull;

use platform::sync::atomic::{AtomicU64, Ordering};
use platform::{DmaAddr, PhysAddr};

use crate::ops::forward_members;
use crate::{Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, Quarantined, SgEntry};

/// What went through [`Counted`] ops so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpsStatistics {
    /// Mappings made; a scatter list is one.
    pub maps: u64,
    /// Bytes in them.
    pub mapped_bytes: u64,
    /// Mappings ended, those that were quarantined included.
    pub unmaps: u64,
    /// Coherent allocations.
    pub allocations: u64,
    /// Coherent allocations freed, those that were quarantined included.
    pub frees: u64,
    /// Maps and allocations that failed.
    pub failures: u64,
    /// Unmaps and frees whose memory was quarantined.
    pub quarantines: u64,
}

/// Counters that any number of devices share.
#[derive(Debug, Default)]
pub struct OpsCounters {
    maps: AtomicU64,
    mapped_bytes: AtomicU64,
    unmaps: AtomicU64,
    allocations: AtomicU64,
    frees: AtomicU64,
    failures: AtomicU64,
    quarantines: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
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
            frees: load(&self.frees),
            failures: load(&self.failures),
            quarantines: load(&self.quarantines),
        }
    }

    fn mapped<R>(&self, len: u64, result: &Result<R, DmaError>) {
        if result.is_ok() {
            add(&self.maps, 1);
            add(&self.mapped_bytes, len);
        } else {
            add(&self.failures, 1);
        }
    }

    fn ended(&self, counter: &AtomicU64, result: Result<(), Quarantined>) {
        add(counter, 1);
        add(&self.quarantines, u64::from(result.is_err()));
    }
}

/// A decorator over any [`DmaMapOps`] that counts. For backends that keep no counts of their own: it adds atomic additions to
/// each call.
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
        sync_for_cpu, sync_for_device, dma_supported, required_mask, max_mapping_size, opt_mapping_size, merge_boundary
    );

    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        let result = self.ops.alloc(dev, size, attrs);
        add(if result.is_ok() { &self.counters.allocations } else { &self.counters.failures }, 1);
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
        self.counters.ended(&self.counters.frees, result);
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
        self.counters.ended(&self.counters.unmaps, result);
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
        self.counters.mapped(list.iter().map(|entry| entry.len as u64).sum(), &result);
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
        self.counters.ended(&self.counters.unmaps, result);
        result
    }
}
