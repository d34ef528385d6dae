//! Why functions share a group, for people.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::fmt;

use platform::pci::{PciAddress, RequesterId};

use super::topology::{AcsFlags, PortType};

/// What a function lacks to keep its peers apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AcsGap {
    /// It has no Access Control Services at all.
    NoCapability,
    /// It has them, but these are switched off.
    Off(AcsFlags),
    /// On a function of this kind there are none that would help.
    NotPossible(PortType),
}

/// Why two functions share a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
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
    /// A bridge to or from conventional PCI puts a name of its own on its requests.
    BehindBridge {
        /// The function.
        of: PciAddress,
        /// The bridge.
        bridge: PciAddress,
        /// The name.
        alias: RequesterId,
    },
    /// Another function makes its requests.
    RealDmaDevice {
        /// The function.
        of: PciAddress,
        /// Who makes its requests.
        real: PciAddress,
    },
    /// A port on its way to the root lets peers reach each other without passing the IOMMU. When several do, this is the
    /// one nearest to the root.
    PortNotIsolated {
        /// The function.
        of: PciAddress,
        /// The port.
        port: PciAddress,
        /// What it lacks.
        gap: AcsGap,
    },
    /// Functions of its slot can reach each other.
    SlotNotIsolated {
        /// The function.
        of: PciAddress,
        /// The other one.
        sibling: PciAddress,
        /// What the function lacks.
        gap: AcsGap,
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

impl Reason {
    /// The two functions that it ties together.
    pub fn ends(&self) -> (PciAddress, PciAddress) {
        match *self {
            Self::Alias { of, alias } => (of, alias),
            Self::SharedAlias { of, other, .. }
            | Self::OneTranslation { of, other }
            | Self::Given { of, other, .. } => (of, other),
            Self::BehindBridge { of, bridge, .. } => (of, bridge),
            Self::RealDmaDevice { of, real } => (of, real),
            Self::PortNotIsolated { of, port, .. } => (of, port),
            Self::SlotNotIsolated { of, sibling, .. } => (of, sibling),
        }
    }
}

impl fmt::Display for AcsGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCapability => f.write_str("has no Access Control Services (ACS)"),
            Self::Off(missing) => {
                f.write_str("has these Access Control Services (ACS) switched off: ")?;
                for (index, (name, _)) in missing.iter_names().enumerate() {
                    let name = match name {
                        "SV" => "Source Validation",
                        "RR" => "P2P Request Redirect",
                        "CR" => "P2P Completion Redirect",
                        "UF" => "Upstream Forwarding",
                        other => other,
                    };
                    write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::NotPossible(PortType::Conventional) => {
                f.write_str("is conventional PCI, which keeps nobody apart")
            }
            Self::NotPossible(PortType::EventCollector) => {
                f.write_str("is an event collector, which keeps nobody apart")
            }
            Self::NotPossible(_) => f.write_str("is a bridge to conventional PCI, which keeps nobody apart"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias { of, alias } => {
                write!(
                    f,
                    "requests of {of} carry the requester ID of {alias}, so the IOMMU takes them for its"
                )
            }
            Self::SharedAlias { of, other, alias } => {
                write!(
                    f,
                    "requests of {of} and {other} may carry the requester ID {alias}, so the IOMMU cannot tell them apart"
                )
            }
            Self::BehindBridge { of, bridge, alias } => write!(
                f,
                "{of} is behind the conventional-PCI bridge {bridge}, which puts the requester ID {alias} on requests from \
                 behind it, so the IOMMU cannot tell them apart"
            ),
            Self::RealDmaDevice { of, real } => {
                write!(f, "{real} makes the requests of {of}, so the IOMMU sees only {real}")
            }
            Self::PortNotIsolated { of, port, gap } => write!(
                f,
                "{of} is below {port}, which {gap}: what is below it can reach each other without passing the IOMMU"
            ),
            Self::SlotNotIsolated { of, sibling, gap } => write!(
                f,
                "{of} and {sibling} are functions of one slot that can reach each other without passing the IOMMU: {of} {gap}"
            ),
            Self::OneTranslation { of, other } => {
                write!(f, "the IOMMU has one translation for {of}, {other} and all others behind it")
            }
            Self::Given { of, other, group } => {
                write!(f, "the system beneath has {of} and {other} in its group {group}")
            }
        }
    }
}

/// Two functions that share a group, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shared {
    /// The two, the lower address first.
    pub pair: (PciAddress, PciAddress),
    /// From the first to the second: one reason when they are tied directly, else each ties what the one before has reached
    /// to something further. Nothing when what tied them is gone.
    pub why: Vec<Reason>,
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, other) = self.pair;
        if self.why.is_empty() {
            return write!(f, "{one} and {other} share a group because of a function that is gone");
        }
        write!(f, "{one} and {other} share a group because ")?;
        for (index, reason) in self.why.iter().enumerate() {
            write!(f, "{}{reason}", if index == 0 { "" } else { "; and " })?;
        }
        Ok(())
    }
}

/// For each pair of `members` the shortest chain of `reasons` that ties them.
pub fn explain(members: &[PciAddress], reasons: &[Reason]) -> Vec<Shared> {
    let neighbours = neighbours(reasons);
    let mut pairs = Vec::new();
    for (index, &first) in members.iter().enumerate() {
        let found = search(&neighbours, first);
        for &second in &members[index + 1..] {
            let mut why = Vec::new();
            let mut at = second;
            while let Some(&(before, reason)) = found.get(&at) {
                why.push(reason);
                at = before;
            }
            why.reverse();
            pairs.push(Shared { pair: (first, second), why });
        }
    }
    pairs
}

/// As few of `reasons` as tie the members together: for each but the first, one.
pub fn outline(members: &[PciAddress], reasons: &[Reason]) -> Vec<Reason> {
    let Some((&first, others)) = members.split_first() else { return Vec::new() };
    let found = search(&neighbours(reasons), first);
    let wanted: BTreeSet<_> = others.iter().copied().collect();
    // What is no member matters only as a step to one.
    let mut steps = BTreeSet::new();
    for mut at in wanted {
        while let Some(&(before, _)) = found.get(&at)
            && steps.insert(at)
        {
            at = before;
        }
    }
    steps.into_iter().filter_map(|at| found.get(&at).map(|&(_, reason)| reason)).collect()
}

type Neighbours = BTreeMap<PciAddress, Vec<(PciAddress, Reason)>>;

fn neighbours(reasons: &[Reason]) -> Neighbours {
    let mut all = Neighbours::new();
    for &reason in reasons {
        let (one, other) = reason.ends();
        all.entry(one).or_default().push((other, reason));
        all.entry(other).or_default().push((one, reason));
    }
    all
}

/// Everything that hangs together with `first`: from where, and by what, each was reached on the shortest way.
fn search(neighbours: &Neighbours, first: PciAddress) -> BTreeMap<PciAddress, (PciAddress, Reason)> {
    let mut found = BTreeMap::new();
    let mut next = VecDeque::from([first]);
    while let Some(at) = next.pop_front() {
        for &(other, reason) in neighbours.get(&at).into_iter().flatten() {
            if other != first && !found.contains_key(&other) {
                found.insert(other, (at, reason));
                next.push_back(other);
            }
        }
    }
    found
}
