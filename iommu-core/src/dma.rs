//! `DmaMapOps` over a domain (Linux: `iommu_dma_ops`, drivers/iommu/dma-iommu.c).

use alloc::sync::Arc;
use core::ptr::NonNull;

use dma_api::{Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, Quarantined, SgEntry};
use platform::sync::atomic::{AtomicBool, Ordering};
use platform::{DmaAddr, FrameRequest, MapError, PhysAddr, Platform, Prot, Window, trace};
use swiotlb::Swiotlb;

use crate::cookie::DmaCookie;
use crate::domain::Domain;
use crate::group::Ownership;
use crate::scatter::{Layout, finalise};

/// A bound device's DMA, translated by its group's domain.
#[derive(Debug)]
pub(crate) struct IommuDma {
    domain: Arc<Domain>,
    cookie: Arc<DmaCookie>,
    platform: Arc<dyn Platform>,
    window: Window,
    bounce: Option<Arc<Swiotlb>>,
    low_first: bool,
    gone: Arc<AtomicBool>,
    // Gives the device back when the last user of these ops is gone.
    _ownership: Ownership,
}

/// The permissions that a direction becomes (Linux: `dma_info_to_prot`).
#[inline]
fn dma_info_to_prot(dir: Direction, coherent: bool, attrs: Attrs) -> Prot {
    let mut prot = if coherent { Prot::CACHE } else { Prot::empty() };
    if attrs.contains(Attrs::PRIVILEGED) {
        prot |= Prot::PRIV;
    }
    if attrs.contains(Attrs::MMIO) {
        prot = (prot - Prot::CACHE) | Prot::MMIO;
    }
    prot | match dir {
        Direction::Bidirectional => Prot::READ | Prot::WRITE,
        Direction::ToDevice => Prot::READ,
        Direction::FromDevice => Prot::WRITE,
    }
}

/// A mapping of the domain that failed, as a driver hears of it.
#[cold]
fn dma_error(error: MapError) -> DmaError {
    match error {
        MapError::OutOfMemory => DmaError::OutOfMemory,
        MapError::Gone => DmaError::IommuTimedOut,
        other => DmaError::Map(other),
    }
}

impl IommuDma {
    /// Ops for a device whose group's DMA domain is `domain`; `ownership` is dropped with them.
    pub(crate) fn new(
        domain: Arc<Domain>,
        cookie: Arc<DmaCookie>,
        bounce: Option<Arc<Swiotlb>>,
        low_first: bool,
        gone: Arc<AtomicBool>,
        ownership: Ownership,
    ) -> Self {
        let platform = Arc::clone(domain.platform());
        let window = platform.window();
        Self { domain, cookie, platform, window, bounce, low_first, gone, _ownership: ownership }
    }

    #[inline]
    fn cookie(&self) -> &DmaCookie {
        &self.cookie
    }

    #[inline]
    fn check_alive(&self) -> Result<(), DmaError> {
        if self.gone.load(Ordering::Relaxed) { Err(DmaError::Gone) } else { Ok(()) }
    }

    /// Maps physical memory at new I/O addresses (Linux: `__iommu_dma_map`).
    ///
    /// # Safety
    /// As `DmaMapOps::map_phys`.
    #[inline]
    unsafe fn map_range(
        &self,
        mask: u64,
        phys: PhysAddr,
        len: usize,
        prot: Prot,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("__iommu_dma_map", phys.get(), len as u64);
        let cookie = self.cookie();
        let granule = cookie.iovas.granule();
        let offset = phys.offset_in(granule);
        let size = (len as u64)
            .checked_add(offset)
            .and_then(|size| size.checked_next_multiple_of(granule))
            .ok_or(DmaError::InvalidLength(len))?;
        let limit = mask.min(self.domain.aperture().1.get());
        let Some(iova) = cookie.alloc_iova(size, limit, self.low_first) else {
            return Err(DmaError::AddressSpaceExhausted { size: len, limit: DmaAddr::new(limit) });
        };
        // SAFETY: the caller's promise; the I/O addresses are this call's own.
        let (done, result) = unsafe { self.domain.map(iova, phys.align_down(granule), size, prot) };
        match result {
            Ok(()) => Ok(iova.wrapping_add(offset)),
            Err(error) => Err(self.undo(iova, done, size, error)),
        }
    }

    /// Takes a failed mapping back.
    #[cold]
    fn undo(&self, iova: DmaAddr, done: u64, size: u64, error: MapError) -> DmaError {
        let mut gather = self.domain.gather();
        if done != 0 {
            // SAFETY: the addresses were taken by the failed map, and nobody else knows them.
            unsafe { self.domain.unmap(iova, done, &mut gather) };
        }
        match self.domain.sync(gather) {
            Ok(flushed) => self.cookie().iovas.free(iova, size, &flushed),
            Err(_) => self.cookie().quarantine(size),
        }
        dma_error(error)
    }

    /// Unmaps I/O addresses of `map_range` and gives them back, now or later (Linux: `__iommu_dma_unmap`).
    ///
    /// # Safety
    /// As `DmaMapOps::unmap_phys`.
    #[inline]
    unsafe fn unmap_range(&self, address: DmaAddr, len: usize) -> Result<(), Quarantined> {
        trace::event("__iommu_dma_unmap", address.get(), len as u64);
        let cookie = self.cookie();
        let granule = cookie.iovas.granule();
        let offset = address.offset_in(granule);
        let iova = address.align_down(granule);
        let size = (len as u64 + offset).next_multiple_of(granule);
        let mut gather = self.domain.gather();
        // SAFETY: the caller's promise: the range is one live mapping, ended once.
        let unmapped = unsafe { self.domain.unmap(iova, size, &mut gather) };
        if unmapped < size {
            cookie.quarantine(size);
            return Err(Quarantined { address, len });
        }
        if self.domain.is_lazy() {
            let tables = gather.take_tables();
            cookie.queue.push(&self.domain, &cookie.iovas, iova, size, tables);
            return Ok(());
        }
        match self.domain.sync(gather) {
            Ok(flushed) => {
                cookie.iovas.free(iova, size, &flushed);
                Ok(())
            }
            Err(_) => {
                cookie.quarantine(size);
                Err(Quarantined { address, len })
            }
        }
    }

    /// Maps a copy of `len` bytes at `cpu` (Linux: `iommu_dma_map_swiotlb`).
    ///
    /// # Safety
    /// As `DmaMapOps::map_foreign`.
    #[cold]
    unsafe fn map_bounced(
        &self,
        parms: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        let pool = self.bounce.as_ref().ok_or(DmaError::NotRam)?;
        parms.set_needs_sync();
        let granule = self.cookie().iovas.granule();
        // SAFETY: the caller's promise. The copy is alone in its granules, with zeros around it.
        let copy = unsafe { pool.map(parms, cpu, len, granule - 1, dir, attrs) }?;
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        // SAFETY: the copy stays the device's until it is unmapped.
        match unsafe { self.map_range(parms.streaming_mask(), copy, len, prot) } {
            Ok(address) => {
                self.cookie().bounces.fetch_add(1, Ordering::Relaxed);
                Ok(address)
            }
            Err(error) => {
                // SAFETY: the copy was made just now, and no device has seen it.
                unsafe { pool.unmap(copy, len, dir, attrs | Attrs::SKIP_CPU_SYNC) };
                Err(error)
            }
        }
    }

    /// The bounce buffer behind an I/O address, if there is one.
    #[inline]
    fn bounced(&self, parms: &DeviceParms, address: DmaAddr) -> Option<(&Swiotlb, PhysAddr)> {
        // Nothing was ever bounced for a device that needs no sync, and asking the table takes time.
        if !parms.needs_sync() {
            return None;
        }
        let pool = self.bounce.as_deref()?;
        let phys = self.domain.iova_to_phys(address)?;
        pool.contains(phys).then_some((pool, phys))
    }
}

// SAFETY: memory from `alloc` is the platform's, zeroed and mapped until `free`; maps lead to the given memory or its
// bounce copy with the direction's permission; an unmap returns Ok after the domain's invalidation (or leaves it to the
// flush queue in a lazy domain, which takes trust to be bound to).
unsafe impl DmaMapOps for IommuDma {
    fn alloc(&self, parms: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        trace::event("iommu_dma_alloc", 0, size as u64);
        self.check_alive()?;
        let granule =
            usize::try_from(self.cookie().iovas.granule()).map_err(|_| DmaError::InvalidLength(size))?;
        let bytes = size.checked_next_multiple_of(granule).ok_or(DmaError::InvalidLength(size))?;
        let request = FrameRequest { align: granule, ..FrameRequest::anywhere(bytes) };
        let phys = self.platform.alloc(request).map_err(|_| DmaError::OutOfMemory)?;
        let prot = dma_info_to_prot(Direction::Bidirectional, parms.is_coherent(), attrs);
        // SAFETY: the frames are this allocation's own until they are freed.
        let mapped = unsafe { self.map_range(parms.coherent_mask(), phys, bytes, prot) };
        match (mapped, NonNull::new(self.window.ptr(phys))) {
            (Ok(dma), Some(cpu)) => Ok(CoherentMemory { cpu, dma, size }),
            (mapped, _) => {
                // SAFETY: they were taken just now, and no device has seen them.
                unsafe { self.platform.free(phys, bytes) };
                Err(mapped.err().unwrap_or(DmaError::OutOfMemory))
            }
        }
    }

    unsafe fn free(
        &self,
        _parms: &DeviceParms,
        memory: CoherentMemory,
        _attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("iommu_dma_free", memory.dma.get(), memory.size as u64);
        let granule = self.cookie().iovas.granule() as usize;
        let bytes = memory.size.next_multiple_of(granule);
        // SAFETY: the caller's promise.
        unsafe { self.unmap_range(memory.dma, bytes) }?;
        if self.domain.is_lazy() {
            // Unlike a driver's buffer, pages that go back to the allocator must be out of reach at once.
            self.cookie().queue.drain(&self.domain, &self.cookie().iovas);
            if self.cookie().queue.has_failed() {
                return Err(Quarantined { address: memory.dma, len: memory.size });
            }
        }
        // SAFETY: the frames were taken by `alloc`, and no device reaches them any more.
        unsafe { self.platform.free(self.window.phys(memory.cpu.as_ptr()), bytes) };
        Ok(())
    }

    #[inline]
    unsafe fn map_phys(
        &self,
        parms: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("iommu_dma_map_page", phys.get(), len as u64);
        self.check_alive()?;
        if parms.is_untrusted() && (phys.get() | len as u64) & (self.cookie().iovas.granule() - 1) != 0 {
            // A page is mapped whole: a hostile device would see what else is in it.
            if attrs.contains(Attrs::MMIO) {
                return Err(DmaError::NotRam);
            }
            let cpu = NonNull::new(self.window.ptr(phys)).ok_or(DmaError::NotRam)?;
            // SAFETY: the caller's promise: RAM that stays valid, seen through the window.
            return unsafe { self.map_bounced(parms, cpu, len, dir, attrs) };
        }
        if !parms.is_coherent() && !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO) {
            self.platform.clean(self.window.ptr(phys), len);
        }
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        // SAFETY: the caller's promise.
        unsafe { self.map_range(parms.streaming_mask(), phys, len, prot) }
    }

    #[inline]
    unsafe fn unmap_phys(
        &self,
        parms: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("iommu_dma_unmap_page", address.get(), len as u64);
        let bounced = self.bounced(parms, address);
        if !parms.is_coherent()
            && bounced.is_none()
            && !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO)
            && let Some(phys) = self.domain.iova_to_phys(address)
        {
            self.platform.invalidate(self.window.ptr(phys), len);
        }
        // SAFETY: the caller's promise. When it fails, the slot of a bounced mapping stays taken for ever.
        unsafe { self.unmap_range(address, len) }?;
        if let Some((pool, phys)) = bounced {
            // SAFETY: the copy was mapped by `map_bounced`, and the device's turn is over.
            unsafe { pool.unmap(phys, len, dir, attrs) };
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
        trace::event("iommu_dma_map_swiotlb", cpu.as_ptr().addr() as u64, len as u64);
        self.check_alive()?;
        // SAFETY: the caller's promise.
        unsafe { self.map_bounced(parms, cpu, len, dir, attrs) }
    }

    unsafe fn map_sg(
        &self,
        parms: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        trace::event("iommu_dma_map_sg", 0, list.len() as u64);
        self.check_alive()?;
        let granule = self.cookie().iovas.granule();
        let mask = granule - 1;
        if parms.is_untrusted() && list.iter().any(|entry| (entry.phys.get() | entry.len as u64) & mask != 0)
        {
            // SAFETY: the caller's promise.
            return unsafe { self.map_sg_singly(parms, list, dir, attrs) };
        }
        let Some(layout) = Layout::of(list, granule, parms.segment_boundary()) else {
            return Err(DmaError::InvalidLength(list.len()));
        };
        let limit = parms.streaming_mask().min(self.domain.aperture().1.get());
        let cookie = self.cookie();
        let Some(iova) = cookie.alloc_iova(layout.size, limit, self.low_first) else {
            return Err(DmaError::AddressSpaceExhausted {
                size: layout.size as usize,
                limit: DmaAddr::new(limit),
            });
        };
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        let block = Block { iova, size: layout.size, boundary_mask: parms.segment_boundary() };
        let mut places = Layout::new(granule, block.boundary_mask);
        for (index, entry) in list.iter().enumerate() {
            let Some(place) = places.place(entry) else { break };
            let at = iova.wrapping_add(place.offset);
            // SAFETY: the caller's promise; the addresses are this call's own.
            let (done, result) =
                unsafe { self.domain.map(at, entry.phys.align_down(granule), place.len, prot) };
            if let Err(error) = result {
                return Err(self.undo_sg(block, list, index, (at, done), error));
            }
        }
        if !parms.is_coherent() && !attrs.contains(Attrs::SKIP_CPU_SYNC) {
            for entry in list.iter() {
                self.platform.clean(self.window.ptr(entry.phys), entry.len);
            }
        }
        Ok(finalise(list, iova, granule, parms.max_segment_size(), block.boundary_mask))
    }

    unsafe fn unmap_sg(
        &self,
        parms: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("iommu_dma_unmap_sg", 0, list.len() as u64);
        let mut result = Ok(());
        let granule = self.cookie().iovas.granule();
        let segments = || list.iter().take_while(|entry| entry.dma_len != 0);
        let singly = segments().any(|entry| self.bounced(parms, entry.dma_address).is_some())
            || parms.is_untrusted()
                && list.iter().any(|entry| (entry.phys.get() | entry.len as u64) & (granule - 1) != 0);
        if singly {
            for entry in segments() {
                // SAFETY: each was mapped for itself.
                let unmapped =
                    unsafe { self.unmap_phys(parms, entry.dma_address, entry.dma_len, dir, attrs) };
                result = result.and(unmapped);
            }
            return result;
        }
        if !parms.is_coherent() && !attrs.contains(Attrs::SKIP_CPU_SYNC) {
            for entry in list {
                self.platform.invalidate(self.window.ptr(entry.phys), entry.len);
            }
        }
        // The list is one block of I/O addresses; its layout follows from the list, as it did when it was mapped.
        let (Some(first), Some(layout)) =
            (segments().next(), Layout::of(list, granule, parms.segment_boundary()))
        else {
            return Ok(());
        };
        let iova = first.dma_address.align_down(granule);
        self.unmap_block(Block { iova, size: layout.size, boundary_mask: parms.segment_boundary() }, list)
    }

    unsafe fn sync_for_cpu(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        let Some(phys) = parms.needs_sync().then(|| self.domain.iova_to_phys(address)).flatten() else {
            return;
        };
        if !parms.is_coherent() {
            self.platform.invalidate(self.window.ptr(phys), len);
        }
        if let Some((pool, phys)) = self.bounced(parms, address) {
            // SAFETY: the range is part of a live bounced mapping.
            unsafe { pool.sync_for_cpu(phys, len, dir) };
        }
    }

    unsafe fn sync_for_device(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        let Some(phys) = parms.needs_sync().then(|| self.domain.iova_to_phys(address)).flatten() else {
            return;
        };
        if let Some((pool, phys)) = self.bounced(parms, address) {
            // SAFETY: the range is part of a live bounced mapping.
            unsafe { pool.sync_for_device(phys, len, dir) };
        }
        if !parms.is_coherent() {
            self.platform.clean(self.window.ptr(phys), len);
        }
    }

    fn dma_supported(&self, mask: u64) -> bool {
        // One page below the mask must be left beside page 0, which is never handed out.
        mask >= self.domain.aperture().0.get().max(2 * self.cookie().iovas.granule() - 1)
    }

    fn max_mapping_size(&self, parms: &DeviceParms) -> usize {
        match &self.bounce {
            Some(pool) if parms.is_untrusted() => pool.max_mapping_size(parms),
            _ => usize::MAX,
        }
    }

    fn opt_mapping_size(&self) -> usize {
        usize::try_from(self.cookie().iovas.cached_range()).unwrap_or(usize::MAX)
    }

    fn merge_boundary(&self) -> u64 {
        self.cookie().iovas.granule() - 1
    }
}

impl IommuDma {
    /// Maps each element for itself, since some must be bounced.
    ///
    /// # Safety
    /// As `DmaMapOps::map_sg`.
    unsafe fn map_sg_singly(
        &self,
        parms: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        for index in 0..list.len() {
            let SgEntry { phys, len, .. } = list[index];
            // SAFETY: the caller's promise, for each element.
            match unsafe { self.map_phys(parms, phys, len, dir, attrs) } {
                Ok(address) => {
                    list[index].dma_address = address;
                    list[index].dma_len = len;
                }
                Err(error) => {
                    for entry in &list[..index] {
                        // SAFETY: mapped just now. What fails is quarantined and counted; the first error is told.
                        let _ = unsafe {
                            self.unmap_phys(
                                parms,
                                entry.dma_address,
                                entry.dma_len,
                                dir,
                                attrs | Attrs::SKIP_CPU_SYNC,
                            )
                        };
                    }
                    return Err(error);
                }
            }
        }
        Ok(list.len())
    }

    /// Takes a list back that was mapped up to element `index`, and of that the bytes in `partly`.
    #[cold]
    fn undo_sg(
        &self,
        block: Block,
        list: &[SgEntry],
        index: usize,
        partly: (DmaAddr, u64),
        error: MapError,
    ) -> DmaError {
        let (at, done) = partly;
        if done != 0 {
            let mut gather = self.domain.gather();
            // SAFETY: the addresses were taken by the failed map, and nobody else knows them.
            unsafe { self.domain.unmap(at, done, &mut gather) };
            if self.domain.sync(gather).is_err() {
                self.cookie().quarantine(block.size);
                return dma_error(error);
            }
        }
        // What fails is quarantined and counted; the first error is told.
        let _ = self.unmap_block(block, &list[..index]);
        dma_error(error)
    }

    /// Unmaps the elements of a list and gives the block of I/O addresses back.
    fn unmap_block(&self, block: Block, list: &[SgEntry]) -> Result<(), Quarantined> {
        let cookie = self.cookie();
        let quarantined = Quarantined { address: block.iova, len: block.size as usize };
        let mut gather = self.domain.gather();
        let mut places = Layout::new(cookie.iovas.granule(), block.boundary_mask);
        for entry in list {
            let Some(place) = places.place(entry) else { break };
            // SAFETY: each element is mapped at its place in the block, which is unmapped once.
            if unsafe { self.domain.unmap(block.iova.wrapping_add(place.offset), place.len, &mut gather) }
                < place.len
            {
                cookie.quarantine(block.size);
                return Err(quarantined);
            }
        }
        if self.domain.is_lazy() {
            let tables = gather.take_tables();
            cookie.queue.push(&self.domain, &cookie.iovas, block.iova, block.size, tables);
            return Ok(());
        }
        match self.domain.sync(gather) {
            Ok(flushed) => {
                cookie.iovas.free(block.iova, block.size, &flushed);
                Ok(())
            }
            Err(_) => {
                cookie.quarantine(block.size);
                Err(quarantined)
            }
        }
    }
}

/// The I/O addresses of a scatter list.
#[derive(Clone, Copy, Debug)]
struct Block {
    iova: DmaAddr,
    size: u64,
    boundary_mask: u64,
}
