//! A domain with a guest (v2) page table, which is a CPU's: for all requests of a device, or for those with one of its PASIDs.

use alloc::sync::{Arc, Weak};
use core::mem::ManuallyDrop;

use io_pgtable::{IoPageTable, IoPgtableCfg, PageTable, X86_64};
use iommu_core::{AttachError, DomainError, DomainOps, SyncError};
use platform::pci::PciAddress;
use platform::sync::atomic::{AtomicBool, Ordering};
use platform::{DmaAddr, IotlbGather, MapError, PageSizes, PhysAddr, Prot, trace};

use crate::attach::Attachment;
use crate::driver::Shared;
use crate::invalidate::Cover;
use crate::listeners::Listeners;

/// A domain with a guest (v2) page table (Linux: a `protection_domain` of `PD_MODE_V2`).
///
/// Units remember its translations under the tag of each device and PASID that uses it, so each is told for itself.
pub(crate) struct GuestDomain {
    /// Freed by hand: not when a unit may still walk it.
    table: ManuallyDrop<PageTable<X86_64>>,
    shared: Arc<Shared>,
    /// Every device and PASID that uses it.
    listeners: Listeners,
    /// A unit could not be told to forget it; the table is never freed.
    poisoned: AtomicBool,
    /// Whoever uses it keeps it alive.
    me: Weak<Self>,
}

impl GuestDomain {
    /// An empty one with a table of 4 or 5 levels.
    pub(crate) fn new(shared: &Arc<Shared>, levels: u8) -> Result<Arc<Self>, DomainError> {
        // Hardware takes addresses as signed: half of them, so that no sign matters.
        let cfg = IoPgtableCfg::new(if levels == 5 { 56 } else { 47 });
        let table = PageTable::new(shared.platform().clone(), &cfg).map_err(|_| DomainError::Exhausted)?;
        Ok(Arc::new_cyclic(|me| Self {
            table: ManuallyDrop::new(table),
            shared: shared.clone(),
            listeners: Listeners::default(),
            poisoned: AtomicBool::new(false),
            me: me.clone(),
        }))
    }

    /// Who uses it.
    pub(crate) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// The top of its table.
    pub(crate) fn root(&self) -> PhysAddr {
        self.table.root().phys
    }

    /// Levels of its table: 4 or 5.
    pub(crate) fn levels(&self) -> u8 {
        self.table.root().level as u8
    }

    /// Says that a unit may go on using the table for ever.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    fn flush(&self, first: u64, last: u64) -> Result<(), SyncError> {
        self.listeners.flush(&self.shared, Cover::containing(first, last))
    }
}

// SAFETY: the table maps what `map_pages` was given and nothing else; everybody who uses it has executed an invalidation of
// the whole range, table pointers included, when `iotlb_sync` and `flush_iotlb_all` return `Ok`; the table hands a page to the
// gather only after it has taken it out of the tree.
unsafe impl DomainOps for GuestDomain {
    unsafe fn attach_dev(&self, dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        let me = self.me.upgrade().ok_or(AttachError::Incompatible)?;
        self.shared.attach(dev, Attachment::Guest(me))
    }

    fn has_set_dev_pasid(&self) -> bool {
        true
    }

    unsafe fn set_dev_pasid(
        &self,
        dev: PciAddress,
        pasid: u32,
        _old: Option<&dyn DomainOps>,
    ) -> Result<(), AttachError> {
        let me = self.me.upgrade().ok_or(AttachError::Incompatible)?;
        self.shared.set_pasid(dev, pasid, Some(me))
    }

    #[doc(alias = "amd_iommu_map_pages")]
    unsafe fn map_pages(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        trace::event("amd_iommu_map", iova.get(), page_size.saturating_mul(count as u64));
        // SAFETY: the caller's promise.
        unsafe { self.table.map_pages(iova, phys, page_size, count, prot) }
    }

    #[doc(alias = "amd_iommu_unmap_pages")]
    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        trace::event("amd_iommu_unmap", iova.get(), len);
        // SAFETY: the caller's promise.
        unsafe { self.table.unmap_range(iova, len, gather) }
    }

    fn needs_sync_map(&self) -> bool {
        self.shared.units().iter().any(|unit| unit.np_cache())
    }

    fn iotlb_sync_map(&self, iova: DmaAddr, len: u64) -> Result<(), SyncError> {
        match iova.last_of(len) {
            Some(last) if self.needs_sync_map() => self.flush(iova.get(), last.get()),
            _ => Ok(()),
        }
    }

    #[doc(alias = "amd_iommu_iotlb_sync")]
    fn iotlb_sync(&self, gather: &IotlbGather<'_>) -> Result<(), SyncError> {
        let Some((first, last)) = gather.range() else { return Ok(()) };
        trace::event("amd_iommu_iotlb_sync", first.get(), (last.get() - first.get()).saturating_add(1));
        self.flush(first.get(), last.get())
    }

    #[doc(alias = "amd_iommu_flush_iotlb_all")]
    fn flush_iotlb_all(&self) -> Result<(), SyncError> {
        self.flush(0, u64::MAX)
    }

    fn iova_to_phys(&self, iova: DmaAddr) -> Option<PhysAddr> {
        self.table.iova_to_phys(iova).map(|translation| translation.phys)
    }

    fn page_sizes(&self) -> PageSizes {
        self.table.page_sizes()
    }

    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        self.table.aperture()
    }
}

impl Drop for GuestDomain {
    fn drop(&mut self) {
        if !self.poisoned.load(Ordering::Acquire) {
            // SAFETY: this is the last use of the table. Nobody uses it, since who does keeps it alive; and who let go of it
            // has told his units to forget it.
            unsafe { ManuallyDrop::drop(&mut self.table) };
        }
    }
}

impl core::fmt::Debug for GuestDomain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GuestDomain").field("root", &self.root()).finish_non_exhaustive()
    }
}
