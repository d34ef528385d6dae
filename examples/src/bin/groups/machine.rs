//! A machine whose groups are asked for, wherever it was read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use iommu_core::pci::{QUIRKS, QUIRKS_UNDER_LINUX, Reason, Report, ReportError, Topology, groups};
use platform::pci::PciAddress;

/// A machine.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) topology: Topology,
    /// What each function is, in words.
    pub(crate) classes: BTreeMap<PciAddress, String>,
    /// The group that Linux put each into.
    pub(crate) linux_groups: BTreeMap<PciAddress, u32>,
    /// Functions that a controller hides from the IOMMU, with who makes their requests: Linux gives them segments of more
    /// than 16 bits.
    pub(crate) hidden: Vec<(String, PciAddress)>,
    /// What could not be read, for the person who asked.
    pub(crate) notes: Vec<String>,
}

/// A group as it is shown.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) members: Vec<PciAddress>,
    pub(crate) reasons: Vec<Reason>,
    /// Members that are hidden.
    pub(crate) hidden: Vec<String>,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} is no text in UTF-8")]
    NotText { path: PathBuf },
    #[error("{path}: {error} (groups --help describes the format)")]
    Report { path: PathBuf, error: ReportError },
    #[error("{0} has no function: is PCI there, and sysfs mounted?")]
    Empty(PathBuf),
    #[error("{0} is not in this machine")]
    NoSuchFunction(PciAddress),
    #[error("{0} is behind no IOMMU, so it is in no group")]
    NoGroup(PciAddress),
}

impl Machine {
    /// Reads a machine from a file.
    pub(crate) fn from_file(path: &Path) -> Result<Self, MachineError> {
        let at = || path.to_owned();
        let bytes = fs::read(path).map_err(|error| MachineError::Read { path: at(), error })?;
        let text = String::from_utf8(bytes).map_err(|_| MachineError::NotText { path: at() })?;
        let report = Report::parse(&text).map_err(|error| MachineError::Report { path: at(), error })?;
        if report.topology.iter().next().is_none() {
            return Err(MachineError::Empty(at()));
        }
        let classes = report.classes.into_iter().map(|(address, class)| (address, class.into())).collect();
        let mut machine =
            Self { topology: report.topology, classes, linux_groups: report.linux_groups, ..Self::default() };
        machine.apply_quirks();
        Ok(machine)
    }

    /// Notes what is known of its devices. What is read here runs, or ran, Linux.
    pub(crate) fn apply_quirks(&mut self) {
        self.topology.apply(QUIRKS);
        self.topology.apply(QUIRKS_UNDER_LINUX);
    }

    /// The groups of all that is behind an IOMMU: all functions, unless Linux has said which.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let all = groups(&self.topology, &BTreeMap::new()).into_iter();
        let behind =
            |member: &PciAddress| self.linux_groups.is_empty() || self.linux_groups.contains_key(member);
        all.filter_map(|(members, reasons)| {
            let members: Vec<_> = members.into_iter().filter(behind).collect();
            let hidden = self.hidden.iter().filter(|(_, real)| members.contains(real));
            let hidden = hidden.map(|(name, _)| name.clone()).collect();
            (!members.is_empty()).then_some(Group { members, reasons, hidden })
        })
        .collect()
    }

    /// What a function is, in words.
    pub(crate) fn class(&self, address: PciAddress) -> &str {
        self.classes.get(&address).map_or("", String::as_str)
    }

    /// The groups of Linux that are other than those here; `None` when Linux has formed none.
    pub(crate) fn differences(&self, groups: &[Group]) -> Option<Vec<(u32, Vec<PciAddress>)>> {
        let ours: BTreeSet<&[PciAddress]> = groups.iter().map(|group| &group.members[..]).collect();
        let mut linux: BTreeMap<u32, Vec<PciAddress>> = BTreeMap::new();
        for (&address, &group) in &self.linux_groups {
            linux.entry(group).or_default().push(address);
        }
        let other = |(_, members): &(u32, Vec<PciAddress>)| !ours.contains(&members[..]);
        (!linux.is_empty()).then(|| linux.into_iter().filter(other).collect())
    }
}
