//! Real machines: the groups that Linux formed, against those formed here. The oracle is what each machine's Linux reported.

mod common;

use std::collections::{BTreeMap, BTreeSet};

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

fn read(name: &str, intel_quirk: bool) -> Machine {
    let path = format!("{}/tests/data/groups/{name}.tsv", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
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

fn agrees(name: &str, groups: usize) {
    let machine = read(name, name.contains("intel"));
    let ours = ours(&machine);
    let only_ours: Vec<_> = ours.difference(&machine.linux).collect();
    let only_linux: Vec<_> = machine.linux.difference(&ours).collect();
    assert!(
        only_ours.is_empty() && only_linux.is_empty(),
        "{name}: here {only_ours:?}, Linux {only_linux:?}"
    );
    assert_eq!(ours.len(), groups, "{name}");
}

#[test]
fn every_file_is_compared() {
    let folder = format!("{}/tests/data/groups", env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let tables = names.filter(|name| name.to_string_lossy().ends_with(".tsv")).count();
    assert_eq!(tables, 11, "a test for each");
}

#[test]
fn without_a_vendors_word_groups_are_larger_never_smaller() {
    for name in ["2021-intel", "2022-intel-aspm", "2022-intel-thunderbolt", "2025-intel"] {
        let machine = read(name, false);
        let ours = ours(&machine);
        let device = |function| PciAddress::new(0, 0, 0x14, function);
        let joined = vec![device(0), device(2), device(3)];
        assert_eq!(ours.difference(&machine.linux).collect::<Vec<_>>(), [&joined], "{name}");
        let within = |one: &Vec<PciAddress>| ours.iter().any(|all| one.iter().all(|it| all.contains(it)));
        assert!(machine.linux.iter().all(within), "{name}");
    }
}

#[test]
fn machine_2020_amd() {
    agrees("2020-amd", 29);
}

#[test]
fn machine_2021_intel() {
    agrees("2021-intel", 16);
}

#[test]
fn machine_2022_amd() {
    agrees("2022-amd", 11);
}

#[test]
fn machine_2022_intel_aspm() {
    agrees("2022-intel-aspm", 14);
}

#[test]
fn machine_2022_intel_thunderbolt() {
    agrees("2022-intel-thunderbolt", 15);
}

#[test]
fn machine_2023_arm_switch() {
    agrees("2023-arm-switch", 11);
}

#[test]
fn machine_2024_server_switches() {
    agrees("2024-server-switches", 23);
}

#[test]
fn machine_2025_intel_switch() {
    agrees("2025-intel-switch", 27);
}

#[test]
fn machine_2025_intel() {
    agrees("2025-intel", 16);
}

#[test]
fn machine_2026_amd() {
    agrees("2026-amd", 26);
}

#[test]
fn machine_2026_mac_mini_thunderbolt() {
    agrees("2026-mac-mini-thunderbolt", 12);
}
