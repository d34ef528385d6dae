//! Which functions must share a group, since hardware cannot tell them apart or keep them apart (Linux:
//! `pci_device_group`).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use platform::pci::{PciAddress, RequesterId};

use super::topology::{AcsFlags, Node, PortType, Topology};

/// Why a function is in a group that was there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Its requests carry another function's requester ID.
    Alias {
        /// The function.
        of: PciAddress,
        /// Whose name its requests carry.
        alias: PciAddress,
    },
    /// Its requests and another function's carry the same requester ID, which is neither's own.
    SharedAlias {
        /// The function.
        of: PciAddress,
        /// The other one.
        other: PciAddress,
        /// The ID that both use.
        alias: RequesterId,
    },
    /// A port on its way to the root lets peers reach each other without passing the IOMMU.
    PortNotIsolated {
        /// The function.
        of: PciAddress,
        /// The port.
        port: PciAddress,
        /// What is not switched on there.
        missing: AcsFlags,
    },
    /// Functions of its slot can reach each other.
    SlotNotIsolated {
        /// The function.
        of: PciAddress,
        /// The other one.
        sibling: PciAddress,
        /// What is not switched on.
        missing: AcsFlags,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias { of, alias } => write!(f, "requests of {of} carry the requester ID of {alias}"),
            Self::SharedAlias { of, other, alias } => {
                write!(f, "requests of {of} and {other} carry the same requester ID, {alias}")
            }
            Self::PortNotIsolated { of, port, missing } => {
                write!(f, "{port}, above {of}, lets its peers talk past the IOMMU (ACS without ")?;
                bitflags::parser::to_writer(missing, &mut *f)?;
                f.write_str(")")
            }
            Self::SlotNotIsolated { of, sibling, missing } => {
                write!(
                    f,
                    "{of} and {sibling} are functions of one slot that can reach each other (ACS without "
                )?;
                bitflags::parser::to_writer(missing, &mut *f)?;
                f.write_str(")")
            }
        }
    }
}

/// The groups of a topology: the members of each, and why each member after the first joined. Functions are taken in order
/// of their addresses, as a bus is probed. `extra` names further aliases of a function on its own bus: firmware's.
pub fn groups(
    topology: &Topology,
    extra: &BTreeMap<PciAddress, Vec<RequesterId>>,
) -> Vec<(Vec<PciAddress>, Vec<Reason>)> {
    let mut grouping = Grouping { topology, extra, of: BTreeMap::new(), groups: Vec::new() };
    for node in topology.iter() {
        grouping.add(node);
    }
    grouping.groups
}

struct Grouping<'a> {
    topology: &'a Topology,
    extra: &'a BTreeMap<PciAddress, Vec<RequesterId>>,
    of: BTreeMap<PciAddress, usize>,
    groups: Vec<(Vec<PciAddress>, Vec<Reason>)>,
}

impl Grouping<'_> {
    fn add(&mut self, node: &Node) {
        let index = match self.find(node) {
            Some((index, reason)) => {
                self.groups[index].1.push(reason);
                index
            }
            None => {
                self.groups.push((Vec::new(), Vec::new()));
                self.groups.len() - 1
            }
        };
        self.groups[index].0.push(node.address);
        self.of.insert(node.address, index);
    }

    /// The group that `node` must join, if there is one.
    fn find(&self, node: &Node) -> Option<(usize, Reason)> {
        // 1. Aliases on the way up: the last one is the unit that can be told apart.
        let mut unit = node;
        for alias in self.dma_aliases(node) {
            if alias != node.address
                && let Some(&index) = self.of.get(&alias)
            {
                return Some((index, Reason::Alias { of: node.address, alias }));
            }
            if let Some(alias) = self.topology.get(alias) {
                unit = alias;
            }
        }
        // 2. Up to the first bridge from which on the whole path is isolated.
        let mut at = unit;
        while let Some(bridge) = self.topology.parent(at) {
            let Some(open) = self.first_open_port(bridge) else { break };
            at = bridge;
            if let Some(&index) = self.of.get(&bridge.address) {
                let missing = open.acs_missing(AcsFlags::ISOLATED);
                return Some((
                    index,
                    Reason::PortNotIsolated { of: node.address, port: open.address, missing },
                ));
            }
        }
        // 3. Firmware's aliases, in either direction.
        if let Some(found) = self.by_extra_alias(node, at) {
            return Some(found);
        }
        // 4. Functions of the slot that are not kept apart.
        self.by_slot(node, at)
    }

    /// The first port from `bridge` to the root that does not isolate (Linux: `pci_acs_path_enabled`).
    fn first_open_port<'b>(&'b self, bridge: &'b Node) -> Option<&'b Node> {
        let mut at = Some(bridge);
        while let Some(port) = at {
            if !port.acs_enabled(AcsFlags::ISOLATED) {
                return Some(port);
            }
            at = self.topology.parent(port);
        }
        None
    }

    fn by_extra_alias(&self, node: &Node, at: &Node) -> Option<(usize, Reason)> {
        let (segment, id) = (at.address.segment, at.address.id);
        let own = self.extra.get(&at.address).map_or(&[][..], Vec::as_slice);
        let index_of = |other: PciAddress| self.of.get(&other).filter(|_| other != node.address).copied();
        let alias = |alias| index_of(alias).map(|index| (index, Reason::Alias { of: node.address, alias }));
        let named = own.iter().find_map(|&id| alias(PciAddress { segment, id }));
        let others = || self.extra.iter().filter(|(other, _)| other.segment == segment);
        named
            .or_else(|| others().filter(|(_, ids)| ids.contains(&id)).find_map(|(&other, _)| alias(other)))
            // An ID that no function has: whoever uses it has the same device table entry.
            .or_else(|| {
                others().find_map(|(&other, ids)| {
                    let shared = *ids.iter().find(|id| own.contains(id))?;
                    let reason = Reason::SharedAlias { of: node.address, other, alias: shared };
                    index_of(other).map(|index| (index, reason))
                })
            })
    }

    fn by_slot(&self, node: &Node, at: &Node) -> Option<(usize, Reason)> {
        if !at.multifunction || at.acs_enabled(AcsFlags::ISOLATED) {
            return None;
        }
        let open = self.topology.siblings(at).filter(|other| !other.acs_enabled(AcsFlags::ISOLATED));
        open.filter(|sibling| sibling.address != node.address).find_map(|sibling| {
            let missing = at.acs_missing(AcsFlags::ISOLATED);
            self.of.get(&sibling.address).map(|&index| {
                (index, Reason::SlotNotIsolated { of: node.address, sibling: sibling.address, missing })
            })
        })
    }

    /// The functions under whose names requests of `node` may arrive, its own first (Linux: `pci_for_each_dma_alias`).
    /// A bridge to or from conventional PCI takes requests over as its own.
    fn dma_aliases(&self, node: &Node) -> Vec<PciAddress> {
        let mut aliases = Vec::from([node.address]);
        let mut at = node;
        while let Some(bridge) = self.topology.parent(at) {
            if matches!(bridge.port_type, PortType::PcieToPci | PortType::PciToPcie | PortType::Conventional)
            {
                aliases.push(bridge.address);
            }
            at = bridge;
        }
        aliases
    }
}
