//! A machine's groups, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use examples::tree::{Branch, draw};
use iommu_core::pci::{Reason, Shared, explain, outline};
use platform::pci::PciAddress;
use serde_json::{Value, json};

use crate::machine::{Group, Machine, MachineError};

/// All that is to be said of a machine.
pub(crate) struct Show<'a> {
    machine: &'a Machine,
    groups: Vec<Group>,
}

impl<'a> Show<'a> {
    pub(crate) fn new(machine: &'a Machine) -> Self {
        Self { machine, groups: machine.groups() }
    }

    /// The groups alone.
    pub(crate) fn json(&self) -> Value {
        let names = |group: &Group| {
            let members = group.members.iter().map(ToString::to_string);
            members.chain(group.hidden.iter().cloned()).collect::<Vec<_>>()
        };
        json!({ "groups": self.groups.iter().map(names).collect::<Vec<_>>() })
    }

    /// Why two functions share a group, in a sentence.
    pub(crate) fn why(&self, one: PciAddress, other: PciAddress) -> Result<String, MachineError> {
        let group = |address| {
            self.machine.topology.get(address).ok_or(MachineError::NoSuchFunction(address))?;
            self.group_of(address).ok_or(MachineError::NoGroup(address))
        };
        let (of_one, of_other) = (group(one)?, group(other)?);
        Ok(if one == other {
            format!("{one} is in group {of_one}")
        } else if of_one == of_other {
            let mut pair = [one, other];
            pair.sort();
            explain(&pair, &self.groups[of_one].reasons).iter().map(Shared::to_string).collect()
        } else {
            format!(
                "{one} and {other} share no group: {one} is in group {of_one}, {other} in group {of_other}"
            )
        })
    }

    /// The place of a function's group.
    fn group_of(&self, address: PciAddress) -> Option<usize> {
        self.groups.iter().position(|group| group.members.contains(&address))
    }

    fn tree(&self) -> Vec<Branch> {
        let topology = &self.machine.topology;
        let mut bridges = BTreeMap::new();
        for node in topology.iter() {
            if let Some(bus) = node.secondary_bus.filter(|&bus| bus != node.address.id.bus()) {
                bridges.entry((node.address.segment, bus)).or_insert(node.address);
            }
        }
        let mut below: BTreeMap<Option<PciAddress>, Vec<PciAddress>> = BTreeMap::new();
        for node in topology.iter() {
            let bus = (node.address.segment, node.address.id.bus());
            below.entry(bridges.get(&bus).copied()).or_default().push(node.address);
        }
        let mut places = BTreeMap::new();
        for (place, group) in self.groups.iter().enumerate() {
            places.extend(group.members.iter().map(|&member| (member, place)));
        }
        let mut left: BTreeSet<PciAddress> = topology.iter().map(|node| node.address).collect();
        let mut branches = self.branches(&below, None, &mut left, &places);
        // Bridges whose buses go in circles hang below nobody.
        while let Some(&first) = left.first() {
            left.remove(&first);
            let hanging = self.branches(&below, Some(first), &mut left, &places);
            branches.push(self.branch(first, hanging, &places));
        }
        branches
    }

    fn branches(
        &self,
        below: &BTreeMap<Option<PciAddress>, Vec<PciAddress>>,
        bridge: Option<PciAddress>,
        left: &mut BTreeSet<PciAddress>,
        places: &BTreeMap<PciAddress, usize>,
    ) -> Vec<Branch> {
        let mut branches = Vec::new();
        for &address in below.get(&bridge).into_iter().flatten() {
            if left.remove(&address) {
                let hanging = self.branches(below, Some(address), left, places);
                branches.push(self.branch(address, hanging, places));
            }
        }
        branches
    }

    fn branch(
        &self,
        address: PciAddress,
        below: Vec<Branch>,
        places: &BTreeMap<PciAddress, usize>,
    ) -> Branch {
        let label = format!("{address} {}", self.machine.class(address)).trim_end().to_owned();
        let note = places.get(&address).map_or_else(|| "no group".into(), |place| format!("group {place}"));
        Branch { label, note, below }
    }
}

/// Reasons with the same cause as one, with all that it concerns.
fn by_cause(reasons: &[Reason]) -> Vec<String> {
    let mut causes: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |cause: String, concerned: Option<PciAddress>| {
        let place = causes.iter().position(|(known, _)| *known == cause).unwrap_or(causes.len());
        if place == causes.len() {
            causes.push((cause, Vec::new()));
        }
        causes[place].1.extend(concerned.map(|address| address.to_string()));
    };
    for reason in reasons {
        match reason {
            Reason::PortNotIsolated { of, port, gap } => add(
                format!("{port} {gap}; what is below it can reach each other without passing the IOMMU"),
                Some(*of),
            ),
            Reason::BehindBridge { of, bridge, alias } => add(
                format!(
                    "{bridge} is a bridge to conventional PCI, and requests from behind it all bear its name {alias}"
                ),
                Some(*of),
            ),
            other => add(other.to_string(), None),
        }
    }
    let line = |(cause, concerned): (String, Vec<String>)| match concerned.is_empty() {
        true => cause,
        false => format!("{cause}: {}", concerned.join(", ")),
    };
    causes.into_iter().map(line).collect()
}

impl fmt::Display for Show<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        draw(f, &self.tree(), "")?;
        let size = |group: &Group| group.members.len() + group.hidden.len();
        let shared = self.groups.iter().filter(|group| size(group) > 1).count();
        writeln!(f, "\n{} groups, {shared} of them shared", self.groups.len())?;
        for (place, group) in self.groups.iter().enumerate().filter(|(_, group)| size(group) > 1) {
            writeln!(f, "group {place} is one for {} functions because", size(group))?;
            for cause in by_cause(&outline(&group.members, &group.reasons)) {
                writeln!(f, "  {cause}")?;
            }
            for name in &group.hidden {
                writeln!(f, "  {name} is behind a controller of the group that makes its requests")?;
            }
        }
        match self.machine.differences(&self.groups) {
            None => {}
            Some(other) if other.is_empty() => writeln!(f, "\nLinux formed the same groups")?,
            Some(other) => {
                writeln!(f, "\nLinux formed other groups:")?;
                for (number, members) in other {
                    let members: Vec<_> = members.iter().map(ToString::to_string).collect();
                    writeln!(f, "  Linux's group {number}: {}", members.join(", "))?;
                }
            }
        }
        for note in &self.machine.notes {
            writeln!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}
