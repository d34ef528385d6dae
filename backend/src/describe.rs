//! A machine in words, as far as that is the same for all.

use iommu_core::Iommu;
use iommu_core::pci::{Node, PortType, Topology};

use crate::{FunctionDescription, GroupDescription};

/// The functions of a PCI tree.
pub(crate) fn functions(topology: &Topology) -> Vec<FunctionDescription> {
    let function = |node: &Node| FunctionDescription {
        address: node.address,
        what: what(node),
        bridge: topology.parent(node).map(|bridge| bridge.address),
    };
    topology.iter().map(function).collect()
}

/// The groups.
pub(crate) fn groups(iommu: &Iommu) -> Vec<GroupDescription> {
    let groups = iommu.groups();
    let group = groups.iter().map(|group| GroupDescription {
        id: group.id(),
        domain_type: group.domain_type(),
        members: group.devices(),
        why: group.outline().iter().map(ToString::to_string).collect(),
    });
    group.collect()
}

fn what(node: &Node) -> &'static str {
    match (node.port_type, node.class >> 8) {
        (PortType::RootPort, _) => "root port",
        (PortType::UpstreamPort, _) => "switch, upstream port",
        (PortType::DownstreamPort, _) => "switch, downstream port",
        (_, 0x0108) => "NVMe controller",
        (_, 0x0600) => "host bridge",
        (_, 0x0604) => "PCI bridge",
        (_, 0x0801) => "DMA engine",
        (_, 0x0806) => "IOMMU",
        _ => "device",
    }
}
