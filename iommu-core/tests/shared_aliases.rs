//! Functions whose requests carry one requester ID share its device table entry, so they share a group.

use std::collections::BTreeMap;

use iommu_core::pci::{AcsFlags, Node, PortType, Reason, Topology, groups};
use platform::pci::{PciAddress, RequesterId};

fn insert(topology: &mut Topology, address: PciAddress, port_type: PortType, secondary_bus: Option<u8>) {
    let acs = secondary_bus.map(|_| (AcsFlags::ISOLATED, AcsFlags::ISOLATED));
    topology.insert(Node { port_type, secondary_bus, acs, ..Node::new(address) });
}

/// Two isolating root ports with an endpoint below each.
fn two_endpoints() -> (Topology, [PciAddress; 2]) {
    let mut topology = Topology::new();
    let endpoints = [1, 2].map(|bus| PciAddress::new(0, bus, 0, 0));
    for (device, endpoint) in (1..).zip(endpoints) {
        let port = PciAddress::new(0, 0, device, 0);
        insert(&mut topology, port, PortType::RootPort, Some(endpoint.id.bus()));
        insert(&mut topology, endpoint, PortType::Endpoint, None);
    }
    (topology, endpoints)
}

#[test]
fn an_alias_that_no_function_has_joins_its_users() {
    let (topology, [first, second]) = two_endpoints();
    assert_eq!(groups(&topology, &BTreeMap::new()).len(), 4);
    let alias = RequesterId::from_parts(0xff, 0, 0);
    let extra = BTreeMap::from([(first, vec![alias]), (second, vec![alias])]);
    let groups = groups(&topology, &extra);
    assert_eq!(groups.len(), 3);
    let (members, reasons) = groups.iter().find(|(members, _)| members.contains(&first)).unwrap();
    assert_eq!(*members, [first, second]);
    assert_eq!(*reasons, [Reason::SharedAlias { of: second, other: first, alias }]);
}

#[test]
fn different_aliases_keep_apart() {
    let (topology, [first, second]) = two_endpoints();
    let alias = |function| vec![RequesterId::from_parts(0xff, 0, function)];
    let extra = BTreeMap::from([(first, alias(0)), (second, alias(1))]);
    assert_eq!(groups(&topology, &extra).len(), 4);
}
