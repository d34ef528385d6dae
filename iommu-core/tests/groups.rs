//! Groups: who may have one, what it is attached to, and that no failure leaves a device where it must not be.

mod common;

use common::{
    Bench, Did, NIC, PAGE, Setup, Toy, endpoint, map_page, multifunction, region, topology, unmap_page,
};
use iommu_core::{
    AttachError, DomainError, DomainType, Group, GroupError, Owner, PagingFlags, ResvType, Settings, Trust,
};
use platform::pci::PciAddress;
use platform::{DmaAddr, Prot};

/// Two functions of a slot that nothing keeps apart, and one in a slot of its own.
const ONE: PciAddress = PciAddress::new(0, 0, 4, 0);
const TWO: PciAddress = PciAddress::new(0, 0, 4, 1);
const ALONE: PciAddress = PciAddress::new(0, 0, 5, 0);

fn setup() -> Setup {
    let nodes = [multifunction(endpoint(ONE)), multifunction(endpoint(TWO)), endpoint(ALONE)];
    Setup { topology: topology(nodes), ..Setup::default() }
}

fn settings(passthrough: bool, lazy: bool) -> Settings {
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    let passthrough = passthrough.then(|| unsafe { Trust::new() });
    Settings { passthrough, lazy, ..Settings::default() }
}

fn default_type(setup: Setup) -> Option<DomainType> {
    setup.boot().0.group(ONE).domain_type()
}

#[test]
fn functions_of_a_group_share_its_domain() {
    let bench = setup().bench();
    let groups = bench.iommu.groups();
    assert_eq!(groups.len(), 2);
    assert_eq!((groups[0].id(), groups[0].devices()), (0, vec![ONE, TWO]));
    assert_eq!((groups[0].explain().len(), groups[1].explain().len()), (1, 0));
    let at = map_page(&bench.bind(ONE)).unwrap();
    assert_eq!(bench.toy.reach(TWO, at, false), Some(0x10_0000));
    assert_eq!(bench.toy.reach(ALONE, at, false), None);
    assert!(bench.iommu.group_of(NIC).is_none());
}

#[test]
fn devices_of_no_iommu_have_no_group() {
    let mut setup = setup();
    setup.knobs.not_mine.insert(TWO);
    let bench = setup.bench();
    assert!(bench.iommu.group_of(TWO).is_none());
    assert_eq!(bench.group(ONE).devices(), [ONE]);
}

#[test]
fn settings_choose_the_default_type() {
    let with = |passthrough, lazy| Setup { settings: settings(passthrough, lazy), ..setup() };
    assert_eq!(default_type(with(false, false)), Some(DomainType::Dma));
    assert_eq!(default_type(with(false, true)), Some(DomainType::DmaFq));
    assert_eq!(default_type(with(true, false)), Some(DomainType::Identity));
    assert_eq!(default_type(with(true, true)), Some(DomainType::Identity));
}

#[test]
fn what_hardware_lacks_falls_back_to_strict_translation() {
    let mut lazy = setup().lazy();
    lazy.knobs.can_defer = false;
    assert_eq!(default_type(lazy), Some(DomainType::Dma));
    let mut identity = Setup { settings: settings(true, false), ..setup() };
    identity.knobs.has_identity = false;
    assert_eq!(default_type(identity), Some(DomainType::Dma));
}

#[test]
fn a_driver_insists_on_its_type_and_identity_wins_a_conflict() {
    let demand = |one, two| {
        let mut setup = setup();
        setup.knobs.def_types.extend([(ONE, one), (TWO, two)]);
        default_type(setup)
    };
    assert_eq!(demand(DomainType::Identity, DomainType::Identity), Some(DomainType::Identity));
    assert_eq!(demand(DomainType::Identity, DomainType::Dma), Some(DomainType::Identity));
    assert_eq!(demand(DomainType::Dma, DomainType::Identity), Some(DomainType::Identity));
    let mut passthrough = Setup { settings: settings(true, false), ..setup() };
    passthrough.knobs.def_types.insert(TWO, DomainType::Dma);
    assert_eq!(default_type(passthrough), Some(DomainType::Dma), "one opinion is the group's");
}

#[test]
fn an_untrusted_device_is_translated_strictly_whatever_the_settings() {
    for (passthrough, lazy) in [(true, false), (false, true)] {
        let setup = Setup { settings: settings(passthrough, lazy), ..setup() }.untrusted(TWO);
        let bench = setup.bench();
        assert_eq!(bench.group(ONE).domain_type(), Some(DomainType::Dma));
        for wanted in [DomainType::Identity, DomainType::DmaFq] {
            assert_eq!(set_type_trusted(&bench.group(ONE), wanted), Err(GroupError::TypeNotAllowed(wanted)));
        }
    }
}

#[test]
fn an_untrusted_device_whose_driver_insists_on_identity_gets_nothing() {
    let mut setup = setup().untrusted(ONE);
    setup.knobs.def_types.insert(ONE, DomainType::Identity);
    let (bench, result) = setup.boot();
    assert_eq!(result, Err(GroupError::TypeNotAllowed(DomainType::Identity)));
    assert_eq!(bench.group(ONE).bind(ONE).unwrap_err(), GroupError::NotReady);
    assert_eq!(bench.group(ONE).claim_dma_owner(Owner(1)), Err(GroupError::NotReady));
    assert_eq!(bench.group(ONE).set_type(DomainType::Dma), Err(GroupError::NotReady));
    assert_eq!(bench.toy.domain_of(ONE), None);
    // Others are not touched by that.
    bench.bind(ALONE);
}

#[test]
fn a_group_without_memory_for_its_domain_is_told_of() {
    let host = std::sync::Arc::new(common::Host::new());
    let toy = std::sync::Arc::new(Toy::new(Default::default()));
    toy.fail_paging();
    let iommu = iommu_core::Iommu::new(host, Settings::default(), None);
    iommu.register(toy);
    let probed = iommu.probe(&topology([endpoint(NIC)]), |_| false);
    assert_eq!(probed, Err(GroupError::Domain(DomainError::Exhausted)));
}

#[test]
fn binding_takes_trust_unless_the_domain_confines() {
    for (passthrough, lazy, kind) in [(true, false, DomainType::Identity), (false, true, DomainType::DmaFq)] {
        let bench = Setup { settings: settings(passthrough, lazy), ..setup() }.bench();
        assert_eq!(bench.group(ONE).bind(ONE).unwrap_err(), GroupError::NeedsTrust(kind));
        bench.bind_trusted(ONE);
    }
    let bench = setup().bench();
    assert_eq!(bench.group(ONE).bind(ALONE).unwrap_err(), GroupError::NoSuchDevice(ALONE));
}

#[test]
fn a_device_in_an_identity_domain_gets_physical_addresses() {
    let bench = Setup { settings: settings(true, false), ..setup() }.bench();
    let device = bench.bind_trusted(ONE);
    assert_eq!(map_page(&device), Ok(DmaAddr::new(0x10_0000)));
    assert_eq!(bench.toy.reach(ONE, DmaAddr::new(0x10_0000), false), Some(0x10_0000));
}

#[test]
fn drivers_of_a_group_are_counted() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let (one, two) = (bench.bind(ONE), bench.bind(TWO));
    drop(one);
    assert_eq!(group.claim_dma_owner(Owner(1)), Err(GroupError::Owned), "one is still bound");
    drop(two);
    group.claim_dma_owner(Owner(1)).unwrap();
}

#[test]
fn what_a_driver_made_keeps_the_device_bound() {
    let bench = setup().bench();
    let device = std::sync::Arc::new(bench.bind(ALONE));
    let memory = dma_api::CoherentSlice::<u64>::zeroed(&device, 8).unwrap();
    drop(device);
    assert_eq!(bench.group(ALONE).claim_dma_owner(Owner(1)), Err(GroupError::Owned));
    drop(memory);
    bench.group(ALONE).claim_dma_owner(Owner(1)).unwrap();
}

#[test]
fn a_claimed_group_is_blocked_until_its_owner_attaches_and_again_after() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let default = bench.toy.domain_of(ONE);
    let mapped = map_page(&bench.bind(ONE)).unwrap();
    group.claim_dma_owner(Owner(7)).unwrap();
    assert_eq!(group.domain().unwrap().domain_type(), DomainType::Blocked);
    assert_eq!(bench.toy.reach(TWO, mapped, false), None);
    assert_eq!(group.bind(ONE).unwrap_err(), GroupError::Busy);
    assert_eq!(group.claim_dma_owner(Owner(7)), Err(GroupError::Owned), "a claim is for the whole group");
    assert_eq!(group.set_type(DomainType::Identity), Err(GroupError::Owned));

    let mine = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    group.attach(&mine).unwrap();
    // SAFETY: the toy's devices touch nothing by themselves.
    unsafe { mine.map(DmaAddr::new(0), 0x7000.into(), PAGE, Prot::READ) }.1.unwrap();
    assert_eq!(bench.toy.reach(TWO, DmaAddr::new(0), false), Some(0x7000));
    assert_eq!(group.attach(&mine), Err(AttachError::Busy.into()), "something is attached");
    assert_eq!(
        group.attach(&group.alloc_unmanaged(PagingFlags::empty()).unwrap()),
        Err(AttachError::Busy.into())
    );
    group.detach().unwrap();
    assert_eq!(bench.toy.domain_of(ONE), Some(Toy::BLOCKED));

    assert_eq!(group.release_dma_owner(Owner(8)), Err(GroupError::Owned));
    group.release_dma_owner(Owner(7)).unwrap();
    assert_eq!(bench.toy.domain_of(ONE), default);
    assert_eq!(group.release_dma_owner(Owner(7)), Err(GroupError::Owned));
    bench.bind(ONE);
}

#[test]
fn nothing_is_attached_over_a_bound_driver() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let device = bench.bind(ONE);
    let other = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    assert_eq!(group.attach(&other), Err(GroupError::Owned));
    drop(device);
    group.attach(&other).unwrap();
    assert_eq!(group.bind(ONE).unwrap_err(), GroupError::Busy, "the group is not in its default domain");
    assert_eq!(group.claim_dma_owner(Owner(1)), Err(GroupError::Busy));
    group.detach().unwrap();
    bench.bind(ONE);
}

#[test]
fn when_the_second_device_does_not_attach_the_first_goes_back() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let default = bench.toy.domain_of(ONE);
    group.claim_dma_owner(Owner(1)).unwrap();
    let mine = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    bench.toy.refuse(TWO, AttachError::Exhausted, false);
    assert_eq!(group.attach(&mine), Err(AttachError::Exhausted.into()));
    assert_eq!((bench.toy.domain_of(ONE), bench.toy.domain_of(TWO)), (Some(1), Some(1)));
    assert_eq!(group.domain().unwrap().domain_type(), DomainType::Blocked);
    // The way back to the default domain cannot fail halfway either: then all are blocked.
    assert_eq!(group.release_dma_owner(Owner(1)), Err(AttachError::Exhausted.into()));
    assert_eq!((bench.toy.domain_of(ONE), bench.toy.domain_of(TWO)), (Some(1), Some(1)));
    bench.toy.refuse_nothing();
    group.detach().unwrap();
    assert_eq!(bench.toy.domain_of(TWO), default);
}

#[test]
fn a_group_whose_first_attach_fails_is_left_in_no_domain_that_is_gone() {
    let host = std::sync::Arc::new(common::Host::new());
    let toy = std::sync::Arc::new(Toy::new(Default::default()));
    toy.refuse(TWO, AttachError::Device, true);
    let iommu = iommu_core::Iommu::new(host, Settings::default(), None);
    iommu.register(toy.clone());
    let nodes = [multifunction(endpoint(ONE)), multifunction(endpoint(TWO))];
    let probed = iommu.probe(&topology(nodes), |_| false);
    assert_eq!(probed, Err(AttachError::Device.into()));
    assert_eq!((toy.domain_of(ONE), toy.domain_of(TWO)), (Some(Toy::BLOCKED), None));
    assert_eq!(iommu.group_of(ONE).unwrap().bind(ONE).unwrap_err(), GroupError::NotReady);
}

#[test]
fn domains_of_another_driver_are_incompatible() {
    let (ours, theirs) = (setup().bench(), setup().bench());
    let group = ours.group(ONE);
    group.claim_dma_owner(Owner(1)).unwrap();
    let foreign = theirs.group(ONE).alloc_unmanaged(PagingFlags::empty()).unwrap();
    assert_eq!(group.attach(&foreign), Err(AttachError::Incompatible.into()));
}

/// Changes a type for a group of devices that the test trusts.
fn set_type_trusted(group: &Group, wanted: DomainType) -> Result<(), GroupError> {
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    unsafe { group.set_type_trusted(wanted) }
}

#[test]
fn the_type_changes_while_nobody_is_bound() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let device = bench.bind(ONE);
    assert_eq!(group.set_type(DomainType::Dma), Ok(()), "it is that already");
    assert_eq!(set_type_trusted(&group, DomainType::Identity), Err(GroupError::Owned));
    assert_eq!(group.set_type(None), Err(GroupError::Owned));
    drop(device);
    let before = bench.toy.domain_of(ONE);
    group.set_type(DomainType::DmaFq).unwrap();
    let now = (group.domain_type(), bench.toy.domain_of(ONE));
    assert_eq!(now, (Some(DomainType::DmaFq), before), "in place");
    group.set_type(DomainType::Dma).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::Dma));
    assert_ne!(bench.toy.domain_of(ONE), before, "a new one");
    set_type_trusted(&group, DomainType::Identity).unwrap();
    assert_eq!(bench.toy.domain_of(TWO), Some(Toy::IDENTITY));
    for wanted in [DomainType::Unmanaged, DomainType::Blocked, DomainType::Sva, DomainType::Nested] {
        assert_eq!(set_type_trusted(&group, wanted), Err(GroupError::TypeNotAllowed(wanted)));
    }
    assert_eq!(group.domain_type(), Some(DomainType::Identity));
    group.set_type(None).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::Dma), "auto: what the settings choose");
}

#[test]
fn a_type_that_cannot_be_had_leaves_the_group_as_it_was() {
    let mut setup = setup();
    setup.knobs.can_defer = false;
    setup.knobs.has_identity = false;
    setup.knobs.def_types.insert(ALONE, DomainType::Dma);
    let bench = setup.bench();
    let group = bench.group(ONE);
    let before = bench.toy.domain_of(ONE);
    assert_eq!(group.set_type(DomainType::DmaFq), Err(GroupError::TypeNotAllowed(DomainType::DmaFq)));
    assert_eq!(set_type_trusted(&group, DomainType::Identity), Err(DomainError::Unsupported.into()));
    let insisted = set_type_trusted(&bench.group(ALONE), DomainType::Identity);
    assert_eq!(insisted, Err(GroupError::TypeNotAllowed(DomainType::Identity)));
    assert_eq!((group.domain_type(), bench.toy.domain_of(ONE)), (Some(DomainType::Dma), before));
    bench.bind(ONE);
}

fn with_direct(kind: ResvType) -> Bench {
    setup().region(TWO, region(0x20_0000, 0x20_2800, kind)).bench()
}

#[test]
fn direct_regions_are_mapped_before_the_group_is_attached() {
    for kind in [ResvType::Direct, ResvType::DirectRelaxable] {
        let bench = with_direct(kind);
        let log = bench.toy.take_log();
        let first_attach = log.iter().position(|did| matches!(did, Did::Attach { device: ONE, .. })).unwrap();
        let mapped = log[..first_attach].iter().filter(|did| {
            matches!(did, Did::Map { iova, phys, len: PAGE, prot } if iova == phys && *prot == Prot::READ | Prot::WRITE)
        });
        assert_eq!(mapped.count(), 3, "page by page: {kind:?}");
        let at = DmaAddr::new(0x20_2000);
        assert_eq!(bench.toy.reach(ONE, at, true), Some(0x20_2000), "for the whole group");
        assert_eq!(bench.toy.reach(ALONE, at, true), None);
    }
}

#[test]
fn overlapping_direct_regions_are_mapped_once() {
    let setup = setup().region(ONE, region(0x20_0000, 0x20_2000, ResvType::Direct));
    let bench = setup.region(TWO, region(0x20_1000, 0x20_3000, ResvType::Direct)).bench();
    assert_eq!(bench.toy.reach(ONE, DmaAddr::new(0x20_2000), true), Some(0x20_2000));
}

#[test]
fn only_direct_regions_are_mapped() {
    for kind in [ResvType::Reserved, ResvType::Msi] {
        let bench = with_direct(kind);
        assert_eq!(bench.toy.reach(TWO, DmaAddr::new(0x20_0000), true), None, "{kind:?}");
    }
}

#[test]
fn what_firmware_needs_cannot_be_blocked() {
    let bench = with_direct(ResvType::Direct);
    let group = bench.group(ONE);
    let before = bench.toy.domain_of(TWO);
    assert_eq!(group.claim_dma_owner(Owner(1)), Err(AttachError::RequiresDirect.into()));
    let other = bench.group(ALONE);
    other.claim_dma_owner(Owner(1)).unwrap();
    assert_eq!(group.attach(&other.domain().unwrap()), Err(AttachError::RequiresDirect.into()));
    assert_eq!(bench.toy.domain_of(TWO), before);
    bench.bind(ONE);
    // A relaxable region is firmware's only until a driver takes over.
    with_direct(ResvType::DirectRelaxable).group(ONE).claim_dma_owner(Owner(1)).unwrap();
}

#[test]
fn a_device_that_comes_later_joins_what_it_cannot_be_kept_apart_from() {
    let mut setup = setup().region(TWO, region(0x20_0000, 0x20_1000, ResvType::DirectRelaxable));
    let whole = std::mem::replace(&mut setup.topology, topology([multifunction(endpoint(ONE))]));
    let bench = setup.bench();
    let group = bench.group(ONE);
    let at = map_page(&bench.bind(ONE)).unwrap();
    bench.iommu.probe(&whole, |_| false).unwrap();
    assert_eq!((group.devices(), group.explain().len()), (vec![ONE, TWO], 1));
    assert_eq!(bench.iommu.groups().len(), 2, "and one has a group of its own");
    assert_eq!(bench.toy.reach(TWO, at, false), Some(0x10_0000));
    assert_eq!(bench.toy.reach(TWO, DmaAddr::new(0x20_0000), false), Some(0x20_0000));
    // Probing again changes nothing.
    bench.iommu.probe(&whole, |_| false).unwrap();
    assert_eq!(group.devices(), [ONE, TWO]);
    // What is removed and found again comes back.
    bench.iommu.remove(TWO);
    assert_eq!(group.devices(), [ONE]);
    bench.iommu.probe(&whole, |_| false).unwrap();
    assert_eq!(group.devices(), [ONE, TWO]);
}

#[test]
fn a_group_that_has_lost_its_devices_goes_with_its_domain_once_nobody_has_it() {
    let nodes = topology([endpoint(ALONE)]);
    let bench = Setup { topology: nodes.clone(), ..Setup::default() }.bench();
    let device = bench.bind(ALONE);
    let old = std::sync::Arc::downgrade(&bench.group(ALONE).domain().unwrap());
    let at = map_page(&device).unwrap();
    bench.iommu.remove(ALONE);
    bench.iommu.probe(&nodes, |_| false).unwrap();
    assert_eq!(
        bench.iommu.groups().len(),
        2,
        "the old one is bound, and the device found again has a new one"
    );
    unmap_page(&device, at).unwrap();
    drop(device);
    for _ in 0..3 {
        bench.iommu.remove(ALONE);
        bench.iommu.probe(&nodes, |_| false).unwrap();
        assert_eq!(bench.iommu.groups().len(), 1);
    }
    assert!(old.upgrade().is_none());
    map_page(&bench.bind(ALONE)).unwrap();
    assert_eq!(
        (bench.iommu.statistics().maps, bench.iommu.statistics().unmaps),
        (2, 1),
        "counted all the same"
    );
}

#[test]
fn a_device_that_comes_later_into_a_claimed_group_goes_to_its_owners_domain() {
    let mut setup = setup();
    let whole = std::mem::replace(&mut setup.topology, topology([multifunction(endpoint(ONE))]));
    let bench = setup.bench();
    let group = bench.group(ONE);
    group.claim_dma_owner(Owner(1)).unwrap();
    group.attach(&group.alloc_unmanaged(PagingFlags::empty()).unwrap()).unwrap();
    bench.iommu.probe(&whole, |_| false).unwrap();
    assert_eq!(bench.toy.domain_of(TWO), bench.toy.domain_of(ONE));
}

#[test]
fn an_untrusted_device_that_comes_later_into_an_identity_group_is_blocked() {
    let mut setup = Setup { settings: settings(true, false), ..setup() };
    let whole = std::mem::replace(&mut setup.topology, topology([multifunction(endpoint(ONE))]));
    let bench = setup.bench();
    let probed = bench.iommu.probe(&whole, |address| address == TWO);
    assert_eq!(probed, Err(GroupError::TypeNotAllowed(DomainType::Identity)));
    assert_eq!((bench.toy.domain_of(TWO), bench.group(ONE).devices()), (None, vec![ONE]));
    assert_eq!(bench.toy.domain_of(ONE), Some(Toy::IDENTITY));
}

#[test]
fn types_are_written_as_in_sysfs() {
    let all = [
        DomainType::Blocked,
        DomainType::Identity,
        DomainType::Unmanaged,
        DomainType::Dma,
        DomainType::DmaFq,
    ];
    assert_eq!(all.map(|kind| kind.to_string()), ["blocked", "identity", "unmanaged", "DMA", "DMA-FQ"]);
}
