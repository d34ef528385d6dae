//! DMA without translation: memory at its physical address where the device reaches it, a copy in the pool elsewhere
//! (Linux: dma-direct with swiotlb).

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use dma_api::{Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, Quarantined};
use platform::{DmaAddr, FrameRequest, PhysAddr, Platform, Window, trace};

use crate::Swiotlb;

/// `DmaMapOps` for a machine with no IOMMU, or for a device that none translates: a device's address is the physical one.
///
/// Nothing confines the device: see [`SwiotlbDma::new`].
pub struct SwiotlbDma<G = ()> {
    platform: Arc<dyn Platform>,
    window: Window,
    pool: Option<Arc<Swiotlb>>,
    /// What the bus lets through, whatever a device's own mask (Linux: `bus_dma_limit`).
    bus_limit: u64,
    // Whatever must live as long as these ops do.
    _guard: G,
}

impl<G: Send + Sync> SwiotlbDma<G> {
    /// Ops that bounce through `pool`, if there is one, what the device does not reach. `guard` is dropped with them.
    ///
    /// # Safety
    /// The caller trusts every device that gets these ops, and its driver, to touch only memory that they were given, and
    /// to stop before it is given back: no hardware enforces it.
    pub unsafe fn new(platform: Arc<dyn Platform>, pool: Option<Arc<Swiotlb>>, guard: G) -> Self {
        let window = platform.window();
        Self { platform, window, pool, bus_limit: u64::MAX, _guard: guard }
    }

    /// The same behind a bus that lets only addresses up to `limit` through (Linux: `bus_dma_limit`).
    #[must_use]
    pub fn limited_to(mut self, limit: u64) -> Self {
        self.bus_limit = limit;
        self
    }

    /// # Safety
    /// As `DmaMapOps::map_foreign`.
    unsafe fn map_bounced(
        &self,
        parms: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("swiotlb_map", cpu.as_ptr().addr() as u64, len as u64);
        let pool = self.pool.as_ref().ok_or(DmaError::NotRam)?;
        parms.set_needs_sync();
        // SAFETY: the caller's promise.
        let copy = unsafe { pool.map(parms, cpu, len, 0, dir, attrs) }?;
        let mask = parms.streaming_mask().min(self.bus_limit);
        if reaches(mask, copy, len) {
            if !attrs.contains(Attrs::SKIP_CPU_SYNC) {
                self.clean(parms, copy, len);
            }
            return Ok(DmaAddr::new(copy.get()));
        }
        // SAFETY: the copy was made just now, and no device has seen it.
        unsafe { pool.unmap(copy, len, dir, attrs | Attrs::SKIP_CPU_SYNC) };
        Err(DmaError::MaskNotReachable { address: copy, mask })
    }

    /// The pool, when `address` is in it.
    fn bounced(&self, parms: &DeviceParms, address: DmaAddr) -> Option<(&Swiotlb, PhysAddr)> {
        let pool = self.pool.as_deref().filter(|_| parms.needs_sync())?;
        let phys = PhysAddr::new(address.get());
        pool.contains(phys).then_some((pool, phys))
    }

    /// Before the device's turn: what the CPU wrote reaches memory (Linux: `arch_sync_dma_for_device`).
    fn clean(&self, parms: &DeviceParms, phys: PhysAddr, len: usize) {
        if !parms.is_coherent() {
            self.platform.clean(self.window.ptr(phys), len);
        }
    }

    /// After the device's turn: the CPU sees what the device wrote (Linux: `arch_sync_dma_for_cpu`). Where the device only
    /// reads the CPU's lines are right, and may be newer than memory.
    fn invalidate(&self, parms: &DeviceParms, phys: PhysAddr, len: usize, dir: Direction) {
        if !parms.is_coherent() && dir.device_writes() {
            self.platform.invalidate(self.window.ptr(phys), len);
        }
    }
}

/// Whether a device with this mask reaches all of a range (Linux: `dma_capable`).
fn reaches(mask: u64, phys: PhysAddr, len: usize) -> bool {
    phys.last_of(len as u64).is_some_and(|last| last.get() <= mask)
}

// SAFETY: memory from `alloc` is the platform's, zeroed, until `free`; maps return the memory's own address or that of its
// copy; what an unmap promises rests on the trust that `new` asks for.
unsafe impl<G: Send + Sync> DmaMapOps for SwiotlbDma<G> {
    fn alloc(&self, parms: &DeviceParms, size: usize, _attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        trace::event("dma_direct_alloc", 0, size as u64);
        let limit = PhysAddr::new(parms.coherent_mask().min(self.bus_limit));
        let phys = self.platform.alloc(FrameRequest { limit, ..FrameRequest::anywhere(size) });
        let phys = phys.map_err(|_| DmaError::OutOfMemory)?;
        match NonNull::new(self.window.ptr(phys)) {
            Some(cpu) => Ok(CoherentMemory { cpu, dma: DmaAddr::new(phys.get()), size }),
            None => {
                // SAFETY: it was taken just now, and nobody has seen it.
                unsafe { self.platform.free(phys, size) };
                Err(DmaError::OutOfMemory)
            }
        }
    }

    unsafe fn free(
        &self,
        _parms: &DeviceParms,
        memory: CoherentMemory,
        _attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_direct_free", memory.dma.get(), memory.size as u64);
        // SAFETY: the caller's promise: memory of `alloc`, freed once.
        unsafe { self.platform.free(PhysAddr::new(memory.dma.get()), memory.size) };
        Ok(())
    }

    unsafe fn map_phys(
        &self,
        parms: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("dma_direct_map_phys", phys.get(), len as u64);
        let mask = parms.streaming_mask().min(self.bus_limit);
        if !reaches(mask, phys, len) {
            if attrs.contains(Attrs::MMIO) || self.pool.is_none() {
                return Err(DmaError::MaskNotReachable { address: phys, mask });
            }
            let cpu = NonNull::new(self.window.ptr(phys)).ok_or(DmaError::NotRam)?;
            // SAFETY: the caller's promise: RAM that stays valid, seen through the window.
            return unsafe { self.map_bounced(parms, cpu, len, dir, attrs) };
        }
        if !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO) {
            self.clean(parms, phys, len);
        }
        Ok(DmaAddr::new(phys.get()))
    }

    unsafe fn unmap_phys(
        &self,
        parms: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_direct_unmap_phys", address.get(), len as u64);
        if !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO) {
            self.invalidate(parms, PhysAddr::new(address.get()), len, dir);
        }
        if let Some((pool, copy)) = self.bounced(parms, address) {
            // SAFETY: the caller's promise: one live mapping, ended once.
            unsafe { pool.unmap(copy, len, dir, attrs) };
        }
        Ok(())
    }

    unsafe fn map_foreign(
        &self,
        parms: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        // SAFETY: the caller's promise.
        unsafe { self.map_bounced(parms, cpu, len, dir, attrs) }
    }

    unsafe fn sync_for_cpu(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        self.invalidate(parms, PhysAddr::new(address.get()), len, dir);
        if let Some((pool, at)) = self.bounced(parms, address) {
            // SAFETY: the range is part of a live bounced mapping.
            unsafe { pool.sync_for_cpu(at, len, dir) };
        }
    }

    unsafe fn sync_for_device(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        if let Some((pool, at)) = self.bounced(parms, address) {
            // SAFETY: the range is part of a live bounced mapping.
            unsafe { pool.sync_for_device(at, len, dir) };
        }
        self.clean(parms, PhysAddr::new(address.get()), len);
    }

    fn max_mapping_size(&self, parms: &DeviceParms) -> usize {
        // Any buffer may turn out to need a bounce.
        match &self.pool {
            Some(pool) => pool.max_mapping_size(parms),
            None => usize::MAX,
        }
    }
}

impl<G> fmt::Debug for SwiotlbDma<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwiotlbDma").field("pool", &self.pool).finish_non_exhaustive()
    }
}
