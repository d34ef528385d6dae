//! The value that the stack hangs off: drivers, devices, groups, faults.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use platform::pci::{PciAddress, RequesterId};
use platform::sync::Mutex;
use platform::sync::atomic::Ordering;
use platform::{Instant, Platform, trace};
use swiotlb::Swiotlb;

use crate::cookie::DmaCookie;
use crate::fault::{Fault, FaultLog, FaultRoutes};
use crate::group::{Group, GroupError, Member};
use crate::iopf::{PageRequest, UnknownDevice};
use crate::ops::{AttachError, DeviceGroup, IommuOps, ProbeError};
use crate::pasids::{GlobalPasid, Pasids};
use crate::pci::{Reason, Topology, groups};
use crate::settings::Settings;

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
    routes: FaultRoutes,
    pasids: Arc<Pasids>,
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
            routes: FaultRoutes::default(),
            pasids: Arc::default(),
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

    /// Takes a driver away, and each device that it has with it: see [`Iommu::remove`] (Linux: `iommu_device_unregister`).
    #[doc(alias = "iommu_device_unregister")]
    pub fn unregister(&self, driver: &Arc<dyn IommuOps>) {
        let _probing = self.probing.lock();
        self.drivers.lock().retain(|other| !Arc::ptr_eq(other, driver));
        for port in self.routes.all().iter().filter(|port| Arc::ptr_eq(&port.ops, driver)) {
            self.remove(port.address);
        }
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
        let mut known = BTreeMap::new();
        for group in &old {
            let state = group.state.lock();
            known.extend(state.members.iter().map(|member| (member.address, member.clone())));
        }
        let mut members = BTreeMap::new();
        for node in topology.iter().filter(|node| !known.contains_key(&node.address)) {
            if let Some(member) = self.claim(topology, node.address, untrusted(node.address)) {
                members.insert(node.address, member);
            }
        }
        known.extend(members.clone());
        let aliases: BTreeMap<PciAddress, Vec<RequesterId>> =
            known.iter().map(|(&address, member)| (address, member.aliases.clone())).collect();
        for member in members.values() {
            let dev = member.address;
            trace::event("add_device_to_group", u64::from(dev.id.get()), 0);
            let of_tree = topology.dma_aliases(dev);
            if !of_tree.is_empty() {
                member.ops.set_dma_aliases(dev, &of_tree);
            }
            let firmware = member.aliases.iter().map(|&id| PciAddress { id, ..dev });
            let names: BTreeSet<_> = firmware.chain(of_tree).chain([dev]).collect();
            names.into_iter().for_each(|name| self.routes.add(name, &member.port));
        }
        // Groups without a default domain get another try.
        let mut unready: Vec<_> =
            old.iter().filter(|group| group.default_domain().is_none()).cloned().collect();
        let mut added: Vec<Member> = Vec::new();
        let mut result = Ok(());
        for (addresses, reasons) in by_driver(groups(topology, &aliases), &known) {
            let has_any = |group: &&Arc<Group>| group.devices().iter().any(|it| addresses.contains(it));
            if let Some(group) = old.iter().find(has_any) {
                group.learn(reasons);
                for address in addresses {
                    if let Some(member) = members.remove(&address) {
                        let joined = group.join(member.clone());
                        match joined {
                            Ok(()) => added.push(member),
                            Err(_) => self.routes.remove(address),
                        }
                        result = result.and(joined);
                    }
                }
                continue;
            }
            let group: Vec<Member> = addresses.iter().filter_map(|address| members.remove(address)).collect();
            if group.is_empty() {
                continue;
            }
            added.extend(group.iter().cloned());
            unready.push(self.add_group(group, reasons));
        }
        for group in unready {
            let mut state = group.state.lock();
            if state.default_domain.is_none() && !state.members.is_empty() {
                let set_up = group.setup_default_domain(&mut state, None);
                result = result.and(set_up);
            }
        }
        added.iter().for_each(|member| member.ops.probe_finalize(member.address));
        result
    }

    /// Makes a group with the lowest number that is free (Linux: `iommu_group_alloc`).
    fn add_group(&self, members: Vec<Member>, reasons: Vec<Reason>) -> Arc<Group> {
        let mut all = self.groups.lock();
        let at = all.iter().zip(0..).position(|(group, id)| group.id() != id).unwrap_or(all.len());
        let (platform, bounce) = (Arc::clone(&self.platform), self.bounce.clone());
        let group = Arc::new(Group::new(at as u32, platform, self.settings, bounce, members, reasons));
        all.insert(at, Arc::clone(&group));
        group
    }

    /// Lets groups without devices go, and with each its domain.
    fn retire_abandoned(&self) {
        // Dropped without the lock: a domain that goes waits for its IOMMUs.
        let gone: Vec<_> = self.groups.lock().extract_if(.., |group| group.is_abandoned()).collect();
        let mut retired = self.retired.lock();
        gone.iter().for_each(|group| retired.add(group));
    }

    fn claim(&self, topology: &Topology, address: PciAddress, untrusted: bool) -> Option<Member> {
        let drivers = self.drivers.lock().clone();
        let probe = |ops: &Arc<dyn IommuOps>| match untrusted {
            true => ops.probe_untrusted_device(address),
            false => ops.probe_device(address),
        };
        drivers.into_iter().find_map(|ops| match probe(&ops) {
            Ok(probed) => {
                let bridge = topology.host_bridge(address).cloned().unwrap_or_default();
                Some(Member::new(address, untrusted, ops, probed, bridge, self.settings.forcedac))
            }
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

    /// Takes a PASID that no other device has, the lowest that `address` can send (Linux: `iommu_alloc_global_pasid`).
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`]; [`AttachError::Unsupported`] for a device without PASIDs; [`AttachError::Exhausted`] when
    /// others have all that it can send.
    #[doc(alias = "iommu_alloc_global_pasid")]
    pub fn alloc_global_pasid(&self, address: PciAddress) -> Result<GlobalPasid, GroupError> {
        let group = self.group_of(address).ok_or(GroupError::NoSuchDevice(address))?;
        let max_pasids = group.state.lock().member(address)?.max_pasids;
        if max_pasids == 0 {
            return Err(AttachError::Unsupported.into());
        }
        Ok(self.pasids.take(max_pasids).ok_or(AttachError::Exhausted)?)
    }

    /// The drivers, in the order in which they are asked for a device (Linux: `/sys/class/iommu`).
    pub fn drivers(&self) -> Vec<Arc<dyn IommuOps>> {
        self.drivers.lock().clone()
    }

    /// Takes a device away: whatever its driver still asks for it is answered with `Gone`, and it reaches nothing any more.
    pub fn remove(&self, address: PciAddress) {
        trace::event("remove_device_from_group", u64::from(address.id.get()), 0);
        if let Some(group) = self.group_of(address) {
            group.remove(address);
        }
        self.routes.remove(address);
    }

    /// Takes a fault from a driver: unless the handler of the device's domain deals with it, it goes to the program's log and
    /// to the device's driver, if there is one (Linux: `report_iommu_fault`). A fault under a name that several devices
    /// share goes to the driver of each: they cannot be told apart. It waits for nobody who attaches.
    #[doc(alias = "report_iommu_fault")]
    pub fn report_fault(&self, fault: Fault) {
        trace::event("io_page_fault", fault.address.get(), 0);
        let ports = self.routes.of(fault.requester);
        // Devices that share a name share a group, and so a domain.
        let domain = ports.first().and_then(|port| port.domain(fault.pasid));
        if domain.is_some_and(|domain| domain.handles(&fault)) {
            self.faults.count();
            return;
        }
        self.faults.push(fault);
        ports.iter().for_each(|port| port.queue.push(fault.for_driver()));
    }

    /// Takes a device's request for a page from a driver (Linux: `iommu_report_device_fault`). When the device has said all
    /// of a group, that goes to the queue of the domain that it is for; where nobody brings pages it is answered with
    /// [`crate::ResponseCode::Invalid`] at once.
    ///
    /// # Errors
    /// [`UnknownDevice`]: the driver answers by itself.
    #[doc(alias = "iommu_report_device_fault")]
    pub fn report_page_request(&self, request: PageRequest) -> Result<(), UnknownDevice> {
        let ports = self.routes.of(request.device);
        let port = ports.iter().find(|port| port.address == request.device);
        port.ok_or(UnknownDevice(request.device))?.page_request(request);
        Ok(())
    }

    /// Forgets page requests of which the last has not come: a driver whose log of requests has overflowed has lost it, and
    /// devices ask again (Linux: `iopf_queue_discard_partial`).
    #[doc(alias = "iopf_queue_discard_partial")]
    pub fn discard_partial_page_requests(&self) {
        self.routes.all().iter().for_each(|port| port.partial.discard());
    }

    /// The faults reported since the last call, oldest first.
    pub fn take_faults(&self) -> Vec<Fault> {
        self.faults.take().collect()
    }

    /// What timers do in Linux: call it every 10 ms or so. Flush queues are flushed, depots of I/O addresses shrink, and a
    /// group whose flush failed is blocked: until its type is changed, which gives it a new domain. The bounce pool grows,
    /// if a mapping found no room.
    pub fn tick(&self, now: Instant) {
        if let Some(bounce) = &self.bounce {
            bounce.grow();
        }
        for group in self.groups() {
            let Some(domain) = group.default_domain() else { continue };
            let Some(cookie) = domain.cookie() else { continue };
            cookie.queue.tick(&domain, &cookie.iovas, now);
            cookie.iovas.trim();
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
        let state = group.state.lock();
        self.maps += state.past.maps;
        self.unmaps += state.past.unmaps;
        self.magazine_hits += state.past.magazine_hits;
        self.bounces += state.past.bounces;
        self.quarantined += state.past.quarantined;
        if let Some(cookie) = state.default_domain.as_ref().and_then(|domain| domain.cookie()) {
            self.add_cookie(cookie);
        }
    }

    /// Adds what a domain has counted.
    pub(crate) fn add_cookie(&mut self, cookie: &DmaCookie) {
        let counts = cookie.iovas.counts();
        self.maps += counts.taken;
        self.unmaps += counts.given_back + cookie.queue.waiting();
        self.magazine_hits += counts.hits;
        self.bounces += cookie.bounces.load(Ordering::Relaxed);
        self.quarantined += cookie.quarantined();
    }
}

/// The functions of a group, and what ties them together.
type Ties = (Vec<PciAddress>, Vec<Reason>);

/// Groups as their drivers want them: most by what the PCI tree keeps apart; but some devices each for itself, and all of
/// some drivers together (Linux: what `device_group` answers).
fn by_driver(pci: Vec<Ties>, members: &BTreeMap<PciAddress, Member>) -> Vec<Ties> {
    let mut all = Vec::new();
    // What belongs together wherever the tree has it: of one driver, and of one number if there are numbers.
    let mut together: Vec<(Arc<dyn IommuOps>, Option<u32>, Ties)> = Vec::new();
    let mut tie = |ops: &Arc<dyn IommuOps>, number: Option<u32>, of: PciAddress| {
        let same = |it: &&mut (Arc<dyn IommuOps>, _, _)| Arc::ptr_eq(&it.0, ops) && it.1 == number;
        match together.iter_mut().find(same) {
            Some((_, _, (devices, reasons))) => {
                reasons.extend(devices.first().map(|&other| match number {
                    Some(group) => Reason::Given { of, other, group },
                    None => Reason::OneTranslation { of, other },
                }));
                devices.push(of);
            }
            None => together.push((Arc::clone(ops), number, (Vec::from([of]), Vec::new()))),
        }
    };
    for (addresses, reasons) in pci {
        let grouping = |address: &PciAddress| members.get(address).map_or(DeviceGroup::Pci, |it| it.grouping);
        let (by_tree, others): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| grouping(address) == DeviceGroup::Pci);
        for member in others.iter().filter_map(|address| members.get(address)) {
            match member.grouping {
                DeviceGroup::Given(number) => tie(&member.ops, Some(number), member.address),
                DeviceGroup::Single => tie(&member.ops, None, member.address),
                DeviceGroup::Generic | DeviceGroup::Pci => {
                    all.push((Vec::from([member.address]), Vec::new()))
                }
            }
        }
        let within = |reason: &Reason| {
            let (one, other) = reason.ends();
            // They are in order.
            [one, other].iter().all(|end| by_tree.binary_search(end).is_ok())
        };
        let reasons = reasons.into_iter().filter(within).collect();
        all.push((by_tree, reasons));
    }
    all.extend(together.into_iter().map(|(_, _, ties)| ties));
    all
}
