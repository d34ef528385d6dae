//! The names that a function's requests may carry.

use alloc::vec::Vec;

use platform::pci::{PciAddress, RequesterId};

use super::topology::{BridgeFlags, Node, PortType, Topology};

impl Topology {
    /// The names other than its own that requests of a function may carry when they reach the IOMMU: of who makes them in
    /// its place, those that are known of the device, and those of the bridges on the way (Linux: `pci_for_each_dma_alias`).
    #[doc(alias = "pci_for_each_dma_alias")]
    pub fn dma_aliases(&self, of: PciAddress) -> Vec<PciAddress> {
        let mut aliases = Vec::new();
        let Some(mut node) = self.get(of) else { return aliases };
        if let Some(real) = node.quirks.real_dma_device.filter(|real| *real != of) {
            aliases.push(real);
            match self.get(real) {
                Some(real) => node = real,
                None => return aliases,
            }
        }
        aliases.extend(quirk_aliases(node));
        let mut passed = [false; 256];
        // Bridges that name each other would go round for ever, so no bus is passed twice.
        while !core::mem::replace(&mut passed[usize::from(node.address.id.bus())], true)
            && let Some(bridge) = self.parent(node)
            && !bridge.quirks.bridge.contains(BridgeFlags::XLATE_ROOT)
        {
            aliases.extend(alias_of_bridge(bridge).map(|id| PciAddress { id, ..bridge.address }));
            node = bridge;
        }
        aliases
    }
}

/// Names on its own bus that requests of a function may carry.
pub(super) fn quirk_aliases(node: &Node) -> impl Iterator<Item = PciAddress> {
    let own = node.address;
    let on_bus = move |devfn: u8| RequesterId::new(u16::from(own.id.bus()) << 8 | u16::from(devfn));
    let aliases = node.quirks.aliases.iter().map(move |&devfn| PciAddress { id: on_bus(devfn), ..own });
    aliases.filter(move |alias| *alias != own)
}

/// The name that a bridge puts on requests from behind it: a bridge to or from conventional PCI takes them over as its own.
pub(super) fn alias_of_bridge(bridge: &Node) -> Option<RequesterId> {
    let flags = bridge.quirks.bridge;
    let secondary = bridge.secondary_bus.map(|bus| RequesterId::from_parts(bus, 0, 0));
    match bridge.port_type {
        PortType::PcieToPci if flags.contains(BridgeFlags::NO_ALIAS) => None,
        PortType::PcieToPci => secondary,
        PortType::Conventional if flags.contains(BridgeFlags::PCIE_BRIDGE_ALIAS) => secondary,
        PortType::Conventional | PortType::PciToPcie => Some(bridge.address.id),
        _ => None,
    }
}
