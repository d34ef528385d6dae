//! What is known of devices by their ids, and what comes of it (Linux: `drivers/pci/quirks.c`).

mod common;

use std::collections::BTreeMap;

use common::{bridge, endpoint, isolating, multifunction, topology};
use iommu_core::pci::{
    AcsFlags, AcsGap, BridgeFlags, DeviceId, Node, PortType, QUIRKS, QUIRKS_UNDER_LINUX, Quirk, QuirkRule,
    Topology, groups,
};
use platform::pci::PciAddress;

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function)
}

fn of(vendor: u16, device: u16, node: Node) -> Node {
    Node { id: Some(DeviceId { vendor, device, subsystem: None }), ..node }
}

fn port(address: PciAddress, secondary: u8) -> Node {
    bridge(address, PortType::RootPort, secondary)
}

/// A tree with what hardware does noted.
fn known(nodes: impl IntoIterator<Item = Node>) -> Topology {
    let mut tree = topology(nodes);
    tree.apply(QUIRKS);
    tree
}

fn gap(tree: &Topology, address: PciAddress) -> Option<AcsGap> {
    tree.get(address).unwrap().acs_gap()
}

/// What a function alone in a slot of several, right on the root bus, lacks once its ids are known.
fn gap_of(vendor: u16, device: u16, port_type: PortType) -> Option<AcsGap> {
    let address = at(0, 1, 0);
    let node = multifunction(Node { port_type, ..endpoint(address) });
    gap(&known([of(vendor, device, node)]), address)
}

fn members(topology: &Topology) -> Vec<Vec<PciAddress>> {
    groups(topology, &BTreeMap::new()).into_iter().map(|(members, _)| members).collect()
}

#[test]
fn what_is_known_of_a_device_comes_before_what_its_capability_says() {
    let mut single = endpoint(at(0, 1, 0));
    assert_eq!(single.acs_gap(), None);
    single.quirks.acs = Some(AcsFlags::ISOLATED - AcsFlags::UF);
    assert_eq!(single.acs_gap(), Some(AcsGap::Off(AcsFlags::UF)));
    let mut conventional = Node { port_type: PortType::Conventional, ..endpoint(at(0, 1, 0)) };
    assert_eq!(conventional.acs_gap(), Some(AcsGap::NotPossible(PortType::Conventional)));
    conventional.quirks.acs = Some(AcsFlags::all());
    assert_eq!(conventional.acs_gap(), None);
}

#[test]
fn kinds_of_functions_isolate_as_linux_has_it() {
    let address = at(0, 1, 0);
    let gap = |port_type, several, acs| {
        Node { port_type, multifunction: several, acs, ..Node::new(address) }.acs_gap()
    };
    let all_on = Some((AcsFlags::all(), AcsFlags::ISOLATED));
    let off = Some((AcsFlags::all(), AcsFlags::ISOLATED - AcsFlags::RR));
    for never in [PortType::Conventional, PortType::PcieToPci, PortType::PciToPcie, PortType::EventCollector]
    {
        assert_eq!(gap(never, false, all_on), Some(AcsGap::NotPossible(never)));
    }
    for always in [PortType::RootPort, PortType::DownstreamPort] {
        assert_eq!(gap(always, false, None), Some(AcsGap::NoCapability));
        assert_eq!(gap(always, false, off), Some(AcsGap::Off(AcsFlags::RR)));
        assert_eq!(gap(always, false, all_on), None);
    }
    for slot in [PortType::Endpoint, PortType::RootComplexEndpoint, PortType::UpstreamPort] {
        assert_eq!(gap(slot, false, None), None);
        assert_eq!(gap(slot, true, None), Some(AcsGap::NoCapability));
        assert_eq!(gap(slot, true, off), Some(AcsGap::Off(AcsFlags::RR)));
        assert_eq!(gap(slot, true, all_on), None);
    }
}

#[test]
fn known_network_cards_keep_their_functions_apart() {
    // I350, 82576, X540, BCM57508, Wangxun.
    for (vendor, device) in
        [(0x8086, 0x1521), (0x8086, 0x10c9), (0x8086, 0x1528 + 1), (0x14e4, 0x1750), (0x8088, 0x1001)]
    {
        assert_eq!(gap_of(vendor, device, PortType::Endpoint), None, "{vendor:04x}:{device:04x}");
    }
    assert_eq!(gap_of(0x8086, 0x1528, PortType::Endpoint), Some(AcsGap::NoCapability), "not on the list");
    assert_eq!(gap_of(0x8087, 0x1521, PortType::Endpoint), Some(AcsGap::NoCapability), "another vendor");
}

#[test]
fn intels_endpoints_in_the_root_complex_keep_to_themselves() {
    assert_eq!(gap_of(0x8086, 0x1234, PortType::RootComplexEndpoint), None);
    assert_eq!(gap_of(0x8086, 0x1234, PortType::Endpoint), Some(AcsGap::NoCapability));
    assert_eq!(gap_of(0x1022, 0x1234, PortType::RootComplexEndpoint), Some(AcsGap::NoCapability));
}

#[test]
fn root_ports_that_do_what_acs_would() {
    // Cavium ThunderX, Ampere, Annapurna, NXP, Zhaoxin, Loongson, Qualcomm, HXT, X-Gene, Broadcom.
    let ports = [
        (0x177d, 0xa001),
        (0x1def, 0xe005),
        (0x1c36, 0x0031),
        (0x1957, 0x8d8a),
        (0x1d17, 0x0720 + 1),
        (0x0014, 0x7a69),
        (0x17cb, 0x0115),
        (0x1dbf, 0x0401),
        (0x10e8, 0xe004),
        (0x14e4, 0xd714),
    ];
    for (vendor, device) in ports {
        assert_eq!(gap_of(vendor, device, PortType::RootPort), None, "{vendor:04x}:{device:04x}");
    }
    assert_eq!(gap_of(0x177d, 0xa001, PortType::Endpoint), Some(AcsGap::NoCapability), "no port");
    assert_eq!(gap_of(0x1d17, 0x0722, PortType::RootPort), Some(AcsGap::NoCapability));
    assert_eq!(gap_of(0x1d17, 0x0721, PortType::DownstreamPort), None);
}

#[test]
fn amds_southbridge_functions_are_apart_on_the_root_bus_alone() {
    let function = |bus, number, device| {
        of(
            0x1002,
            device,
            multifunction(Node { port_type: PortType::Conventional, ..endpoint(at(bus, 20, number)) }),
        )
    };
    let tree = known([
        function(0, 0, 0x4385),
        function(0, 2, 0x4383),
        function(0, 3, 0x439d),
        function(0, 5, 0x1111),
    ]);
    assert_eq!(members(&tree).len(), 4);
    let below = known([isolating(port(at(0, 1, 0), 1)), function(1, 0, 0x4385), function(1, 2, 0x4383)]);
    assert_eq!(members(&below).len(), 2);
    // Alone in its slot it would count as isolated if it were not conventional.
    let alone = known([Node { multifunction: false, ..function(0, 0, 0x4385) }]);
    assert_eq!(gap(&alone, at(0, 20, 0)), Some(AcsGap::NotPossible(PortType::Conventional)));
}

#[test]
fn intels_older_chipsets_isolate_where_linux_has_switched_it_on() {
    let mut tree = known([of(0x8086, 0x8c10, port(at(0, 28, 0), 1)), endpoint(at(1, 0, 0))]);
    assert_eq!(members(&tree).len(), 1, "not by themselves");
    tree.apply(QUIRKS_UNDER_LINUX);
    assert_eq!(members(&tree).len(), 2);
    // Only the ports.
    assert_eq!(
        QUIRKS_UNDER_LINUX
            .iter()
            .filter(|quirk| quirk.fits(&of(0x8086, 0x8c10, endpoint(at(0, 28, 0)))))
            .count(),
        0
    );
    assert!(!QUIRKS_UNDER_LINUX.iter().any(|quirk| quirk.fits(&of(0x8086, 0x1d11, port(at(0, 28, 0), 1)))));
}

#[test]
fn a_report_of_sunrise_point_cannot_see_what_linux_has_switched_on() {
    let offered = AcsFlags::SV | AcsFlags::RR | AcsFlags::CR | AcsFlags::TB;
    let with = |on| {
        let port = of(0x8086, 0xa110, Node { acs: Some((offered, on)), ..port(at(0, 28, 0), 1) });
        let mut tree = known([port]);
        tree.apply(QUIRKS_UNDER_LINUX);
        tree.get(at(0, 28, 0)).unwrap().acs
    };
    assert_eq!(with(AcsFlags::empty()), Some((offered, offered - AcsFlags::TB)));
    assert_eq!(with(AcsFlags::SV), Some((offered, AcsFlags::SV)), "that one was read where it is");
}

fn aliases(vendor: u16, device: u16, address: PciAddress) -> Vec<PciAddress> {
    known([of(vendor, device, endpoint(address))]).dma_aliases(address)
}

#[test]
fn a_device_may_use_the_name_of_function_1() {
    // Marvell 88SE9xxx, HighPoint, JMicron, Plextor.
    let devices = [
        (0x1b4b, 0x9123),
        (0x1b4b, 0x9172),
        (0x1b4b, 0x9230),
        (0x1103, 0x0642),
        (0x197b, 0x2392),
        (0x1c28, 0x0122),
    ];
    for (vendor, device) in devices {
        assert_eq!(aliases(vendor, device, at(4, 0, 0)), [at(4, 0, 1)]);
        assert_eq!(aliases(vendor, device, at(4, 0, 1)), [], "its own name");
    }
    assert_eq!(aliases(0x1b4b, 0x9124, at(4, 0, 0)), []);
    // The ghost is real on some cards: then the two are one group, isolating or not.
    let tree = known([
        of(0x1b4b, 0x9123, isolating(multifunction(endpoint(at(4, 0, 0))))),
        isolating(multifunction(endpoint(at(4, 0, 1)))),
    ]);
    assert_eq!(members(&tree), [[at(4, 0, 0), at(4, 0, 1)]]);
}

#[test]
fn a_device_may_use_the_name_of_function_0() {
    assert_eq!(aliases(0x1180, 0xe832, at(4, 2, 3)), [at(4, 2, 0)]);
    assert_eq!(aliases(0x6766, 0x3d41, at(4, 2, 1)), [at(4, 2, 0)]);
}

#[test]
fn a_device_may_use_names_of_other_devices() {
    assert_eq!(aliases(0x8086, 0x2260, at(4, 0, 0)), [at(4, 0x10, 0), at(4, 0x11, 0), at(4, 0x12, 3)]);
    // Intel VCA: five functions of each of 32 devices, but its own; PLX: all 256.
    assert_eq!(aliases(0x8086, 0x2954, at(4, 0, 0)).len(), 5 * 32 - 1);
    assert_eq!(aliases(0x10b5, 0x87b0, at(4, 0, 0)).len(), 255);
}

#[test]
fn a_card_is_told_by_its_subsystem() {
    let adaptec = |subsystem| {
        let id = Some(DeviceId { vendor: 0x9005, device: 0x0285, subsystem });
        known([Node { id, ..endpoint(at(4, 14, 0)) }]).dma_aliases(at(4, 14, 0))
    };
    assert_eq!(adaptec(Some((0x9005, 0x02bb))), [at(4, 1, 0)]);
    assert_eq!(adaptec(Some((0x9005, 0x0286))), []);
    assert_eq!(adaptec(None), []);
}

#[test]
fn bridges_that_hide_that_they_are_express_are_known() {
    // ASMedia, Tundra, ITE, Intel.
    for (vendor, device) in
        [(0x1b21, 0x1080), (0x10e3, 0x8113), (0x1283, 0x8892), (0x1283, 0x8893), (0x8086, 0x244e)]
    {
        let hidden =
            |address, secondary| of(vendor, device, bridge(address, PortType::Conventional, secondary));
        let flags = |tree: &Topology, address| tree.get(address).unwrap().quirks.bridge;
        let below_port = known([port(at(0, 1, 0), 1), hidden(at(1, 0, 0), 2), endpoint(at(2, 0, 0))]);
        assert_eq!(flags(&below_port, at(1, 0, 0)), BridgeFlags::PCIE_BRIDGE_ALIAS);
        // On the root bus, below conventional PCI, or with the capability after all, it is what it says.
        let on_root = known([hidden(at(0, 1, 0), 1)]);
        assert_eq!(flags(&on_root, at(0, 1, 0)), BridgeFlags::empty());
        for parent in [PortType::Conventional, PortType::PcieToPci] {
            let below = known([bridge(at(0, 1, 0), parent, 1), hidden(at(1, 0, 0), 2)]);
            assert_eq!(flags(&below, at(1, 0, 0)), BridgeFlags::empty());
        }
        let honest = of(vendor, device, bridge(at(1, 0, 0), PortType::PcieToPci, 2));
        assert_eq!(flags(&known([port(at(0, 1, 0), 1), honest]), at(1, 0, 0)), BridgeFlags::empty());
    }
}

#[test]
fn aspeeds_bridge_and_thunderx2s_root_are_known() {
    let flags = |vendor, device| {
        let tree = known([of(vendor, device, port(at(0, 1, 0), 1))]);
        tree.get(at(0, 1, 0)).unwrap().quirks.bridge
    };
    assert_eq!(flags(0x1a03, 0x1150), BridgeFlags::NO_ALIAS);
    assert_eq!(flags(0x14e4, 0x9000), BridgeFlags::XLATE_ROOT);
    assert_eq!(flags(0x14e4, 0x9084), BridgeFlags::XLATE_ROOT);
    assert_eq!(flags(0x14e4, 0x9001), BridgeFlags::empty());
}

#[test]
fn a_table_of_ones_own_extends_what_is_known() {
    let slot = [0, 1].map(|function| of(0x1234, 0x11e8, multifunction(endpoint(at(0, 4, function)))));
    let mut tree = known(slot);
    assert_eq!(members(&tree).len(), 1);
    let mine = [Quirk::new(0x1234, 0x11e0..=0x11ef, QuirkRule::Isolates)];
    tree.apply(&mine);
    assert_eq!(members(&tree).len(), 2);
}
