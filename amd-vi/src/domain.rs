//! The driver's domains: paging, identity and blocked.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::mem::ManuallyDrop;

use io_pgtable::{
    AmdV1, ChangeTop, IoPageTable, IoPgtableCfg, PageTable, Parts, Quirks, Translation as Mapped,
};
use iommu_core::{AttachError, DirtyError, DomainError, DomainOps, SyncError};
use platform::pci::PciAddress;
use platform::sync::Mutex;
use platform::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use platform::{DmaAddr, IotlbGather, LeakCounter, MapError, PageSizes, PhysAddr, Prot, trace};

use crate::attach::Attachment;
use crate::driver::Shared;
use crate::dte::Translation;
use crate::invalidate::Cover;
use crate::listeners::Listeners;
use crate::unit::Unit;

/// Levels that a table begins with (Linux: `starting_level`, counted from 0); they reach 512 GiB.
const FIRST_LEVELS: u32 = 3;

/// A domain with a host (v1) page table (Linux: `struct protection_domain`).
#[doc(alias = "protection_domain")]
pub struct PagingDomain {
    id: u16,
    /// Freed by hand: not when a unit may still walk it.
    table: ManuallyDrop<PageTable<AmdV1>>,
    /// What the device table entries of its devices say. Changed only with the driver's devices locked, so that an attach
    /// sees what it is going to be while the table grows.
    translation: Arc<Mutex<Translation>>,
    /// Whether it was made to say what is written; if so, only units that can tell serve it.
    has_dirty: bool,
    shared: Arc<Shared>,
    /// How many devices of each unit are attached (Linux: `pdom_iommu_info`).
    units: Box<[AtomicU32]>,
    /// Attached devices that keep translations themselves.
    listeners: Listeners,
    /// A unit could not be told to forget this domain; neither its table nor its identifier is used again.
    poisoned: AtomicBool,
    /// An attached device keeps its domain alive.
    me: Weak<Self>,
}

impl PagingDomain {
    /// An empty domain whose table may grow to `most_levels`; with `has_dirty` it can say what is written.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        most_levels: u8,
        has_dirty: bool,
    ) -> Result<Arc<Self>, DomainError> {
        let domain = shared.domain_ids().alloc().ok_or(DomainError::Exhausted)?;
        let first = Translation::Paging { domain, root: PhysAddr::new(0), level: 0, dirty: false };
        let translation = Arc::new(Mutex::new(first));
        let parts = Parts {
            frames: shared.platform().clone(),
            cache: None,
            change_top: Some(ChangeTop::new(most_levels.into(), {
                // The domain keeps it; the table, which may be leaked, does not.
                let (shared, translation) = (Arc::downgrade(shared), translation.clone());
                move |top| {
                    let shared = shared.upgrade().ok_or(MapError::Gone)?;
                    let change = |to: &mut Translation| *to = to.with_top(top);
                    let changed = shared.change_translation(domain, &translation, change);
                    changed.map_err(|_| MapError::Gone)
                }
            })),
        };
        // 12 bits of a page, and 9 for each level.
        let cfg = IoPgtableCfg::new(12 + 9 * FIRST_LEVELS).with_quirks(Quirks::FORCE_COHERENCE);
        let table = match PageTable::with_parts(parts, &cfg) {
            Ok(table) => table,
            Err(_) => {
                shared.domain_ids().free(domain);
                return Err(DomainError::Exhausted);
            }
        };
        *translation.lock() = first.with_top(table.root());
        Ok(Arc::new_cyclic(|me| Self {
            id: domain,
            table: ManuallyDrop::new(table),
            translation,
            has_dirty,
            units: shared.units().iter().map(|_| AtomicU32::new(0)).collect(),
            listeners: Listeners::default(),
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
        *self.translation.lock()
    }

    fn tracks_dirty(&self) -> bool {
        matches!(self.translation(), Translation::Paging { dirty: true, .. })
    }

    /// Whether devices of a unit can use it: one with tables of as many levels as it has or may come to, which can tell what
    /// is written, should somebody ask.
    pub(crate) fn fits(&self, unit: &Unit) -> bool {
        let last = self.table.aperture().1.get();
        let reaches = |levels: u8| levels >= 6 || last >> (12 + 9 * u32::from(levels)) == 0;
        unit.host_levels().is_some_and(reaches) && (!self.has_dirty || unit.features().tracks_dirty())
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

    /// Attached devices that keep translations themselves.
    pub(crate) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Makes every unit and device that uses the domain forget `first` to `last` (inclusive): the units first, or a device
    /// could ask for the old translation anew.
    #[inline]
    fn flush(&self, first: u64, last: u64) -> Result<(), SyncError> {
        self.flush_iommus(first, last)?;
        self.listeners.flush(&self.shared, Cover::containing(first, last))
    }

    /// Sends invalidations of `first` to `last` (inclusive) to every unit that uses the domain, then waits for all.
    #[inline]
    fn flush_iommus(&self, first: u64, last: u64) -> Result<(), SyncError> {
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

    #[inline]
    unsafe fn map_range(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        trace::event("amd_iommu_map", iova.get(), len);
        // SAFETY: the caller's promise.
        unsafe { self.table.map_range(iova, phys, len, prot) }
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

    /// Every page is written as coherent (FC).
    #[doc(alias = "amd_iommu_enforce_cache_coherency")]
    fn enforce_cache_coherency(&self) -> bool {
        true
    }

    #[doc(alias = "amd_iommu_set_dirty_tracking")]
    fn set_dirty_tracking(&self, on: bool) -> Result<(), DirtyError> {
        if !self.has_dirty {
            return Err(DirtyError::Unsupported);
        }
        let set =
            |on| self.shared.change_translation(self.id, &self.translation, |to| *to = to.with_dirty(on));
        // What the units remember was not noted when it was used first.
        let done = set(on).map_err(|_| SyncError).and_then(|()| self.flush(0, u64::MAX));
        if done.is_err() && on {
            // Some unit notes nothing: better that nobody relies on it. The caller has his error whatever comes of this.
            let _ = set(false);
        }
        Ok(done?)
    }

    fn read_and_clear_dirty(
        &self,
        iova: DmaAddr,
        len: u64,
        clear: bool,
        report: &mut dyn FnMut(DmaAddr, u64),
    ) -> Result<(), DirtyError> {
        if !self.tracks_dirty() {
            return Err(if self.has_dirty { DirtyError::Off } else { DirtyError::Unsupported });
        }
        // The core gathers what is reported. This one has no tables, so nothing is lost with it.
        let leaks = LeakCounter::new();
        let mut gather = IotlbGather::new(&leaks);
        // SAFETY: a table that an unmap takes out meanwhile stays until lookups like this one have ended, and reads as empty.
        unsafe { self.table.read_and_clear_dirty(iova, len, clear, &mut gather, report) }
            .map_err(|_| DirtyError::Unsupported)
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
    fn has_set_dev_pasid(&self) -> bool {
        true
    }

    #[doc(alias = "blocked_domain_set_dev_pasid")]
    unsafe fn set_dev_pasid(
        &self,
        dev: PciAddress,
        pasid: u32,
        _old: Option<&dyn DomainOps>,
    ) -> Result<(), AttachError> {
        self.shared.set_pasid(dev, pasid, None)
    }
}
