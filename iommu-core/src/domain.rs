//! A domain: one translation, shared by the devices attached to it.

use alloc::sync::Arc;

use platform::sync::Mutex;
use platform::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use platform::{
    DmaAddr, Flushed, FrameList, IotlbGather, LeakCounter, MapError, PageSizes, PhysAddr, Platform, Prot,
    trace,
};

use crate::cookie::DmaCookie;
use crate::fault::{Fault, FaultHandler};
use crate::iopf::IopfQueue;
use crate::lookups::Lookups;
use crate::msi::Doorbells;
use crate::ops::{DirtyError, DomainError, DomainOps, DomainType, IommuOps, SyncError};

/// A domain (Linux: `struct iommu_domain`).
#[derive(Debug)]
pub struct Domain {
    /// Never `DmaFq`: that is `Dma`, gone lazy.
    kind: DomainType,
    /// Whether a DMA domain has gone over to lazy invalidation: the one change of type that is allowed while it is used.
    lazy: AtomicBool,
    ops: Arc<dyn DomainOps>,
    owner: Arc<dyn IommuOps>,
    platform: Arc<dyn Platform>,
    page_sizes: PageSizes,
    aperture: (DmaAddr, DmaAddr),
    needs_sync_map: bool,
    leaks: LeakCounter,
    lookups: Lookups,
    full_flushes: AtomicU64,
    /// What the DMA API keeps, in a domain of its own.
    cookie: Option<Arc<DmaCookie>>,
    /// Who wants to hear of faults first, and who answers page requests: in a domain of somebody's own.
    handlers: Mutex<Handlers>,
    doorbells: Mutex<Doorbells>,
}

#[derive(Debug, Default)]
struct Handlers {
    fault: Option<Arc<dyn FaultHandler>>,
    iopf: Option<Arc<IopfQueue>>,
}

impl Domain {
    pub(crate) fn new(
        kind: DomainType,
        ops: Arc<dyn DomainOps>,
        owner: Arc<dyn IommuOps>,
        platform: Arc<dyn Platform>,
        cookie: Option<DmaCookie>,
    ) -> Self {
        Self {
            cookie: cookie.map(Arc::new),
            lazy: AtomicBool::new(false),
            // Where an empty domain blocks it stays empty.
            page_sizes: if kind.is_paging() { ops.page_sizes() } else { PageSizes::from_bits(0) },
            aperture: ops.aperture(),
            needs_sync_map: ops.needs_sync_map(),
            leaks: LeakCounter::new(),
            lookups: Lookups::default(),
            full_flushes: AtomicU64::new(0),
            handlers: Mutex::default(),
            doorbells: Mutex::default(),
            kind,
            ops,
            owner,
            platform,
        }
    }

    /// Its type, as it is now.
    pub fn domain_type(&self) -> DomainType {
        match self.kind {
            DomainType::Dma if self.is_lazy() => DomainType::DmaFq,
            kind => kind,
        }
    }

    /// Whether unmaps leave their invalidation to a flush queue.
    #[inline]
    pub fn is_lazy(&self) -> bool {
        self.lazy.load(Ordering::Relaxed)
    }

    /// From now on unmaps are lazy (Linux: `DMA` → `DMA-FQ` of a live domain).
    pub(crate) fn make_lazy(&self) -> Result<(), DomainError> {
        let cookie = self.cookie.as_ref().ok_or(DomainError::Unsupported)?;
        cookie.queue.make_room().map_err(|_| DomainError::Exhausted)?;
        self.lazy.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The driver's part.
    pub(crate) fn ops(&self) -> &Arc<dyn DomainOps> {
        &self.ops
    }

    /// The driver that made it.
    pub(crate) fn owner(&self) -> &Arc<dyn IommuOps> {
        &self.owner
    }

    /// The page sizes of its table.
    pub fn page_sizes(&self) -> PageSizes {
        self.page_sizes
    }

    /// First and last I/O address that it can map.
    pub fn aperture(&self) -> (DmaAddr, DmaAddr) {
        self.aperture
    }

    /// How many ranges and table pages were given up because the IOMMU did not confirm an invalidation.
    pub fn leaked(&self) -> u64 {
        self.leaks.get()
    }

    pub(crate) fn leaks(&self) -> &LeakCounter {
        &self.leaks
    }

    /// Maps a range, in the largest pages that fit (Linux: `iommu_map`). Both addresses and the length are multiples of the
    /// smallest page.
    ///
    /// Returns the bytes mapped beside the error; who allocated the I/O addresses unmaps them.
    ///
    /// # Safety
    /// The memory stays valid until it is unmapped, and nobody else touches this range of I/O addresses meanwhile.
    #[doc(alias = "iommu_map")]
    #[inline]
    pub unsafe fn map(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        // SAFETY: the caller's promise.
        let (done, result) = unsafe { self.map_nosync(iova, phys, len, prot) };
        (done, result.and_then(|()| self.sync_map(iova, len)))
    }

    /// The same for one of several ranges that are then made visible together by [`Domain::sync_map`] (Linux:
    /// `iommu_map_nosync`).
    ///
    /// # Safety
    /// As [`Domain::map`].
    #[doc(alias = "iommu_map_nosync")]
    #[inline]
    pub unsafe fn map_nosync(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        if !prot.intersects(Prot::READ | Prot::WRITE) {
            return (0, Err(MapError::NoAccess));
        }
        let granule = self.page_sizes.smallest();
        if granule == 0 || (iova.get() | phys.get() | len) & (granule - 1) != 0 {
            return (0, Err(MapError::NoPageSize(iova)));
        }
        let in_reach =
            iova.last_of(len).is_some_and(|last| iova >= self.aperture.0 && last <= self.aperture.1);
        if !in_reach || phys.last_of(len).is_none() {
            return (0, Err(MapError::OutOfRange(iova)));
        }
        // SAFETY: the caller's promise, and what it does not promise was checked.
        unsafe { self.map_granules(iova, phys, len, prot) }
    }

    /// The same where there is nothing to check.
    ///
    /// # Safety
    /// As [`Domain::map`]. Addresses and length are multiples of the smallest page, the I/O addresses are in the aperture (those of
    /// its allocator are), the memory does not leave the address space, and the device may read or write.
    #[inline]
    pub(crate) unsafe fn map_granules(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        trace::event("iommu_map", iova.get(), len);
        // SAFETY: the caller's promise.
        unsafe { self.ops.map_range(iova, phys, len, prot) }
    }

    /// Makes what [`Domain::map_nosync`] has mapped visible to hardware that remembers what was not there (Linux:
    /// `iommu_sync_map`).
    ///
    /// # Errors
    /// [`MapError::Gone`] when the IOMMU does not answer; what was mapped stays mapped.
    #[doc(alias = "iommu_sync_map")]
    #[inline]
    pub fn sync_map(&self, iova: DmaAddr, len: u64) -> Result<(), MapError> {
        if self.needs_sync_map {
            self.ops.iotlb_sync_map(iova, len).map_err(|SyncError| MapError::Gone)?;
        }
        Ok(())
    }

    /// Maps pieces of memory one after the other, from `iova` on, and makes them visible together (Linux: `iommu_map_sg`). Each
    /// is given by its address and length, multiples of the smallest page; neighbours in memory become one.
    ///
    /// Returns as [`Domain::map`].
    ///
    /// # Safety
    /// As [`Domain::map`], for each piece and for the whole range.
    #[doc(alias = "iommu_map_sg")]
    pub unsafe fn map_sg(
        &self,
        iova: DmaAddr,
        pieces: impl IntoIterator<Item = (PhysAddr, u64)>,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        let mut pieces = pieces.into_iter().peekable();
        let mut done = 0;
        while let Some((phys, mut len)) = pieces.next() {
            while let Some((_, more)) = pieces.next_if(|&(next, _)| phys.checked_add(len) == Some(next)) {
                len = len.saturating_add(more);
            }
            // SAFETY: the caller's promise, for these pieces.
            let (mapped, result) = unsafe { self.map_nosync(iova.wrapping_add(done), phys, len, prot) };
            done += mapped;
            if result.is_err() {
                return (done, result);
            }
        }
        (done, self.sync_map(iova, done))
    }

    /// An empty gather for unmaps of this domain.
    #[inline]
    pub fn gather(&self) -> IotlbGather<'_> {
        IotlbGather::new(&self.leaks)
    }

    /// Unmaps a range and collects what must be invalidated (Linux: `iommu_unmap_fast`). Returns the bytes unmapped.
    ///
    /// # Safety
    /// Nobody else touches this range of I/O addresses meanwhile, and the gather is this domain's: from [`Domain::gather`], and
    /// for this domain's [`Domain::sync`], since another's would free table pages that this one's IOMMU remembers.
    #[doc(alias = "iommu_unmap_fast")]
    #[inline]
    pub unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        trace::event("iommu_unmap", iova.get(), len);
        // SAFETY: the caller's promise.
        unsafe { self.ops.unmap(iova, len, gather) }
    }

    /// Invalidates what was gathered, waits, and frees the table pages in it (Linux: `iommu_iotlb_sync`).
    ///
    /// # Errors
    /// [`SyncError`] when the IOMMU did not answer: what was gathered is leaked and counted.
    #[doc(alias = "iommu_iotlb_sync")]
    #[inline]
    pub fn sync(&self, mut gather: IotlbGather<'_>) -> Result<Flushed, SyncError> {
        self.sync_in_place(&mut gather)
    }

    /// The same for a gather that is not moved: it was written just now, and copying it would wait for those writes.
    #[inline]
    pub(crate) fn sync_in_place(&self, gather: &mut IotlbGather<'_>) -> Result<Flushed, SyncError> {
        if gather.range().is_some() {
            self.ops.iotlb_sync(gather)?;
        }
        if gather.has_tables() {
            // SAFETY: the driver has invalidated the range, table pointers included, as its contract says.
            unsafe { self.free_tables(gather.take_tables()) };
        }
        // SAFETY: for the same reason.
        Ok(unsafe { Flushed::assert() })
    }

    /// Gives table pages back, once no lookup is in them.
    ///
    /// # Safety
    /// They left the table of this domain, and no IOMMU remembers them.
    pub(crate) unsafe fn free_tables(&self, tables: FrameList) {
        // SAFETY: they came from the platform and are out of reach, as the driver's contract says.
        unsafe { self.lookups.free(tables, &*self.platform) };
    }

    /// Invalidates everything and waits (Linux: `flush_iotlb_all`).
    ///
    /// # Errors
    /// [`SyncError`] when the IOMMU did not answer.
    #[doc(alias = "iommu_flush_iotlb_all")]
    pub fn flush_all(&self) -> Result<Flushed, SyncError> {
        self.ops.flush_iotlb_all()?;
        self.full_flushes.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the driver has invalidated everything, as its contract says.
        Ok(unsafe { Flushed::assert() })
    }

    /// How often everything was invalidated at once: what lazy mode saves its single invalidations for.
    pub fn full_flushes(&self) -> u64 {
        self.full_flushes.load(Ordering::Relaxed)
    }

    /// Where an I/O address leads (Linux: `iommu_iova_to_phys`). Beside an unmap of that address, where it led or nowhere.
    #[doc(alias = "iommu_iova_to_phys")]
    pub fn iova_to_phys(&self, iova: DmaAddr) -> Option<PhysAddr> {
        let _lookup = self.lookups.begin(&*self.platform);
        // SAFETY: the lookup has said that it begins.
        unsafe { self.iova_to_phys_owned(iova) }
    }

    /// The same in a range of the caller's own, which costs no more than the walk: its tables stay.
    ///
    /// # Safety
    /// Nobody else maps or unmaps the range meanwhile, as for [`Domain::map`]; or a lookup has been begun.
    #[inline]
    pub(crate) unsafe fn iova_to_phys_owned(&self, iova: DmaAddr) -> Option<PhysAddr> {
        match self.kind {
            DomainType::Identity => Some(PhysAddr::new(iova.get())),
            DomainType::Blocked => None,
            _ => self.ops.iova_to_phys(iova),
        }
    }

    /// Makes every access through the domain coherent from now on, whatever its devices ask for (Linux:
    /// `enforce_cache_coherency`). Returns whether that is so.
    pub fn enforce_cache_coherency(&self) -> bool {
        self.kind.is_paging() && self.ops.enforce_cache_coherency()
    }

    /// Starts or stops noting which pages are written (Linux: `set_dirty_tracking`).
    ///
    /// # Errors
    /// [`DirtyError`] with the reason.
    pub fn set_dirty_tracking(&self, on: bool) -> Result<(), DirtyError> {
        self.ops.set_dirty_tracking(on)
    }

    /// Tells `report` each run of pages of a range that was written, as first address and length in bytes, and with `clear`
    /// forgets and invalidates it, so that the next write is noted again (Linux: `read_and_clear_dirty`).
    ///
    /// # Errors
    /// [`DirtyError`] with the reason.
    pub fn read_and_clear_dirty(
        &self,
        iova: DmaAddr,
        len: u64,
        clear: bool,
        report: &mut dyn FnMut(DmaAddr, u64),
    ) -> Result<(), DirtyError> {
        let mut gather = self.gather();
        let lookup = self.lookups.begin(&*self.platform);
        let read = self.ops.read_and_clear_dirty(iova, len, clear, &mut |at, len| {
            if clear {
                gather.add_range(at, len);
            }
            report(at, len);
        });
        drop(lookup);
        // What was cleared before an error must be invalidated as well.
        let _flushed = self.sync(gather)?;
        read
    }

    /// Who hears first of faults of devices in the domain (Linux: `iommu_set_fault_handler`).
    ///
    /// # Errors
    /// [`DomainError::InUse`] when the domain is not its owner's alone, or has a handler.
    #[doc(alias = "iommu_set_fault_handler")]
    pub fn set_fault_handler(&self, handler: Arc<dyn FaultHandler>) -> Result<(), DomainError> {
        let mut handlers = self.handlers.lock();
        if self.kind != DomainType::Unmanaged || handlers.fault.is_some() {
            return Err(DomainError::InUse);
        }
        handlers.fault = Some(handler);
        Ok(())
    }

    /// Whether the domain's handler has dealt with a fault.
    pub(crate) fn handles(&self, fault: &Fault) -> bool {
        let handler = self.handlers.lock().fault.clone();
        handler.is_some_and(|handler| handler.handle(fault))
    }

    /// Where page requests of devices in the domain go (Linux: `iopf_handler`).
    ///
    /// # Errors
    /// [`DomainError::InUse`] when the domain is not its owner's alone, or has a queue.
    #[doc(alias = "iopf_handler")]
    pub fn set_iopf_queue(&self, queue: Arc<IopfQueue>) -> Result<(), DomainError> {
        let mut handlers = self.handlers.lock();
        if self.kind != DomainType::Unmanaged || handlers.iopf.is_some() {
            return Err(DomainError::InUse);
        }
        handlers.iopf = Some(queue);
        Ok(())
    }

    pub(crate) fn iopf_queue(&self) -> Option<Arc<IopfQueue>> {
        self.handlers.lock().iopf.clone()
    }

    pub(crate) fn doorbells(&self) -> &Mutex<Doorbells> {
        &self.doorbells
    }

    pub(crate) fn cookie(&self) -> Option<&Arc<DmaCookie>> {
        self.cookie.as_ref()
    }

    pub(crate) fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }
}

impl Drop for Domain {
    /// What waits in the flush queue goes back: no device is in the domain any more.
    fn drop(&mut self) {
        if let Some(cookie) = self.cookie.clone()
            && cookie.queue.waiting() != 0
        {
            cookie.queue.drain(self, &cookie.iovas);
        }
    }
}
