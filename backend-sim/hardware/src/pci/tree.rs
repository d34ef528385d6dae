//! Functions, bridges and the way that requests take between them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use platform::Mmio;
use platform::pci::{PciAddress, RequesterId};

use super::config_space::{Acs, ConfigSpace, PortType};
use super::function::FunctionState;
use super::msix::{BAR_SIZE, Msix};
use crate::ats::{Answer, Atc, Downstream, Invalidation, Source, Translation};
use crate::bus::{BusError, DeviceModel, INTERRUPTS, Identity, MessageSink, Port, Remapper, Upstream};
use crate::pri::{PageRequest, PageResponse, Pri};
use crate::ram::Ram;

/// Where firmware puts the functions' regions, first and last byte.
const MMIO_BASE: u64 = 0xc000_0000;
const MMIO_LAST: u64 = u32::MAX as u64;

const ACS_SOURCE_VALIDATION: u32 = 1 << 0;
const ACS_REQUEST_REDIRECT: u32 = 1 << 2;
const ACS_UPSTREAM_FORWARDING: u32 = 1 << 4;

/// What to call when configuration space of an IOMMU's function changes its MSI.
type MsiChanged = Box<dyn Fn(u64, u32, bool) + Send + Sync>;

/// An IOMMU's own function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IommuFunction {
    /// Where it is.
    pub id: RequesterId,
    /// Where its capability block is in its configuration space: 40h to 64h or 80h to 88h.
    pub capability: u16,
    /// Where its registers are; firmware has locked that.
    pub base: u64,
    /// Capability bit NpCache.
    pub np_cache: bool,
    /// Capability bit IotlbSup.
    pub iotlb_sup: bool,
}

/// The tree of one segment, complete.
pub struct PciTree {
    segment: u16,
    functions: BTreeMap<RequesterId, Arc<FunctionState>>,
    ram: Arc<Ram>,
    remapper: Option<Arc<dyn Remapper>>,
    sink: Arc<dyn MessageSink>,
    iommus: BTreeMap<RequesterId, MsiChanged>,
}

/// Builds a tree as firmware leaves it: bus numbers and regions assigned.
pub struct Builder {
    functions: BTreeMap<RequesterId, Arc<FunctionState>>,
    /// Functions whose requests carry another's name.
    misnamed: BTreeMap<RequesterId, RequesterId>,
    next_region: u64,
    segment: u16,
    iommus: BTreeMap<RequesterId, MsiChanged>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("functions", &self.functions.len()).finish_non_exhaustive()
    }
}

impl Builder {
    /// A root complex with its host bridge at 00:00.0.
    pub fn new() -> Self {
        let mut builder = Self {
            functions: BTreeMap::new(),
            misnamed: BTreeMap::new(),
            next_region: MMIO_BASE,
            segment: 0,
            iommus: BTreeMap::new(),
        };
        builder.insert(RequesterId::from_parts(0, 0, 0), ConfigSpace::host_bridge(), None);
        builder
    }

    fn insert(&mut self, id: RequesterId, config: ConfigSpace, device: Option<Arc<dyn DeviceModel>>) {
        self.functions.insert(id, Arc::new(FunctionState::new(id, config, device)));
    }

    /// The tree is that of another segment than 0.
    #[must_use]
    pub fn segment(mut self, segment: u16) -> Self {
        self.segment = segment;
        self
    }

    /// An IOMMU's own function; `msi_changed` hears of its MSI.
    ///
    /// # Panics
    /// When the capability block is nowhere where there is room for it.
    #[must_use]
    pub fn iommu(mut self, function: IommuFunction, msi_changed: MsiChanged) -> Self {
        let IommuFunction { id, capability, .. } = function;
        assert!(matches!(capability, 0x40..=0x64 | 0x80..=0x88) && capability % 4 == 0, "{capability:#x}");
        self.insert(id, ConfigSpace::iommu(function), None);
        self.iommus.insert(id, msi_changed);
        self
    }

    /// A root port at `id` with buses `first` to `last` behind it.
    #[must_use]
    pub fn root_port(self, id: RequesterId, first: u8, last: u8, acs: Acs) -> Self {
        self.bridge(id, 0x1483, PortType::RootPort, first, last, acs)
    }

    /// A switch's upstream port.
    #[must_use]
    pub fn upstream_port(self, id: RequesterId, first: u8, last: u8) -> Self {
        self.bridge(id, 0x57ad, PortType::UpstreamPort, first, last, Acs::Absent)
    }

    /// A switch's downstream port.
    #[must_use]
    pub fn downstream_port(self, id: RequesterId, first: u8, last: u8, acs: Acs) -> Self {
        self.bridge(id, 0x57a3, PortType::DownstreamPort, first, last, acs)
    }

    /// A bridge from PCI Express to conventional PCI: what comes from behind it is called function 0 of device 0 of the first
    /// bus there.
    #[must_use]
    pub fn pci_bridge(self, id: RequesterId, first: u8, last: u8) -> Self {
        self.bridge(id, 0x7461, PortType::PcieToPci, first, last, Acs::Absent)
    }

    /// The requests of the function at `id` carry the name of another function of its slot, which need not be there: some
    /// devices are made so.
    #[must_use]
    pub fn misnamed(mut self, id: RequesterId, function: u8) -> Self {
        self.misnamed.insert(id, RequesterId::from_parts(id.bus(), id.device(), function));
        self
    }

    fn bridge(mut self, id: RequesterId, device: u16, kind: PortType, first: u8, last: u8, acs: Acs) -> Self {
        let config = ConfigSpace::bridge(device, kind, false, [id.bus(), first, last], acs);
        self.insert(id, config, None);
        self
    }

    /// A device; `multifunction` when its slot has others.
    #[must_use]
    pub fn endpoint(
        mut self,
        id: RequesterId,
        device: Arc<dyn DeviceModel>,
        multifunction: bool,
        acs: Acs,
    ) -> Self {
        let identity: Identity = device.identity();
        let mut sizes = identity.bars.clone();
        if identity.msix_vectors > 0 {
            sizes.push((4, BAR_SIZE));
        }
        let mut regions = Vec::new();
        for (index, size) in sizes {
            let at = self.next_region.next_multiple_of(size);
            self.next_region = at + size;
            regions.push((index, at, size));
        }
        let mut config = ConfigSpace::endpoint(&identity, &regions, id.bus() == 0, multifunction, acs);
        config.extend(&device.extended_capabilities());
        self.insert(id, config, Some(device));
        self
    }

    /// Connects everything.
    pub fn build(
        self,
        ram: Arc<Ram>,
        remapper: Option<Arc<dyn Remapper>>,
        sink: Arc<dyn MessageSink>,
    ) -> Arc<PciTree> {
        let Self { functions, misnamed, segment, iommus, .. } = self;
        let tree = Arc::new(PciTree { segment, functions, ram, remapper, sink, iommus });
        for function in tree.functions.values() {
            let Some(device) = &function.device else { continue };
            // Weak: the tree holds its devices.
            let upstream = Arc::new(Way(Arc::downgrade(&tree)));
            let name = misnamed.get(&function.id).copied().unwrap_or(function.id);
            let port = Port::new(name, function.services.clone(), upstream);
            let vectors = device.identity().msix_vectors;
            let msix = Arc::new(Msix::new(vectors, port.clone(), Arc::downgrade(function)));
            if vectors > 0 {
                // Set once: this is the only place.
                let _ = function.msix.set(Arc::clone(&msix));
            }
            device.connect(port, msix);
        }
        tree
    }
}

/// The way up from a function.
struct Way(Weak<PciTree>);

impl Upstream for Way {
    fn read(&self, source: Source, address: u64, into: &mut [u8]) -> Result<(), BusError> {
        let tree = self.0.upgrade().ok_or(BusError::MasterAbort)?;
        let mut done = 0;
        tree.route(source, address, into.len() as u64, false, &mut |target, len| {
            let piece = &mut into[done..done + len as usize];
            done += len as usize;
            match target {
                Target::Memory(phys) => tree.ram.read(phys, piece).map_err(|_| BusError::MasterAbort),
                Target::Function(function, bar, offset) => {
                    function.read_bytes(bar, offset, piece);
                    Ok(())
                }
            }
        })
    }

    fn write(&self, source: Source, address: u64, from: &[u8]) -> Result<(), BusError> {
        let tree = self.0.upgrade().ok_or(BusError::MasterAbort)?;
        if INTERRUPTS.contains(&address) {
            return tree.message(source.requester, address, from);
        }
        let mut done = 0;
        tree.route(source, address, from.len() as u64, true, &mut |target, len| {
            let piece = &from[done..done + len as usize];
            done += len as usize;
            match target {
                Target::Memory(phys) => tree.ram.write(phys, piece).map_err(|_| BusError::MasterAbort),
                Target::Function(function, bar, offset) => {
                    function.write_bytes(bar, offset, piece);
                    Ok(())
                }
            }
        })
    }

    fn translate(&self, source: Source, address: u64) -> Result<Translation, BusError> {
        let tree = self.0.upgrade().ok_or(BusError::MasterAbort)?;
        // The way up is as for memory, but no peer takes such a request.
        if tree.bridges_above(source.requester.bus()).any(|bridge| !bridge.is_bus_master()) {
            return Err(BusError::MasterAbort);
        }
        tree.remapper.as_ref().ok_or(BusError::MasterAbort)?.translate(source, address)
    }

    fn page_request(&self, request: PageRequest) -> Result<(), BusError> {
        let tree = self.0.upgrade().ok_or(BusError::MasterAbort)?;
        tree.remapper.as_ref().ok_or(BusError::MasterAbort)?.page_request(request)
    }
}

impl Downstream for PciTree {
    fn page_response(&self, device: RequesterId, response: PageResponse) {
        if let Some(pri) = self.functions.get(&device).and_then(|function| function.services.pri.as_ref()) {
            pri.respond(response);
        }
    }

    fn invalidate(&self, device: RequesterId, invalidation: Invalidation) -> Answer {
        let atc = self.functions.get(&device).and_then(|function| function.services.atc.as_ref());
        atc.map_or_else(Answer::default, |atc| atc.invalidate(invalidation))
    }
}

/// Where a part of a request ends.
enum Target<'a> {
    Memory(u64),
    Function(&'a FunctionState, u8, u64),
}

impl PciTree {
    /// The host bridge's window: at which addresses, first and last, functions may answer themselves. Firmware's `_CRS` says it.
    pub fn window(&self) -> (u64, u64) {
        (MMIO_BASE, MMIO_LAST)
    }

    /// The bridges from a bus to the root, lowest first.
    fn bridges_above(&self, bus: u8) -> impl Iterator<Item = &Arc<FunctionState>> {
        let mut bus = bus;
        std::iter::from_fn(move || {
            let leads_here = |first: u8| first == bus && bus != 0;
            let bridge = self
                .functions
                .values()
                .find(|function| function.buses_behind().is_some_and(|(first, _)| leads_here(first)))?;
            bus = bridge.id.bus();
            Some(bridge)
        })
    }

    /// The name that a request has when it reaches the root.
    fn name_at_root(&self, requester: RequesterId) -> RequesterId {
        let renamed = |name: RequesterId, bridge: &Arc<FunctionState>| match bridge.buses_behind() {
            Some((secondary, _)) if bridge.is_pcie_to_pci() => RequesterId::from_parts(secondary, 0, 0),
            _ => name,
        };
        self.bridges_above(requester.bus()).fold(requester, renamed)
    }

    /// Takes a request up the tree until something answers.
    fn route(
        &self,
        source: Source,
        address: u64,
        len: u64,
        write: bool,
        access: &mut dyn FnMut(Target<'_>, u64) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        if len == 0 {
            return Ok(());
        }
        let requester = source.requester;
        if let Some((function, bar, offset)) = self.peer(requester, address)? {
            return access(Target::Function(function, bar, offset), len);
        }
        let named = Source { requester: self.name_at_root(requester), ..source };
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done).ok_or(BusError::MasterAbort)?;
            let (mut moved, mut registers) = (0, None);
            let mut onward = |phys: u64, piece: u64| {
                moved = piece;
                registers = self.function_at(phys);
                if registers.is_some() { Ok(()) } else { access(Target::Memory(phys), piece) }
            };
            match &self.remapper {
                Some(remapper) => {
                    remapper.with_translation(named, at, len - done, write, &mut |translated| {
                        onward(translated.phys, translated.len)
                    })?
                }
                None => onward(at, len - done)?,
            }
            // Registers may cause requests of their own: they are reached when the IOMMU is free again.
            if let Some((function, bar, offset)) = registers {
                // Nobody sends a request back to where it came from.
                if function.id == requester {
                    return Err(BusError::MasterAbort);
                }
                access(Target::Function(function, bar, offset), moved)?;
            }
            done += moved.max(1);
        }
        Ok(())
    }

    /// A peer that takes the request before it reaches the root, since nothing on the way says that it must go up.
    fn peer(
        &self,
        requester: RequesterId,
        address: u64,
    ) -> Result<Option<(&FunctionState, u8, u64)>, BusError> {
        let target = self.function_at(address).filter(|(function, ..)| function.id != requester);
        // Functions of one slot talk among themselves, unless their ACS redirects it.
        if let Some((function, ..)) = &target
            && (function.id.bus(), function.id.device()) == (requester.bus(), requester.device())
            && self.acs(requester) & ACS_REQUEST_REDIRECT == 0
        {
            return Ok(target);
        }
        for bridge in self.bridges_above(requester.bus()) {
            let (first, last) = bridge.buses_behind().unwrap_or((0, 0));
            let acs = bridge.acs();
            if !bridge.is_bus_master() {
                return Err(BusError::MasterAbort);
            }
            if acs & ACS_SOURCE_VALIDATION != 0 && !(first..=last).contains(&requester.bus()) {
                return Err(BusError::TargetAbort);
            }
            // A request that a switch sends up leaves by its upstream port, which has no choice.
            if bridge.is_upstream_port() {
                continue;
            }
            let Some((function, ..)) = &target else { continue };
            let bus = function.id.bus();
            if (first..=last).contains(&bus) {
                // Its way is back down through this very port.
                if acs & ACS_UPSTREAM_FORWARDING == 0 {
                    return Ok(target);
                }
            } else if acs & ACS_REQUEST_REDIRECT == 0
                && bridge.id.bus() != 0
                && self.bridges_above(bus).any(|other| other.id.bus() == bridge.id.bus())
            {
                // Behind another port of the same switch; the root complex has no such way between its ports.
                return Ok(target);
            }
        }
        Ok(None)
    }

    fn acs(&self, id: RequesterId) -> u32 {
        self.functions.get(&id).map_or(0, |function| function.acs())
    }

    fn function_at(&self, address: u64) -> Option<(&FunctionState, u8, u64)> {
        if !(MMIO_BASE..=MMIO_LAST).contains(&address) {
            return None;
        }
        self.functions
            .values()
            .find_map(|function| function.region_at(address).map(|(bar, offset)| (&**function, bar, offset)))
    }

    fn message(&self, requester: RequesterId, address: u64, from: &[u8]) -> Result<(), BusError> {
        let data = from.try_into().map(u32::from_le_bytes).map_err(|_| BusError::TargetAbort)?;
        self.send(self.name_at_root(requester), address, data)
    }

    /// Sends a message interrupt from the root complex itself, such as of an IO-APIC, under the name `requester`.
    ///
    /// # Errors
    /// [`BusError::TargetAbort`] when the IOMMU refuses it.
    pub(crate) fn send(&self, requester: RequesterId, address: u64, data: u32) -> Result<(), BusError> {
        match &self.remapper {
            Some(remapper) => remapper.interrupt(requester, address, data, &mut |address, data| {
                self.sink.message(address, data);
            }),
            None => {
                self.sink.message(address, data);
                Ok(())
            }
        }
    }

    /// The translations that a function keeps, if it can.
    pub fn atc(&self, id: RequesterId) -> Option<&Arc<Atc>> {
        self.functions.get(&id)?.services.atc.as_ref()
    }

    /// The page requests of a function, if it can make any.
    pub fn pri(&self, id: RequesterId) -> Option<&Arc<Pri>> {
        self.functions.get(&id)?.services.pri.as_ref()
    }

    /// All functions.
    pub fn functions(&self) -> impl Iterator<Item = RequesterId> + '_ {
        self.functions.keys().copied()
    }

    /// The registers of a function behind BAR `bar`, for a CPU. `None` when there are none.
    pub fn mmio(self: &Arc<Self>, id: RequesterId, bar: u8) -> Option<Arc<dyn Mmio>> {
        Some(Arc::new(self.functions.get(&id)?.region(bar)?))
    }

    /// Stops all devices.
    pub fn shutdown(&self) {
        for device in self.functions.values().filter_map(|function| function.device.as_ref()) {
            device.shutdown();
        }
    }
}

impl platform::pci::ConfigSpace for PciTree {
    fn read32(&self, address: PciAddress, offset: u16) -> u32 {
        match self.functions.get(&address.id) {
            Some(function) if address.segment == self.segment => function.config_read(offset),
            _ => u32::MAX,
        }
    }

    fn write32(&self, address: PciAddress, offset: u16, value: u32) {
        let here = address.segment == self.segment;
        let Some(function) = self.functions.get(&address.id).filter(|_| here) else { return };
        function.config_write(offset, value);
        if let Some(msix) = function.msix.get() {
            msix.send_pending();
        }
        if let Some(changed) = self.iommus.get(&address.id)
            && let Some((to, data, on)) = function.msi()
        {
            changed(to, data, on);
        }
    }
}

impl fmt::Debug for PciTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.functions.keys()).finish()
    }
}
