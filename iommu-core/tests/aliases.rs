//! The names that a function's requests may carry, rule by rule (Linux: `pci_for_each_dma_alias`), and what follows for
//! groups and for faults.

mod common;

use std::collections::BTreeMap;

use common::{Setup, bridge, endpoint, isolating, topology};
use iommu_core::pci::{BridgeFlags, Node, PortType, Reason, Topology, groups};
use iommu_core::{Fault, FaultFlags, FaultKind};
use platform::DmaAddr;
use platform::pci::PciAddress;

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function)
}

fn devfn(device: u8, function: u8) -> u8 {
    device << 3 | function
}

/// A function whose requests may carry names of its own bus as well.
fn with_aliases(address: PciAddress, aliases: &[u8]) -> Node {
    let mut node = endpoint(address);
    node.quirks.aliases.extend(aliases);
    node
}

fn flagged(node: Node, flags: BridgeFlags) -> Node {
    let mut node = node;
    node.quirks.bridge = flags;
    node
}

fn made_by(address: PciAddress, real: PciAddress) -> Node {
    let mut node = endpoint(address);
    node.quirks.real_dma_device = Some(real);
    node
}

/// A device on bus 3, behind a bridge on bus 2, behind a switch's and a root's ports.
fn behind(bridge_on_2: Node) -> Topology {
    topology([
        isolating(bridge(at(0, 1, 0), PortType::RootPort, 1)),
        bridge(at(1, 0, 0), PortType::UpstreamPort, 2),
        bridge_on_2,
        Node { port_type: PortType::Conventional, ..endpoint(at(3, 4, 0)) },
    ])
}

fn names_behind(bridge_on_2: Node) -> Vec<PciAddress> {
    behind(bridge_on_2).dma_aliases(at(3, 4, 0))
}

fn members(topology: &Topology) -> Vec<Vec<PciAddress>> {
    groups(topology, &BTreeMap::new()).into_iter().map(|(members, _)| members).collect()
}

fn reasons(topology: &Topology, of: PciAddress) -> Vec<Reason> {
    let all = groups(topology, &BTreeMap::new());
    all.into_iter().find(|(members, _)| members.contains(&of)).unwrap().1
}

#[test]
fn ports_of_express_add_no_name() {
    for port_type in [PortType::RootPort, PortType::UpstreamPort, PortType::DownstreamPort] {
        assert_eq!(names_behind(bridge(at(2, 0, 0), port_type, 3)), []);
    }
}

#[test]
fn a_bridge_from_express_to_pci_names_the_bus_behind_it() {
    assert_eq!(names_behind(bridge(at(2, 0, 0), PortType::PcieToPci, 3)), [at(3, 0, 0)]);
}

#[test]
fn a_bridge_from_express_that_leaves_names_alone_adds_none() {
    let quiet = flagged(bridge(at(2, 0, 0), PortType::PcieToPci, 3), BridgeFlags::NO_ALIAS);
    assert_eq!(names_behind(quiet.clone()), []);
    // It keeps nobody apart all the same.
    let gap = quiet.acs_gap().unwrap();
    let reason = Reason::PortNotIsolated { of: at(3, 4, 0), port: at(2, 0, 0), gap };
    assert_eq!(reasons(&behind(quiet), at(3, 4, 0)), [reason]);
}

#[test]
fn a_bridge_from_pci_to_express_and_a_conventional_one_give_their_own_name() {
    for port_type in [PortType::PciToPcie, PortType::Conventional] {
        assert_eq!(names_behind(bridge(at(2, 0, 0), port_type, 3)), [at(2, 0, 0)]);
    }
}

#[test]
fn a_conventional_bridge_that_is_one_from_express_names_the_bus_behind_it() {
    let hidden = flagged(bridge(at(2, 0, 0), PortType::Conventional, 3), BridgeFlags::PCIE_BRIDGE_ALIAS);
    assert_eq!(names_behind(hidden.clone()), [at(3, 0, 0)]);
    let (of, bridge) = (at(3, 4, 0), at(2, 0, 0));
    let reason = Reason::BehindBridge { of, bridge, alias: at(3, 0, 0).id };
    assert_eq!(reasons(&behind(hidden), of), [reason]);
}

#[test]
fn each_bridge_on_the_way_adds_its_name_and_the_last_one_is_the_isolation_unit() {
    // The open port below the upper bridge is not asked any more: what is behind that bridge is one already.
    let tree = topology([
        isolating(bridge(at(0, 1, 0), PortType::RootPort, 1)),
        bridge(at(1, 0, 0), PortType::PcieToPci, 2),
        bridge(at(2, 1, 0), PortType::PciToPcie, 3),
        bridge(at(3, 0, 0), PortType::DownstreamPort, 4),
        endpoint(at(4, 0, 0)),
    ]);
    let of = at(4, 0, 0);
    assert_eq!(tree.dma_aliases(of), [at(2, 1, 0), at(2, 0, 0)]);
    assert_eq!(members(&tree), [vec![at(0, 1, 0)], vec![at(1, 0, 0), at(2, 1, 0), at(3, 0, 0), of]]);
    let of_it = |reason: &Reason| reason.ends().0 == of;
    let (bridge, alias) = (at(1, 0, 0), at(2, 0, 0).id);
    assert_eq!(
        reasons(&tree, of).into_iter().filter(of_it).collect::<Vec<_>>(),
        [
            Reason::BehindBridge { of, bridge, alias },
            Reason::BehindBridge { of, bridge: at(2, 1, 0), alias: at(2, 1, 0).id },
        ]
    );
}

#[test]
fn names_end_at_the_bridge_where_the_iommu_is() {
    let tree = topology([
        flagged(bridge(at(0, 1, 0), PortType::PciToPcie, 1), BridgeFlags::XLATE_ROOT),
        bridge(at(1, 0, 0), PortType::PcieToPci, 2),
        endpoint(at(2, 5, 0)),
    ]);
    assert_eq!(tree.dma_aliases(at(2, 5, 0)), [at(2, 0, 0)]);
    // The walk for isolation goes on above it.
    assert_eq!(members(&tree).len(), 1);
    let behind_root =
        |reason: &Reason| matches!(reason, Reason::BehindBridge { bridge, .. } if *bridge == at(0, 1, 0));
    assert!(!reasons(&tree, at(2, 5, 0)).iter().any(behind_root));
}

#[test]
fn a_devices_own_aliases_are_on_its_bus() {
    let tree = topology([
        isolating(bridge(at(0, 1, 0), PortType::RootPort, 1)),
        with_aliases(at(1, 0, 0), &[devfn(0, 0), devfn(0, 1), devfn(3, 2)]),
    ]);
    // Its own name is not another one.
    assert_eq!(tree.dma_aliases(at(1, 0, 0)), [at(1, 0, 1), at(1, 3, 2)]);
    assert_eq!(members(&tree).len(), 2, "nobody else has these names");
}

#[test]
fn aliases_on_a_bus_tie_in_either_direction_and_reach_on() {
    let (first, second, third, other) = (at(0, 1, 0), at(0, 2, 0), at(0, 3, 0), at(0, 4, 0));
    let tree = topology([
        endpoint(first),
        with_aliases(second, &[devfn(1, 0), devfn(3, 0)]),
        endpoint(third),
        // On another bus the same number is another name.
        isolating(bridge(other, PortType::RootPort, 1)),
        endpoint(at(1, 1, 0)),
    ]);
    assert_eq!(members(&tree), [vec![first, second, third], vec![other], vec![at(1, 1, 0)]]);
    assert!(reasons(&tree, first).contains(&Reason::Alias { of: second, alias: third }));
}

#[test]
fn an_alias_has_its_slot_with_it() {
    let slot = [0, 1].map(|function| Node { multifunction: true, ..endpoint(at(0, 2, function)) });
    let tree = topology(slot.into_iter().chain([with_aliases(at(0, 1, 0), &[devfn(2, 1)])]));
    assert_eq!(members(&tree), [[at(0, 1, 0), at(0, 2, 0), at(0, 2, 1)]]);
}

#[test]
fn the_name_of_a_bridge_that_no_function_has_is_taken_all_the_same() {
    // A device on the bus behind the bridge is one with it; so is who uses that bus's name from elsewhere.
    let tree = topology([
        bridge(at(0, 1, 0), PortType::PcieToPci, 2),
        made_by(at(0, 2, 0), at(2, 0, 0)),
        endpoint(at(0, 3, 0)),
    ]);
    assert_eq!(members(&tree), [vec![at(0, 1, 0), at(0, 2, 0)], vec![at(0, 3, 0)]]);
}

#[test]
fn who_makes_a_functions_requests_stands_for_it() {
    let vmd = with_aliases(at(0, 14, 0), &[devfn(14, 3)]);
    let hidden = |device| made_by(PciAddress::new(1, 0, device, 0), at(0, 14, 0));
    let tree = topology([vmd, endpoint(at(0, 15, 0)), hidden(0), hidden(1)]);
    // Those of the real device: its own name first, then its aliases.
    assert_eq!(tree.dma_aliases(hidden(0).address), [at(0, 14, 0), at(0, 14, 3)]);
    assert_eq!(
        members(&tree),
        [vec![at(0, 14, 0), hidden(0).address, hidden(1).address], vec![at(0, 15, 0)]]
    );
    let reason = |of| Reason::RealDmaDevice { of, real: at(0, 14, 0) };
    assert_eq!(reasons(&tree, at(0, 14, 0)), [reason(hidden(0).address), reason(hidden(1).address)]);
}

#[test]
fn functions_of_one_real_device_that_is_not_there_share_its_name() {
    let nobody = at(9, 0, 0);
    let tree = topology([
        made_by(at(0, 1, 0), nobody),
        made_by(at(0, 2, 0), nobody),
        made_by(at(0, 3, 0), at(0, 3, 0)),
    ]);
    assert_eq!(tree.dma_aliases(at(0, 1, 0)), [nobody]);
    assert_eq!(tree.dma_aliases(at(0, 3, 0)), [], "it is its own real device");
    assert_eq!(members(&tree), [vec![at(0, 1, 0), at(0, 2, 0)], vec![at(0, 3, 0)]]);
    assert_eq!(tree.dma_aliases(at(7, 7, 7)), [], "nobody has no names");
}

#[test]
fn a_fault_under_a_ghosts_name_reaches_the_devices_driver() {
    let nic = at(0, 3, 0);
    let setup = Setup { topology: topology([with_aliases(nic, &[devfn(3, 1)])]), ..Setup::default() };
    let bench = setup.bench();
    let device = bench.bind(nic);
    bench.iommu.report_fault(Fault {
        requester: at(0, 3, 1),
        pasid: None,
        address: DmaAddr::new(0x1000),
        domain: 7,
        kind: FaultKind::Page,
        flags: FaultFlags::WRITE,
    });
    assert!(device.take_fault().is_some());
}
