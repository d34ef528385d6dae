//! A PCI tree as a value: filled from config space, from a file, or by hand. It reads no hardware.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use platform::pci::PciAddress;

use super::host_bridge::HostBridge;
use super::reason::AcsGap;

bitflags::bitflags! {
    /// Access Control Services, with the bits of the capability (PCI Express, section 7.7.8).
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
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

    /// What is known of a bridge that its configuration space does not say.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct BridgeFlags: u8 {
        /// The IOMMU sits at this bridge, so names are not changed above it (Linux: `PCI_DEV_FLAGS_BRIDGE_XLATE_ROOT`).
        const XLATE_ROOT = 1 << 0;
        /// It is a bridge from PCI Express that does not say so (Linux: `PCI_DEV_FLAG_PCIE_BRIDGE_ALIAS`).
        const PCIE_BRIDGE_ALIAS = 1 << 1;
        /// It leaves the names of requests as they are (Linux: `PCI_DEV_FLAGS_PCI_BRIDGE_NO_ALIAS`).
        const NO_ALIAS = 1 << 2;
    }
}

impl AcsFlags {
    /// What counts as isolated (Linux: `REQ_ACS_FLAGS`).
    pub const ISOLATED: Self = Self::SV.union(Self::RR).union(Self::CR).union(Self::UF);
}

/// What a function is on PCI Express.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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

/// Who made a function, and what it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceId {
    /// Vendor.
    pub vendor: u16,
    /// The vendor's number of the device.
    pub device: u16,
    /// Vendor and device of the card that it is on. `None` for bridges, and where nobody has read it.
    pub subsystem: Option<(u16, u16)>,
}

/// What is known of a function that its configuration space does not say: [`Topology::apply`] fills it in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeQuirks {
    /// The services that hold here, whatever the capability says (Linux: `pci_dev_specific_acs_enabled`).
    pub acs: Option<AcsFlags>,
    /// Devices and functions of its bus whose names its requests may carry as well, as configuration space numbers them
    /// (Linux: `dma_alias_mask`).
    pub aliases: BTreeSet<u8>,
    /// What is special about a bridge.
    pub bridge: BridgeFlags,
    /// Who makes its requests on the bus, where that is another function (Linux: `pci_real_dma_dev`): what is behind
    /// Intel's VMD is seen by the IOMMU as the VMD.
    pub real_dma_device: Option<PciAddress>,
}

/// One function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Where it is.
    pub address: PciAddress,
    /// Who made it, if that is known.
    pub id: Option<DeviceId>,
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
    /// What its configuration space does not say.
    pub quirks: NodeQuirks,
}

impl Node {
    /// A PCI Express endpoint that is alone in its slot, of which nothing else is known.
    pub fn new(address: PciAddress) -> Self {
        Self {
            address,
            id: None,
            class: 0,
            port_type: PortType::Endpoint,
            multifunction: false,
            secondary_bus: None,
            acs: None,
            quirks: NodeQuirks::default(),
        }
    }

    /// What the function lacks to keep its peers apart; `None` when it does (Linux: `pci_acs_enabled` with
    /// `REQ_ACS_FLAGS`). What the capability does not offer cannot happen, so it counts as set.
    #[doc(alias = "pci_acs_enabled")]
    pub fn acs_gap(&self) -> Option<AcsGap> {
        let wanted = AcsFlags::ISOLATED;
        let off = |on: AcsFlags, offered: AcsFlags| {
            let missing = wanted & offered & !on;
            (!missing.is_empty()).then_some(AcsGap::Off(missing))
        };
        if let Some(provided) = self.quirks.acs {
            return off(provided, AcsFlags::all());
        }
        match self.port_type {
            PortType::Conventional | PortType::PcieToPci | PortType::PciToPcie | PortType::EventCollector => {
                return Some(AcsGap::NotPossible(self.port_type));
            }
            PortType::RootPort | PortType::DownstreamPort => {}
            // Nobody behind or beside a single function can be reached without leaving it.
            PortType::Endpoint | PortType::RootComplexEndpoint | PortType::UpstreamPort => {
                if !self.multifunction {
                    return None;
                }
            }
        }
        match self.acs {
            Some((offered, on)) => off(on, offered),
            None => Some(AcsGap::NoCapability),
        }
    }

    /// The segment and bus behind a bridge, which is not the bus that it is on.
    pub(crate) fn leads_to(&self) -> Option<(u16, u8)> {
        let own = self.address.id.bus();
        self.secondary_bus.filter(|&bus| bus != own).map(|bus| (self.address.segment, bus))
    }
}

/// A PCI tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Topology {
    nodes: BTreeMap<PciAddress, Node>,
    /// By segment and root bus.
    host_bridges: BTreeMap<(u16, u8), HostBridge>,
}

impl Topology {
    /// A tree of nothing.
    pub const fn new() -> Self {
        Self { nodes: BTreeMap::new(), host_bridges: BTreeMap::new() }
    }

    /// Adds a function, or replaces the one at its address.
    pub fn insert(&mut self, node: Node) {
        self.nodes.insert(node.address, node);
    }

    /// Says what is between a root bus and memory. Configuration space does not tell: firmware does (ACPI's `_CRS` and `_DMA`,
    /// a device tree's `ranges` and `dma-ranges`).
    pub fn insert_host_bridge(&mut self, segment: u16, root_bus: u8, bridge: HostBridge) {
        self.host_bridges.insert((segment, root_bus), bridge);
    }

    /// The host bridge above a function, if it is known (Linux: `pci_find_host_bridge`).
    #[doc(alias = "pci_find_host_bridge")]
    pub fn host_bridge(&self, address: PciAddress) -> Option<&HostBridge> {
        let mut bus = address.id.bus();
        // There are no more buses than that above one another; more bridges go in circles.
        for _ in 0..256 {
            let here = |node: &&Node| node.leads_to() == Some((address.segment, bus));
            match self.iter().find(here) {
                Some(bridge) => bus = bridge.address.id.bus(),
                None => return self.host_bridges.get(&(address.segment, bus)),
            }
        }
        None
    }

    /// The function at `address`.
    pub fn get(&self, address: PciAddress) -> Option<&Node> {
        self.nodes.get(&address)
    }

    pub(crate) fn get_mut(&mut self, address: PciAddress) -> Option<&mut Node> {
        self.nodes.get_mut(&address)
    }

    /// Marks the functions of slots that show themselves to have several: by two that are there, or by one that is not the
    /// first.
    pub(crate) fn infer_slots(&mut self) {
        let several: Vec<_> = self
            .iter()
            .filter(|node| node.address.id.function() != 0 || self.siblings(node).next().is_some())
            .map(|node| node.address)
            .collect();
        for address in several {
            if let Some(node) = self.nodes.get_mut(&address) {
                node.multifunction = true;
            }
        }
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
        let slot = |function| {
            let (segment, id) = (node.address.segment, node.address.id);
            PciAddress::new(segment, id.bus(), id.device(), function)
        };
        self.nodes
            .range(slot(0)..=slot(7))
            .map(|(_, node)| node)
            .filter(|other| other.address != node.address)
    }
}
