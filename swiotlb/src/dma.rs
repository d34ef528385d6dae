//! DMA without translation: memory at its physical address where the device reaches it, a copy in the pool elsewhere
//! (Linux: dma-direct with swiotlb).

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use dma_api::{Attrs, CoherentMemory, DeviceParms, Direction, DmaDirect, DmaError, DmaMapOps, Quarantined};
use platform::{DmaAddr, PhysAddr, Platform, Window, trace};

use crate::{Config, PoolTooSmall, Swiotlb};

/// `DmaMapOps` for a machine with no IOMMU, or for a device that none translates: a device's address is the physical one.
///
/// Nothing confines the device: see [`SwiotlbDma::new`].
pub struct SwiotlbDma<G = ()> {
    direct: DmaDirect<G>,
    window: Window,
    pool: Option<Arc<Swiotlb>>,
    restricted: bool,
}

impl<G: Send + Sync> SwiotlbDma<G> {
    /// Ops that bounce through `pool`, if there is one, what the device does not reach, or everything when the pool says so
    /// ([`Config::force`]). `guard` is dropped with them.
    ///
    /// # Safety
    /// Every device that gets these ops is behind a bus with the [ranges](DeviceParms::bus_ranges) that its `DeviceParms`
    /// tell. The caller trusts every device that gets these ops, and its driver, to touch only memory that they were given, and
    /// to stop before it is given back: no hardware enforces it.
    pub unsafe fn new(platform: Arc<dyn Platform>, pool: Option<Arc<Swiotlb>>, guard: G) -> Self {
        let window = platform.window();
        // SAFETY: the caller's trust; the devices' buses are what their `DeviceParms` tell.
        let direct = unsafe { DmaDirect::new(platform, guard) };
        Self { direct, window, pool, restricted: false }
    }

    /// Ops for one device with a pool of its own, in one area, which is all that it is ever given: everything is bounced, and
    /// coherent memory comes from the pool too (Linux: a restricted DMA pool). The pool takes `size` bytes at or below `limit`
    /// and does not grow. When something other than an IOMMU confines the device to the pool's memory, such as a firewall on
    /// the bus, a hostile device reaches nothing else; where that memory is fixed, `platform` is one whose frames are there.
    ///
    /// # Errors
    /// [`PoolTooSmall`].
    ///
    /// # Safety
    /// Hardware confines the device to the memory of the pool, and it reaches that no more once the ops are dropped; or the
    /// caller trusts it and its driver, as in [`SwiotlbDma::new`].
    #[doc(alias = "swiotlb_alloc")]
    #[doc(alias = "swiotlb_free")]
    #[doc(alias = "restricted-dma-pool")]
    pub unsafe fn restricted(
        platform: Arc<dyn Platform>,
        size: usize,
        limit: PhysAddr,
        guard: G,
    ) -> Result<Self, PoolTooSmall> {
        let config = Config { size, areas: 1, limit, max_size: size, force: true };
        let pool = Swiotlb::new(&platform, &config)?;
        // SAFETY: the caller's promise: trust, or a device that reaches only the pool, of which no safe code has a reference:
        // it is copied to and from by value, and what `alloc` gives out of it is the device's to write.
        let ops = unsafe { Self::new(platform, Some(Arc::new(pool)), guard) };
        Ok(Self { restricted: true, ..ops })
    }

    /// The pool.
    pub fn pool(&self) -> Option<&Swiotlb> {
        self.pool.as_deref()
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
        if attrs.contains(Attrs::REQUIRE_COHERENT) {
            return Err(DmaError::NotCoherent);
        }
        let pool = self.pool.as_ref().ok_or(DmaError::NotRam)?;
        parms.set_needs_sync();
        // SAFETY: the caller's promise.
        let copy = unsafe { pool.map(parms, cpu, len, 0, dir, attrs) }?;
        match self.direct.phys_to_dma(parms, parms.streaming_limit(), copy, len) {
            Ok(address) => {
                if !attrs.contains(Attrs::SKIP_CPU_SYNC) {
                    // SAFETY: the mapping was made just now.
                    unsafe { self.direct.sync_for_device(parms, address, len, dir) };
                }
                Ok(address)
            }
            Err(error) => {
                // SAFETY: the copy was made just now, and no device has seen it.
                unsafe { pool.unmap(copy, len, dir, attrs | Attrs::SKIP_CPU_SYNC) };
                Err(error)
            }
        }
    }

    /// The pool that coherent memory comes from.
    fn own_pool(&self) -> Option<&Swiotlb> {
        self.pool().filter(|_| self.restricted)
    }

    /// The pool, when `address` is in it.
    fn bounced(&self, parms: &DeviceParms, address: DmaAddr) -> Option<(&Swiotlb, PhysAddr)> {
        let pool = self.pool().filter(|_| parms.needs_sync())?;
        let phys = parms.bus_ranges().to_phys(address)?;
        pool.contains(phys).then_some((pool, phys))
    }
}

// SAFETY: memory from `alloc` is the platform's or the restricted pool's, zeroed, until `free`; maps return the memory's own
// address or that of its copy; what an unmap promises rests on the trust that `new` asks for, or on a restricted device's bounds.
unsafe impl<G: Send + Sync> DmaMapOps for SwiotlbDma<G> {
    fn alloc(&self, parms: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        let Some(pool) = self.own_pool() else { return self.direct.alloc(parms, size, attrs) };
        trace::event("swiotlb_alloc", 0, size as u64);
        let at = pool.alloc(size)?;
        let dma = self.direct.phys_to_dma(parms, parms.coherent_limit(), at, size);
        let cpu = NonNull::new(self.window.ptr(at)).ok_or(DmaError::OutOfMemory);
        match dma.and_then(|dma| Ok(CoherentMemory { cpu: cpu?, dma, size })) {
            Ok(memory) => Ok(memory),
            Err(error) => {
                pool.give_back(at);
                Err(error)
            }
        }
    }

    unsafe fn free(
        &self,
        parms: &DeviceParms,
        memory: CoherentMemory,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        match self.own_pool() {
            Some(pool) => {
                trace::event("swiotlb_free", memory.dma.get(), memory.size as u64);
                pool.give_back(self.window.phys(memory.cpu.as_ptr()));
                Ok(())
            }
            // SAFETY: the caller's promise.
            None => unsafe { self.direct.free(parms, memory, attrs) },
        }
    }

    unsafe fn map_phys(
        &self,
        parms: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        let forced = self.pool().is_some_and(Swiotlb::is_forced);
        if forced && attrs.contains(Attrs::MMIO) {
            // It cannot be copied.
            return Err(DmaError::NotRam);
        }
        if !forced {
            // SAFETY: the caller's promise.
            let mapped = unsafe { self.direct.map_phys(parms, phys, len, dir, attrs) };
            if !matches!(mapped, Err(DmaError::MaskNotReachable { .. } | DmaError::NotOnBus { .. }))
                || attrs.contains(Attrs::MMIO)
                || self.pool.is_none()
            {
                return mapped;
            }
        }
        let cpu = NonNull::new(self.window.ptr(phys)).ok_or(DmaError::NotRam)?;
        // SAFETY: the caller's promise: RAM that stays valid, seen through the window.
        unsafe { self.map_bounced(parms, cpu, len, dir, attrs) }
    }

    unsafe fn unmap_phys(
        &self,
        parms: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise: one live mapping, ended once.
        unsafe { self.direct.unmap_phys(parms, address, len, dir, attrs) }?;
        if let Some((pool, copy)) = self.bounced(parms, address) {
            trace::event("swiotlb_tbl_unmap_single", copy.get(), len as u64);
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
        // SAFETY: the caller's promise.
        unsafe { self.direct.sync_for_cpu(parms, address, len, dir) };
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
        // SAFETY: the caller's promise.
        unsafe { self.direct.sync_for_device(parms, address, len, dir) };
    }

    fn dma_supported(&self, parms: &DeviceParms, mask: u64) -> bool {
        self.direct.dma_supported(parms, mask)
    }

    fn required_mask(&self, parms: &DeviceParms) -> u64 {
        self.direct.required_mask(parms)
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
        f.debug_struct("SwiotlbDma")
            .field("direct", &self.direct)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
