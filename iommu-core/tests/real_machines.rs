//! Real machines: the groups that Linux formed, against those formed here. The oracle is what each machine's Linux reported.
//!
//! The reports are read where they are: in the folder that `REAL_DATA` names, or `shared/real` beside the workspace. Not every
//! clone has them; a test that does not find them says so.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use iommu_core::pci::{Node, NodeQuirks, QUIRKS, QUIRKS_UNDER_LINUX, Report, Topology, explain, groups};
use platform::pci::PciAddress;

type Partition = BTreeSet<Vec<PciAddress>>;

struct Machine {
    topology: Topology,
    /// What Linux made of it. Functions behind no IOMMU are not in it.
    linux: Partition,
    grouped: BTreeSet<PciAddress>,
}

/// The reports, by the names of their files; `None`, and a word about it, when they are not there.
fn reports() -> Option<BTreeMap<String, PathBuf>> {
    let real = std::env::var_os("REAL_DATA")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/real")));
    let Ok(entries) = std::fs::read_dir(real.join("groups")) else {
        println!("skipped: no reports of real machines in {}", real.display());
        return None;
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let tables = paths.filter(|path| path.extension().is_some_and(|extension| extension == "tsv"));
    Some(tables.map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path)).collect())
}

/// The report whose name begins with `name`.
fn read(reports: &BTreeMap<String, PathBuf>, name: &str) -> Machine {
    let (_, path) = reports.iter().find(|(file, _)| file.starts_with(name)).unwrap();
    let mut report = Report::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    report.topology.apply(QUIRKS);
    report.topology.apply(QUIRKS_UNDER_LINUX);
    let mut linux: BTreeMap<u32, Vec<PciAddress>> = BTreeMap::new();
    for (&address, &group) in &report.linux_groups {
        linux.entry(group).or_default().push(address);
    }
    let grouped = report.linux_groups.into_keys().collect();
    Machine { topology: report.topology, linux: linux.into_values().collect(), grouped }
}

/// The groups formed here, of the functions that Linux put into groups.
fn ours(machine: &Machine) -> Partition {
    let groups = groups(&machine.topology, &BTreeMap::new()).into_iter().map(|(members, reasons)| {
        assert!(explain(&members, &reasons).iter().all(|shared| !shared.why.is_empty()));
        members.into_iter().filter(|member| machine.grouped.contains(member)).collect()
    });
    groups.filter(|members: &Vec<_>| !members.is_empty()).collect()
}

/// Each report by the beginning of its name, and how many groups Linux formed.
const MACHINES: [(&str, usize); 11] = [
    ("2020_AMD", 29),
    ("2021_Intel", 16),
    ("2022_AMD", 11),
    ("2022_Intel_PATCH", 14),
    ("2022_Intel_Possible", 15),
    ("2023_Arm", 11),
    ("2024_Arm", 23),
    ("2025_Intel_Bug", 27),
    ("2025_Intel_usb", 16),
    ("2026_AMD", 26),
    ("2026_Arm", 12),
];

#[test]
fn groups_are_those_that_linux_formed() {
    let Some(reports) = reports() else { return };
    for (name, groups) in MACHINES {
        let machine = read(&reports, name);
        let ours = ours(&machine);
        let only_ours: Vec<_> = ours.difference(&machine.linux).collect();
        let only_linux: Vec<_> = machine.linux.difference(&ours).collect();
        assert!(
            only_ours.is_empty() && only_linux.is_empty(),
            "{name}: here {only_ours:?}, Linux {only_linux:?}"
        );
        assert_eq!(ours.len(), groups, "{name}");
    }
}

#[test]
fn every_report_is_compared() {
    let Some(reports) = reports() else { return };
    let known = |file: &&String| MACHINES.iter().filter(|(name, _)| file.starts_with(name)).count() == 1;
    assert_eq!(reports.keys().filter(known).count(), reports.len());
    assert_eq!(reports.len(), MACHINES.len());
}

#[test]
fn without_a_vendors_word_groups_are_larger_never_smaller() {
    let Some(reports) = reports() else { return };
    for name in ["2021_Intel", "2022_Intel_PATCH", "2022_Intel_Possible", "2025_Intel_usb"] {
        let mut machine = read(&reports, name);
        // Linux knows from Intel that its endpoints in the root complex keep to themselves (`pci_quirk_rciep_acs`).
        for node in machine.topology.clone().iter().filter(|node| node.quirks.acs.is_some()) {
            machine.topology.insert(Node { quirks: NodeQuirks::default(), ..node.clone() });
        }
        let ours = ours(&machine);
        let device = |function| PciAddress::new(0, 0, 0x14, function);
        let joined = vec![device(0), device(2), device(3)];
        assert_eq!(ours.difference(&machine.linux).collect::<Vec<_>>(), [&joined], "{name}");
        let within = |one: &Vec<PciAddress>| ours.iter().any(|all| one.iter().all(|it| all.contains(it)));
        assert!(machine.linux.iter().all(within), "{name}");
    }
}
