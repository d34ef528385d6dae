//! Bridges whose bus numbers go in circles, as a hostile device's configuration space may say.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use iommu_core::pci::{AcsFlags, Node, PortType, QUIRKS, Topology, groups};
use platform::pci::{ConfigSpace, PciAddress};

/// Bridges: where each is, and its secondary bus. Those on buses 3 and 4 lead to each other.
const BRIDGES: [(PciAddress, u8); 4] = [
    (PciAddress::new(0, 0, 0, 0), 5),
    (PciAddress::new(0, 5, 0, 0), 4),
    (PciAddress::new(0, 4, 0, 0), 3),
    (PciAddress::new(0, 3, 0, 0), 4),
];

/// Runs `work`, which must end.
fn within_seconds<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(10)).expect("it goes in circles")
}

struct Bridges;

impl ConfigSpace for Bridges {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let Some((_, secondary)) = BRIDGES.iter().find(|(address, _)| *address == function) else {
            return u32::MAX;
        };
        match offset {
            0x00 => 0x1483_1022,
            0x0c => 0x0001_0000,
            0x18 => u32::from(*secondary) << 8,
            // A capability list with the one of PCI Express: a downstream port.
            0x04 => 0x0010_0000,
            0x34 => 0x40,
            0x40 => 0x0062_0010,
            _ => 0,
        }
    }

    fn write32(&self, _function: PciAddress, _offset: u16, _value: u32) {}
}

#[test]
fn scanning_and_grouping_end() {
    let groups = within_seconds(|| groups(&Topology::scan(&Bridges, 0, QUIRKS), &BTreeMap::new()));
    let members: usize = groups.iter().map(|(members, _)| members.len()).sum();
    assert_eq!(members, BRIDGES.len());
}

#[test]
fn a_circle_of_isolating_ports_ends() {
    let groups = within_seconds(|| {
        let mut topology = Topology::new();
        for (bus, secondary_bus) in [(1, 2), (2, 1)] {
            topology.insert(Node {
                class: 0x06_0400,
                port_type: PortType::DownstreamPort,
                secondary_bus: Some(secondary_bus),
                acs: Some((AcsFlags::ISOLATED, AcsFlags::ISOLATED)),
                ..Node::new(PciAddress::new(0, bus, 0, 0))
            });
        }
        groups(&topology, &BTreeMap::new())
    });
    assert_eq!(groups.len(), 2);
}
