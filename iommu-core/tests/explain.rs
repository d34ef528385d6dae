//! Why functions share a group, for each pair, in words.

mod common;

use std::collections::BTreeMap;

use common::{Setup, bridge, endpoint, isolating, multifunction, topology};
use iommu_core::pci::{AcsFlags, AcsGap, Node, PortType, Reason, Shared, Topology, explain, groups, outline};
use platform::pci::{PciAddress, RequesterId};

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function)
}

/// An open root port with an open switch below it, and two devices.
fn open() -> Topology {
    topology([
        bridge(at(0, 1, 0), PortType::RootPort, 1),
        bridge(at(1, 0, 0), PortType::UpstreamPort, 2),
        bridge(at(2, 0, 0), PortType::DownstreamPort, 3),
        bridge(at(2, 1, 0), PortType::DownstreamPort, 4),
        endpoint(at(3, 0, 0)),
        endpoint(at(4, 0, 0)),
    ])
}

fn only_group(tree: &Topology) -> (Vec<PciAddress>, Vec<Reason>) {
    let mut groups = groups(tree, &BTreeMap::new());
    assert_eq!(groups.len(), 1);
    groups.remove(0)
}

#[test]
fn each_pair_has_its_shortest_chain() {
    let (members, reasons) = only_group(&open());
    let pairs = explain(&members, &reasons);
    assert_eq!(pairs.len(), 6 * 5 / 2);
    let find = |one, other| pairs.iter().find(|shared| shared.pair == (one, other)).unwrap().why.clone();
    let below = |of| Reason::PortNotIsolated { of, port: at(0, 1, 0), gap: AcsGap::NoCapability };
    assert_eq!(find(at(0, 1, 0), at(4, 0, 0)), [below(at(4, 0, 0))]);
    assert_eq!(find(at(3, 0, 0), at(4, 0, 0)), [below(at(3, 0, 0)), below(at(4, 0, 0))]);
    assert_eq!(outline(&members, &reasons).len(), 5);
}

#[test]
fn functions_of_a_slot_are_tied_directly() {
    let (members, reasons) =
        only_group(&topology((0..4).map(|function| multifunction(endpoint(at(0, 3, function))))));
    let pairs = explain(&members, &reasons);
    assert_eq!((pairs.len(), outline(&members, &reasons).len()), (6, 3));
    assert!(pairs.iter().all(|shared| shared.why.len() == 1));
}

#[test]
fn no_detour_is_told() {
    let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|device| at(0, device, 0));
    let tie = |of, alias| Reason::Alias { of, alias };
    // Two ways from the first to the last, over one or over two others.
    let reasons = [tie(a, b), tie(a, c), tie(c, d), tie(d, e), tie(b, e)];
    assert_eq!(explain(&[a, e], &reasons)[0].why, [tie(a, b), tie(b, e)]);
}

#[test]
fn who_is_tied_by_nothing_has_no_reason() {
    let [one, other] = [at(0, 1, 0), at(0, 2, 0)];
    assert_eq!(explain(&[one, other], &[]), [Shared { pair: (one, other), why: vec![] }]);
    assert_eq!(outline(&[one, other], &[]), []);
    assert_eq!((explain(&[], &[]), outline(&[], &[])), (vec![], vec![]));
}

#[test]
fn a_step_over_who_is_no_member_counts() {
    let [one, between, other] = [at(0, 1, 0), at(0, 2, 0), at(0, 3, 0)];
    let reasons = [Reason::Alias { of: one, alias: between }, Reason::Alias { of: other, alias: between }];
    assert_eq!(explain(&[one, other], &reasons)[0].why, reasons);
    assert_eq!(outline(&[one, other], &reasons).len(), 2);
}

#[test]
fn a_group_says_it_for_each_pair() {
    let tree = topology([
        bridge(at(0, 1, 0), PortType::RootPort, 1),
        endpoint(at(1, 0, 0)),
        isolating(bridge(at(0, 2, 0), PortType::RootPort, 2)),
        endpoint(at(2, 0, 0)),
    ]);
    let bench = Setup { topology: tree, ..Setup::default() }.bench();
    let why = bench.group(at(1, 0, 0)).explain();
    let reason = Reason::PortNotIsolated { of: at(1, 0, 0), port: at(0, 1, 0), gap: AcsGap::NoCapability };
    assert_eq!(why, [Shared { pair: (at(0, 1, 0), at(1, 0, 0)), why: vec![reason] }]);
    assert_eq!(
        why[0].to_string(),
        "0000:00:01.0 and 0000:01:00.0 share a group because 0000:01:00.0 is below 0000:00:01.0, which has no Access \
         Control Services (ACS): what is below it can reach each other without passing the IOMMU"
    );
    assert_eq!(bench.group(at(1, 0, 0)).outline(), [reason]);
    assert_eq!(bench.group(at(2, 0, 0)).explain(), []);
}

#[test]
fn each_reason_names_what_it_is_about() {
    let (of, other) = (at(5, 0, 0), at(4, 1, 2));
    let off = AcsGap::Off(AcsFlags::SV | AcsFlags::RR | AcsFlags::CR | AcsFlags::UF);
    let said = [
        (Reason::Alias { of, alias: other }, "carry the requester ID of 0000:04:01.2"),
        (
            Reason::SharedAlias { of, other, alias: RequesterId::from_parts(7, 0, 1) },
            "may carry the requester ID 07:00.1, so the IOMMU cannot tell them apart",
        ),
        (
            Reason::BehindBridge { of, bridge: other, alias: RequesterId::from_parts(5, 0, 0) },
            "behind the conventional-PCI bridge 0000:04:01.2, which puts the requester ID 05:00.0",
        ),
        (Reason::RealDmaDevice { of, real: other }, "0000:04:01.2 makes the requests of 0000:05:00.0"),
        (
            Reason::PortNotIsolated { of, port: other, gap: off },
            "below 0000:04:01.2, which has these Access Control Services (ACS) switched off: Source Validation, P2P \
             Request Redirect, P2P Completion Redirect, Upstream Forwarding: what",
        ),
        (
            Reason::PortNotIsolated { of, port: other, gap: AcsGap::NotPossible(PortType::PcieToPci) },
            "which is a bridge to conventional PCI",
        ),
        (
            Reason::SlotNotIsolated { of, sibling: other, gap: AcsGap::NotPossible(PortType::Conventional) },
            "functions of one slot that can reach each other without passing the IOMMU: 0000:05:00.0 is conventional PCI",
        ),
        (
            Reason::SlotNotIsolated {
                of,
                sibling: other,
                gap: AcsGap::NotPossible(PortType::EventCollector),
            },
            "0000:05:00.0 is an event collector",
        ),
        (Reason::OneTranslation { of, other }, "one translation for 0000:05:00.0, 0000:04:01.2"),
    ];
    for (reason, words) in said {
        assert_eq!(reason.ends(), (of, other));
        let text = reason.to_string();
        assert!(
            text.contains(words) && text.contains("0000:05:00.0") && text.contains("0000:04:01.2"),
            "{text}"
        );
    }
}

#[test]
fn the_port_nearest_to_the_root_is_named() {
    let tree = topology([
        Node { acs: Some((AcsFlags::all(), AcsFlags::SV)), ..bridge(at(0, 1, 0), PortType::RootPort, 1) },
        bridge(at(1, 0, 0), PortType::DownstreamPort, 2),
        endpoint(at(2, 0, 0)),
    ]);
    let (members, reasons) = only_group(&tree);
    let gap = AcsGap::Off(AcsFlags::RR | AcsFlags::CR | AcsFlags::UF);
    let below = |of| Reason::PortNotIsolated { of, port: at(0, 1, 0), gap };
    assert_eq!(outline(&members, &reasons), [below(at(1, 0, 0)), below(at(2, 0, 0))]);
}

#[test]
fn what_tied_devices_and_is_gone_is_no_reason_any_more() {
    let bench = Setup { topology: open(), ..Setup::default() }.bench();
    let devices = (at(3, 0, 0), at(4, 0, 0));
    let group = bench.group(devices.0);
    let pair = || group.explain().into_iter().find(|shared| shared.pair == devices).unwrap();
    assert_eq!(pair().why.len(), 2);
    bench.iommu.remove(at(0, 1, 0));
    assert_eq!(pair().why, []);
    assert_eq!(
        pair().to_string(),
        "0000:03:00.0 and 0000:04:00.0 share a group because of a function that is gone"
    );
    bench.iommu.probe(&open(), |_| false).unwrap();
    assert_eq!(pair().why.len(), 2);
}
