//! Real machines: the groups that Linux formed, against those formed here. The oracle is what each machine's Linux reported.
//!
//! The reports are read where they are: in the folder that `REAL_DATA` names, or `shared/real` beside the workspace. Not every
//! clone has them; a test that does not find them says so.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use iommu_core::pci::{AcsFlags, Node, PortType, Topology, groups};
use platform::pci::PciAddress;

type Partition = BTreeSet<Vec<PciAddress>>;

struct Machine {
    topology: Topology,
    /// What Linux made of it. Functions behind no IOMMU are not in it.
    linux: Partition,
    grouped: BTreeSet<PciAddress>,
}

fn address(text: &str) -> PciAddress {
    let number = |text: &str| u16::from_str_radix(text, 16).unwrap();
    let mut parts = text.split([':', '.']).map(number);
    let mut next = || parts.next().unwrap();
    PciAddress::new(next(), next() as u8, next() as u8, next() as u8)
}

fn acs(text: &str) -> AcsFlags {
    let flag = |name| match name {
        "SrcValid" => AcsFlags::SV,
        "TransBlk" => AcsFlags::TB,
        "ReqRedir" => AcsFlags::RR,
        "CmpltRedir" => AcsFlags::CR,
        "UpstreamFwd" => AcsFlags::UF,
        "EgressCtrl" => AcsFlags::EC,
        "DirectTrans" => AcsFlags::DT,
        other => panic!("unknown ACS service {other}"),
    };
    text.split('+').filter(|name| !name.is_empty()).map(flag).collect()
}

fn port_type(text: &str) -> PortType {
    match text {
        "-" => PortType::Conventional,
        "Endpoint" | "Legacy Endpoint" => PortType::Endpoint,
        "Root Complex Integrated Endpoint" => PortType::RootComplexEndpoint,
        "Root Complex Event Collector" => PortType::EventCollector,
        "Root Port" => PortType::RootPort,
        "Upstream Port" => PortType::UpstreamPort,
        "Downstream Port" => PortType::DownstreamPort,
        other => panic!("unknown type {other}"),
    }
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
fn read(reports: &BTreeMap<String, PathBuf>, name: &str, intel_quirk: bool) -> Machine {
    let (_, path) = reports.iter().find(|(file, _)| file.starts_with(name)).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let mut nodes = Vec::new();
    let mut linux: BTreeMap<String, Vec<PciAddress>> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [bdf, _ids, class, kind, secondary, capability, control, group] = fields[..] else {
            panic!("{name}: {line}")
        };
        let address = address(bdf);
        if group != "-" {
            linux.entry(group.to_owned()).or_default().push(address);
        }
        nodes.push(Node {
            address,
            class: if class == "PCI bridge" { 0x06_04_00 } else { 0 },
            port_type: port_type(kind),
            multifunction: false,
            secondary_bus: (secondary != "-").then(|| u8::from_str_radix(secondary, 16).unwrap()),
            acs: (capability != "-").then(|| (acs(capability), acs(control))),
        });
    }
    // Linux knows from Intel that its endpoints in the root complex keep to themselves (`pci_quirk_rciep_acs`), which their
    // capabilities do not say. That is knowledge of vendors, which whoever fills in a topology has; so here it is filled in,
    // as a capability that offers nothing and so can do no harm.
    if intel_quirk {
        for node in nodes.iter_mut().filter(|node| node.port_type == PortType::RootComplexEndpoint) {
            node.acs = Some((AcsFlags::empty(), AcsFlags::empty()));
        }
    }
    // The reports do not say which slots have several functions, but show them.
    let slot = |address: PciAddress| (address.segment, address.id.get() >> 3);
    let several = |address: PciAddress| {
        address.id.function() != 0
            || nodes.iter().any(|other| other.address != address && slot(other.address) == slot(address))
    };
    let flags: Vec<bool> = nodes.iter().map(|node| several(node.address)).collect();
    let mut topology = Topology::new();
    for (node, multifunction) in nodes.into_iter().zip(flags) {
        topology.insert(Node { multifunction, ..node });
    }
    let grouped = linux.values().flatten().copied().collect();
    Machine { topology, linux: linux.into_values().collect(), grouped }
}

/// The groups formed here, of the functions that Linux put into groups.
fn ours(machine: &Machine) -> Partition {
    let groups = groups(&machine.topology, &BTreeMap::new()).into_iter().map(|(members, reasons)| {
        assert_eq!(reasons.len(), members.len() - 1);
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
        let machine = read(&reports, name, name.contains("Intel"));
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
        let machine = read(&reports, name, false);
        let ours = ours(&machine);
        let device = |function| PciAddress::new(0, 0, 0x14, function);
        let joined = vec![device(0), device(2), device(3)];
        assert_eq!(ours.difference(&machine.linux).collect::<Vec<_>>(), [&joined], "{name}");
        let within = |one: &Vec<PciAddress>| ours.iter().any(|all| one.iter().all(|it| all.contains(it)));
        assert!(machine.linux.iter().all(within), "{name}");
    }
}
