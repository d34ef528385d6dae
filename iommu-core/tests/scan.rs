//! Reading a tree from configuration space, which may say anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_core::pci::{AcsFlags, DeviceId, PortType, QUIRKS, Topology, groups};
use platform::pci::{ConfigSpace, PciAddress};

/// Functions as their words; whoever is not there reads as ones.
#[derive(Default)]
struct Fake {
    words: BTreeMap<(PciAddress, u16), u32>,
    /// Whoever is not named answers with this.
    noise: Option<fn(PciAddress, u16) -> u32>,
    reads: AtomicUsize,
}

impl ConfigSpace for Fake {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.reads.fetch_add(1, Ordering::Relaxed);
        assert!(offset.is_multiple_of(4) && offset < 4096, "offset {offset:#x}");
        if let Some(noise) = self.noise {
            return noise(function, offset);
        }
        let there = self.words.contains_key(&(function, 0));
        self.words.get(&(function, offset)).copied().unwrap_or(if there { 0 } else { u32::MAX })
    }

    fn write32(&self, _function: PciAddress, _offset: u16, _value: u32) {
        panic!("a scan writes nothing");
    }
}

impl Fake {
    fn word(mut self, function: PciAddress, offset: u16, value: u32) -> Self {
        self.words.insert((function, offset), value);
        self
    }

    /// A function with its class, header type byte, and PCI Express type at capability 0x50.
    fn function(self, at: PciAddress, class: u32, header: u32, express: u32) -> Self {
        self.word(at, 0x00, 0x1234_1022)
            .word(at, 0x04, 1 << 20)
            .word(at, 0x08, class << 8)
            .word(at, 0x0c, header << 16)
            .word(at, 0x34, 0x40)
            // A capability of another kind comes first.
            .word(at, 0x40, 0x50 << 8 | 0x01)
            .word(at, 0x50, express << 20 | 0x10)
    }

    fn bridge(self, at: PciAddress, express: u32, secondary: u32) -> Self {
        self.function(at, 0x06_04_00, 1, express).word(at, 0x18, secondary << 16 | secondary << 8)
    }
}

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(2, bus, device, function)
}

fn addresses(topology: &Topology) -> Vec<PciAddress> {
    topology.iter().map(|node| node.address).collect()
}

#[test]
fn a_tree_is_read_as_it_is() {
    let fake = Fake::default()
        .bridge(at(0, 1, 0), 4, 3)
        // Extended: advanced error reporting at 0x100, then ACS with SV, RR, CR and UF offered, all but UF on.
        .word(at(0, 1, 0), 0x100, 0x148 << 20 | 0x1_0001)
        .word(at(0, 1, 0), 0x148, 0x1_000d)
        .word(at(0, 1, 0), 0x14c, 0b000_1101 << 16 | 0b001_1101)
        .function(at(3, 0, 0), 0x01_08_02, 0x80, 0)
        .function(at(3, 0, 5), 0x04_03_00, 0, 9)
        .function(at(0, 2, 0), 0x02_00_00, 0, 0)
        // Without the bit in the first function nobody looks at the others.
        .function(at(0, 2, 1), 0x02_00_00, 0, 0);
    let topology = Topology::scan(&fake, 2, QUIRKS);
    assert_eq!(addresses(&topology), [at(0, 1, 0), at(0, 2, 0), at(3, 0, 0), at(3, 0, 5)]);
    let port = topology.get(at(0, 1, 0)).unwrap();
    assert_eq!((port.port_type, port.secondary_bus, port.class), (PortType::RootPort, Some(3), 0x06_04_00));
    let (sv, rr, cr, uf) = (AcsFlags::SV, AcsFlags::RR, AcsFlags::CR, AcsFlags::UF);
    assert_eq!(port.acs, Some((sv | rr | cr | uf, sv | rr | cr)));
    let endpoint = topology.get(at(3, 0, 0)).unwrap();
    assert_eq!((endpoint.port_type, endpoint.class, endpoint.acs), (PortType::Endpoint, 0x01_08_02, None));
    assert!(endpoint.multifunction && topology.get(at(3, 0, 5)).unwrap().multifunction);
    assert_eq!(topology.get(at(3, 0, 5)).unwrap().port_type, PortType::RootComplexEndpoint);
    assert!(!topology.get(at(0, 2, 0)).unwrap().multifunction);
}

#[test]
fn every_express_type_is_known() {
    let types = [
        (0, PortType::Endpoint),
        (1, PortType::Endpoint),
        (4, PortType::RootPort),
        (5, PortType::UpstreamPort),
        (6, PortType::DownstreamPort),
        (7, PortType::PcieToPci),
        (8, PortType::PciToPcie),
        (9, PortType::RootComplexEndpoint),
        (10, PortType::EventCollector),
    ];
    for (number, expected) in types {
        let fake = Fake::default().function(at(0, 1, 0), 0, 0, number);
        assert_eq!(Topology::scan(&fake, 2, QUIRKS).get(at(0, 1, 0)).unwrap().port_type, expected);
    }
    // Without a capability list it is conventional, whatever is at the pointer.
    let fake = Fake::default().function(at(0, 1, 0), 0, 0, 4).word(at(0, 1, 0), 0x04, 0);
    assert_eq!(Topology::scan(&fake, 2, QUIRKS).get(at(0, 1, 0)).unwrap().port_type, PortType::Conventional);
}

#[test]
fn an_empty_machine_has_nothing() {
    assert_eq!(addresses(&Topology::scan(&Fake::default(), 0, QUIRKS)), []);
}

#[test]
fn bridges_that_lead_back_are_read_once() {
    let fake = Fake::default()
        .bridge(at(0, 1, 0), 4, 5)
        .bridge(at(5, 0, 0), 5, 6)
        // Back up, to itself, to the root bus, and to the other one.
        .bridge(at(6, 0, 0), 6, 5)
        .bridge(at(6, 1, 0), 6, 6)
        .bridge(at(6, 2, 0), 6, 0)
        .bridge(at(6, 3, 0), 6, 6);
    let topology = Topology::scan(&fake, 2, QUIRKS);
    assert_eq!(topology.iter().count(), 6);
    assert_eq!(topology.get(at(6, 2, 0)).unwrap().secondary_bus, None, "a bridge nobody has numbered");
    let grouped: usize = groups(&topology, &BTreeMap::new()).iter().map(|(members, _)| members.len()).sum();
    assert_eq!(grouped, 6);
}

#[test]
fn capability_lists_that_go_in_circles_end() {
    let fake = Fake::default()
        .function(at(0, 1, 0), 0, 0, 4)
        .word(at(0, 1, 0), 0x40, 0x44 << 8 | 1)
        .word(at(0, 1, 0), 0x44, 0x40 << 8 | 1)
        .word(at(0, 1, 0), 0x100, 0x200 << 20 | 1)
        .word(at(0, 1, 0), 0x200, 0x100 << 20 | 1);
    let topology = Topology::scan(&fake, 2, QUIRKS);
    let node = topology.get(at(0, 1, 0)).unwrap();
    assert_eq!((node.port_type, node.acs), (PortType::Conventional, None));
}

#[test]
fn whatever_configuration_space_says_a_scan_ends() {
    let noises: [fn(PciAddress, u16) -> u32; 4] = [
        |_, _| 0,
        |_, _| 0x0101_0101,
        // Every function of every bus is a bridge to the next bus.
        |function, offset| match offset {
            0x00 => 0x1234_1022,
            0x0c => 0x0081_0000,
            0x18 => u32::from(function.id.bus().wrapping_add(1)) << 8,
            _ => u32::MAX,
        },
        |function, offset| (u32::from(function.id.get()) << 16 | u32::from(offset)).wrapping_mul(0x9e37_79b1),
    ];
    for noise in noises {
        let fake = Fake { noise: Some(noise), ..Fake::default() };
        let topology = Topology::scan(&fake, 0, QUIRKS);
        assert!(topology.iter().count() <= 1 << 16);
        assert!(fake.reads.load(Ordering::Relaxed) < 1 << 26);
    }
}

#[test]
fn ids_are_read_and_what_is_known_of_them_applied() {
    let marvell = at(0, 1, 0);
    let fake = Fake::default()
        .function(marvell, 0x01_06_01, 0, 1)
        .word(marvell, 0x00, 0x9123_1b4b)
        .word(marvell, 0x2c, 0x02bb_9005)
        .bridge(at(0, 2, 0), 4, 3);
    let topology = Topology::scan(&fake, 2, QUIRKS);
    let id = |address| topology.get(address).unwrap().id;
    assert_eq!(
        id(marvell),
        Some(DeviceId { vendor: 0x1b4b, device: 0x9123, subsystem: Some((0x9005, 0x02bb)) })
    );
    assert_eq!(
        id(at(0, 2, 0)),
        Some(DeviceId { vendor: 0x1022, device: 0x1234, subsystem: None }),
        "a bridge"
    );
    assert_eq!(topology.dma_aliases(marvell), [at(0, 1, 1)]);
    assert_eq!(Topology::scan(&fake, 2, &[]).dma_aliases(marvell), []);
}

#[test]
fn sunrise_points_control_register_is_a_word_further() {
    let port = |device: u32| {
        let fake = Fake::default()
            .bridge(at(0, 1, 0), 4, 3)
            .word(at(0, 1, 0), 0x00, device << 16 | 0x8086)
            .word(at(0, 1, 0), 0x100, 0x1_000d)
            .word(at(0, 1, 0), 0x104, 0b000_0001 << 16 | 0b000_1111)
            .word(at(0, 1, 0), 0x108, 0b000_1101);
        Topology::scan(&fake, 2, QUIRKS).get(at(0, 1, 0)).unwrap().acs.unwrap().1
    };
    assert_eq!(port(0xa110), AcsFlags::SV | AcsFlags::RR | AcsFlags::CR);
    assert_eq!(port(0xa330), AcsFlags::SV);
}
