//! Registering drivers, probing devices in two passes, and letting them go.

mod common;

use std::sync::Arc;

use common::{
    Bench, Did, Host, NIC, Setup, Toy, endpoint, map_page, multifunction, region, topology, unmap_page,
};
use dma_api::DmaError;
use iommu_core::pci::{Reason, Topology};
use iommu_core::{
    AttachError, Capability, DeviceGroup, DomainType, GroupError, Iommu, IommuOps, Owner, PagingFlags,
    ResvType, Settings, Trust,
};
use platform::pci::PciAddress;

const ONE: PciAddress = PciAddress::new(0, 0, 4, 0);
const TWO: PciAddress = PciAddress::new(0, 0, 4, 1);
const ALONE: PciAddress = PciAddress::new(0, 0, 5, 0);

fn tree() -> Topology {
    topology([multifunction(endpoint(ONE)), multifunction(endpoint(TWO)), endpoint(ALONE)])
}

fn setup() -> Setup {
    Setup { topology: tree(), ..Setup::default() }
}

/// Two drivers; the first one does not have ALONE.
fn two_drivers() -> (Iommu, [Arc<Toy>; 2]) {
    let iommu = Iommu::new(Arc::new(Host::new()), Settings::default(), None);
    let mut knobs = common::Knobs::default();
    knobs.not_mine.insert(ALONE);
    let toys = [Arc::new(Toy::new(knobs)), Arc::new(Toy::new(Default::default()))];
    toys.iter().for_each(|toy| iommu.register(toy.clone()));
    iommu.probe(&tree(), |_| false).unwrap();
    (iommu, toys)
}

#[test]
fn several_drivers_have_each_its_devices() {
    let (iommu, [first, second]) = two_drivers();
    assert!(first.domain_of(ONE).is_some() && first.domain_of(ALONE).is_none());
    assert!(second.domain_of(ALONE).is_some() && second.domain_of(ONE).is_none());
    let mine = iommu.group_of(ONE).unwrap().alloc_unmanaged(Default::default()).unwrap();
    let other = iommu.group_of(ALONE).unwrap();
    assert_eq!(other.attach(&mine), Err(AttachError::Incompatible.into()));
}

#[test]
fn a_driver_that_goes_takes_its_devices_with_it() {
    let (iommu, [first, second]) = two_drivers();
    let driver: Arc<dyn IommuOps> = first.clone();
    iommu.unregister(&driver);
    assert!(iommu.group_of(ONE).is_none() && iommu.group_of(TWO).is_none());
    assert_eq!((first.domain_of(ONE), first.domain_of(TWO)), (None, None));
    assert!(iommu.group_of(ALONE).is_some());
    // The other one takes what nobody has.
    iommu.probe(&tree(), |_| false).unwrap();
    assert!(second.domain_of(ONE).is_some());
}

#[test]
fn all_groups_are_formed_before_the_first_default_domain() {
    let mut setup = setup();
    // Were ONE set up alone it would be translated.
    setup.knobs.def_types.insert(TWO, DomainType::Identity);
    let bench = setup.bench();
    assert_eq!(bench.group(ONE).domain_type(), Some(DomainType::Identity));
    let log = bench.toy.take_log();
    let attached = log.iter().filter(|did| matches!(did, Did::Attach { device: ONE, .. })).count();
    assert_eq!(attached, 1, "and nobody moves twice");
}

#[test]
fn a_device_is_finalised_once_it_is_in_its_domain() {
    let bench = setup().bench();
    let log = bench.toy.take_log();
    for device in [ONE, TWO, ALONE] {
        let attached =
            log.iter().position(|did| matches!(did, Did::Attach { device: it, .. } if *it == device));
        let finalised = log.iter().position(|did| *did == Did::Finalize(device));
        assert!(attached.unwrap() < finalised.unwrap(), "{device}");
    }
    bench.iommu.probe(&tree(), |_| false).unwrap();
    assert_eq!(bench.toy.take_log(), [], "once");
    bench.iommu.remove(TWO);
    bench.iommu.probe(&tree(), |_| false).unwrap();
    assert_eq!(bench.toy.take_log().last(), Some(&Did::Finalize(TWO)), "who comes later, too");
}

#[test]
fn a_group_that_could_not_be_set_up_gets_another_try() {
    let host = Arc::new(Host::new());
    let toy = Arc::new(Toy::new(Default::default()));
    let iommu = Iommu::new(host, Settings::default(), None);
    iommu.register(toy.clone());
    toy.fail_after(0);
    assert!(iommu.probe(&topology([endpoint(NIC)]), |_| false).is_err());
    assert_eq!(iommu.group_of(NIC).unwrap().bind(NIC).unwrap_err(), GroupError::NotReady);
    iommu.probe(&topology([endpoint(NIC)]), |_| false).unwrap();
    iommu.group_of(NIC).unwrap().bind(NIC).unwrap();
}

#[test]
fn a_device_that_cannot_join_is_let_go() {
    let part = topology([multifunction(endpoint(ONE))]);
    let bench = Setup { topology: part, ..Setup::default() }.bench();
    let group = bench.group(ONE);
    bench.toy.refuse(TWO, AttachError::Device, false);
    assert_eq!(bench.iommu.probe(&tree(), |_| false), Err(AttachError::Device.into()));
    assert_eq!(group.devices(), [ONE]);
    assert_eq!(group.bind(TWO).unwrap_err(), GroupError::NoSuchDevice(TWO));
    assert_eq!((bench.toy.domain_of(TWO), group.explain()), (None, vec![]));
    bench.toy.refuse_nothing();
    bench.iommu.probe(&tree(), |_| false).unwrap();
    assert_eq!((group.devices(), group.explain().len()), (vec![ONE, TWO], 1));
}

#[test]
fn a_driver_may_have_a_group_for_each_device() {
    let mut setup = setup();
    setup.knobs.grouping.extend([(ONE, DeviceGroup::Generic), (TWO, DeviceGroup::Generic)]);
    let bench = setup.bench();
    assert_eq!(bench.group(ONE).devices(), [ONE]);
    assert_eq!(bench.group(TWO).devices(), [TWO]);
    assert_eq!(bench.group(TWO).explain(), []);
}

#[test]
fn a_driver_may_have_one_group_for_all() {
    let all = [ONE, TWO, ALONE];
    let mut setup = setup();
    setup.knobs.grouping.extend(all.map(|device| (device, DeviceGroup::Single)));
    let bench = setup.bench();
    let group = bench.group(ALONE);
    assert_eq!(group.devices(), all);
    let tied = |of| Reason::OneTranslation { of, other: ONE };
    assert_eq!(group.outline(), [tied(TWO), tied(ALONE)]);
    // Who comes later joins.
    bench.iommu.remove(TWO);
    bench.iommu.probe(&tree(), |_| false).unwrap();
    assert_eq!(bench.group(TWO).id(), group.id());
}

#[test]
fn the_reasons_of_a_device_go_with_it() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    for device in [TWO, ONE] {
        bench.iommu.remove(device);
        assert_eq!(group.explain(), [], "nobody shares");
        bench.iommu.probe(&tree(), |_| false).unwrap();
        assert_eq!(group.explain().len(), 1);
    }
}

#[test]
fn the_lowest_free_number_is_a_new_groups() {
    let bench = setup().bench();
    assert_eq!((bench.group(ONE).id(), bench.group(ALONE).id()), (0, 1));
    bench.iommu.remove(ONE);
    bench.iommu.remove(TWO);
    bench.iommu.probe(&tree(), |_| false).unwrap();
    assert_eq!((bench.group(ONE).id(), bench.group(ALONE).id()), (0, 1));
    let ids: Vec<u32> = bench.iommu.groups().iter().map(|group| group.id()).collect();
    assert_eq!(ids, [0, 1]);
}

#[test]
fn a_group_has_a_name_when_somebody_gives_it_one() {
    let bench = setup().bench();
    assert_eq!(bench.group(ONE).name(), None);
    bench.group(ONE).set_name("vfio-noiommu");
    assert_eq!(bench.group(TWO).name().as_deref(), Some("vfio-noiommu"));
}

#[test]
fn reserved_regions_are_listed_sorted_and_merged_by_type() {
    let setup = setup()
        .region(TWO, region(0xfee0_0000, 0xfef0_0000, ResvType::Msi))
        .region(ONE, region(0x3000, 0x5000, ResvType::Direct))
        .region(TWO, region(0x1000, 0x3000, ResvType::Direct))
        .region(ONE, region(0x2000, 0x2800, ResvType::Reserved))
        .region(ONE, region(0x800_0000, 0x810_0000, ResvType::SwMsi))
        .region(TWO, region(0x9000, 0x9000, ResvType::Reserved))
        .region(ALONE, region(0x7000, 0x8000, ResvType::DirectRelaxable));
    let bench = setup.bench();
    let lines = |device| {
        let regions = bench.group(device).resv_regions();
        regions.iter().map(|region| region.to_string()).collect::<Vec<_>>()
    };
    let expected = [
        "0x0000000000001000 0x0000000000004fff direct",
        "0x0000000000002000 0x00000000000027ff reserved",
        "0x0000000008000000 0x00000000080fffff msi",
        "0x00000000fee00000 0x00000000feefffff msi",
    ];
    assert_eq!(lines(ONE), expected);
    assert_eq!(lines(ALONE), ["0x0000000000007000 0x0000000000007fff direct-relaxable"]);
}

#[test]
fn a_device_can_be_asked_about() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    assert_eq!(group.capable(ONE, Capability::CacheCoherency), Ok(true));
    assert_eq!(group.capable(ONE, Capability::PciAtsSupported), Ok(false));
    assert_eq!(group.capable(ALONE, Capability::NoExec), Err(GroupError::NoSuchDevice(ALONE)));
    assert_eq!(group.hw_info(TWO).unwrap().unwrap().kind, 7);
}

/// A bench whose devices are not translated.
fn untranslated() -> Bench {
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    let settings = Settings { passthrough: Some(unsafe { Trust::new() }), ..Settings::default() };
    Setup { settings, ..setup() }.bench()
}

#[test]
fn a_removed_device_is_gone_in_every_kind_of_domain() {
    for bench in [setup().bench(), setup().lazy().bench(), untranslated()] {
        let device = bench.bind_trusted(ONE);
        let at = map_page(&device).unwrap();
        bench.iommu.remove(ONE);
        assert_eq!(map_page(&device), Err(DmaError::Gone));
        let device = Arc::new(device);
        assert_eq!(dma_api::Coherent::new(&device, 1_u64).err(), Some(DmaError::Gone));
        unmap_page(&device, at).unwrap();
    }
}

#[test]
fn counts_go_on_when_the_type_changes() {
    let bench = setup().lazy().bench();
    let device = bench.bind_trusted(ONE);
    for _ in 0..3 {
        let at = map_page(&device).unwrap();
        unmap_page(&device, at).unwrap();
    }
    drop(device);
    bench.group(ONE).set_type(DomainType::Dma).unwrap();
    assert_eq!((bench.iommu.statistics().maps, bench.iommu.statistics().unmaps), (3, 3));
    let device = bench.bind(ONE);
    map_page(&device).unwrap();
    assert_eq!((bench.iommu.statistics().maps, bench.iommu.statistics().unmaps), (4, 3));
}

#[test]
fn nothing_is_allocated_for_no_bytes() {
    for bench in [setup().bench(), untranslated()] {
        let device = bench.bind_trusted(ONE);
        let none = device.ops().alloc(device.parms(), 0, dma_api::Attrs::empty());
        assert_eq!(none.err(), Some(DmaError::InvalidLength(0)));
    }
}

#[test]
fn when_the_core_goes_no_device_stays_in_a_domain_that_goes_with_it() {
    let bench = setup().bench();
    let group = bench.group(ONE);
    let mine = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    group.attach(&mine).unwrap();
    let (live, alone) = (Arc::downgrade(&mine), bench.bind(ALONE));
    let Bench { toy, iommu, host: _host, pool: _pool } = bench;
    drop((group, mine, iommu));
    assert_eq!((toy.domain_of(ONE), toy.domain_of(TWO)), (Some(Toy::BLOCKED), Some(Toy::BLOCKED)));
    assert!(live.upgrade().is_none());
    // A device that is bound keeps its group.
    let at = map_page(&alone).unwrap();
    assert_eq!(toy.reach(ALONE, at, false), Some(0x10_0000));
    drop(alone);
    assert_eq!(toy.domain_of(ALONE), Some(Toy::BLOCKED));
}

#[test]
fn a_group_tells_what_sysfs_does() {
    let direct = region(0x20_0000, 0x20_2000, ResvType::DirectRelaxable);
    let window = region(0xfee0_0000, 0xfef0_0000, ResvType::Msi);
    let bench = Setup::default().region(NIC, window).region(NIC, direct).lazy().bench();
    let group = bench.group(NIC);
    let rest = "\n  0000:00:03.0 behind toy\n  0x0000000000200000 0x0000000000201fff direct-relaxable\n  \
                0x00000000fee00000 0x00000000feefffff msi";
    assert_eq!(group.to_string(), format!("group 0: DMA-FQ{rest}"));
    group.set_name("disks");
    group.claim_dma_owner(Owner(1)).unwrap();
    assert_eq!(group.to_string(), format!("group 0 \"disks\": DMA-FQ, now blocked{rest}"));
    bench.iommu.remove(NIC);
    assert_eq!(group.to_string(), "group 0 \"disks\": DMA-FQ, now blocked");
    // Without a domain nobody knows.
    let bench = Setup { topology: Topology::new(), ..Setup::default() }.bench();
    bench.toy.fail_paging();
    bench.iommu.probe(&Setup::default().topology, |_| false).unwrap_err();
    assert_eq!(bench.group(NIC).to_string(), "group 0: unknown\n  0000:00:03.0 behind toy");
}

#[test]
fn drivers_are_listed_in_the_order_in_which_they_are_asked() {
    let (iommu, toys) = two_drivers();
    let drivers = iommu.drivers();
    let address = |toy: &Arc<Toy>| Arc::as_ptr(toy).cast::<()>();
    let listed: Vec<_> = drivers.iter().map(|driver| Arc::as_ptr(driver).cast::<()>()).collect();
    assert_eq!(listed, toys.each_ref().map(address));
    iommu.unregister(&drivers[0]);
    assert_eq!(iommu.drivers().len(), 1);
}
