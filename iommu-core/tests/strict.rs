//! Strict domains: when an unmap returns, the device is out; what the IOMMU did not confirm is never used again.

mod common;

use common::{Bench, Did, NIC, PAGE, Setup, map, map_page, unmap, unmap_page};
use dma_api::{Attrs, Direction, DmaBuffer, DmaError, Quarantined, Streaming, ToDevice};
use iommu_core::DomainType;
use platform::{DmaAddr, MapError, Prot};

fn bench() -> Bench {
    Setup::default().bench()
}

#[test]
fn after_an_unmap_the_device_is_out() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let at = map_page(&device).unwrap();
    assert_eq!(bench.toy.reach(NIC, at, false), Some(0x10_0000), "and now it is remembered");
    unmap_page(&device, at).unwrap();
    assert_eq!(bench.toy.reach(NIC, at, false), None);
}

#[test]
fn the_invalidation_comes_before_the_address_is_handed_out_again() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    bench.toy.take_log();
    let at = map_page(&device).unwrap();
    unmap_page(&device, at).unwrap();
    assert_eq!(map_page(&device), Ok(at), "the newest free address is taken first");
    let iova = at.get();
    let map = Did::Map { iova, phys: 0x10_0000, len: PAGE, prot: Prot::READ | Prot::CACHE };
    assert_eq!(
        bench.toy.take_log(),
        [map, Did::Unmap { iova, len: PAGE }, Did::Sync { first: iova, last: iova + PAGE - 1 }, map]
    );
}

#[test]
fn one_unmap_takes_one_invalidation_however_long_it_is() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let len = 3 << 20;
    let at = map(&device, 0x4000_0000, len, Direction::FromDevice).unwrap();
    bench.toy.take_log();
    unmap(&device, at, len, Direction::FromDevice).unwrap();
    let (iova, len) = (at.get(), len as u64);
    assert_eq!(
        bench.toy.take_log(),
        [Did::Unmap { iova, len }, Did::Sync { first: iova, last: iova + len - 1 }]
    );
}

#[test]
fn what_the_iommu_did_not_confirm_is_never_handed_out_again() {
    // Fifteen pages of addresses, one of which is lost.
    let bench = Setup::default().aperture(0, 0xffff).bench();
    let device = bench.bind_trusted(NIC);
    let lost = map_page(&device).unwrap();
    bench.toy.reach(NIC, lost, false).unwrap();
    bench.toy.set_silent(true);
    assert_eq!(unmap_page(&device, lost), Err(Quarantined { address: lost, len: PAGE as usize }));
    assert_eq!(bench.iommu.statistics().quarantined, PAGE);
    assert!(bench.toy.reach(NIC, lost, false).is_some(), "which is why");
    bench.toy.set_silent(false);
    let others: Vec<DmaAddr> = std::iter::from_fn(|| map_page(&device).ok()).collect();
    assert_eq!(others.len(), 14);
    assert!(!others.contains(&lost));
}

#[test]
fn a_quarantined_buffer_is_leaked_not_freed() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let before = bench.host.live();
    let buffer = DmaBuffer::<u8>::zeroed(&device, PAGE as usize).unwrap();
    let mapping: Streaming<'_, _, ToDevice> = Streaming::map(&device, buffer).unwrap();
    bench.toy.set_silent(true);
    mapping.unmap().unwrap_err();
    assert_eq!(bench.host.live(), before + PAGE as usize);
}

#[test]
fn a_hole_where_a_mapping_should_be_is_quarantined() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let at = map(&device, 0x10_0000, 2 * PAGE as usize, Direction::ToDevice).unwrap();
    let domain = bench.group(NIC).domain().unwrap();
    let mut gather = domain.gather();
    // SAFETY: nobody else touches the domain.
    assert_eq!(unsafe { domain.unmap(at.wrapping_add(PAGE), PAGE, &mut gather) }, PAGE);
    let _ = domain.sync(gather).unwrap();
    unmap(&device, at, 2 * PAGE as usize, Direction::ToDevice).unwrap_err();
    assert_eq!(bench.iommu.statistics().quarantined, 2 * PAGE);
}

#[test]
fn a_failed_map_is_taken_back_and_its_addresses_with_it() {
    let bench = Setup::default().aperture(0, 0xffff).bench();
    let device = bench.bind_trusted(NIC);
    bench.toy.set_pages_left(3);
    bench.toy.take_log();
    let failed = map(&device, 0x10_0000, 8 * PAGE as usize, Direction::ToDevice);
    assert_eq!(failed, Err(DmaError::OutOfMemory));
    let log = bench.toy.take_log();
    let [Did::Unmap { iova, len }, Did::Sync { first, last }] = log[..] else { panic!("{log:?}") };
    assert_eq!((len, first, last), (3 * PAGE, iova, iova + 3 * PAGE - 1));
    assert_eq!(bench.toy.reach(NIC, DmaAddr::new(iova), false), None);
    bench.toy.set_pages_left(u64::MAX);
    let again = map(&device, 0x10_0000, 8 * PAGE as usize, Direction::ToDevice).unwrap();
    assert_eq!(again.get(), iova, "the only eight pages aligned to their length");
    assert_eq!(bench.iommu.statistics().quarantined, 0);
}

#[test]
fn when_a_rollback_is_not_confirmed_the_devices_are_blocked() {
    // The caller gets his memory back with the error, so the device must not reach it.
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    bench.toy.set_pages_left(1);
    bench.toy.set_silent(true);
    let failed = map(&device, 0x10_0000, 2 * PAGE as usize, Direction::ToDevice);
    assert_eq!(failed, Err(DmaError::OutOfMemory));
    assert_eq!(bench.iommu.statistics().quarantined, 2 * PAGE);
    assert_eq!(bench.group(NIC).domain().unwrap().domain_type(), DomainType::Blocked);
}

#[test]
fn new_mappings_are_shown_to_hardware_that_remembers_absence() {
    let mut setup = Setup::default();
    setup.knobs.needs_sync_map = true;
    let bench = setup.bench();
    let device = bench.bind_trusted(NIC);
    bench.toy.take_log();
    let at = map_page(&device).unwrap();
    let shown = |log: &[Did]| log.iter().filter(|did| matches!(did, Did::SyncMap { .. })).count();
    assert_eq!(shown(&bench.toy.take_log()), 1);
    unmap_page(&device, at).unwrap();
    bench.toy.set_silent(true);
    assert_eq!(map_page(&device), Err(DmaError::IommuTimedOut));
}

#[test]
fn the_direction_becomes_the_permission() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let cases = [
        (Direction::ToDevice, Prot::READ),
        (Direction::FromDevice, Prot::WRITE),
        (Direction::Bidirectional, Prot::READ | Prot::WRITE),
    ];
    for (direction, wanted) in cases {
        bench.toy.take_log();
        let at = map(&device, 0x10_0000, 512, direction).unwrap();
        let log = bench.toy.take_log();
        let [Did::Map { prot, .. }] = log[..] else { panic!("{log:?}") };
        assert_eq!(prot, wanted | Prot::CACHE);
        assert_eq!(bench.toy.reach(NIC, at, false).is_some(), wanted.contains(Prot::READ));
        assert_eq!(bench.toy.reach(NIC, at, true).is_some(), wanted.contains(Prot::WRITE));
    }
}

#[test]
fn attributes_become_permissions_too() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let prot = |attrs| {
        bench.toy.take_log();
        // SAFETY: the toy's devices touch nothing by themselves.
        unsafe { device.map_phys(0xfeb0_0000.into(), 4096, Direction::ToDevice, attrs) }.unwrap();
        match bench.toy.take_log()[..] {
            [Did::Map { prot, .. }] => prot,
            ref log => panic!("{log:?}"),
        }
    };
    assert_eq!(prot(Attrs::MMIO), Prot::READ | Prot::MMIO, "device memory is not cached");
    assert_eq!(prot(Attrs::PRIVILEGED), Prot::READ | Prot::CACHE | Prot::PRIV);
}

#[test]
fn a_removed_device_gets_gone_and_reaches_nothing() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let at = map_page(&device).unwrap();
    let memory = device.alloc_coherent(4096, Attrs::empty()).unwrap();
    bench.iommu.remove(NIC);
    assert_eq!(map_page(&device), Err(DmaError::Gone));
    assert_eq!(device.alloc_coherent(4096, Attrs::empty()).unwrap_err(), DmaError::Gone);
    let mut heap = [0u8; 8];
    let at_heap = std::ptr::NonNull::from(&mut heap).cast();
    // SAFETY: the array outlives the call, which maps nothing.
    let foreign = unsafe { device.map_single(at_heap, 8, Direction::ToDevice, Attrs::empty()) };
    assert_eq!(foreign, Err(DmaError::Gone));
    assert_eq!(bench.toy.reach(NIC, at, false), None);
    // What it had can still be given back.
    unmap_page(&device, at).unwrap();
    // SAFETY: allocated above with these attributes, freed once.
    unsafe { device.free_coherent(memory, Attrs::empty()) }.unwrap();
    assert!(bench.iommu.group_of(NIC).is_none());
}

#[test]
fn coherent_memory_is_zeroed_mapped_both_ways_and_goes_back() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let before = bench.host.live();
    let memory = device.alloc_coherent(6000, Attrs::empty()).unwrap();
    assert_eq!(bench.host.live(), before + 8192);
    let reached = bench.toy.reach(NIC, memory.dma, true).unwrap();
    assert_eq!(bench.toy.reach(NIC, memory.dma, false), Some(reached));
    assert_eq!(bench.host.device_read(reached, 6000), vec![0; 6000]);
    assert_eq!(device.window().phys(memory.cpu.as_ptr()).get(), reached);
    // SAFETY: allocated above with these attributes, freed once.
    unsafe { device.free_coherent(memory, Attrs::empty()) }.unwrap();
    assert_eq!(bench.toy.reach(NIC, memory.dma, false), None);
    assert_eq!(bench.host.live(), before);
}

#[test]
fn coherent_memory_that_the_device_may_still_reach_is_kept() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let before = bench.host.live();
    let memory = device.alloc_coherent(4096, Attrs::empty()).unwrap();
    bench.toy.set_silent(true);
    // SAFETY: allocated above with these attributes, freed once.
    let freed = unsafe { device.free_coherent(memory, Attrs::empty()) };
    assert_eq!(freed, Err(Quarantined { address: memory.dma, len: 4096 }));
    assert_eq!(bench.host.live(), before + 4096);
}

#[test]
fn a_failed_allocation_leaves_nothing_behind() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    let before = bench.host.live();
    bench.toy.set_pages_left(0);
    assert_eq!(device.alloc_coherent(4096, Attrs::empty()).unwrap_err(), DmaError::OutOfMemory);
    bench.toy.set_pages_left(u64::MAX);
    bench.host.exhausted.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(device.alloc_coherent(4096, Attrs::empty()).unwrap_err(), DmaError::OutOfMemory);
    assert_eq!(bench.host.live(), before);
}

#[test]
fn maps_and_unmaps_are_counted() {
    let bench = bench();
    let device = bench.bind_trusted(NIC);
    for _ in 0..3 {
        let at = map_page(&device).unwrap();
        unmap_page(&device, at).unwrap();
    }
    let _held = map_page(&device).unwrap();
    let statistics = bench.iommu.statistics();
    assert_eq!((statistics.maps, statistics.unmaps), (4, 3));
    assert_eq!(statistics.magazine_hits, 3, "all but the first came from the magazine");
}

#[test]
fn a_driver_that_maps_nothing_and_says_that_all_is_well_is_an_error() {
    let mut setup = Setup::default();
    setup.knobs.maps_nothing = true;
    let bench = setup.bench();
    let device = bench.bind(NIC);
    let failed = map_page(&device);
    assert!(matches!(failed, Err(DmaError::Map(MapError::NoPageSize(_)))), "{failed:?}");
}
