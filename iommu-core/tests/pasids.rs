//! PASIDs: each has a domain beside that of requests without one, for all devices of the group that know PASIDs.

mod common;

use std::sync::Arc;

use common::{Bench, Did, NIC, Setup, endpoint, multifunction, topology};
use iommu_core::{AttachError, Domain, DomainType, Group, GroupError, Owner, PagingFlags};
use platform::pci::PciAddress;

/// Three functions of a slot: two with PASIDs, the last one without.
const ONE: PciAddress = PciAddress::new(0, 0, 4, 0);
const TWO: PciAddress = PciAddress::new(0, 0, 4, 1);
const NONE: PciAddress = PciAddress::new(0, 0, 4, 2);

fn setup() -> Setup {
    let nodes = [ONE, TWO, NONE].map(|address| multifunction(endpoint(address)));
    let mut setup = Setup { topology: topology(nodes), ..Setup::default() };
    setup.knobs.max_pasids.extend([(ONE, 16), (TWO, 8)]);
    setup
}

fn bench() -> (Bench, Arc<Group>) {
    let bench = setup().bench();
    let group = bench.group(ONE);
    (bench, group)
}

fn domain(group: &Group) -> Arc<Domain> {
    group.alloc_unmanaged(PagingFlags::PASID).unwrap()
}

#[test]
fn a_pasid_goes_to_every_device_that_has_pasids() {
    let (bench, group) = bench();
    let rid = bench.toy.domain_of(ONE);
    let mine = domain(&group);
    group.attach_pasid(&mine, 5).unwrap();
    let id = bench.toy.pasid(ONE, 5);
    assert!(id.is_some() && id != rid);
    assert_eq!((bench.toy.pasid(TWO, 5), bench.toy.pasid(NONE, 5)), (id, None));
    assert!(Arc::ptr_eq(&group.pasid_domain(5).unwrap(), &mine));
    assert_eq!(bench.toy.domain_of(ONE), rid, "requests without a PASID go where they went");
    group.detach_pasid(5).unwrap();
    assert_eq!((bench.toy.pasid(ONE, 5), bench.toy.pasid(TWO, 5)), (None, None));
    assert!(group.pasid_domain(5).is_none());
    assert_eq!(group.detach_pasid(5), Err(GroupError::NotAttached));
}

#[test]
fn pasid_0_is_for_requests_without_one() {
    let (_bench, group) = bench();
    assert_eq!(group.attach_pasid(&domain(&group), 0), Err(GroupError::InvalidPasid(0)));
}

#[test]
fn a_pasid_that_a_device_cannot_send_is_refused() {
    let (_bench, group) = bench();
    assert_eq!(group.attach_pasid(&domain(&group), 8), Err(GroupError::InvalidPasid(8)), "of TWO");
    group.attach_pasid(&domain(&group), 7).unwrap();
}

#[test]
fn a_domain_without_pasids_is_refused() {
    let (_bench, group) = bench();
    let plain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    assert_eq!(group.attach_pasid(&plain, 1), Err(AttachError::Unsupported.into()));
}

#[test]
fn without_a_blocked_domain_that_takes_pasids_off_none_is_attached() {
    let mut without = setup();
    without.knobs.has_blocked = false;
    let bench = without.bench();
    let group = bench.group(ONE);
    assert_eq!(group.attach_pasid(&domain(&group), 1), Err(AttachError::Unsupported.into()));
}

#[test]
fn devices_without_pasids_have_none() {
    let bench = Setup::default().bench();
    let group = bench.group(common::NIC);
    assert_eq!(group.attach_pasid(&domain(&group), 1), Err(AttachError::Unsupported.into()));
}

#[test]
fn a_foreign_domain_is_refused() {
    let ((_bench, group), (_other, theirs)) = (bench(), bench());
    assert_eq!(group.attach_pasid(&domain(&theirs), 1), Err(AttachError::Incompatible.into()));
}

#[test]
fn only_a_domain_of_ones_own_is_attached() {
    let (_bench, group) = bench();
    let default = group.default_domain().unwrap();
    assert_eq!(group.attach_pasid(&default, 1), Err(AttachError::Incompatible.into()));
}

#[test]
fn a_pasid_is_attached_once() {
    let (bench, group) = bench();
    let mine = domain(&group);
    group.attach_pasid(&mine, 3).unwrap();
    let before = bench.toy.pasid(ONE, 3);
    assert_eq!(group.attach_pasid(&domain(&group), 3), Err(AttachError::Busy.into()));
    assert_eq!(group.attach_pasid(&mine, 3), Err(AttachError::Busy.into()));
    assert_eq!(bench.toy.pasid(ONE, 3), before);
}

#[test]
fn replacing_takes_a_domain_that_is_there_and_another_one() {
    let (bench, group) = bench();
    let (first, second) = (domain(&group), domain(&group));
    assert_eq!(group.replace_pasid(&first, 3), Err(GroupError::NotAttached));
    group.attach_pasid(&first, 3).unwrap();
    assert_eq!(group.replace_pasid(&first, 3), Err(AttachError::Incompatible.into()));
    let before = bench.toy.pasid(ONE, 3);
    bench.toy.take_log();
    group.replace_pasid(&second, 3).unwrap();
    assert_ne!(bench.toy.pasid(TWO, 3), before);
    let blocked = |did: &Did| matches!(did, Did::Pasid { domain: common::Toy::BLOCKED, .. });
    assert!(!bench.toy.take_log().iter().any(blocked), "with no time in which it has none");
}

#[test]
fn what_fails_at_the_second_device_leaves_the_first_where_it_was() {
    let (bench, group) = bench();
    let (first, second) = (domain(&group), domain(&group));
    bench.toy.refuse(TWO, AttachError::Exhausted, false);
    assert_eq!(group.attach_pasid(&first, 3), Err(AttachError::Exhausted.into()));
    assert_eq!((bench.toy.pasid(ONE, 3), group.pasid_domain(3).is_none()), (None, true));
    bench.toy.refuse_nothing();
    group.attach_pasid(&first, 3).unwrap();
    let before = bench.toy.pasid(ONE, 3);
    bench.toy.refuse(TWO, AttachError::Exhausted, false);
    assert_eq!(group.replace_pasid(&second, 3), Err(AttachError::Exhausted.into()));
    assert_eq!((bench.toy.pasid(ONE, 3), bench.toy.pasid(TWO, 3)), (before, before));
    assert!(Arc::ptr_eq(&group.pasid_domain(3).unwrap(), &first));
}

#[test]
fn who_has_pasids_keeps_others_out() {
    let (bench, group) = bench();
    group.attach_pasid(&domain(&group), 3).unwrap();
    assert_eq!(group.claim_dma_owner(Owner(1)), Err(GroupError::Busy));
    let _first = bench.bind(ONE);
    assert_eq!(group.bind(TWO).unwrap_err(), GroupError::Busy, "a second driver");
    group.detach_pasid(3).unwrap();
    bench.bind(TWO);
}

#[test]
fn an_owner_takes_his_pasids_off_before_he_goes() {
    let (_bench, group) = bench();
    group.claim_dma_owner(Owner(1)).unwrap();
    group.attach_pasid(&domain(&group), 3).unwrap();
    assert_eq!(group.release_dma_owner(Owner(1)), Err(GroupError::Busy));
    group.detach_pasid(3).unwrap();
    group.release_dma_owner(Owner(1)).unwrap();
}

#[test]
fn a_device_that_goes_loses_its_pasids_first() {
    let (bench, group) = bench();
    group.attach_pasid(&domain(&group), 3).unwrap();
    bench.toy.take_log();
    bench.iommu.remove(ONE);
    let blocked = Did::Pasid { device: ONE, pasid: 3, domain: common::Toy::BLOCKED };
    assert_eq!(bench.toy.take_log(), [blocked, Did::Release(ONE)]);
    assert!(bench.toy.pasid(TWO, 3).is_some());
}

#[test]
fn the_default_domain_has_room_for_pasids_where_the_driver_can() {
    for can_pasid in [true, false] {
        let mut setup = setup();
        setup.knobs.can_pasid = can_pasid;
        let bench = setup.bench();
        assert_eq!(bench.group(ONE).domain_type(), Some(DomainType::Dma), "with PASIDs: {can_pasid}");
        assert_eq!(bench.toy.has_room_for_pasids(ONE), can_pasid);
    }
}

#[test]
fn a_global_pasid_is_one_devices_alone_until_it_is_dropped() {
    let mut setup = setup();
    let three = PciAddress::new(0, 0, 6, 0);
    setup.topology.insert(endpoint(three));
    setup.knobs.max_pasids.insert(three, 3);
    let bench = setup.bench();
    let take = |address| bench.iommu.alloc_global_pasid(address);
    let one = take(ONE).unwrap();
    let two = take(three).unwrap();
    assert_eq!((one.get(), two.get()), (1, 2), "0 is for requests without one");
    assert_eq!(take(three).unwrap_err(), AttachError::Exhausted.into(), "it can send no more");
    let more = take(ONE).unwrap();
    assert_eq!(more.get(), 3);
    drop(one);
    assert_eq!(take(ONE).unwrap().get(), 1, "the lowest that is free");
    assert_eq!(take(three).unwrap().get(), 1);
    drop((two, more));
    assert_eq!(take(NIC).unwrap_err(), GroupError::NoSuchDevice(NIC));
}

#[test]
fn a_device_without_pasids_gets_no_global_one() {
    let bench = Setup::default().bench();
    assert_eq!(bench.iommu.alloc_global_pasid(NIC).unwrap_err(), AttachError::Unsupported.into());
}
