//! Which functions must share a group, since hardware cannot tell them apart or keep them apart (Linux:
//! `pci_device_group`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use platform::pci::{PciAddress, RequesterId};

use super::alias::{alias_of_bridge, quirk_aliases};
use super::reason::Reason;
use super::topology::{BridgeFlags, Node, Topology};

/// The groups of a topology: the members of each in order of their addresses, and all that ties them together
/// ([`super::explain`] and [`super::outline`] make sense of it). `extra` names further requester IDs that a function may
/// use: firmware's aliases.
///
/// Linux asks the same questions of each function in turn when it is found and takes the first group that answers; here all
/// answers count, so that the order of discovery does not matter: a function that ties two others together brings them into
/// one group.
#[doc(alias = "pci_device_group")]
pub fn groups(
    topology: &Topology,
    extra: &BTreeMap<PciAddress, Vec<RequesterId>>,
) -> Vec<(Vec<PciAddress>, Vec<Reason>)> {
    let mut ties = Ties::default();
    let bridges = bridges(topology);
    let mut users = BTreeMap::new();
    for node in topology.iter() {
        if let Some(real) = node.quirks.real_dma_device.filter(|real| *real != node.address) {
            // The IOMMU never sees the function itself.
            ties.tie_to_real_device(topology, &mut users, node, real);
            continue;
        }
        ties.tie_to_bridges_above(&bridges, node);
        ties.tie_to_slot(topology, node);
        ties.tie_to_aliases(topology, &mut users, node, extra);
    }
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

/// Who uses a name that no function has.
type Users = BTreeMap<PciAddress, PciAddress>;

/// Which functions cannot be told or kept apart, and why.
#[derive(Default)]
struct Ties(BTreeMap<PciAddress, BTreeSet<Reason>>);

impl Ties {
    fn tie(&mut self, why: Reason) {
        let (one, other) = why.ends();
        self.0.entry(one).or_default().insert(why);
        self.0.entry(other).or_default().insert(why);
    }

    /// To who makes its requests (Linux: `pci_real_dma_dev`).
    fn tie_to_real_device(&mut self, topology: &Topology, users: &mut Users, node: &Node, real: PciAddress) {
        let of = node.address;
        if topology.get(real).is_some() {
            self.tie(Reason::RealDmaDevice { of, real });
        } else {
            self.tie_to_user(users, of, real);
        }
    }

    /// To the bridges under whose names its requests arrive (Linux: `pci_for_each_dma_alias`), and from the last of these
    /// on to the highest one that does not isolate (Linux: `pci_acs_path_enabled`).
    fn tie_to_bridges_above(&mut self, bridges: &BTreeMap<(u16, u8), &Node>, node: &Node) {
        let of = node.address;
        let path = above(bridges, node);
        let translated =
            path.iter().take_while(|bridge| !bridge.quirks.bridge.contains(BridgeFlags::XLATE_ROOT));
        let mut unit = 0;
        for (index, bridge) in translated.enumerate() {
            if let Some(alias) = alias_of_bridge(bridge) {
                self.tie(Reason::BehindBridge { of, bridge: bridge.address, alias });
                unit = index + 1;
            }
        }
        let mut up = path.iter().enumerate().skip(unit).rev();
        let open = up.find_map(|(index, port)| Some((index, port.address, port.acs_gap()?)));
        if let Some((index, port, gap)) = open {
            self.tie(Reason::PortNotIsolated { of, port, gap });
            // Where buses go in circles, those between would not all come to the same port in their turn.
            for between in &path[unit..index] {
                self.tie(Reason::PortNotIsolated { of: between.address, port, gap });
            }
        }
    }

    /// To functions of its slot, when neither is kept apart (Linux: `get_pci_function_alias_group`).
    fn tie_to_slot(&mut self, topology: &Topology, node: &Node) {
        let Some(gap) = node.acs_gap().filter(|_| node.multifunction) else { return };
        let of = node.address;
        for sibling in topology.siblings(node).filter(|sibling| sibling.acs_gap().is_some()) {
            self.tie(Reason::SlotNotIsolated { of, sibling: sibling.address, gap });
        }
    }

    /// To functions that use one requester ID, whether or not there is a function of that name (Linux:
    /// `get_pci_alias_group`).
    fn tie_to_aliases(
        &mut self,
        topology: &Topology,
        users: &mut Users,
        node: &Node,
        extra: &BTreeMap<PciAddress, Vec<RequesterId>>,
    ) {
        let of = node.address;
        let firmware = extra.get(&of).into_iter().flatten().map(|&id| PciAddress { id, ..of });
        for alias in quirk_aliases(node).chain(firmware).filter(|alias| *alias != of) {
            if topology.get(alias).is_some() {
                self.tie(Reason::Alias { of, alias });
            } else {
                self.tie_to_user(users, of, alias);
            }
        }
        // The name that a bridge gives to what is behind it is in use as well.
        let given = alias_of_bridge(node).map(|id| PciAddress { id, ..of });
        if let Some(alias) = given.filter(|alias| topology.get(*alias).is_none()) {
            self.tie_to_user(users, of, alias);
        }
    }

    fn tie_to_user(&mut self, users: &mut Users, of: PciAddress, alias: PciAddress) {
        let &mut other = users.entry(alias).or_insert(of);
        if other != of {
            self.tie(Reason::SharedAlias { of, other, alias: alias.id });
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
            let mut members = Vec::from([node.address]);
            let mut reasons = Vec::new();
            let mut next = 0;
            while let Some(&member) = members.get(next) {
                next += 1;
                for why in self.0.get(&member).into_iter().flatten() {
                    let (one, other) = why.ends();
                    // Each is kept by both.
                    if one == member {
                        reasons.push(*why);
                    }
                    let other = if one == member { other } else { one };
                    if seen.insert(other) {
                        members.push(other);
                    }
                }
            }
            members.sort();
            groups.push((members, reasons));
        }
        groups
    }
}
