//! The names that a function's requests may carry.

use alloc::vec::Vec;

use platform::pci::{PciAddress, RequesterId};

use super::topology::{PortType, Topology};

/// Requester IDs other than its own that requests of a function carry when they leave conventional PCI on their way to the
/// root (Linux: `pci_for_each_dma_alias`).
pub(crate) fn dma_aliases(topology: &Topology, of: PciAddress) -> Vec<RequesterId> {
    let mut aliases = Vec::new();
    let mut passed = [false; 256];
    let mut node = topology.get(of);
    // Bridges that name each other would go round for ever, so no bus is passed twice.
    while let Some(below) = node
        && !core::mem::replace(&mut passed[usize::from(below.address.id.bus())], true)
    {
        node = topology.parent(below);
        let Some(bridge) = node else { break };
        match (bridge.port_type, bridge.secondary_bus) {
            (PortType::PcieToPci, Some(bus)) => aliases.push(RequesterId::from_parts(bus, 0, 0)),
            (PortType::PciToPcie | PortType::Conventional, _) => aliases.push(bridge.address.id),
            _ => {}
        }
    }
    aliases
}
