//! Which functions share a group: each rule on a tree made by hand.

mod common;

use std::collections::BTreeMap;

use common::{bridge, endpoint, isolating, multifunction, topology};
use iommu_core::pci::{AcsFlags, AcsGap, Node, PortType, Reason, Topology, groups};
use platform::pci::{PciAddress, RequesterId};

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function)
}

fn port(address: PciAddress, secondary: u8) -> Node {
    bridge(address, PortType::RootPort, secondary)
}

fn conventional(address: PciAddress) -> Node {
    Node { port_type: PortType::Conventional, ..endpoint(address) }
}

/// Only the members.
fn members(topology: &Topology) -> Vec<Vec<PciAddress>> {
    groups(topology, &BTreeMap::new()).into_iter().map(|(members, _)| members).collect()
}

fn with_aliases(topology: &Topology, aliases: &[(PciAddress, PciAddress)]) -> Vec<Vec<PciAddress>> {
    let mut extra: BTreeMap<PciAddress, Vec<RequesterId>> = BTreeMap::new();
    for (of, alias) in aliases {
        extra.entry(*of).or_default().push(alias.id);
    }
    groups(topology, &extra).into_iter().map(|(members, _)| members).collect()
}

#[test]
fn single_functions_below_isolating_root_ports_are_alone() {
    let tree = topology([
        isolating(port(at(0, 1, 0), 1)),
        isolating(port(at(0, 2, 0), 2)),
        endpoint(at(1, 0, 0)),
        endpoint(at(2, 0, 0)),
    ]);
    assert_eq!(members(&tree), [[at(0, 1, 0)], [at(0, 2, 0)], [at(1, 0, 0)], [at(2, 0, 0)]]);
}

#[test]
fn what_is_below_a_port_without_acs_shares_its_group() {
    let tree = topology([
        port(at(0, 1, 0), 1),
        endpoint(at(1, 0, 0)),
        isolating(port(at(0, 2, 0), 2)),
        endpoint(at(2, 0, 0)),
    ]);
    assert_eq!(members(&tree), [vec![at(0, 1, 0), at(1, 0, 0)], vec![at(0, 2, 0)], vec![at(2, 0, 0)]]);
}

#[test]
fn every_one_of_the_four_services_is_needed() {
    for one in [AcsFlags::SV, AcsFlags::RR, AcsFlags::CR, AcsFlags::UF] {
        let acs = Some((AcsFlags::ISOLATED, AcsFlags::ISOLATED - one));
        let tree = topology([Node { acs, ..port(at(0, 1, 0), 1) }, endpoint(at(1, 0, 0))]);
        let found = groups(&tree, &BTreeMap::new());
        let gap = AcsGap::Off(one);
        let reason = Reason::PortNotIsolated { of: at(1, 0, 0), port: at(0, 1, 0), gap };
        assert_eq!(found, [(vec![at(0, 1, 0), at(1, 0, 0)], vec![reason])]);
        // What the hardware does not offer cannot happen.
        let acs = Some((AcsFlags::ISOLATED - one, AcsFlags::ISOLATED - one));
        let tree = topology([Node { acs, ..port(at(0, 1, 0), 1) }, endpoint(at(1, 0, 0))]);
        assert_eq!(members(&tree).len(), 2);
    }
    // The others do not matter.
    let acs = Some((AcsFlags::all(), AcsFlags::ISOLATED));
    let tree = topology([Node { acs, ..port(at(0, 1, 0), 1) }, endpoint(at(1, 0, 0))]);
    assert_eq!(members(&tree).len(), 2);
}

/// A root port, an upstream port, two downstream ports with an endpoint each.
fn switch(root: fn(Node) -> Node, down: fn(Node) -> Node) -> Topology {
    topology([
        root(port(at(0, 1, 0), 1)),
        bridge(at(1, 0, 0), PortType::UpstreamPort, 2),
        down(bridge(at(2, 0, 0), PortType::DownstreamPort, 3)),
        down(bridge(at(2, 1, 0), PortType::DownstreamPort, 4)),
        endpoint(at(3, 0, 0)),
        endpoint(at(4, 0, 0)),
    ])
}

#[test]
fn a_switch_that_isolates_keeps_its_endpoints_apart() {
    assert_eq!(members(&switch(isolating, isolating)).len(), 6);
}

#[test]
fn behind_downstream_ports_without_acs_each_endpoint_joins_its_port_alone() {
    // As Linux has it; that peers can reach each other across such ports is known there too.
    let found = members(&switch(isolating, |node| node));
    assert_eq!(
        found,
        [
            vec![at(0, 1, 0)],
            vec![at(1, 0, 0)],
            vec![at(2, 0, 0), at(3, 0, 0)],
            vec![at(2, 1, 0), at(4, 0, 0)]
        ]
    );
}

#[test]
fn one_open_port_above_makes_one_group_of_all_below() {
    assert_eq!(members(&switch(|node| node, isolating)).len(), 1);
}

#[test]
fn functions_of_a_slot_are_together_unless_acs_keeps_them_apart() {
    let slot = |node: fn(Node) -> Node| {
        topology((0..3).map(|function| node(multifunction(endpoint(at(0, 1, function))))))
    };
    assert_eq!(members(&slot(|node| node)).len(), 1);
    assert_eq!(members(&slot(isolating)).len(), 3);
    // One that isolates itself leaves the others.
    let mixed = topology([
        multifunction(endpoint(at(0, 1, 0))),
        isolating(multifunction(endpoint(at(0, 1, 1)))),
        multifunction(endpoint(at(0, 1, 2))),
        multifunction(endpoint(at(0, 2, 0))),
    ]);
    assert_eq!(members(&mixed), [vec![at(0, 1, 0), at(0, 1, 2)], vec![at(0, 1, 1)], vec![at(0, 2, 0)]]);
    let [(_, reasons), ..] = &groups(&mixed, &BTreeMap::new())[..] else { panic!() };
    assert!(reasons.iter().all(|reason| matches!(reason, Reason::SlotNotIsolated { .. })));
}

#[test]
fn what_is_below_two_ports_of_one_slot_without_acs_is_one_group() {
    let tree = topology([
        multifunction(port(at(0, 1, 0), 1)),
        multifunction(port(at(0, 1, 1), 2)),
        endpoint(at(1, 0, 0)),
        endpoint(at(2, 0, 0)),
    ]);
    assert_eq!(members(&tree).len(), 1);
}

#[test]
fn conventional_functions_of_a_slot_and_event_collectors_are_never_isolated() {
    for port_type in [PortType::Conventional, PortType::EventCollector] {
        let node = |function| isolating(multifunction(Node { port_type, ..endpoint(at(0, 1, function)) }));
        assert_eq!(members(&topology([node(0), node(1)])).len(), 1, "{port_type:?}");
    }
}

#[test]
fn behind_a_bridge_to_conventional_pci_all_have_its_name() {
    for port_type in [PortType::PcieToPci, PortType::Conventional, PortType::PciToPcie] {
        let tree = topology([
            isolating(port(at(0, 1, 0), 1)),
            bridge(at(1, 0, 0), port_type, 2),
            conventional(at(2, 0, 0)),
            conventional(at(2, 1, 0)),
            endpoint(at(0, 2, 0)),
        ]);
        let found = groups(&tree, &BTreeMap::new());
        let bridge = at(1, 0, 0);
        let alias = if port_type == PortType::PcieToPci { at(2, 0, 0).id } else { bridge.id };
        let reason = |of| Reason::BehindBridge { of, bridge, alias };
        assert_eq!(
            found,
            [
                (vec![at(0, 1, 0)], vec![]),
                (vec![at(0, 2, 0)], vec![]),
                (vec![at(1, 0, 0), at(2, 0, 0), at(2, 1, 0)], vec![reason(at(2, 0, 0)), reason(at(2, 1, 0))]),
            ]
        );
    }
}

#[test]
fn firmwares_aliases_tie_functions_together_in_either_order() {
    let tree = topology([endpoint(at(0, 1, 0)), endpoint(at(0, 2, 0)), endpoint(at(0, 3, 0))]);
    let tied = [vec![at(0, 1, 0), at(0, 3, 0)], vec![at(0, 2, 0)]];
    assert_eq!(with_aliases(&tree, &[(at(0, 1, 0), at(0, 3, 0))]), tied);
    assert_eq!(with_aliases(&tree, &[(at(0, 3, 0), at(0, 1, 0))]), tied);
    // Its own name is no alias.
    assert_eq!(with_aliases(&tree, &[(at(0, 1, 0), at(0, 1, 0))]).len(), 3);
}

#[test]
fn aliases_reach_on() {
    let tree = topology((1..5).map(|device| endpoint(at(0, device, 0))));
    let (a, b, c, d) = (at(0, 1, 0), at(0, 2, 0), at(0, 3, 0), at(0, 4, 0));
    assert_eq!(with_aliases(&tree, &[(a, c), (b, c)]), [vec![a, b, c], vec![d]], "both use the third's name");
    assert_eq!(with_aliases(&tree, &[(a, d), (d, b)]), [vec![a, b, d], vec![c]]);
    let nobody = at(0, 31, 7);
    assert_eq!(with_aliases(&tree, &[(a, nobody), (c, nobody)]), [vec![a, c], vec![b], vec![d]]);
}

#[test]
fn an_alias_on_another_bus_ties_what_is_between() {
    // The alias is behind a port that does not isolate, so it has the port's group with it.
    let tree = topology([endpoint(at(0, 1, 0)), port(at(0, 2, 0), 1), endpoint(at(1, 0, 0))]);
    assert_eq!(
        with_aliases(&tree, &[(at(0, 1, 0), at(1, 0, 0))]),
        [vec![at(0, 1, 0), at(0, 2, 0), at(1, 0, 0)]]
    );
}

#[test]
fn segments_are_worlds_of_their_own() {
    let other = |address: PciAddress| PciAddress { segment: 1, ..address };
    let tree = topology([
        port(at(0, 1, 0), 1),
        endpoint(at(1, 0, 0)),
        endpoint(other(at(1, 0, 0))),
        multifunction(endpoint(at(0, 2, 0))),
        multifunction(endpoint(other(at(0, 2, 1)))),
    ]);
    assert_eq!(
        with_aliases(&tree, &[(at(1, 0, 0), at(0, 2, 0)), (other(at(1, 0, 0)), at(0, 9, 0))]),
        [vec![at(0, 1, 0), at(0, 2, 0), at(1, 0, 0)], vec![other(at(0, 2, 1))], vec![other(at(1, 0, 0))]]
    );
}

#[test]
fn a_bridge_with_a_higher_bus_than_its_children_is_found_all_the_same() {
    let tree = topology([port(at(0, 1, 0), 9), port(at(9, 0, 0), 2), endpoint(at(2, 0, 0))]);
    assert_eq!(members(&tree), [[at(0, 1, 0), at(2, 0, 0), at(9, 0, 0)]]);
}

#[test]
fn bridges_that_name_each_other_end() {
    let tree = topology([
        // Behind itself, behind each other, and two that claim one bus.
        port(at(1, 0, 0), 1),
        port(at(3, 0, 0), 4),
        port(at(4, 0, 0), 3),
        endpoint(at(4, 1, 0)),
        port(at(0, 1, 0), 7),
        port(at(0, 2, 0), 7),
        endpoint(at(7, 0, 0)),
    ]);
    let all: Vec<PciAddress> = members(&tree).concat();
    assert_eq!(all.len(), 7);
    assert!(members(&tree).contains(&vec![at(3, 0, 0), at(4, 0, 0), at(4, 1, 0)]));
    assert!(members(&tree).contains(&vec![at(0, 1, 0), at(7, 0, 0)]), "the first claim counts");
}

#[test]
fn the_order_of_discovery_does_not_matter() {
    let nodes = [
        multifunction(port(at(0, 1, 0), 1)),
        multifunction(port(at(0, 1, 1), 2)),
        endpoint(at(1, 0, 0)),
        bridge(at(2, 0, 0), PortType::PcieToPci, 3),
        conventional(at(3, 0, 0)),
        isolating(port(at(0, 2, 0), 4)),
        endpoint(at(4, 0, 0)),
    ];
    let forwards = topology(nodes.clone());
    let backwards = topology(nodes.into_iter().rev());
    assert_eq!(members(&forwards), members(&backwards));
    assert_eq!(members(&forwards).len(), 3);
}
