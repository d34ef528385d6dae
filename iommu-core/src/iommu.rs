//! The value that the stack hangs off: drivers, devices, groups, faults.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dma_api::{DeviceFault, FaultQueue};
use platform::pci::{PciAddress, RequesterId};
use platform::sync::Mutex;
use platform::sync::atomic::{AtomicBool, Ordering};
use platform::{Instant, Platform};
use swiotlb::Swiotlb;

use crate::default_domain::Settings;
use crate::fault::{Fault, FaultFlags, FaultLog};
use crate::group::{Group, GroupError, Member};
use crate::ops::{IommuOps, ProbeError};
use crate::pci::{Topology, groups};

/// All IOMMUs of a machine and what is behind them. There are no statics: a process may have many of these.
#[derive(Debug)]
pub struct Iommu {
    platform: Arc<dyn Platform>,
    settings: Settings,
    bounce: Option<Arc<Swiotlb>>,
    drivers: Mutex<Vec<Arc<dyn IommuOps>>>,
    groups: Mutex<Vec<Arc<Group>>>,
    /// What groups have counted that are no more.
    retired: Mutex<Statistics>,
    /// One probe at a time: two would make two groups of one device.
    probing: Mutex<()>,
    faults: FaultLog,
}

/// Counters of all groups together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// DMA mappings made, coherent memory included.
    pub maps: u64,
    /// DMA mappings ended.
    pub unmaps: u64,
    /// Mappings that went through a bounce buffer.
    pub bounces: u64,
    /// Ranges taken that a CPU's magazines had.
    pub magazine_hits: u64,
    /// Bytes of I/O addresses that will never be used again, because the IOMMU did not confirm an invalidation.
    pub quarantined: u64,
    /// Faults reported.
    pub faults: u64,
    /// Faults that nobody took in time.
    pub faults_lost: u64,
}

impl Iommu {
    /// A machine without IOMMUs so far. `bounce` is the pool for what cannot be mapped as it is: parts of pages of
    /// untrusted devices, and memory that is not RAM.
    pub fn new(platform: Arc<dyn Platform>, settings: Settings, bounce: Option<Arc<Swiotlb>>) -> Self {
        Self {
            platform,
            settings,
            bounce,
            drivers: Mutex::default(),
            groups: Mutex::default(),
            retired: Mutex::default(),
            probing: Mutex::default(),
            faults: FaultLog::default(),
        }
    }

    /// The machine.
    pub fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    /// Adds a driver whose IOMMUs are ready (Linux: `iommu_device_register`). Devices are claimed by [`Iommu::probe`].
    #[doc(alias = "iommu_device_register")]
    pub fn register(&self, driver: Arc<dyn IommuOps>) {
        self.drivers.lock().push(driver);
    }

    /// Offers every function of a topology to the drivers, and makes groups of those that they claim: first all groups,
    /// then their default domains, so that what is decided for a group is decided for all its members (Linux:
    /// `bus_iommu_probe`; long ago `bus_set_iommu`). Functions that have a group keep it; new ones that cannot be told or
    /// kept apart from them join it. A group that has lost all its devices goes, once nobody has it any more.
    ///
    /// # Errors
    /// [`GroupError`] of the first group whose default domain could not be set up. The others are.
    #[doc(alias = "bus_iommu_probe")]
    #[doc(alias = "bus_set_iommu")]
    pub fn probe(
        &self,
        topology: &Topology,
        untrusted: impl Fn(PciAddress) -> bool,
    ) -> Result<(), GroupError> {
        let _probing = self.probing.lock();
        self.retire_abandoned();
        let old = self.groups();
        let mut aliases: BTreeMap<PciAddress, Vec<RequesterId>> = BTreeMap::new();
        for group in &old {
            let state = group.state.lock();
            aliases.extend(state.members.iter().map(|member| (member.address, member.aliases.clone())));
        }
        let mut members = BTreeMap::new();
        for node in topology.iter().filter(|node| !aliases.contains_key(&node.address)) {
            if let Some(member) = self.claim(node.address, untrusted(node.address)) {
                members.insert(node.address, member);
            }
        }
        aliases.extend(members.values().map(|member| (member.address, member.aliases.clone())));
        let mut new = Vec::new();
        let mut result = Ok(());
        for (addresses, reasons) in groups(topology, &aliases) {
            let has_any = |group: &&Arc<Group>| group.devices().iter().any(|it| addresses.contains(it));
            if let Some(group) = old.iter().find(has_any) {
                // The first address has no reason.
                let reasons = core::iter::once(None).chain(reasons.into_iter().map(Some));
                for (address, reason) in addresses.iter().zip(reasons) {
                    if let Some(member) = members.remove(address) {
                        result = result.and(group.join(member, reason));
                    }
                }
                continue;
            }
            let group: Vec<Member> = addresses.iter().filter_map(|address| members.remove(address)).collect();
            if group.is_empty() {
                continue;
            }
            let mut all = self.groups.lock();
            let id = all.last().map_or(0, |last| last.id().wrapping_add(1));
            let (platform, bounce) = (Arc::clone(&self.platform), self.bounce.clone());
            let group = Arc::new(Group::new(id, platform, self.settings, bounce, group, reasons));
            all.push(Arc::clone(&group));
            new.push(group);
        }
        for group in new {
            let set_up = group.setup_default_domain(&mut group.state.lock(), None);
            result = result.and(set_up);
        }
        result
    }

    /// Lets groups without devices go, and with each its domain.
    fn retire_abandoned(&self) {
        // Dropped without the lock: a domain that goes waits for its IOMMUs.
        let gone: Vec<_> = self.groups.lock().extract_if(.., |group| group.is_abandoned()).collect();
        let mut retired = self.retired.lock();
        gone.iter().for_each(|group| retired.add(group));
    }

    fn claim(&self, address: PciAddress, untrusted: bool) -> Option<Member> {
        let drivers = self.drivers.lock().clone();
        drivers.into_iter().find_map(|ops| match ops.probe_device(address) {
            Ok(probed) => Some(Member {
                address,
                untrusted,
                aliases: probed.aliases,
                regions: ops.resv_regions(address),
                faults: Arc::new(FaultQueue::new()),
                gone: Arc::new(AtomicBool::new(false)),
                ops,
            }),
            // A device that its IOMMU cannot take stays blocked.
            Err(ProbeError::NotMine | ProbeError::Failed) => None,
        })
    }

    /// All groups, in order of their numbers.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.lock().clone()
    }

    /// The group of a device (Linux: `iommu_group_get`).
    #[doc(alias = "iommu_group_get")]
    pub fn group_of(&self, address: PciAddress) -> Option<Arc<Group>> {
        self.groups().into_iter().find(|group| group.devices().contains(&address))
    }

    /// Takes a device away: whatever its driver still asks for it is answered with `Gone`, and it reaches nothing any more.
    pub fn remove(&self, address: PciAddress) {
        if let Some(group) = self.group_of(address) {
            let mut state = group.state.lock();
            if let Some(at) = state.members.iter().position(|member| member.address == address) {
                let member = state.members.remove(at);
                member.gone.store(true, Ordering::Relaxed);
                member.ops.release_device(address);
            }
        }
    }

    /// Takes a fault from a driver: it goes to the program's log, and to the device's driver if there is one (Linux:
    /// `report_iommu_fault`).
    #[doc(alias = "report_iommu_fault")]
    pub fn report_fault(&self, fault: Fault) {
        self.faults.push(fault);
        if let Some(group) = self.group_of(fault.requester) {
            let state = group.state.lock();
            if let Some(member) = state.members.iter().find(|member| member.address == fault.requester) {
                let write = fault.flags.contains(FaultFlags::WRITE);
                member.faults.push(DeviceFault { address: fault.address, write });
            }
        }
    }

    /// The faults reported since the last call, oldest first.
    pub fn take_faults(&self) -> Vec<Fault> {
        self.faults.take().collect()
    }

    /// What timers do in Linux: call it every few milliseconds. Flush queues are flushed, and a group whose flush failed is
    /// blocked: until its type is changed, which gives it a new domain. The bounce pool grows, if a mapping found no room.
    pub fn tick(&self, _now: Instant) {
        if let Some(bounce) = &self.bounce {
            bounce.grow();
        }
        for group in self.groups() {
            let Some(domain) = group.default_domain() else { continue };
            let Some(cookie) = domain.cookie() else { continue };
            cookie.queue.tick(&domain, &cookie.iovas);
            if cookie.queue.has_failed() {
                group.block(&domain);
            }
        }
    }

    /// Counters since the start.
    pub fn statistics(&self) -> Statistics {
        let (faults, faults_lost) = self.faults.counts();
        let mut sum = Statistics { faults, faults_lost, ..*self.retired.lock() };
        self.groups().iter().for_each(|group| sum.add(group));
        sum
    }
}

impl Statistics {
    /// Adds what a group has counted.
    fn add(&mut self, group: &Group) {
        let untranslated = group.untranslated.statistics();
        self.maps += untranslated.maps + untranslated.allocations;
        self.unmaps += untranslated.unmaps + untranslated.frees;
        if let Some(cookie) = group.default_domain().as_ref().and_then(|domain| domain.cookie()) {
            let counts = cookie.iovas.counts();
            self.maps += counts.taken;
            self.unmaps += counts.given_back + cookie.queue.waiting();
            self.magazine_hits += counts.hits;
            self.bounces += cookie.bounces.load(Ordering::Relaxed);
            self.quarantined += cookie.quarantined();
        }
    }
}
