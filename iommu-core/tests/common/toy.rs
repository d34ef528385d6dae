//! An IOMMU whose page tables are maps and whose devices have caches that forget only what they are told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak};

use iommu_core::{
    AttachError, Capability, DeviceGroup, DirtyError, DomainError, DomainOps, DomainType, HwInfo, IommuOps,
    PageResponse, PagingFlags, ProbeError, Probed, ResvRegion, SyncError,
};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, IotlbGather, MapError, PageSizes, PhysAddr, Prot, Window};

/// What the IOMMU was told, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    Attach { device: PciAddress, domain: u32 },
    Map { iova: u64, phys: u64, len: u64, prot: Prot },
    Unmap { iova: u64, len: u64 },
    Sync { first: u64, last: u64 },
    SyncMap { iova: u64, len: u64 },
    FlushAll,
    Pasid { device: PciAddress, pasid: u32, domain: u32 },
    Finalize(PciAddress),
    Release(PciAddress),
    Response { device: PciAddress, response: PageResponse },
}

/// What a toy IOMMU is like from the start.
#[derive(Clone, Debug)]
pub struct Knobs {
    pub page_sizes: u64,
    pub aperture: (u64, u64),
    pub regions: Vec<(PciAddress, ResvRegion)>,
    pub def_types: BTreeMap<PciAddress, DomainType>,
    pub aliases: BTreeMap<PciAddress, Vec<RequesterId>>,
    pub not_mine: BTreeSet<PciAddress>,
    pub can_defer: bool,
    /// Strict unless asked for lazy by name.
    pub strict_by_default: bool,
    pub shadow_on_flush: bool,
    pub has_identity: bool,
    /// Without it an empty domain blocks.
    pub has_blocked: bool,
    /// Where devices that go are left: in the blocked domain.
    pub has_release: bool,
    pub needs_sync_map: bool,
    /// Devices see the CPU's caches.
    pub coherent: bool,
    /// Maps do nothing, and say that all is well.
    pub maps_nothing: bool,
    pub max_pasids: BTreeMap<PciAddress, u32>,
    /// Whether domains with PASIDs beside them can be made, and the blocked domain takes PASIDs off.
    pub can_pasid: bool,
    pub grouping: BTreeMap<PciAddress, DeviceGroup>,
    pub deferred: BTreeSet<PciAddress>,
    pub ats: BTreeSet<PciAddress>,
    /// Whose interrupts are not remapped.
    pub not_remapped: BTreeSet<PciAddress>,
    /// Mappings fail as long as no device is in the domain.
    pub maps_only_attached: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            page_sizes: 1 << 12 | 1 << 21 | 1 << 30,
            aperture: (0, (1 << 48) - 1),
            regions: Vec::new(),
            def_types: BTreeMap::new(),
            aliases: BTreeMap::new(),
            not_mine: BTreeSet::new(),
            can_defer: true,
            strict_by_default: false,
            shadow_on_flush: false,
            has_identity: true,
            has_blocked: true,
            has_release: false,
            needs_sync_map: false,
            coherent: true,
            maps_nothing: false,
            max_pasids: BTreeMap::new(),
            can_pasid: true,
            grouping: BTreeMap::new(),
            deferred: BTreeSet::new(),
            ats: BTreeSet::new(),
            not_remapped: BTreeSet::new(),
            maps_only_attached: false,
        }
    }
}

/// The IOMMU.
#[derive(Debug)]
pub struct Toy {
    shared: Arc<Shared>,
    identity: Arc<ToyDomain>,
    blocked: Arc<ToyDomain>,
    next: AtomicU64,
}

/// What the IOMMU and its domains share.
#[derive(Debug)]
struct Shared {
    knobs: Knobs,
    state: Mutex<State>,
    silent: AtomicBool,
    pages_left: AtomicU64,
    fail_paging: AtomicBool,
    /// How many calls that may fail do not, before one does.
    fail_after: AtomicU64,
    failed: AtomicBool,
    hold: Mutex<Option<Arc<Barrier>>>,
    hold_lookup: Mutex<Option<Arc<Barrier>>>,
    /// Table pages that the next unmap takes out.
    tables: Mutex<Vec<(Window, PhysAddr)>>,
}

#[derive(Debug, Default)]
struct State {
    log: Vec<Did>,
    /// The domain of each device. A device that is not here reaches nothing.
    attached: BTreeMap<PciAddress, u32>,
    /// The domain of each PASID.
    pasids: BTreeMap<(PciAddress, u32), u32>,
    /// What a device's IOMMU remembers, by domain and page.
    cache: BTreeMap<(u32, u64), (u64, Prot)>,
    /// Devices that do not let themselves be attached to certain domains.
    refusals: BTreeMap<PciAddress, Refusal>,
    domains: BTreeMap<u32, Weak<ToyDomain>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refusal {
    error: AttachError,
    /// Whether even the blocked domain is refused.
    everything: bool,
}

const IDENTITY: u32 = 0;
const BLOCKED: u32 = 1;

impl Toy {
    pub const IDENTITY: u32 = IDENTITY;
    pub const BLOCKED: u32 = BLOCKED;

    pub fn new(knobs: Knobs) -> Self {
        let shared = Arc::new(Shared {
            knobs,
            state: Mutex::default(),
            silent: AtomicBool::new(false),
            pages_left: AtomicU64::new(u64::MAX),
            fail_paging: AtomicBool::new(false),
            fail_after: AtomicU64::new(u64::MAX),
            failed: AtomicBool::new(false),
            hold: Mutex::default(),
            hold_lookup: Mutex::default(),
            tables: Mutex::default(),
        });
        let domain = |id| {
            let domain = Arc::new(ToyDomain::new(id, &shared));
            shared.state.lock().unwrap().domains.insert(id, Arc::downgrade(&domain));
            domain
        };
        let (identity, blocked) = (domain(IDENTITY), domain(BLOCKED));
        Self { identity, blocked, shared, next: AtomicU64::new(2) }
    }

    /// From now on invalidations are not answered (or are again).
    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }

    /// After so many pages no memory is left for tables.
    pub fn set_pages_left(&self, pages: u64) {
        self.shared.pages_left.store(pages, Ordering::Relaxed);
    }

    /// From now on no page table can be made.
    pub fn fail_paging(&self) {
        self.shared.fail_paging.store(true, Ordering::Relaxed);
    }

    /// The next attach waits for `barrier` twice: to say that it is under way, and to be let go on.
    pub fn hold_attach(&self, barrier: &Arc<Barrier>) {
        *self.shared.hold.lock().unwrap() = Some(Arc::clone(barrier));
    }

    /// The next lookup waits for `barrier` twice: to say that it is in the table, and to be let go on.
    pub fn hold_lookup(&self, barrier: &Arc<Barrier>) {
        *self.shared.hold_lookup.lock().unwrap() = Some(Arc::clone(barrier));
    }

    /// The next unmap takes a table page out.
    pub fn next_unmap_takes_out(&self, window: Window, page: PhysAddr) {
        self.shared.tables.lock().unwrap().push((window, page));
    }

    /// Of the calls that may fail, `after` more do not, and then one does.
    pub fn fail_after(&self, after: u64) {
        self.shared.failed.store(false, Ordering::Relaxed);
        self.shared.fail_after.store(after, Ordering::Relaxed);
    }

    /// Whether the failure has happened; from now on there is none.
    pub fn has_failed(&self) -> bool {
        self.shared.fail_after.store(u64::MAX, Ordering::Relaxed);
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Domains that live, the identity and the blocked one included.
    pub fn live_domains(&self) -> usize {
        self.state().domains.values().filter(|domain| domain.strong_count() != 0).count()
    }

    /// Mappings in all domains.
    pub fn mapped(&self) -> usize {
        let domains: Vec<_> = self.state().domains.values().filter_map(Weak::upgrade).collect();
        domains.iter().map(|domain| domain.table.lock().unwrap().len()).sum()
    }

    /// Whether the domain of a device can have PASIDs beside it.
    pub fn has_room_for_pasids(&self, device: PciAddress) -> bool {
        let state = self.state();
        let domain = state.attached.get(&device).and_then(|id| state.domains.get(id)?.upgrade());
        domain.is_some_and(|domain| domain.flags.contains(PagingFlags::PASID))
    }

    /// The domain of a PASID.
    pub fn pasid(&self, device: PciAddress, pasid: u32) -> Option<u32> {
        self.state().pasids.get(&(device, pasid)).copied()
    }

    /// From now on `device` refuses domains other than the blocked one; or all, with `everything`.
    pub fn refuse(&self, device: PciAddress, error: AttachError, everything: bool) {
        self.state().refusals.insert(device, Refusal { error, everything });
    }

    pub fn refuse_nothing(&self) {
        self.state().refusals.clear();
    }

    /// What happened since the last call.
    pub fn take_log(&self) -> Vec<Did> {
        std::mem::take(&mut self.state().log)
    }

    /// The domain that a device is attached to.
    pub fn domain_of(&self, device: PciAddress) -> Option<u32> {
        self.state().attached.get(&device).copied()
    }

    /// What a device reaches at an I/O address, for reading or writing. A translation that is used is remembered.
    pub fn reach(&self, device: PciAddress, at: DmaAddr, write: bool) -> Option<u64> {
        let mut state = self.state();
        let domain = *state.attached.get(&device)?;
        match domain {
            IDENTITY => return Some(at.get()),
            BLOCKED => return None,
            _ => {}
        }
        let page = at.get() & !4095;
        let found = state.cache.get(&(domain, page)).copied().or_else(|| {
            let table = state.domains.get(&domain)?.upgrade().expect("a device is in a domain that is gone");
            let (phys, prot) = table.walk(page)?;
            // What is remembered is known to be dirty.
            if let Some(dirty) = table.dirty.lock().unwrap().as_mut().filter(|_| write) {
                dirty.insert(page);
            }
            state.cache.insert((domain, page), (phys, prot));
            Some((phys, prot))
        });
        let (phys, prot) = found?;
        let wanted = if write { Prot::WRITE } else { Prot::READ };
        prot.contains(wanted).then_some(phys | at.get() & 4095)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

// SAFETY: devices reach memory only by `reach`, which looks at their domain's map and at what it has shown before.
unsafe impl IommuOps for Toy {
    fn name(&self) -> &str {
        "toy"
    }

    fn capable(&self, dev: PciAddress, capability: Capability) -> bool {
        match capability {
            Capability::DeferredFlush => self.shared.knobs.can_defer,
            Capability::CacheCoherency => self.shared.knobs.coherent,
            Capability::IsolatedMsi => !self.shared.knobs.not_remapped.contains(&dev),
            Capability::PciAtsSupported => self.shared.knobs.ats.contains(&dev),
            _ => true,
        }
    }

    fn hw_info(&self, _dev: PciAddress) -> Option<HwInfo> {
        Some(HwInfo { kind: 7, data: vec![1, 2] })
    }

    fn probe_device(&self, dev: PciAddress) -> Result<Probed, ProbeError> {
        if self.shared.knobs.not_mine.contains(&dev) {
            return Err(ProbeError::NotMine);
        }
        let aliases = self.shared.knobs.aliases.get(&dev).cloned().unwrap_or_default();
        let max_pasids = self.shared.knobs.max_pasids.get(&dev).copied().unwrap_or_default();
        Ok(Probed { aliases, max_pasids, shadow_on_flush: self.shared.knobs.shadow_on_flush })
    }

    fn probe_finalize(&self, dev: PciAddress) {
        self.state().log.push(Did::Finalize(dev));
    }

    fn device_group(&self, dev: PciAddress) -> DeviceGroup {
        self.shared.knobs.grouping.get(&dev).copied().unwrap_or_default()
    }

    fn is_attach_deferred(&self, dev: PciAddress) -> bool {
        self.shared.knobs.deferred.contains(&dev)
    }

    fn page_response(&self, device: PciAddress, response: PageResponse) {
        self.state().log.push(Did::Response { device, response });
    }

    fn release_device(&self, dev: PciAddress) {
        let mut state = self.state();
        state.log.push(Did::Release(dev));
        state.attached.remove(&dev);
        state.pasids.retain(|(device, _), _| *device != dev);
    }

    fn domain_alloc_paging(&self, dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError> {
        self.domain_alloc_paging_flags(dev, PagingFlags::empty())
    }

    fn domain_alloc_paging_flags(
        &self,
        _dev: PciAddress,
        flags: PagingFlags,
    ) -> Result<Arc<dyn DomainOps>, DomainError> {
        if flags.contains(PagingFlags::NEST_PARENT)
            || flags.contains(PagingFlags::PASID) && !self.shared.knobs.can_pasid
        {
            return Err(DomainError::Unsupported);
        }
        if self.shared.fail_paging.load(Ordering::Relaxed) || self.shared.fails_now() {
            return Err(DomainError::Exhausted);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) as u32;
        let domain = Arc::new(ToyDomain { flags, ..ToyDomain::new(id, &self.shared) });
        self.state().domains.insert(id, Arc::downgrade(&domain));
        Ok(domain)
    }

    fn identity_domain(&self) -> Option<Arc<dyn DomainOps>> {
        self.shared.knobs.has_identity.then(|| self.identity.clone() as Arc<dyn DomainOps>)
    }

    fn blocked_domain(&self) -> Option<Arc<dyn DomainOps>> {
        self.shared.knobs.has_blocked.then(|| self.blocked.clone() as Arc<dyn DomainOps>)
    }

    fn release_domain(&self) -> Option<Arc<dyn DomainOps>> {
        self.shared.knobs.has_release.then(|| self.blocked.clone() as Arc<dyn DomainOps>)
    }

    fn def_domain_type(&self, dev: PciAddress) -> Option<DomainType> {
        self.shared.knobs.def_types.get(&dev).copied()
    }

    fn strict_by_default(&self, _dev: PciAddress) -> bool {
        self.shared.knobs.strict_by_default
    }

    fn resv_regions(&self, dev: PciAddress) -> Vec<ResvRegion> {
        let of_dev = self.shared.knobs.regions.iter().filter(|(address, _)| *address == dev);
        of_dev.map(|&(_, region)| region).collect()
    }
}

/// A domain: leaves by their first address, with size, target and permissions.
#[derive(Debug)]
struct ToyDomain {
    id: u32,
    shared: Arc<Shared>,
    flags: PagingFlags,
    table: Mutex<BTreeMap<u64, (u64, u64, Prot)>>,
    /// Pages that devices have written since they were read, while that is noted.
    dirty: Mutex<Option<BTreeSet<u64>>>,
}

impl Shared {
    /// Whether it is the turn of this call to fail.
    fn fails_now(&self) -> bool {
        let left = self.fail_after.load(Ordering::Relaxed);
        let next = if left == u64::MAX { left } else { left.wrapping_sub(1) };
        self.fail_after.store(next, Ordering::Relaxed);
        let fails = left == 0;
        self.failed.fetch_or(fails, Ordering::Relaxed);
        fails
    }
}

impl ToyDomain {
    fn new(id: u32, shared: &Arc<Shared>) -> Self {
        let (table, dirty) = (Mutex::default(), Mutex::default());
        Self { id, shared: Arc::clone(shared), flags: PagingFlags::empty(), table, dirty }
    }

    fn walk(&self, at: u64) -> Option<(u64, Prot)> {
        let table = self.table.lock().unwrap();
        let (start, (size, phys, prot)) = table.range(..=at).next_back()?;
        (at - start < *size).then_some((phys + (at - start), *prot))
    }

    fn answer(&self) -> Result<(), SyncError> {
        if self.shared.silent.load(Ordering::Relaxed) { Err(SyncError) } else { Ok(()) }
    }

    fn log(&self, did: Did) {
        self.shared.state.lock().unwrap().log.push(did);
    }
}

// SAFETY: `walk` finds exactly what is mapped, and a sync that answers Ok has forgotten what it was told to.
unsafe impl DomainOps for ToyDomain {
    unsafe fn attach_dev(&self, dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        // The blocked domain never fails by itself.
        if self.id != BLOCKED && self.shared.fails_now() {
            return Err(AttachError::Exhausted);
        }
        let held = self.shared.hold.lock().unwrap().take();
        if let Some(barrier) = held {
            barrier.wait();
            barrier.wait();
        }
        let mut state = self.shared.state.lock().unwrap();
        match state.refusals.get(&dev) {
            Some(refusal) if refusal.everything || self.id != BLOCKED => return Err(refusal.error),
            _ => {}
        }
        state.log.push(Did::Attach { device: dev, domain: self.id });
        state.attached.insert(dev, self.id);
        Ok(())
    }

    fn has_set_dev_pasid(&self) -> bool {
        self.shared.knobs.can_pasid && (self.id == BLOCKED || self.flags.contains(PagingFlags::PASID))
    }

    unsafe fn set_dev_pasid(
        &self,
        dev: PciAddress,
        pasid: u32,
        _old: Option<&dyn DomainOps>,
    ) -> Result<(), AttachError> {
        if self.id != BLOCKED && self.shared.fails_now() {
            return Err(AttachError::Exhausted);
        }
        let mut state = self.shared.state.lock().unwrap();
        match state.refusals.get(&dev) {
            Some(refusal) if refusal.everything || self.id != BLOCKED => return Err(refusal.error),
            _ => {}
        }
        state.log.push(Did::Pasid { device: dev, pasid, domain: self.id });
        match self.id {
            BLOCKED => state.pasids.remove(&(dev, pasid)),
            id => state.pasids.insert((dev, pasid), id),
        };
        Ok(())
    }

    unsafe fn map_pages(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        if self.shared.knobs.maps_nothing {
            return (0, Ok(()));
        }
        let mut done = 0;
        for _ in 0..count {
            let (at, to) = (iova.get() + done, phys.get() + done);
            let left = self.shared.pages_left.load(Ordering::Relaxed);
            let attached = || self.shared.state.lock().unwrap().attached.values().any(|id| *id == self.id);
            if left == 0 || self.shared.fails_now() || self.shared.knobs.maps_only_attached && !attached() {
                return (done, Err(MapError::OutOfMemory));
            }
            if self.walk(at).is_some() {
                return (done, Err(MapError::InUse(DmaAddr::new(at))));
            }
            self.shared.pages_left.store(left - 1, Ordering::Relaxed);
            self.table.lock().unwrap().insert(at, (page_size, to, prot));
            done += page_size;
        }
        self.log(Did::Map { iova: iova.get(), phys: phys.get(), len: done, prot });
        (done, Ok(()))
    }

    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        let mut done = 0;
        while done < len {
            let Some((size, ..)) = self.table.lock().unwrap().remove(&(iova.get() + done)) else { break };
            done += size;
        }
        gather.add_range(iova, done);
        for (window, page) in self.shared.tables.lock().unwrap().drain(..) {
            // SAFETY: the test took it from the machine, and keeps nothing in it.
            unsafe { gather.add_table(window, page, 4096) };
        }
        self.log(Did::Unmap { iova: iova.get(), len: done });
        done
    }

    fn needs_sync_map(&self) -> bool {
        self.shared.knobs.needs_sync_map
    }

    fn iotlb_sync_map(&self, iova: DmaAddr, len: u64) -> Result<(), SyncError> {
        self.answer()?;
        self.log(Did::SyncMap { iova: iova.get(), len });
        Ok(())
    }

    fn iotlb_sync(&self, gather: &IotlbGather<'_>) -> Result<(), SyncError> {
        self.answer()?;
        let Some((first, last)) = gather.range() else { return Ok(()) };
        let mut state = self.shared.state.lock().unwrap();
        state.log.push(Did::Sync { first: first.get(), last: last.get() });
        let outside = |page: u64| page + 4095 < first.get() || page > last.get();
        state.cache.retain(|&(domain, page), _| domain != self.id || outside(page));
        Ok(())
    }

    fn flush_iotlb_all(&self) -> Result<(), SyncError> {
        self.answer()?;
        let mut state = self.shared.state.lock().unwrap();
        state.log.push(Did::FlushAll);
        state.cache.retain(|&(domain, _), _| domain != self.id);
        Ok(())
    }

    fn iova_to_phys(&self, iova: DmaAddr) -> Option<PhysAddr> {
        let held = self.shared.hold_lookup.lock().unwrap().take();
        if let Some(barrier) = held {
            barrier.wait();
            barrier.wait();
        }
        let (phys, _) = self.walk(iova.get() & !4095)?;
        Some(PhysAddr::new(phys | iova.get() & 4095))
    }

    fn enforce_cache_coherency(&self) -> bool {
        true
    }

    fn set_dirty_tracking(&self, on: bool) -> Result<(), DirtyError> {
        if !self.flags.contains(PagingFlags::DIRTY_TRACKING) {
            return Err(DirtyError::Unsupported);
        }
        *self.dirty.lock().unwrap() = on.then(BTreeSet::new);
        Ok(())
    }

    fn read_and_clear_dirty(
        &self,
        iova: DmaAddr,
        len: u64,
        clear: bool,
        report: &mut dyn FnMut(DmaAddr, u64),
    ) -> Result<(), DirtyError> {
        if !self.flags.contains(PagingFlags::DIRTY_TRACKING) {
            return Err(DirtyError::Unsupported);
        }
        let mut dirty = self.dirty.lock().unwrap();
        let dirty = dirty.as_mut().ok_or(DirtyError::Off)?;
        let range = iova.get()..iova.get() + len;
        for &page in dirty.range(range.clone()) {
            report(DmaAddr::new(page), 4096);
        }
        if clear {
            dirty.retain(|page| !range.contains(page));
        }
        Ok(())
    }

    fn page_sizes(&self) -> PageSizes {
        PageSizes::from_bits(self.shared.knobs.page_sizes)
    }

    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        let (first, last) = self.shared.knobs.aperture;
        (DmaAddr::new(first), DmaAddr::new(last))
    }
}
