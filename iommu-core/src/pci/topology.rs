//! A PCI tree as a value: filled from config space, from a file, or by hand. It reads no hardware.

use alloc::collections::BTreeMap;

use platform::pci::PciAddress;

bitflags::bitflags! {
    /// Access Control Services, with the bits of the capability (PCI Express, section 7.7.8).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct AcsFlags: u16 {
        /// Source Validation.
        const SV = 1 << 0;
        /// Translation Blocking.
        const TB = 1 << 1;
        /// P2P Request Redirect.
        const RR = 1 << 2;
        /// P2P Completion Redirect.
        const CR = 1 << 3;
        /// Upstream Forwarding.
        const UF = 1 << 4;
        /// P2P Egress Control.
        const EC = 1 << 5;
        /// Direct Translated P2P.
        const DT = 1 << 6;
    }
}

impl AcsFlags {
    /// What counts as isolated (Linux: `REQ_ACS_FLAGS`).
    pub const ISOLATED: Self = Self::SV.union(Self::RR).union(Self::CR).union(Self::UF);
}

/// What a function is on PCI Express.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PortType {
    /// Conventional PCI: no PCI Express capability.
    Conventional,
    /// An endpoint, or a legacy one.
    Endpoint,
    /// An endpoint in the root complex.
    RootComplexEndpoint,
    /// A root complex event collector.
    EventCollector,
    /// A root port.
    RootPort,
    /// A switch's port towards the root.
    UpstreamPort,
    /// A switch's port towards devices.
    DownstreamPort,
    /// A bridge from PCI Express to conventional PCI.
    PcieToPci,
    /// A bridge from conventional PCI to PCI Express.
    PciToPcie,
}

/// One function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Where it is.
    pub address: PciAddress,
    /// Class code: base class in 23:16, subclass in 15:8, interface in 7:0.
    pub class: u32,
    /// What it is on PCI Express.
    pub port_type: PortType,
    /// Whether its slot has several functions.
    pub multifunction: bool,
    /// For a bridge, the first bus behind it.
    pub secondary_bus: Option<u8>,
    /// Access Control Services: what the function has and what is switched on. `None` without the capability.
    pub acs: Option<(AcsFlags, AcsFlags)>,
}

impl Node {
    /// Whether all of `flags` hold here (Linux: `pci_acs_enabled`). What the capability does not offer cannot happen, so it
    /// counts as set; Egress Control alone does not.
    pub(crate) fn acs_enabled(&self, flags: AcsFlags) -> bool {
        let set = |acs: Option<(AcsFlags, AcsFlags)>| {
            acs.is_some_and(|(capability, control)| {
                let wanted = flags & (capability | AcsFlags::EC);
                control.contains(wanted)
            })
        };
        match self.port_type {
            PortType::Conventional | PortType::PcieToPci | PortType::PciToPcie | PortType::EventCollector => {
                false
            }
            PortType::RootPort | PortType::DownstreamPort => set(self.acs),
            // Nobody behind or beside a single function can be reached without leaving it.
            _ if !self.multifunction => true,
            _ => set(self.acs),
        }
    }

    /// The segment and bus behind a bridge, which is not the bus that it is on.
    pub(crate) fn leads_to(&self) -> Option<(u16, u8)> {
        let own = self.address.id.bus();
        self.secondary_bus.filter(|&bus| bus != own).map(|bus| (self.address.segment, bus))
    }

    /// Which of `flags` are missing, for people.
    pub(crate) fn acs_missing(&self, flags: AcsFlags) -> AcsFlags {
        match self.acs {
            Some((capability, control)) => flags & (capability | AcsFlags::EC) & !control,
            None => flags,
        }
    }
}

/// A PCI tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Topology {
    nodes: BTreeMap<PciAddress, Node>,
}

impl Topology {
    /// A tree of nothing.
    pub const fn new() -> Self {
        Self { nodes: BTreeMap::new() }
    }

    /// Adds a function, or replaces the one at its address.
    pub fn insert(&mut self, node: Node) {
        self.nodes.insert(node.address, node);
    }

    /// The function at `address`.
    pub fn get(&self, address: PciAddress) -> Option<&Node> {
        self.nodes.get(&address)
    }

    /// All functions, in order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The bridge whose secondary bus this function is on; `None` on a root bus. When several claim a bus the first one has
    /// it. Bridges that name each other's buses send a walk along their parents round for ever.
    pub fn parent(&self, node: &Node) -> Option<&Node> {
        let bus = (node.address.segment, node.address.id.bus());
        self.iter().find(|bridge| bridge.leads_to() == Some(bus))
    }

    /// The other functions of the same slot.
    pub(crate) fn siblings<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Node> {
        self.iter().filter(move |other| {
            let (a, b) = (other.address, node.address);
            a != b && a.segment == b.segment && a.id.bus() == b.id.bus() && a.id.device() == b.id.device()
        })
    }
}
