//! Attaching, replacing and detaching: which domains a group may go to, and where it is left.

mod common;

use std::sync::Arc;

use common::{Bench, Did, NIC, PAGE, Setup, Toy, endpoint, map_page, multifunction, region, topology};
use dma_api::DmaError;
use iommu_core::{
    AttachError, Domain, DomainType, Group, GroupError, Owner, PagingFlags, ResvType, Settings, Trust,
};
use platform::DmaAddr;
use platform::pci::PciAddress;

/// Two functions of a slot that nothing keeps apart, and one in a slot of its own.
const ONE: PciAddress = PciAddress::new(0, 0, 4, 0);
const TWO: PciAddress = PciAddress::new(0, 0, 4, 1);
const ALONE: PciAddress = PciAddress::new(0, 0, 5, 0);

fn setup() -> Setup {
    let nodes = [multifunction(endpoint(ONE)), multifunction(endpoint(TWO)), endpoint(ALONE)];
    Setup { topology: topology(nodes), ..Setup::default() }
}

fn unmanaged(group: &Group) -> Arc<Domain> {
    group.alloc_unmanaged(PagingFlags::empty()).unwrap()
}

fn attaches(bench: &Bench) -> Vec<u32> {
    let attach = |did| match did {
        Did::Attach { domain, .. } => Some(domain),
        _ => None,
    };
    bench.toy.take_log().into_iter().filter_map(attach).collect()
}

#[test]
fn a_device_is_attached_by_itself_only_when_it_has_its_group_to_itself() {
    let bench = setup().bench();
    let (group, alone) = (bench.group(ONE), bench.group(ALONE));
    let mine = unmanaged(&group);
    assert_eq!(group.attach_device(ONE, &mine), Err(GroupError::NotSingleton(ONE)));
    assert_eq!(group.attach_device(ALONE, &mine), Err(GroupError::NoSuchDevice(ALONE)));
    alone.attach_device(ALONE, &mine).unwrap();
    assert!(Arc::ptr_eq(&alone.domain().unwrap(), &mine));
    assert_eq!(alone.attach_device(ALONE, &mine), Err(AttachError::Busy.into()));
}

#[test]
fn a_device_is_detached_only_from_the_domain_that_it_is_in() {
    let bench = setup().bench();
    let alone = bench.group(ALONE);
    let (mine, other) = (unmanaged(&alone), unmanaged(&alone));
    alone.attach_device(ALONE, &mine).unwrap();
    assert_eq!(alone.detach_device(ALONE, &other), Err(GroupError::NotAttached));
    assert!(Arc::ptr_eq(&alone.domain().unwrap(), &mine));
    alone.detach_device(ALONE, &mine).unwrap();
    assert!(Arc::ptr_eq(&alone.domain().unwrap(), &alone.default_domain().unwrap()));
    let group = bench.group(ONE);
    let default = group.default_domain().unwrap();
    assert_eq!(group.detach_device(ONE, &default), Err(GroupError::NotSingleton(ONE)));
}

#[test]
fn replacing_goes_from_one_domain_to_the_next_at_once() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    group.claim_dma_owner(Owner(1)).unwrap();
    let (first, second) = (unmanaged(&group), unmanaged(&group));
    group.replace(&first).unwrap();
    bench.toy.take_log();
    group.replace(&second).unwrap();
    assert!(Arc::ptr_eq(&group.domain().unwrap(), &second));
    assert!(!attaches(&bench).contains(&Toy::BLOCKED));
    // What fails leaves it where it was.
    bench.toy.refuse(TWO, AttachError::Exhausted, false);
    assert_eq!(group.replace(&first), Err(AttachError::Exhausted.into()));
    assert!(Arc::ptr_eq(&group.domain().unwrap(), &second));
}

#[test]
fn a_bound_driver_is_not_replaced() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let _device = bench.bind(ONE);
    assert_eq!(group.replace(&unmanaged(&group)), Err(GroupError::Owned));
}

/// Settings under which devices are not translated.
fn passthrough() -> Settings {
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    Settings { passthrough: Some(unsafe { Trust::new() }), ..Settings::default() }
}

#[test]
fn nobody_is_attached_to_an_identity_domain_without_trust() {
    let mut setup = setup();
    setup.knobs.def_types.insert(ALONE, DomainType::Identity);
    let bench = setup.bench();
    let identity = bench.group(ALONE).default_domain().unwrap();
    assert_eq!(identity.domain_type(), DomainType::Identity);
    let group = bench.group(ONE);
    const REFUSED: Result<(), GroupError> = Err(GroupError::NeedsTrust(DomainType::Identity));
    assert_eq!(group.attach(&identity), REFUSED);
    assert_eq!(group.replace(&identity), REFUSED);
    assert_eq!(group.set_type(DomainType::Identity), REFUSED);
    group.claim_dma_owner(Owner(1)).unwrap();
    assert_eq!(group.attach(&identity), REFUSED);
    assert_eq!(bench.toy.domain_of(ONE), Some(Toy::BLOCKED));
    // A group goes back to its own: that trust was given.
    let bench = Setup { settings: passthrough(), ..self::setup() }.bench();
    let group = bench.group(ONE);
    group.attach(&unmanaged(&group)).unwrap();
    group.detach().unwrap();
    assert_eq!(bench.toy.domain_of(ONE), Some(Toy::IDENTITY));
}

#[test]
fn nobody_is_attached_to_the_dma_domain_of_another_group() {
    let bench = setup().bench();
    let theirs = bench.group(ALONE).default_domain().unwrap();
    assert_eq!(bench.group(ONE).attach(&theirs), Err(AttachError::Incompatible.into()));
}

#[test]
fn where_hardware_has_no_blocked_domain_an_empty_one_blocks() {
    let mut setup = setup();
    setup.knobs.has_blocked = false;
    let bench = setup.bench();
    let group = bench.group(ONE);
    let at = map_page(&bench.bind(ONE)).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    let blocking = group.domain().unwrap();
    assert_eq!(blocking.domain_type(), DomainType::Blocked);
    assert_eq!(bench.toy.reach(ONE, at, false), None);
    // It stays empty, whoever holds it.
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    let (_, mapped) = unsafe { blocking.map(at, 0x7000.into(), PAGE, platform::Prot::READ) };
    assert!(mapped.is_err());
    assert_eq!(bench.toy.reach(ONE, at, false), None);
    // It is there before it is needed: blocking does not fail for want of memory.
    bench.toy.fail_paging();
    bench.group(ALONE).claim_dma_owner(Owner(1)).unwrap();
}

#[test]
fn devices_are_claimed_one_by_one_by_one_owner() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let default = bench.toy.domain_of(ONE);
    group.claim_device_dma_owner(ONE, Owner(1)).unwrap();
    assert_eq!(bench.toy.domain_of(TWO), Some(Toy::BLOCKED));
    group.claim_device_dma_owner(TWO, Owner(1)).unwrap();
    assert_eq!(group.claim_device_dma_owner(TWO, Owner(2)), Err(GroupError::Owned));
    assert_eq!(group.claim_dma_owner(Owner(1)), Err(GroupError::Owned));
    assert_eq!(group.claim_device_dma_owner(ALONE, Owner(1)), Err(GroupError::NoSuchDevice(ALONE)));
    group.release_dma_owner(Owner(1)).unwrap();
    assert_eq!(bench.toy.domain_of(ONE), Some(Toy::BLOCKED), "one claim is left");
    assert_eq!(group.bind(ONE).unwrap_err(), GroupError::Busy);
    group.release_dma_owner(Owner(1)).unwrap();
    assert_eq!(bench.toy.domain_of(ONE), default);
    let _device = bench.bind(ONE);
    assert_eq!(group.claim_device_dma_owner(TWO, Owner(1)), Err(GroupError::Owned), "a driver is bound");
}

#[test]
fn strict_becomes_lazy_under_a_bound_driver_only_with_trust() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let device = bench.bind(ONE);
    assert_eq!(group.set_type(DomainType::DmaFq), Err(GroupError::NeedsTrust(DomainType::DmaFq)));
    let before = bench.toy.domain_of(ONE);
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    unsafe { group.set_type_trusted(DomainType::DmaFq) }.unwrap();
    assert_eq!((group.domain_type(), bench.toy.domain_of(ONE)), (Some(DomainType::DmaFq), before));
    // The driver goes on, lazily.
    let at = map_page(&device).unwrap();
    bench.toy.take_log();
    common::unmap_page(&device, at).unwrap();
    assert!(!bench.toy.take_log().iter().any(|did| matches!(did, Did::Sync { .. })));
}

#[test]
fn direct_mappings_that_fail_before_the_attach_are_made_after_it() {
    let mut setup = setup().region(TWO, region(0x20_0000, 0x20_2000, ResvType::Direct));
    setup.knobs.maps_only_attached = true;
    let bench = setup.bench();
    assert_eq!(bench.toy.reach(ONE, DmaAddr::new(0x20_1000), true), Some(0x20_1000));
    bench.bind(ONE);
}

#[test]
fn direct_mappings_that_fail_for_good_leave_the_group_where_it_was() {
    let setup = setup().region(TWO, region(0x20_0000, 0x20_2000, ResvType::DirectRelaxable));
    let bench = setup.bench();
    let group = bench.group(ONE);
    let before = (group.domain_type(), bench.toy.domain_of(ONE));
    let live = bench.toy.live_domains();
    bench.toy.set_pages_left(1);
    assert!(group.set_type(None).is_err());
    assert_eq!((group.domain_type(), bench.toy.domain_of(ONE)), before);
    assert_eq!(bench.toy.live_domains(), live, "and the new domain goes");
    bench.bind(ONE);
}

fn deferred() -> Setup {
    let mut setup = setup();
    setup.knobs.deferred.insert(TWO);
    setup
}

#[test]
fn a_deferred_device_is_attached_by_its_first_map() {
    let bench = deferred().bench();
    assert_eq!(bench.toy.domain_of(TWO), None);
    assert!(bench.toy.domain_of(ONE).is_some(), "the others are not");
    let device = bench.bind(TWO);
    assert_eq!(bench.toy.domain_of(TWO), None, "its driver resets it first");
    let at = map_page(&device).unwrap();
    assert_eq!(bench.toy.reach(TWO, at, false), Some(0x10_0000));
    bench.toy.take_log();
    map_page(&device).unwrap();
    assert_eq!(attaches(&bench), [], "once");
}

#[test]
fn coherent_memory_attaches_a_deferred_device_as_well() {
    let bench = deferred().bench();
    let device = Arc::new(bench.bind(TWO));
    let ring = dma_api::Coherent::new(&device, 7_u64).unwrap();
    assert!(bench.toy.reach(TWO, ring.dma_address(), true).is_some());
}

#[test]
fn a_deferred_attach_that_fails_fails_the_map_and_is_tried_again() {
    let bench = deferred().bench();
    let device = bench.bind(TWO);
    bench.toy.refuse(TWO, AttachError::Device, false);
    assert_eq!(map_page(&device), Err(DmaError::NotAttached));
    bench.toy.refuse_nothing();
    map_page(&device).unwrap();
    assert!(bench.toy.domain_of(TWO).is_some());
}

#[test]
fn any_other_domain_ends_the_deferral_at_once() {
    let bench = deferred().bench();
    let group = bench.group(ONE);
    group.claim_dma_owner(Owner(1)).unwrap();
    assert_eq!(bench.toy.domain_of(TWO), Some(Toy::BLOCKED));
    group.release_dma_owner(Owner(1)).unwrap();
    assert_eq!(bench.toy.domain_of(TWO), bench.toy.domain_of(ONE));
}

#[test]
fn a_deferred_device_that_goes_is_not_touched() {
    let mut setup = deferred();
    setup.knobs.has_release = true;
    let bench = setup.bench();
    bench.toy.take_log();
    bench.iommu.remove(TWO);
    assert_eq!(bench.toy.take_log(), [Did::Release(TWO)]);
    // Another is parked first.
    bench.iommu.remove(ONE);
    let parked = Did::Attach { device: ONE, domain: Toy::BLOCKED };
    assert_eq!(bench.toy.take_log(), [parked, Did::Release(ONE)]);
}

#[test]
fn a_deferred_device_in_an_identity_domain_is_attached_by_its_first_map_too() {
    let bench = Setup { settings: passthrough(), ..deferred() }.bench();
    let device = bench.bind_trusted(TWO);
    assert_eq!(bench.toy.domain_of(TWO), None);
    map_page(&device).unwrap();
    assert_eq!(bench.toy.domain_of(TWO), Some(Toy::IDENTITY));
}

#[test]
fn a_domain_that_a_device_could_not_be_taken_off_is_kept() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    let domain = unmanaged(&group);
    group.attach(&domain).unwrap();
    bench.toy.refuse(NIC, AttachError::Device, true);
    assert_eq!(group.detach(), Err(AttachError::Device.into()));
    let weak = Arc::downgrade(&domain);
    drop(domain);
    assert!(weak.upgrade().is_some(), "the device still uses its table");
}
