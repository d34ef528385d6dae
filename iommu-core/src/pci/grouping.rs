//! Which functions must share a group, since hardware cannot tell them apart or keep them apart (Linux:
//! `pci_device_group`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use platform::pci::{PciAddress, RequesterId};

use super::topology::{AcsFlags, Node, PortType, Topology};

/// Why a function shares a group with another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Its requests carry another function's requester ID.
    Alias {
        /// The function.
        of: PciAddress,
        /// Whose name its requests carry.
        alias: PciAddress,
    },
    /// Its requests may carry a requester ID that no function has and another one uses too.
    SharedAlias {
        /// The function.
        of: PciAddress,
        /// The other one.
        other: PciAddress,
        /// The ID.
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
    /// The IOMMU has one translation for all its devices.
    OneTranslation {
        /// The function.
        of: PciAddress,
        /// The other one.
        other: PciAddress,
    },
    /// The system beneath has put them into one group.
    Given {
        /// The function.
        of: PciAddress,
        /// The other one.
        other: PciAddress,
        /// The group's number there.
        group: u32,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias { of, alias } => write!(f, "requests of {of} carry the requester ID of {alias}"),
            Self::SharedAlias { of, other, alias } => {
                write!(f, "requests of {of} and {other} may carry the requester ID {alias}")
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
            Self::OneTranslation { of, other } => {
                write!(f, "the IOMMU has one translation for {of}, {other} and all others behind it")
            }
            Self::Given { of, other, group } => {
                write!(f, "the system beneath has {of} and {other} in its group {group}")
            }
        }
    }
}

/// The groups of a topology: the members of each in order of their addresses, and for each member after the first a reason
/// that ties it to another one. `extra` names further requester IDs that a function may use: firmware's aliases.
///
/// Linux asks the same questions of each function in turn when it is found and takes the first group that answers; here all
/// answers count, so that the order of discovery does not matter: a function that ties two others together brings them into
/// one group.
pub fn groups(
    topology: &Topology,
    extra: &BTreeMap<PciAddress, Vec<RequesterId>>,
) -> Vec<(Vec<PciAddress>, Vec<Reason>)> {
    let mut ties = Ties::default();
    let bridges = bridges(topology);
    for node in topology.iter() {
        ties.tie_to_bridges_above(&bridges, node);
        ties.tie_to_slot(topology, node);
    }
    ties.tie_to_aliases(topology, extra);
    ties.components(topology)
}

/// The bridge to each bus of each segment ([`Topology::parent`], for all at once).
fn bridges(topology: &Topology) -> BTreeMap<(u16, u8), &Node> {
    let mut bridges = BTreeMap::new();
    for node in topology.iter() {
        if let Some(bus) = node.leads_to() {
            bridges.entry(bus).or_insert(node);
        }
    }
    bridges
}

/// The bridges above a function, from the nearest up. Bridges that name each other would go round for ever, so no bus is
/// passed twice.
fn above<'a>(bridges: &BTreeMap<(u16, u8), &'a Node>, node: &Node) -> Vec<&'a Node> {
    let mut passed = [false; 256];
    let mut path = Vec::new();
    let segment = node.address.segment;
    let mut bus = node.address.id.bus();
    while !core::mem::replace(&mut passed[usize::from(bus)], true)
        && let Some(&bridge) = bridges.get(&(segment, bus))
    {
        path.push(bridge);
        bus = bridge.address.id.bus();
    }
    path
}

/// Whether requests from behind a bridge carry its name: one to or from conventional PCI takes them over as its own.
fn takes_over(bridge: &Node) -> bool {
    matches!(bridge.port_type, PortType::PcieToPci | PortType::PciToPcie | PortType::Conventional)
}

/// Which functions cannot be told or kept apart, and why.
#[derive(Default)]
struct Ties(BTreeMap<PciAddress, Vec<(PciAddress, Reason)>>);

impl Ties {
    fn tie(&mut self, a: PciAddress, b: PciAddress, why: Reason) {
        self.0.entry(a).or_default().push((b, why));
        self.0.entry(b).or_default().push((a, why));
    }

    /// To the bridges under whose names its requests arrive (Linux: `pci_for_each_dma_alias`), and from the last of these
    /// on to those from which the path to the root is not isolated (Linux: `pci_acs_path_enabled`).
    fn tie_to_bridges_above(&mut self, bridges: &BTreeMap<(u16, u8), &Node>, node: &Node) {
        let of = node.address;
        let path = above(bridges, node);
        for bridge in path.iter().filter(|bridge| takes_over(bridge)) {
            self.tie(of, bridge.address, Reason::Alias { of, alias: bridge.address });
        }
        let unit = path.iter().rposition(|bridge| takes_over(bridge)).map_or(0, |last| last + 1);
        for (index, bridge) in path.iter().enumerate().skip(unit) {
            let open = path[index..].iter().find(|port| !port.acs_enabled(AcsFlags::ISOLATED));
            let Some(open) = open else { break };
            let missing = open.acs_missing(AcsFlags::ISOLATED);
            self.tie(of, bridge.address, Reason::PortNotIsolated { of, port: open.address, missing });
        }
    }

    /// To functions of its slot, when neither is kept apart (Linux: `get_pci_function_alias_group`).
    fn tie_to_slot(&mut self, topology: &Topology, node: &Node) {
        if !node.multifunction || node.acs_enabled(AcsFlags::ISOLATED) {
            return;
        }
        let (of, missing) = (node.address, node.acs_missing(AcsFlags::ISOLATED));
        for sibling in topology.siblings(node).filter(|sibling| !sibling.acs_enabled(AcsFlags::ISOLATED)) {
            self.tie(of, sibling.address, Reason::SlotNotIsolated { of, sibling: sibling.address, missing });
        }
    }

    /// To functions that use one requester ID, whether or not there is a function of that name (Linux:
    /// `get_pci_alias_group`).
    fn tie_to_aliases(&mut self, topology: &Topology, extra: &BTreeMap<PciAddress, Vec<RequesterId>>) {
        let mut users: BTreeMap<PciAddress, PciAddress> = BTreeMap::new();
        for (&of, ids) in extra.iter().filter(|(of, _)| topology.get(**of).is_some()) {
            for alias in ids.iter().map(|&id| PciAddress { segment: of.segment, id }) {
                if topology.get(alias).is_some() {
                    self.tie(of, alias, Reason::Alias { of, alias });
                } else if let Some(&other) = users.get(&alias) {
                    self.tie(of, other, Reason::SharedAlias { of, other, alias: alias.id });
                } else {
                    users.insert(alias, of);
                }
            }
        }
    }

    /// What hangs together.
    fn components(&self, topology: &Topology) -> Vec<(Vec<PciAddress>, Vec<Reason>)> {
        let mut seen = BTreeSet::new();
        let mut groups = Vec::new();
        for node in topology.iter() {
            if !seen.insert(node.address) {
                continue;
            }
            let mut members = Vec::from([(node.address, None)]);
            let mut next = 0;
            while let Some(&(member, _)) = members.get(next) {
                next += 1;
                for &(other, why) in self.0.get(&member).into_iter().flatten() {
                    if seen.insert(other) {
                        members.push((other, Some(why)));
                    }
                }
            }
            members.sort_by_key(|&(address, _)| address);
            groups.push((
                members.iter().map(|&(address, _)| address).collect(),
                members.iter().filter_map(|&(_, why)| why).collect(),
            ));
        }
        groups
    }
}
