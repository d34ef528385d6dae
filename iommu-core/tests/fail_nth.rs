//! Each call of the driver that may fail fails once, in turn, under each operation on a group: then the operation says so,
//! every device is in the domain that the group says it is in, which is the old one, nothing is leaked, and the operation
//! succeeds when it is tried again.

mod common;

use std::sync::Arc;

use common::{Bench, NIC, PAGE, Setup, endpoint, multifunction, region, topology};
use dma_api::{Attrs, Device, Direction, DmaError, SgEntry};
use iommu_core::pci::Topology;
use iommu_core::{Domain, DomainType, Group, GroupError, Owner, PagingFlags, ResvType};
use platform::pci::PciAddress;
use platform::{DmaAddr, PhysAddr};

const ONE: PciAddress = PciAddress::new(0, 0, 4, 0);
const TWO: PciAddress = PciAddress::new(0, 0, 4, 1);
const THREE: PciAddress = PciAddress::new(0, 0, 4, 2);
const OWNER: Owner = Owner(1);

fn tree(addresses: &[PciAddress]) -> Topology {
    topology(addresses.iter().map(|&address| multifunction(endpoint(address))))
}

/// What an operation works on.
struct World {
    bench: Bench,
    group: Arc<Group>,
    /// Domains of the test's own.
    mine: [Arc<Domain>; 2],
}

impl World {
    /// Two of the three devices, one of them with memory of firmware's; no static blocked domain with `bare`.
    fn new(bare: bool) -> Self {
        let mut setup = Setup { topology: tree(&[ONE, TWO]), ..Setup::default() };
        setup = setup.region(TWO, region(0x20_0000, 0x20_2000, ResvType::DirectRelaxable));
        setup = setup.region(THREE, region(0x30_0000, 0x30_2000, ResvType::DirectRelaxable));
        setup.knobs.max_pasids.extend([(ONE, 8), (TWO, 8), (THREE, 8)]);
        setup.knobs.ats.extend([ONE, TWO]);
        setup.knobs.deferred.insert(THREE);
        setup.knobs.has_blocked = !bare;
        let bench = setup.bench();
        let group = bench.group(ONE);
        let mine = [(); 2].map(|()| group.alloc_unmanaged(PagingFlags::PASID).unwrap());
        Self { bench, group, mine }
    }

    /// Where every device and PASID is.
    fn places(&self) -> Vec<Option<u32>> {
        let of =
            |dev| [self.bench.toy.domain_of(dev), self.bench.toy.pasid(dev, 3), self.bench.toy.pasid(dev, 4)];
        [ONE, TWO, THREE].into_iter().flat_map(of).collect()
    }

    /// What the group says of itself.
    fn says(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let pointer = |domain: Option<Arc<Domain>>| domain.map(|domain| Arc::as_ptr(&domain).addr());
        let group = &self.group;
        let pasids = [3, 4].map(|pasid| pointer(group.pasid_domain(pasid)));
        (
            pointer(group.domain()),
            pointer(group.default_domain()),
            group.domain_type(),
            group.devices(),
            pasids,
        )
    }
}

type Step = fn(&World) -> Result<(), GroupError>;

/// Runs `operation` after `before`, with each call that may fail failing once in turn. Returns how many there were.
fn fail_each(bare: bool, before: Step, operation: Step) -> u64 {
    for nth in 0.. {
        let world = World::new(bare);
        before(&world).unwrap();
        let (places, says, live) = (world.places(), world.says(), world.bench.toy.live_domains());
        world.bench.toy.fail_after(nth);
        let result = operation(&world);
        if !world.bench.toy.has_failed() {
            assert_eq!(result, Ok(()));
            return nth;
        }
        // A failure that has another way out is none.
        if result.is_err() {
            assert_eq!(world.places(), places, "failure {nth}");
            assert_eq!(world.says(), says, "failure {nth}");
            assert_eq!(world.bench.toy.live_domains(), live, "failure {nth}");
            assert_eq!(operation(&world), Ok(()), "after failure {nth}");
        }
    }
    unreachable!()
}

const NOTHING: Step = |_| Ok(());
const CLAIM: Step = |world| world.group.claim_dma_owner(OWNER);
const ATTACH: Step = |world| world.group.attach(&world.mine[0]);
const PASID: Step = |world| world.group.attach_pasid(&world.mine[0], 3);

#[test]
fn attach() {
    assert_eq!(fail_each(false, NOTHING, ATTACH), 2, "one for each device");
    assert_eq!(fail_each(false, CLAIM, ATTACH), 2);
    assert_eq!(fail_each(true, CLAIM, ATTACH), 2);
}

#[test]
fn replace() {
    let replace: Step = |world| world.group.replace(&world.mine[1]);
    let attached: Step = |world| CLAIM(world).and_then(|()| ATTACH(world));
    assert_eq!(fail_each(false, attached, replace), 2);
    assert_eq!(fail_each(true, attached, replace), 2);
}

#[test]
fn claim() {
    // The blocked domain does not fail; an empty one may.
    assert_eq!(fail_each(false, NOTHING, CLAIM), 0);
    assert_eq!(fail_each(true, NOTHING, CLAIM), 2);
    let by_device: Step = |world| world.group.claim_device_dma_owner(TWO, OWNER);
    assert_eq!(fail_each(true, NOTHING, by_device), 2);
}

#[test]
fn alloc() {
    let alloc: Step = |world| world.group.alloc_unmanaged(PagingFlags::empty()).map(drop);
    assert_eq!(fail_each(false, NOTHING, alloc), 1);
}

#[test]
fn set_type() {
    // A new domain, two pages of firmware's that may be tried again, and two devices.
    let renew: Step = |world| world.group.set_type(None);
    assert_eq!(fail_each(false, NOTHING, renew), 5);
    assert_eq!(fail_each(true, NOTHING, renew), 5);
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    let identity: Step = |world| unsafe { world.group.set_type_trusted(DomainType::Identity) };
    assert_eq!(fail_each(false, NOTHING, identity), 2);
    let lazy: Step = |world| world.group.set_type(DomainType::DmaFq);
    assert_eq!(fail_each(false, NOTHING, lazy), 0, "in place");
}

#[test]
fn attach_pasid() {
    assert_eq!(fail_each(false, NOTHING, PASID), 2);
}

#[test]
fn replace_pasid() {
    let replace: Step = |world| world.group.replace_pasid(&world.mine[1], 3);
    assert_eq!(fail_each(false, PASID, replace), 2);
}

#[test]
fn detach_pasid_cannot_fail() {
    let detach: Step = |world| world.group.detach_pasid(3);
    assert_eq!(fail_each(false, PASID, detach), 0);
}

#[test]
fn hot_add() {
    let add: Step = |world| world.bench.iommu.probe(&tree(&[ONE, TWO, THREE]), |_| false);
    // The newcomer's attach is deferred: only its two pages of firmware's are mapped.
    assert_eq!(fail_each(false, NOTHING, add), 2);
    let attached: Step = |world| CLAIM(world).and_then(|()| ATTACH(world));
    assert_eq!(fail_each(false, attached, add), 3, "in an owner's domain it is attached at once");
}

#[test]
fn first_probe() {
    for bare in [false, true] {
        let mut most = 0;
        for nth in 0.. {
            let mut setup = Setup { topology: Topology::new(), ..Setup::default() };
            setup = setup.region(ONE, region(0x20_0000, 0x20_2000, ResvType::DirectRelaxable));
            setup.knobs.has_blocked = !bare;
            let bench = setup.bench();
            let live = bench.toy.live_domains();
            bench.toy.fail_after(nth);
            let result = bench.iommu.probe(&tree(&[ONE, TWO]), |_| false);
            if !bench.toy.has_failed() {
                most = nth;
                break;
            }
            let group = bench.group(ONE);
            if result.is_err() {
                assert!(group.domain().is_none() && group.default_domain().is_none(), "failure {nth}");
                assert_eq!(group.bind(ONE).unwrap_err(), GroupError::NotReady);
                // Nothing but what blocks lives.
                assert!(bench.toy.live_domains() <= live + usize::from(bare), "failure {nth}");
            }
            bench.iommu.probe(&tree(&[ONE, TWO]), |_| false).unwrap();
            group.bind(TWO).unwrap();
        }
        assert_eq!(most, 5 + u64::from(bare), "a domain, two pages, two devices; and what blocks");
    }
}

/// What must be reached and cannot be is blocked: no half state, and a way back.
fn blocked_when_it_fails(before: Step, operation: Step, back: Step) {
    for nth in 0..2 {
        let world = World::new(false);
        before(&world).unwrap();
        world.bench.toy.fail_after(nth);
        assert!(operation(&world).is_err());
        assert!(world.bench.toy.has_failed());
        assert_eq!(world.group.domain().unwrap().domain_type(), DomainType::Blocked);
        for device in [ONE, TWO] {
            assert_eq!(world.bench.toy.domain_of(device), Some(common::Toy::BLOCKED), "failure {nth}");
        }
        back(&world).unwrap();
        let default = world.group.default_domain().unwrap();
        assert!(Arc::ptr_eq(&world.group.domain().unwrap(), &default));
        world.group.bind(ONE).unwrap();
    }
}

#[test]
fn detach_and_release_block_what_they_cannot_bring_back() {
    let detach: Step = |world| world.group.detach();
    blocked_when_it_fails(ATTACH, detach, detach);
    let attached: Step = |world| CLAIM(world).and_then(|()| ATTACH(world));
    let release: Step = |world| world.group.release_dma_owner(OWNER);
    blocked_when_it_fails(attached, release, detach);
}

#[test]
fn the_end_of_a_reset_blocks_what_it_cannot_bring_back() {
    let world = World::new(false);
    let fence = world.group.fence_reset(ONE).unwrap();
    world.bench.toy.fail_after(0);
    assert!(fence.done().is_err());
    assert!(world.bench.toy.has_failed());
    assert_eq!(world.group.domain().unwrap().domain_type(), DomainType::Blocked);
    world.group.detach().unwrap();
    assert_eq!(world.bench.toy.domain_of(ONE), world.bench.toy.domain_of(TWO));
}

#[test]
fn a_fence_that_cannot_be_put_up_is_not_there() {
    let fence: Step = |world| world.group.fence_reset(ONE).map(drop);
    let places = World::new(true).places();
    let world = World::new(true);
    world.bench.toy.fail_after(0);
    assert!(fence(&world).is_err() && world.bench.toy.has_failed());
    assert_eq!(world.places(), places);
    ATTACH(&world).unwrap();
}

/// Runs a driver's call with each call of the IOMMU that may fail failing once in turn: the call says so, and the domain, the
/// machine's memory and the counts are what they were. Returns how many there were.
fn fail_each_call<T>(deferred: bool, call: impl Fn(&Bench, &Device) -> Result<T, DmaError>) -> u64 {
    for nth in 0.. {
        let mut setup = Setup::default();
        if deferred {
            setup.knobs.deferred.insert(NIC);
        }
        let bench = setup.bench();
        let device = bench.bind_trusted(NIC);
        let live = || {
            let now = bench.iommu.statistics();
            (bench.toy.mapped(), bench.host.live(), now.maps - now.unmaps, now.quarantined)
        };
        let before = live();
        bench.toy.fail_after(nth);
        let result = call(&bench, &device);
        if !bench.toy.has_failed() {
            assert!(result.is_ok());
            return nth;
        }
        assert!(result.is_err(), "failure {nth}");
        drop(result);
        assert_eq!(live(), before, "failure {nth}");
        assert!(call(&bench, &device).is_ok(), "after failure {nth}");
    }
    unreachable!()
}

const TO: Direction = Direction::ToDevice;

#[test]
fn map() {
    let map = |_: &Bench, device: &Device| common::map(device, 0x10_0800, 3 * PAGE as usize, TO);
    assert_eq!(fail_each_call(false, map), 4, "one for each page");
    assert_eq!(fail_each_call(true, map), 5, "and the attach that was deferred");
}

#[test]
fn map_sg() {
    let map = |_: &Bench, device: &Device| {
        let piece = |page: u64| SgEntry::new(PhysAddr::new(page * PAGE), PAGE as usize);
        let mut list = [piece(0x100), piece(0x200), piece(0x300)];
        // SAFETY: the toy's devices touch nothing by themselves.
        unsafe { device.map_sg(&mut list, TO, Attrs::empty()) }
    };
    assert_eq!(fail_each_call(false, map), 3, "one for each page");
}

#[test]
fn map_bounced() {
    let map = |bench: &Bench, _: &Device| {
        // A device that nobody has trusted.
        let device = bench.bind(NIC);
        let memory = bench.host.memory(PAGE as usize);
        common::map(&device, memory.phys() + 8, 16, TO).map(|at| (memory, at))
    };
    assert_eq!(fail_each_call(false, map), 1);
}

#[test]
fn alloc_coherent() {
    let alloc = |_: &Bench, device: &Device| device.alloc_coherent(3 * PAGE as usize, Attrs::empty());
    assert_eq!(fail_each_call(false, alloc), 3);
    assert_eq!(fail_each_call(true, alloc), 4);
}

#[test]
fn doorbell() {
    let prepare: Step = |world| {
        // SAFETY: the toy's devices touch nothing by themselves.
        let at = unsafe { world.group.prepare_msi(ONE, PhysAddr::new(0x800_0000), DmaAddr::new(u64::MAX)) };
        at.map(drop)
    };
    assert_eq!(fail_each(false, NOTHING, prepare), 1);
}

#[test]
fn bind() {
    let bind: Step = |world| world.group.bind(ONE).map(drop);
    assert_eq!(fail_each(false, NOTHING, bind), 0, "it makes nothing that can fail");
}
