//! Devices and domains: what is written to the device table and which commands follow, in which order.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use amd_vi::{AmdVi, Config};
use common::*;
use iommu_core::{AttachError, Capability, DomainOps, IommuOps, ProbeError, ResvType};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, IotlbGather, LeakCounter, PhysAddr, Prot};

const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0100) };
const OTHER: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0010) };
/// Its requests carry the name of [`DEV`].
const ALIASED: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0101) };

const BLOCKED: u64 = 1;
const FORWARD: u64 = 1 | 1 << 60;
const ALL: u64 = 0x7fff_ffff_ffff_f003;

fn pages(domain: u64, q1: u64) -> (u64, u64) {
    (3 << 60 | domain << 32, q1)
}

fn paging(setup: &Setup, dev: PciAddress) -> Arc<dyn DomainOps> {
    setup.driver.probe_device(dev).unwrap();
    setup.driver.domain_alloc_paging(dev).unwrap()
}

fn domain_of(entry: [u64; 4]) -> u64 {
    entry[1] & 0xffff
}

#[test]
fn an_attached_device_has_its_domains_table() {
    let setup = bring_up();
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    let entry = setup.unit.entry(0x0100);
    assert_eq!(entry[0] & !0x000f_ffff_ffff_f000, 0x6000_0000_0000_0603, "V, TV, three levels, IR, IW");
    assert_ne!(entry[0] & 0x000f_ffff_ffff_f000, 0);
    assert_ne!(domain_of(entry), 0);
    assert_eq!((entry[2], entry[3]), (FORWARD, 0));
    assert_eq!(setup.unit.entry(0x0101), [1, 0, 1, 0], "the neighbour is as it was");
}

#[test]
fn the_unit_forgets_the_blocked_entry_when_a_device_is_attached() {
    let setup = bring_up();
    let domain = paging(&setup, DEV);
    setup.unit.take_entries();
    attach(&*domain, DEV, None).unwrap();
    // The last thing that the unit read anew is the entry as it is now.
    let entries = setup.unit.take_entries();
    assert_eq!(entries.last(), Some(&(0x0100, setup.unit.entry(0x0100))));
}

#[test]
fn an_entry_is_never_seen_with_the_root_of_one_domain_and_the_tag_of_another() {
    let setup = bring_up();
    let (first, second) = (paging(&setup, DEV), paging(&setup, DEV));
    attach(&*first, DEV, None).unwrap();
    let old = setup.unit.entry(0x0100);
    setup.unit.take_entries();
    setup.unit.take_commands();
    attach(&*second, DEV, Some(&*first)).unwrap();
    let new = setup.unit.entry(0x0100);
    assert!(old[0] != new[0] && old[1] != new[1]);
    let seen: Vec<[u64; 4]> = setup.unit.take_entries().into_iter().map(|(_, entry)| entry).collect();
    assert_eq!(seen, [[BLOCKED, old[1], old[2], old[3]], [BLOCKED, new[1], new[2], new[3]], new,]);
    // Each step is finished before the next begins, and the old domain's pages go after the last.
    let commands = setup.unit.take_commands();
    let ops: Vec<u64> = commands.iter().map(|(q0, _)| q0 >> 60).collect();
    assert_eq!(ops, [2, 5, 1, 2, 5, 1, 2, 5, 1, 3, 1]);
    assert_eq!(commands[9], pages(domain_of(old), ALL));
}

#[test]
fn identity_and_blocked_domains() {
    let setup = bring_up();
    setup.driver.probe_device(DEV).unwrap();
    let (identity, blocked) =
        (setup.driver.identity_domain().unwrap(), setup.driver.blocked_domain().unwrap());
    attach(&*identity, DEV, None).unwrap();
    let entry = setup.unit.entry(0x0100);
    assert_eq!(entry[0], 0x6000_0000_0000_0003);
    assert_ne!(entry[1], 0);
    attach(&*blocked, DEV, Some(&*identity)).unwrap();
    assert_eq!(setup.unit.entry(0x0100), [BLOCKED, 0, FORWARD, 0]);
    assert_eq!(setup.unit.take_entries().last(), Some(&(0x0100, [BLOCKED, 0, FORWARD, 0])));
}

#[test]
fn firmwares_flags_survive_every_change() {
    let setup = bring_up();
    let southbridge = PciAddress::new(0, 0, 0x14, 0);
    let domain = paging(&setup, southbridge);
    attach(&*domain, southbridge, None).unwrap();
    let kept = |entry: [u64; 4]| (entry[1] >> 40 & 3, entry[2] >> 56);
    assert_eq!(kept(setup.unit.entry(0x00a0)), (1, 0xd7));
    setup.driver.release_device(southbridge);
    assert_eq!(kept(setup.unit.entry(0x00a0)), (1, 0xc7));
}

#[test]
fn a_released_device_is_blocked_and_forgotten() {
    let setup = bring_up();
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    let id = domain_of(setup.unit.entry(0x0100));
    setup.unit.take_commands();
    setup.driver.release_device(DEV);
    assert_eq!(setup.unit.entry(0x0100), [1, 0, 1, 0]);
    let commands = setup.unit.take_invalidations();
    assert!(commands.contains(&(2 << 60 | 0x0100, 0)));
    assert_eq!(commands.last(), Some(&pages(id, ALL)));
    assert_eq!(attach(&*domain, DEV, None), Err(AttachError::Device));
}

#[test]
fn aliases_are_written_alike() {
    let setup = bring_up();
    let probed = setup.driver.probe_device(ALIASED).unwrap();
    assert_eq!(probed.aliases, [RequesterId::new(0x0100)]);
    let domain = setup.driver.domain_alloc_paging(ALIASED).unwrap();
    setup.unit.take_entries();
    attach(&*domain, ALIASED, None).unwrap();
    assert_eq!(setup.unit.entry(0x0101), setup.unit.entry(0x0100));
    assert_eq!(setup.unit.entry(0x0100)[0] & 3, 3);
    assert!(setup.unit.take_entries().contains(&(0x0100, setup.unit.entry(0x0100))));
    // While the function of that name is there itself, its entry is not taken from it.
    setup.driver.probe_device(DEV).unwrap();
    setup.driver.release_device(ALIASED);
    assert_eq!(setup.unit.entry(0x0101), [1, 0, 1, 0]);
    assert_eq!(setup.unit.entry(0x0100)[0] & 3, 3);
}

#[test]
fn the_iommu_itself_and_strangers_are_not_translated() {
    let setup = bring_up();
    assert_eq!(setup.driver.probe_device(IOMMU), Err(ProbeError::NotMine));
    assert_eq!(setup.driver.probe_device(PciAddress::new(0, 2, 0, 0)), Err(ProbeError::NotMine));
    assert_eq!(setup.driver.probe_device(PciAddress::new(1, 1, 0, 0)), Err(ProbeError::NotMine));
    assert!(setup.driver.domain_alloc_paging(IOMMU).is_err());
}

/// Maps pages at `iova` and unmaps them with a gather of `leaks`.
fn map_and_unmap<'a>(
    domain: &dyn DomainOps,
    iova: u64,
    page_size: u64,
    count: usize,
    leaks: &'a LeakCounter,
) -> IotlbGather<'a> {
    let (iova, phys) = (DmaAddr::new(iova), PhysAddr::new(0x40_0000_0000));
    let mut gather = IotlbGather::new(leaks);
    // SAFETY: the unit of these tests does not access memory by such mappings.
    unsafe {
        let mapped = domain.map_pages(iova, phys, page_size, count, Prot::READ | Prot::WRITE);
        assert_eq!(mapped, (page_size * count as u64, Ok(())));
        assert_eq!(domain.iova_to_phys(iova), Some(phys));
        assert_eq!(domain.unmap(iova, page_size * count as u64, &mut gather), page_size * count as u64);
        assert_eq!(domain.iova_to_phys(iova), None);
    }
    gather
}

#[test]
fn a_sync_invalidates_the_range_and_waits() {
    let setup = bring_up();
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    let id = domain_of(setup.unit.entry(0x0100));
    setup.unit.take_commands();
    let leaks = LeakCounter::new();
    let gather = map_and_unmap(&*domain, 0x7f_1234_0000, 0x1000, 16, &leaks);
    assert_eq!(setup.unit.take_commands(), [], "nothing is invalidated before the sync");
    domain.iotlb_sync(&gather).unwrap();
    let commands = setup.unit.take_commands();
    assert_eq!(commands[0], pages(id, 0x7f_1234_7003));
    assert_eq!((commands.len(), commands[1].0 >> 60), (2, 1));

    setup.unit.switches.manual.store(true, Ordering::Relaxed);
    assert!(domain.iotlb_sync(&gather).is_err(), "the unit did not say that it was done");
}

#[test]
fn a_range_that_is_no_power_of_two_gets_the_smallest_one_around_it() {
    let setup = bring_up();
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    setup.unit.take_commands();
    let leaks = LeakCounter::new();
    let gather = map_and_unmap(&*domain, 0x1_0000_3000, 0x1000, 3, &leaks);
    domain.iotlb_sync(&gather).unwrap();
    // 3000h to 5fffh lies in 0000h to 7fffh.
    let commands = setup.unit.take_invalidations();
    assert_eq!(commands.len(), 1);
    assert_eq!(commands[0].1, 0x1_0000_3003);
}

#[test]
fn a_unit_that_remembers_absence_hears_of_maps_and_gets_exact_ranges() {
    let setup = bring_up_with(true, FEATURES, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    assert!(domain.needs_sync_map());
    assert!(setup.driver.capable(DEV, Capability::DeferredFlush), "who asks for it by name gets it");
    assert!(setup.driver.strict_by_default(DEV));
    setup.unit.take_commands();
    domain.iotlb_sync_map(DmaAddr::new(0x1000), 0x7000).unwrap();
    let fields: Vec<u64> = setup.unit.take_invalidations().iter().map(|(_, q1)| *q1).collect();
    assert_eq!(fields, [0x1002, 0x2003, 0x5003]);
}

#[test]
fn other_units_hear_nothing_of_maps() {
    let setup = bring_up();
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    assert!(!domain.needs_sync_map());
    assert!(setup.driver.capable(DEV, Capability::DeferredFlush));
    assert!(!setup.driver.strict_by_default(DEV));
    setup.unit.take_commands();
    domain.iotlb_sync_map(DmaAddr::new(0x1000), 0x7000).unwrap();
    assert_eq!(setup.unit.take_commands(), []);
}

#[test]
fn only_units_with_a_device_in_the_domain_are_told() {
    let (first, second) = (FakeUnit::new(FEATURES), FakeUnit::new(FEATURES));
    let machine = Machine::new();
    let mut hardware = hardware(&first, false);
    let second_iommu = PciAddress { segment: 1, id: RequesterId::new(2) };
    hardware.units.insert(BASE + 0x8_0000, second.clone());
    hardware.config.add_iommu(second_iommu, BASE + 0x8_0000, false);
    let mut block = ivhd(0x10, 2, BASE + 0x8_0000, ENTRIES);
    block[16] = 1;
    let driver = try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES), block]).unwrap();
    let far = PciAddress { segment: 1, ..DEV };
    driver.probe_device(DEV).unwrap();
    driver.probe_device(far).unwrap();
    let domain = driver.domain_alloc_paging(DEV).unwrap();
    let told = || {
        let told = (first.take_invalidations().len(), second.take_invalidations().len());
        domain.flush_iotlb_all().unwrap();
        let flushed = (first.take_invalidations().len(), second.take_invalidations().len());
        (told, flushed).1
    };
    assert_eq!(told(), (0, 0));
    attach(&*domain, DEV, None).unwrap();
    assert_eq!(told(), (1, 0));
    attach(&*domain, far, None).unwrap();
    assert_eq!(told(), (1, 1));
    attach(&*driver.blocked_domain().unwrap(), DEV, Some(&*domain)).unwrap();
    assert_eq!(told(), (0, 1));
    // Each segment has a table of its own.
    assert_eq!(first.entry(0x0100)[0], BLOCKED);
    assert_eq!(second.entry(0x0100)[0] & 3, 3);
}

#[test]
fn an_attach_that_the_unit_does_not_answer_changes_nothing() {
    let setup = bring_up();
    let (first, second) = (paging(&setup, DEV), paging(&setup, DEV));
    attach(&*first, DEV, None).unwrap();
    let before = setup.unit.entry(0x0100);
    setup.unit.switches.lose_completions.store(true, Ordering::Relaxed);
    assert_eq!(attach(&*second, DEV, Some(&*first)), Err(AttachError::Device));
    // The unit cannot be told of the old entry either, so the device is blocked, never half-way.
    assert_eq!(setup.unit.entry(0x0100)[0], BLOCKED);
    setup.unit.switches.lose_completions.store(false, Ordering::Relaxed);
    attach(&*first, DEV, Some(&*first)).unwrap();
    assert_eq!(setup.unit.entry(0x0100), before);
    // The tables of both are given up: the unit may have read either entry.
    let live = setup.machine.live.load(Ordering::Relaxed);
    drop(second);
    assert_eq!(setup.machine.live.load(Ordering::Relaxed), live);
}

#[test]
fn a_dropped_domain_is_forgotten_before_its_table_is_freed() {
    let setup = bring_up();
    let live = setup.machine.live.load(Ordering::Relaxed);
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    let id = domain_of(setup.unit.entry(0x0100));
    attach(&*setup.driver.blocked_domain().unwrap(), DEV, None).unwrap();
    setup.unit.take_commands();
    drop(domain);
    assert_eq!(setup.unit.take_invalidations(), [pages(id, ALL)]);
    assert_eq!(setup.machine.live.load(Ordering::Relaxed), live);
}

#[test]
fn an_attached_device_keeps_its_domain() {
    let setup = bring_up();
    let domain = paging(&setup, DEV);
    attach(&*domain, DEV, None).unwrap();
    let live = setup.machine.live.load(Ordering::Relaxed);
    drop(domain);
    assert_eq!(setup.machine.live.load(Ordering::Relaxed), live);
    setup.driver.release_device(DEV);
    assert!(setup.machine.live.load(Ordering::Relaxed) < live);
}

#[test]
fn domains_have_tags_of_their_own() {
    let setup = bring_up();
    setup.driver.probe_device(DEV).unwrap();
    attach(&*setup.driver.identity_domain().unwrap(), DEV, None).unwrap();
    let identity = domain_of(setup.unit.entry(0x0100));
    let (first, second) = (paging(&setup, DEV), paging(&setup, OTHER));
    attach(&*first, DEV, None).unwrap();
    attach(&*second, OTHER, None).unwrap();
    let tags = [identity, domain_of(setup.unit.entry(0x0100)), domain_of(setup.unit.entry(0x0010))];
    assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[0] != tags[2] && !tags.contains(&0));
}

#[test]
fn a_unit_without_host_translation_has_no_paging_domains() {
    let setup = bring_up_with(false, FEATURES | 3 << 10, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    setup.driver.probe_device(DEV).unwrap();
    assert!(setup.driver.domain_alloc_paging(DEV).is_err());
    assert!(attach(&*setup.driver.identity_domain().unwrap(), DEV, None).is_ok());
}

#[test]
fn reserved_regions() {
    let blocks = [
        ivhd(0x10, 2, BASE, ENTRIES),
        ivmd(0x21, 0x07, 0x0100, 0, 0x7d90_0000, 0x10_0000),
        ivmd(0x22, 0x08, 0x0100, 0x0110, 0x75e0_0800, 0x800),
        ivmd(0x21, 0x03, 0x0010, 0, 0x1000, 0x1000),
    ];
    let setup = bring_up_with(false, FEATURES, &blocks);
    let regions: Vec<_> = setup
        .driver
        .resv_regions(DEV)
        .into_iter()
        .map(|region| (region.start.get(), region.len, region.kind, region.prot))
        .collect();
    assert_eq!(
        regions,
        [
            (0x7d90_0000, 0x10_0000, ResvType::Direct, Prot::READ | Prot::WRITE),
            // An exclusion range is mapped instead, in whole pages.
            (0x75e0_0000, 0x1000, ResvType::Direct, Prot::READ | Prot::WRITE),
            (0xfee0_0000, 0x10_0000, ResvType::Msi, Prot::empty()),
            (0xfd_0000_0000, 0x3_0000_0000, ResvType::Reserved, Prot::empty()),
        ]
    );
    let other = setup.driver.resv_regions(OTHER);
    assert_eq!((other[0].start.get(), other[0].prot), (0x1000, Prot::READ));
    // What an alias needs, the devices behind it need.
    assert_eq!(setup.driver.resv_regions(ALIASED).len(), 4);
}

#[test]
fn the_hypertransport_range_is_free_where_the_unit_says_so() {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    unit.set_register(0x1a0, 1 << 11);
    let hardware = hardware(&unit, false);
    let driver = try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES)]).unwrap();
    assert!(driver.resv_regions(DEV).iter().all(|region| region.kind != ResvType::Reserved));
}

/// Of attached devices alone: who is nobody's may not interrupt.
#[test]
fn interrupts_are_left_unchecked_where_that_is_asked_for() {
    const IV: u64 = 1;
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    let hardware = hardware(&unit, false);
    let table = ivrs(0x0020_3040, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    let config = Config { unchecked_interrupts: true, ..config() };
    let driver = AmdVi::init(machine.clone(), &table, &hardware, config).unwrap();
    let setup = Setup { machine, unit, hardware, driver };
    let domain = paging(&setup, DEV);
    assert_eq!(setup.unit.entry(0x0100)[2], BLOCKED);
    attach(&*domain, DEV, None).unwrap();
    assert_eq!(setup.unit.entry(0x0100)[2] & IV, 0);
    setup.driver.release_device(DEV);
    assert_eq!(setup.unit.entry(0x0100)[2], BLOCKED);
}
