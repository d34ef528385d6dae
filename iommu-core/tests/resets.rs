//! While a device is reset it reaches nothing, and nobody moves its group.

mod common;

use std::sync::Arc;

use common::{Bench, Did, Setup, Toy, endpoint, map_page, multifunction, topology};
use iommu_core::{AttachError, DomainType, Group, GroupError, Owner, PagingFlags};
use platform::pci::PciAddress;

const ONE: PciAddress = PciAddress::new(0, 0, 4, 0);
const TWO: PciAddress = PciAddress::new(0, 0, 4, 1);

/// Two devices with translation caches of their own, in one group.
fn bench() -> (Bench, Arc<Group>) {
    let nodes = [ONE, TWO].map(|address| multifunction(endpoint(address)));
    let mut setup = Setup { topology: topology(nodes), ..Setup::default() };
    setup.knobs.ats.extend([ONE, TWO]);
    setup.knobs.max_pasids.extend([(ONE, 8), (TWO, 8)]);
    let bench = setup.bench();
    let group = bench.group(ONE);
    (bench, group)
}

#[test]
fn a_device_that_is_reset_reaches_nothing_until_that_is_done() {
    let (bench, group) = bench();
    let device = bench.bind(ONE);
    let at = map_page(&device).unwrap();
    let fence = group.fence_reset(ONE).unwrap();
    assert_eq!(bench.toy.reach(ONE, at, false), None);
    assert_eq!(bench.toy.reach(TWO, at, false), Some(0x10_0000), "the others go on");
    map_page(&device).unwrap();
    fence.done().unwrap();
    assert_eq!(bench.toy.reach(ONE, at, false), Some(0x10_0000));
    // A fence that is dropped falls as well.
    drop(group.fence_reset(ONE).unwrap());
    assert_eq!(bench.toy.reach(ONE, at, false), Some(0x10_0000));
}

#[test]
fn pasids_are_fenced_too() {
    let (bench, group) = bench();
    group.attach_pasid(&group.alloc_unmanaged(PagingFlags::PASID).unwrap(), 3).unwrap();
    let before = bench.toy.pasid(ONE, 3);
    let fence = group.fence_reset(ONE).unwrap();
    assert_eq!((bench.toy.pasid(ONE, 3), bench.toy.pasid(TWO, 3)), (None, before));
    fence.done().unwrap();
    assert_eq!(bench.toy.pasid(ONE, 3), before);
}

#[test]
fn nobody_moves_a_group_meanwhile() {
    let (_bench, group) = bench();
    let mine = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    group.attach_pasid(&mine, 3).unwrap();
    let fence = group.fence_reset(ONE).unwrap();
    const BUSY: Result<(), GroupError> = Err(GroupError::Attach(AttachError::Busy));
    assert_eq!(group.attach(&mine), BUSY);
    assert_eq!(group.replace(&mine), BUSY);
    assert_eq!(group.set_type(None), BUSY);
    assert_eq!(group.attach_pasid(&mine, 4), BUSY);
    assert_eq!(group.replace_pasid(&group.alloc_unmanaged(PagingFlags::PASID).unwrap(), 3), BUSY);
    assert_eq!(group.detach_pasid(3), BUSY);
    assert_eq!(group.fence_reset(TWO).map(drop), BUSY, "one at a time");
    fence.done().unwrap();
    group.detach_pasid(3).unwrap();
    let fence = group.fence_reset(ONE).unwrap();
    assert_eq!(group.claim_dma_owner(Owner(1)), BUSY);
    fence.done().unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
}

#[test]
fn a_group_that_must_move_does_and_the_device_follows() {
    let (bench, group) = bench();
    let default = bench.toy.domain_of(ONE);
    group.claim_dma_owner(Owner(1)).unwrap();
    group.attach(&group.alloc_unmanaged(PagingFlags::empty()).unwrap()).unwrap();
    let fence = group.fence_reset(ONE).unwrap();
    group.release_dma_owner(Owner(1)).unwrap();
    assert_eq!((bench.toy.domain_of(ONE), bench.toy.domain_of(TWO)), (Some(Toy::BLOCKED), default));
    fence.done().unwrap();
    assert_eq!(bench.toy.domain_of(ONE), default);
}

#[test]
fn a_device_without_a_cache_of_its_own_needs_no_fence() {
    let bench = Setup::default().bench();
    let group = bench.group(common::NIC);
    bench.toy.take_log();
    let fence = group.fence_reset(common::NIC).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    fence.done().unwrap();
    assert_eq!(bench.toy.take_log().len(), 1, "the claim's attach");
}

#[test]
fn a_device_that_does_not_come_back_leaves_its_group_blocked() {
    let (bench, group) = bench();
    let fence = group.fence_reset(ONE).unwrap();
    bench.toy.refuse(ONE, AttachError::Device, false);
    assert_eq!(fence.done(), Err(AttachError::Device.into()));
    assert_eq!(group.domain().unwrap().domain_type(), DomainType::Blocked);
    assert_eq!((bench.toy.domain_of(ONE), bench.toy.domain_of(TWO)), (Some(1), Some(1)));
    // A device that goes meanwhile is not put back.
    bench.toy.refuse_nothing();
    let fence = group.fence_reset(ONE).unwrap();
    bench.iommu.remove(ONE);
    bench.toy.take_log();
    fence.done().unwrap();
    assert_eq!(bench.toy.take_log(), Vec::<Did>::new());
}
