//! A domain: one translation, shared by the devices attached to it.

use alloc::sync::Arc;

use platform::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use platform::{
    DmaAddr, Flushed, IotlbGather, LeakCounter, MapError, PageSizes, PhysAddr, Platform, Prot, trace,
};

use crate::cookie::DmaCookie;
use crate::ops::{DomainOps, DomainType, IommuOps, SyncError};

/// A domain (Linux: `struct iommu_domain`).
#[derive(Debug)]
pub struct Domain {
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
    full_flushes: AtomicU64,
    /// What the DMA API keeps, in a domain of its own.
    cookie: Option<Arc<DmaCookie>>,
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
            lazy: AtomicBool::new(kind == DomainType::DmaFq),
            page_sizes: ops.page_sizes(),
            aperture: ops.aperture(),
            needs_sync_map: ops.needs_sync_map(),
            leaks: LeakCounter::new(),
            full_flushes: AtomicU64::new(0),
            kind,
            ops,
            owner,
            platform,
        }
    }

    /// Its type, as it is now.
    pub fn domain_type(&self) -> DomainType {
        match self.kind {
            DomainType::Dma | DomainType::DmaFq if self.is_lazy() => DomainType::DmaFq,
            DomainType::DmaFq => DomainType::Dma,
            kind => kind,
        }
    }

    /// Whether unmaps leave their invalidation to a flush queue.
    #[inline]
    pub fn is_lazy(&self) -> bool {
        self.lazy.load(Ordering::Relaxed)
    }

    /// From now on unmaps are lazy (Linux: `DMA` → `DMA-FQ` of a live domain).
    pub(crate) fn make_lazy(&self) {
        self.lazy.store(true, Ordering::Relaxed);
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
        trace::event("iommu_map", iova.get(), len);
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
        let mut done = 0;
        while done < len {
            let (at, from) = (iova.wrapping_add(done), phys.wrapping_add(done));
            let Some(run) = self.page_sizes.pick(at.get(), from.get(), len - done) else {
                return (done, Err(MapError::NoPageSize(at)));
            };
            // SAFETY: the caller's promise, for a part of the range.
            let (mapped, result) = unsafe { self.ops.map_pages(at, from, run.page_size, run.count, prot) };
            done += mapped;
            if let Err(error) = result {
                return (done, Err(error));
            }
            if mapped == 0 {
                // A driver that neither maps nor says why would be asked for ever.
                return (done, Err(MapError::NoPageSize(at)));
            }
        }
        (done, Ok(()))
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
    pub fn sync(&self, gather: IotlbGather<'_>) -> Result<Flushed, SyncError> {
        if gather.range().is_some() {
            self.ops.iotlb_sync(&gather)?;
        }
        // SAFETY: the driver has invalidated the range, and its table pages came from the platform, as its contract says.
        Ok(unsafe { gather.flushed(&*self.platform) })
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

    /// Where an I/O address leads (Linux: `iommu_iova_to_phys`).
    #[doc(alias = "iommu_iova_to_phys")]
    pub fn iova_to_phys(&self, iova: DmaAddr) -> Option<PhysAddr> {
        match self.kind {
            DomainType::Identity => Some(PhysAddr::new(iova.get())),
            DomainType::Blocked => None,
            _ => self.ops.iova_to_phys(iova),
        }
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
        if self.is_lazy()
            && let Some(cookie) = self.cookie.clone()
        {
            cookie.queue.drain(self, &cookie.iovas);
        }
    }
}
