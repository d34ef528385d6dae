//! `DmaMapOps` over a domain (Linux: `iommu_dma_ops`, drivers/iommu/dma-iommu.c).

mod alloc;
mod bounce;
mod iova;
mod sg;

use ::alloc::boxed::Box;
use ::alloc::collections::BTreeMap;
use ::alloc::sync::Arc;
use core::ptr::NonNull;

use dma_api::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, IovaOps, PageMemory, Quarantined,
    SgEntry,
};
use platform::sync::Mutex;
use platform::{DmaAddr, IotlbGather, MapError, PhysAddr, Platform, Prot, Window, trace};
use swiotlb::Swiotlb;

use self::iova::TwoStep;
use self::sg::has_partial_pages;
use crate::cookie::DmaCookie;
use crate::domain::Domain;
use crate::group::{Ownership, Status, check_usable};
use crate::scatter::{Layout, Run, finalise, runs};

/// A bound device's DMA, translated by its group's domain.
#[derive(Debug)]
pub(crate) struct IommuDma {
    domain: Arc<Domain>,
    cookie: Arc<DmaCookie>,
    /// The smallest page, in bytes.
    granule: u64,
    platform: Arc<dyn Platform>,
    window: Window,
    bounce: Option<Arc<Swiotlb>>,
    /// Coherent memory whose frames lie anywhere.
    remapped: Mutex<BTreeMap<DmaAddr, PageMemory>>,
    status: Arc<Status>,
    // Gives the device back when the last user of these ops is gone.
    ownership: Ownership,
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
        status: Arc<Status>,
        ownership: Ownership,
    ) -> Self {
        let platform = Arc::clone(domain.platform());
        let window = platform.window();
        let granule = cookie.iovas.granule();
        let remapped = Mutex::default();
        Self { domain, cookie, granule, platform, window, bounce, remapped, status, ownership }
    }

    #[inline]
    fn cookie(&self) -> &DmaCookie {
        &self.cookie
    }

    #[inline]
    fn check_alive(&self) -> Result<(), DmaError> {
        check_usable(&self.status, &self.ownership)
    }

    /// Takes `size` bytes of I/O addresses at or below `mask` (Linux: `iommu_dma_alloc_iova`).
    #[inline]
    fn alloc_iova(&self, size: u64, mask: u64) -> Result<DmaAddr, DmaError> {
        const LOW: u64 = u32::MAX as u64;
        let first = if self.status.is_low_full() { mask } else { mask.min(LOW) };
        match self.cookie.iovas.try_alloc(size, DmaAddr::new(first)) {
            Some(iova) => Ok(iova),
            None => self.alloc_iova_slow(size, mask, first),
        }
    }

    /// Takes what is hard to find: above 4 GiB, in the magazines of other CPUs, or in the flush queue.
    #[cold]
    fn alloc_iova_slow(&self, size: u64, mask: u64, tried: u64) -> Result<DmaAddr, DmaError> {
        let limit = mask.min(self.domain.aperture().1.get());
        if tried < limit {
            self.status.set_low_full();
        }
        let (DmaCookie { iovas, queue, .. }, limit) = (self.cookie(), DmaAddr::new(limit));
        let mut iova = iovas.alloc(size, limit);
        if iova.is_none() && queue.waiting() != 0 {
            queue.drain(&self.domain, iovas);
            iova = iovas.alloc(size, limit);
        }
        iova.ok_or(DmaError::AddressSpaceExhausted { size: size as usize, limit })
    }

    /// # Errors
    /// [`DmaError::InvalidAlignment`] when the device wants more of an address kept than its place in a granule.
    #[inline]
    fn check_align(&self, parms: &DeviceParms) -> Result<(), DmaError> {
        let mask = parms.min_align_mask();
        let kept = mask < self.granule;
        if kept { Ok(()) } else { Err(DmaError::InvalidAlignment(mask as usize)) }
    }

    /// Takes I/O addresses for the granules of memory: where they begin, their length, and where in them the memory begins.
    #[inline]
    fn take_iova(&self, mask: u64, phys: PhysAddr, len: usize) -> Result<(DmaAddr, u64, u64), DmaError> {
        let granule = self.granule;
        let size = phys.span_in(len as u64, granule).ok_or(DmaError::InvalidLength(len))?;
        Ok((self.alloc_iova(size, mask)?, size, phys.offset_in(granule)))
    }

    /// The granules of a mapping: where they begin, and their length. No mapping leaves the address space; what claims to
    /// is longer than anything that can be unmapped.
    #[inline]
    fn granules(&self, address: DmaAddr, len: usize) -> (DmaAddr, u64) {
        let granule = self.granule;
        (address.align_down(granule), address.span_in(len as u64, granule).unwrap_or(u64::MAX))
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
        let (iova, size, offset) = self.take_iova(mask, phys, len)?;
        let granule = self.granule;
        // SAFETY: the caller's promise; the I/O addresses are this call's own, of the domain's allocator, and whole granules.
        let (done, result) = unsafe { self.domain.map_granules(iova, phys.align_down(granule), size, prot) };
        match result.and_then(|()| self.domain.sync_map(iova, size)) {
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
        self.end_undo(iova, size, &mut gather, error)
    }

    /// Gives the I/O addresses of a failed mapping back after its pages were unmapped.
    fn end_undo(&self, iova: DmaAddr, size: u64, gather: &mut IotlbGather<'_>, error: MapError) -> DmaError {
        match self.domain.sync_in_place(gather) {
            Ok(flushed) => self.cookie().iovas.free(iova, size, &flushed),
            Err(_) => {
                self.cookie().quarantine(size);
                // With the error the caller gets his memory back, so the device must not reach it.
                self.ownership.block(&self.domain);
            }
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
        let (iova, size) = self.granules(address, len);
        let mut gather = self.domain.gather();
        // SAFETY: the caller's promise: the range is one live mapping, ended once.
        let unmapped = unsafe { self.domain.unmap(iova, size, &mut gather) };
        self.end_unmap(iova, size, unmapped >= size, &mut gather)
            .map_err(|NotConfirmed| Quarantined { address, len })
    }

    /// Gives the I/O addresses of a mapping back, now or later, after its pages were unmapped: all of them, if `whole`.
    #[inline]
    fn end_unmap(
        &self,
        iova: DmaAddr,
        size: u64,
        whole: bool,
        gather: &mut IotlbGather<'_>,
    ) -> Result<(), NotConfirmed> {
        let cookie = self.cookie();
        if whole && self.domain.is_lazy() {
            let tables = gather.take_tables();
            cookie.queue.push(&self.domain, &cookie.iovas, iova, size, tables);
            return Ok(());
        }
        match self.domain.sync_in_place(gather) {
            Ok(flushed) if whole => {
                cookie.iovas.free(iova, size, &flushed);
                Ok(())
            }
            _ => {
                cookie.quarantine(size);
                Err(NotConfirmed)
            }
        }
    }

    /// Before the device's turn: what the CPU wrote reaches memory (Linux: `arch_sync_dma_for_device`).
    #[inline]
    fn clean(&self, parms: &DeviceParms, phys: PhysAddr, len: usize) {
        if !parms.is_coherent() {
            self.platform.clean(self.window.ptr(phys), len);
        }
    }

    /// After the device's turn: the CPU sees what the device wrote (Linux: `arch_sync_dma_for_cpu`). Where the device only
    /// reads the CPU's lines are right, and may be newer than memory.
    #[inline]
    fn invalidate(&self, parms: &DeviceParms, phys: PhysAddr, len: usize, dir: Direction) {
        if !parms.is_coherent() && dir.device_writes() {
            self.platform.invalidate(self.window.ptr(phys), len);
        }
    }

    /// Where the granules of a range lead: neighbours for the device need not be neighbours in memory.
    ///
    /// # Safety
    /// The range is of one mapping, which nobody ends meanwhile.
    unsafe fn each_granule(&self, address: DmaAddr, len: usize, mut visit: impl FnMut(PhysAddr, usize)) {
        let granule = self.granule;
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let left = usize::try_from(granule - at.offset_in(granule)).unwrap_or(usize::MAX);
            let part = left.min(len - done);
            // SAFETY: the caller's promise.
            if let Some(phys) = unsafe { self.domain.iova_to_phys_owned(at) } {
                visit(phys, part);
            }
            done += part;
        }
    }

    /// The bounce buffer behind an I/O address, if there is one.
    ///
    /// # Safety
    /// The address is of a mapping that nobody else ends meanwhile.
    #[inline]
    unsafe fn bounced(&self, parms: &DeviceParms, address: DmaAddr) -> Option<(&Swiotlb, PhysAddr)> {
        // Nothing was ever bounced for a device that needs no sync, and asking the table takes time.
        if !parms.needs_sync() {
            return None;
        }
        // SAFETY: the caller's promise.
        let phys = unsafe { self.domain.iova_to_phys_owned(address) }?;
        Some((self.pool_of(phys)?, phys))
    }
}

// SAFETY: memory from `alloc` is the platform's, zeroed and mapped until `free`; maps lead to the given memory or its
// bounce copy with the direction's permission; an unmap returns Ok after the domain's invalidation (or leaves it to the
// flush queue in a lazy domain, which takes trust to be bound to).
unsafe impl DmaMapOps for IommuDma {
    fn alloc(&self, parms: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        trace::event("iommu_dma_alloc", 0, size as u64);
        self.check_alive()?;
        let prot = dma_info_to_prot(Direction::Bidirectional, parms.is_coherent(), attrs);
        match self.alloc_frames(parms, size, prot, attrs | Attrs::FORCE_CONTIGUOUS) {
            Ok(memory) => {
                let cpu = memory.pieces.first().ok_or(DmaError::OutOfMemory)?.cpu;
                Ok(CoherentMemory { cpu, dma: memory.dma, size })
            }
            Err(DmaError::OutOfMemory) if !attrs.contains(Attrs::FORCE_CONTIGUOUS) => {
                self.alloc_remapped(parms, size, prot, attrs)
            }
            Err(error) => Err(error),
        }
    }

    unsafe fn free(
        &self,
        _parms: &DeviceParms,
        memory: CoherentMemory,
        _attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("iommu_dma_free", memory.dma.get(), memory.size as u64);
        // SAFETY: the caller's promise: memory of `alloc`, in one piece or remapped.
        unsafe {
            match self.take_remapped(&memory) {
                Some(pages) => self.free_frames(pages),
                None => self.free_frames(memory.into()),
            }
        }
    }

    fn alloc_pages(
        &self,
        parms: &DeviceParms,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        trace::event("iommu_dma_alloc_noncontiguous", 0, size as u64);
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        self.alloc_frames(parms, size, prot, attrs)
    }

    unsafe fn free_pages(
        &self,
        _parms: &DeviceParms,
        memory: PageMemory,
        _dir: Direction,
        _attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("iommu_dma_free_noncontiguous", memory.dma.get(), memory.size as u64);
        // SAFETY: the caller's promise: memory of `alloc_pages`.
        unsafe { self.free_frames(memory) }
    }

    fn iova_ops(&self) -> Option<Box<dyn IovaOps + '_>> {
        Some(Box::new(TwoStep(self)))
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
        self.check_align(parms)?;
        if parms.is_untrusted() && (phys.get() | len as u64) & (self.granule - 1) != 0 {
            // A page is mapped whole: a hostile device would see what else is in it.
            if attrs.contains(Attrs::MMIO) {
                return Err(DmaError::NotRam);
            }
            let cpu = NonNull::new(self.window.ptr(phys)).ok_or(DmaError::NotRam)?;
            // SAFETY: the caller's promise: RAM that stays valid, seen through the window.
            return unsafe { self.map_bounced(parms, cpu, len, dir, attrs) };
        }
        if !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO) {
            self.clean(parms, phys, len);
        }
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        // SAFETY: the caller's promise.
        unsafe { self.map_range(parms.streaming_limit(), phys, len, prot) }
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
        // SAFETY: the caller's promise: a live mapping, ended once.
        let bounced = unsafe { self.bounced(parms, address) };
        if !parms.is_coherent()
            && !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO)
            // SAFETY: as above.
            && let Some(phys) = unsafe { self.domain.iova_to_phys_owned(address) }
        {
            self.invalidate(parms, phys, len, dir);
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
        self.check_align(parms)?;
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
        self.check_align(parms)?;
        let granule = self.granule;
        if parms.is_untrusted() && has_partial_pages(list, granule) {
            // SAFETY: the caller's promise.
            return unsafe { self.map_sg_singly(parms, list, dir, attrs) };
        }
        let Some(layout) = Layout::of(list, granule, parms.segment_boundary()) else {
            return Err(DmaError::InvalidLength(list.len()));
        };
        let iova = self.alloc_iova(layout.size, parms.streaming_limit())?;
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        for Run { before, at, phys, len } in runs(list, iova, layout) {
            // SAFETY: the caller's promise; the addresses are this call's own, of the domain's allocator, and whole granules.
            let (done, result) = unsafe { self.domain.map_granules(at, phys, len, prot) };
            if let Err(error) = result {
                return Err(self.undo_sg(iova, layout, &list[..before], (at, done), error));
            }
        }
        if let Err(error) = self.domain.sync_map(iova, layout.size) {
            return Err(self.undo_sg(iova, layout, list, (iova, 0), error));
        }
        if !attrs.contains(Attrs::SKIP_CPU_SYNC) {
            list.iter().for_each(|entry| self.clean(parms, entry.phys, entry.len));
        }
        Ok(finalise(list, iova, layout, parms.max_segment_size()))
    }

    unsafe fn unmap_sg(
        &self,
        parms: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("iommu_dma_unmap_sg", 0, list.len() as u64);
        let segments = || list.iter().take_while(|entry| entry.dma_len != 0);
        if parms.is_untrusted() && has_partial_pages(list, self.granule) {
            let mut result = Ok(());
            for entry in segments() {
                // SAFETY: each was mapped for itself.
                let unmapped =
                    unsafe { self.unmap_phys(parms, entry.dma_address, entry.dma_len, dir, attrs) };
                result = result.and(unmapped);
            }
            return result;
        }
        if !attrs.contains(Attrs::SKIP_CPU_SYNC) {
            list.iter().for_each(|entry| self.invalidate(parms, entry.phys, entry.len, dir));
        }
        // The granules of the segments are those of the elements; what lies between two segments was never mapped. They
        // are not laid out again from the list, since the device's limits may have changed meanwhile.
        let granules = |entry: &SgEntry| self.granules(entry.dma_address, entry.dma_len);
        let (Some((iova, _)), Some((last, last_len))) =
            (segments().next().map(granules), segments().last().map(granules))
        else {
            return Ok(());
        };
        let size = last.get() - iova.get() + last_len;
        let mut gather = self.domain.gather();
        let mut whole = true;
        let mut all = segments().map(granules).peekable();
        // Segments side by side together, as they were mapped: some tables do not cut a mapping.
        while let Some((at, mut len)) = all.next() {
            while let Some((_, more)) = all.next_if(|&(next, _)| at.wrapping_add(len) == next) {
                len += more;
            }
            // SAFETY: the caller's promise: these are segments of one live mapping, ended once.
            whole &= unsafe { self.domain.unmap(at, len, &mut gather) } >= len;
        }
        self.end_unmap(iova, size, whole, &mut gather)
            .map_err(|NotConfirmed| Quarantined { address: iova, len: size as usize })
    }

    unsafe fn sync_for_cpu(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        trace::event("iommu_dma_sync_single_for_cpu", address.get(), len as u64);
        if !parms.needs_sync() {
            return;
        }
        let sync = |phys, len| {
            self.invalidate(parms, phys, len, dir);
            if let Some(pool) = self.pool_of(phys) {
                // SAFETY: the range is part of a live bounced mapping.
                unsafe { pool.sync_for_cpu(phys, len, dir) };
            }
        };
        // SAFETY: the caller's promise: part of a live mapping.
        unsafe { self.each_granule(address, len, sync) };
    }

    unsafe fn sync_for_device(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        trace::event("iommu_dma_sync_single_for_device", address.get(), len as u64);
        if !parms.needs_sync() {
            return;
        }
        let sync = |phys, len| {
            if let Some(pool) = self.pool_of(phys) {
                // SAFETY: the range is part of a live bounced mapping.
                unsafe { pool.sync_for_device(phys, len, dir) };
            }
            self.clean(parms, phys, len);
        };
        // SAFETY: the caller's promise: part of a live mapping.
        unsafe { self.each_granule(address, len, sync) };
    }

    fn dma_supported(&self, parms: &DeviceParms, mask: u64) -> bool {
        // One page below the mask must be left beside page 0, which is never handed out.
        let mask = mask.min(parms.bus_limit());
        mask >= self.domain.aperture().0.get().max(2 * self.granule - 1)
    }

    /// Translated, a device reaches everything with 32 bits, unless the domain begins above or ends below.
    fn required_mask(&self, _parms: &DeviceParms) -> u64 {
        let mask_of = |last: DmaAddr| u64::MAX.checked_shr(last.get().leading_zeros()).unwrap_or(0);
        let (first, last) = self.domain.aperture();
        mask_of(first).max(u64::from(u32::MAX)).min(mask_of(last))
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
        self.granule - 1
    }
}

/// The device may still reach what was unmapped.
#[derive(Debug)]
struct NotConfirmed;
