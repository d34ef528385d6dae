//! The driver's domains: paging, identity and blocked.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::mem::ManuallyDrop;

use io_pgtable::{AmdV1, IoPageTable, IoPgtableCfg, PageTable, Translation as Mapped};
use iommu_core::{AttachError, DomainError, DomainOps, SyncError};
use platform::pci::PciAddress;
use platform::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use platform::{DmaAddr, IotlbGather, MapError, PageSizes, PhysAddr, Prot, trace};

use crate::driver::{Attachment, Shared};
use crate::dte::Translation;

/// A domain with a host (v1) page table (Linux: `struct protection_domain`).
#[doc(alias = "protection_domain")]
pub struct PagingDomain {
    id: u16,
    /// Freed by hand: not when a unit may still walk it.
    table: ManuallyDrop<PageTable<AmdV1>>,
    shared: Arc<Shared>,
    /// How many devices of each unit are attached (Linux: `pdom_iommu_info`).
    units: Box<[AtomicU32]>,
    /// A unit could not be told to forget this domain; neither its table nor its identifier is used again.
    poisoned: AtomicBool,
    /// An attached device keeps its domain alive.
    me: Weak<Self>,
}

impl PagingDomain {
    pub(crate) fn new(shared: &Arc<Shared>, levels: u8) -> Result<Arc<Self>, DomainError> {
        // 12 bits of a page, and 9 for each level; the highest has what is left of 64.
        let cfg = IoPgtableCfg::new((12 + 9 * u32::from(levels)).min(64));
        let table = PageTable::new(shared.platform().clone(), &cfg).map_err(|_| DomainError::Exhausted)?;
        let id = shared.domain_ids().alloc().ok_or(DomainError::Exhausted)?;
        Ok(Arc::new_cyclic(|me| Self {
            id,
            table: ManuallyDrop::new(table),
            units: shared.units().iter().map(|_| AtomicU32::new(0)).collect(),
            shared: shared.clone(),
            poisoned: AtomicBool::new(false),
            me: me.clone(),
        }))
    }

    /// Page frames that its table takes.
    pub fn table_pages(&self) -> usize {
        self.table.table_pages()
    }

    /// Shows every page from `first` to `last`.
    ///
    /// # Safety
    /// Nobody unmaps any of it meanwhile.
    pub(crate) unsafe fn for_each_page(
        &self,
        first: DmaAddr,
        last: DmaAddr,
        visit: &mut dyn FnMut(DmaAddr, Mapped),
    ) {
        // A page that is only partly in the range is shown too, so an aperture of all 64 bits loses nothing.
        let len = (last.get() - first.get()).saturating_add(1);
        // SAFETY: the caller's promise.
        unsafe { self.table.for_each_page(first, len, visit) };
    }

    /// The tag of its cached translations.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// What the device table entry of an attached device says.
    pub(crate) fn translation(&self) -> Translation {
        let root = self.table.root();
        Translation::Paging { domain: self.id, root: root.phys, level: (root.level & 7) as u8 }
    }

    /// Whether devices of a unit with tables of at most `levels` levels can use it.
    pub(crate) fn fits(&self, levels: u8) -> bool {
        self.table.root().level <= u32::from(levels)
    }

    /// Says that a device of `unit` is about to use the domain: from now on its unmaps are sent there. Before the unit can
    /// read the table.
    pub(crate) fn enter(&self, unit: usize) {
        if let Some(count) = self.units.get(unit) {
            count.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    /// Says that a device of `unit` no longer uses the domain, and that the unit has forgotten it.
    pub(crate) fn leave(&self, unit: usize) {
        if let Some(count) = self.units.get(unit) {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Says that a unit may go on using the domain for ever.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Sends invalidations of `first` to `last` (inclusive) to every unit that uses the domain, then waits for all.
    #[inline]
    fn flush(&self, first: u64, last: u64) -> Result<(), SyncError> {
        let units = self.shared.units();
        if let [unit] = units
            && self.units[0].load(Ordering::Acquire) != 0
        {
            // The usual machine: nothing to collect.
            return unit
                .submit_pages(self.id, first, last)
                .and_then(|ticket| unit.wait(ticket))
                .map_err(|_| SyncError);
        }
        self.flush_units(first, last)
    }

    fn flush_units(&self, first: u64, last: u64) -> Result<(), SyncError> {
        // A unit whose count is read as zero may be on its way in: either it sees the table as it is now, or its count is seen
        // here (the other half is in `enter`).
        fence(Ordering::SeqCst);
        let mut result = Ok(());
        let mut tickets = [None; 16];
        for (units, counts) in self.shared.units().chunks(tickets.len()).zip(self.units.chunks(tickets.len()))
        {
            for ((unit, count), ticket) in units.iter().zip(counts).zip(&mut tickets) {
                *ticket = None;
                if count.load(Ordering::SeqCst) != 0 {
                    match unit.submit_pages(self.id, first, last) {
                        Ok(submitted) => *ticket = Some(submitted),
                        Err(_) => result = Err(SyncError),
                    }
                }
            }
            for (unit, ticket) in units.iter().zip(&tickets) {
                if let Some(ticket) = ticket
                    && unit.wait(*ticket).is_err()
                {
                    result = Err(SyncError);
                }
            }
        }
        result
    }
}

// SAFETY: the table maps what `map_pages` was given and nothing else; every unit with an attached device has executed an
// invalidation of the whole range, table pointers included, when `iotlb_sync` and `flush_iotlb_all` return `Ok`; the table
// hands a page to the gather only after it has taken it out of the tree.
unsafe impl DomainOps for PagingDomain {
    #[doc(alias = "amd_iommu_attach_device")]
    unsafe fn attach_dev(&self, dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        let me = self.me.upgrade().ok_or(AttachError::Incompatible)?;
        self.shared.attach(dev, Attachment::Paging(me))
    }

    #[doc(alias = "amd_iommu_map_pages")]
    #[inline]
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
    #[inline]
    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        trace::event("amd_iommu_unmap", iova.get(), len);
        // SAFETY: the caller's promise.
        unsafe { self.table.unmap_range(iova, len, gather) }
    }

    fn needs_sync_map(&self) -> bool {
        self.shared.units().iter().any(|unit| unit.np_cache())
    }

    #[doc(alias = "amd_iommu_iotlb_sync_map")]
    fn iotlb_sync_map(&self, iova: DmaAddr, len: u64) -> Result<(), SyncError> {
        match iova.last_of(len) {
            Some(last) if self.needs_sync_map() => self.flush(iova.get(), last.get()),
            _ => Ok(()),
        }
    }

    #[doc(alias = "amd_iommu_iotlb_sync")]
    #[inline]
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

impl Drop for PagingDomain {
    /// The identifier and the table go back when every unit has forgotten the identifier (Linux: `protection_domain_free`);
    /// else both are leaked.
    fn drop(&mut self) {
        let forgotten = self.shared.units().iter().all(|unit| unit.flush_domain(self.id).is_ok());
        if !self.poisoned.load(Ordering::Acquire) && (forgotten || self.shared.is_stopped()) {
            self.shared.domain_ids().free(self.id);
            // SAFETY: this is the last use of the table. No device is attached, since each keeps its domain alive, and no unit
            // remembers the identifier, so none walks it.
            unsafe { ManuallyDrop::drop(&mut self.table) };
        }
    }
}

impl core::fmt::Debug for PagingDomain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PagingDomain").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The domain in which addresses pass as they are (Linux: `identity_domain`).
#[derive(Debug)]
pub(crate) struct IdentityDomain {
    pub(crate) shared: Arc<Shared>,
}

// SAFETY: nothing is mapped or unmapped in it; an attached device reaches all memory, as the core's identity domain says.
unsafe impl DomainOps for IdentityDomain {
    unsafe fn attach_dev(&self, dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        self.shared.attach(dev, Attachment::Identity)
    }
}

/// The domain in which nothing passes (Linux: `blocked_domain`).
#[derive(Debug)]
pub(crate) struct BlockedDomain {
    pub(crate) shared: Arc<Shared>,
}

// SAFETY: an attached device's requests are aborted.
unsafe impl DomainOps for BlockedDomain {
    unsafe fn attach_dev(&self, dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        self.shared.attach(dev, Attachment::Blocked)
    }
}
