//! What cannot be mapped as it is goes through the bounce pool: parts of pages of untrusted devices, and memory that is
//! not RAM.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{Bench, NIC, PAGE, Setup, map, unmap};
use dma_api::{Attrs, Device, Direction, DmaBuffer, DmaError, FromDevice, Streaming, ToDevice};
use iommu_core::Iommu;
use platform::{DmaAddr, Platform};

fn hostile() -> (Bench, Device) {
    let bench = Setup::default().untrusted(NIC).bench();
    let device = bench.bind(NIC);
    assert!(device.parms().is_untrusted());
    (bench, device)
}

fn bounces(bench: &Bench) -> u64 {
    bench.iommu.statistics().bounces
}

#[test]
fn a_part_of_a_page_is_bounced_for_an_untrusted_device_and_nothing_else_of_the_page_is_seen() {
    let (bench, device) = hostile();
    let memory = bench.host.memory(2 * PAGE as usize);
    bench.host.device_write(memory.phys(), &[0xee; 2 * PAGE as usize]);
    for (offset, len) in
        [(0, 100), (100, 4), (0, PAGE as usize - 1), (1, PAGE as usize), (8, 2 * PAGE as usize - 8)]
    {
        let at = map(&device, memory.phys() + offset, len, Direction::Bidirectional).unwrap();
        let reached = bench.toy.reach(NIC, at, true).unwrap();
        assert!(reached + len as u64 <= memory.phys() || reached >= memory.phys() + 2 * PAGE);
        assert_eq!(bench.host.device_read(reached, len), vec![0xee; len], "the copy is filled");
        // Around the copy, in all pages that the device sees, there are zeros.
        let first = reached & !(PAGE - 1);
        let end = (reached + len as u64).next_multiple_of(PAGE);
        let before = bench.host.device_read(first, (reached - first) as usize);
        let after_at = reached + len as u64;
        let after = bench.host.device_read(after_at, (end - after_at) as usize);
        assert!(before.iter().chain(&after).all(|&byte| byte == 0), "offset {offset}, {len} bytes");
        let next = DmaAddr::new((at.get() + len as u64).next_multiple_of(PAGE));
        assert_eq!(bench.toy.reach(NIC, next, false), None);
        unmap(&device, at, len, Direction::Bidirectional).unwrap();
    }
    assert_eq!(bounces(&bench), 5);
    assert_eq!(bench.pool.statistics().used, 0);
}

#[test]
fn whole_pages_are_mapped_where_they_are() {
    let (bench, device) = hostile();
    let at = map(&device, 0x10_0000, 3 * PAGE as usize, Direction::FromDevice).unwrap();
    assert_eq!(bench.toy.reach(NIC, at, true), Some(0x10_0000));
    assert_eq!(bounces(&bench), 0);
}

#[test]
fn a_trusted_device_gets_parts_of_pages_where_they_are() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    let at = map(&device, 0x10_0010, 100, Direction::FromDevice).unwrap();
    assert_eq!(bench.toy.reach(NIC, at, true), Some(0x10_0010));
    assert_eq!(bounces(&bench), 0);
}

#[test]
fn a_device_that_nobody_has_trusted_gets_no_parts_of_pages() {
    let bench = Setup::default().bench();
    let device = bench.bind(NIC);
    let memory = bench.host.memory(PAGE as usize);
    let at = map(&device, memory.phys() + 0x10, 100, Direction::FromDevice).unwrap();
    let reached = bench.toy.reach(NIC, at, true).unwrap();
    assert_ne!(reached & !(PAGE - 1), memory.phys(), "the page of the buffer is not mapped");
    assert_eq!(bounces(&bench), 1);
}

#[test]
fn what_the_device_wrote_comes_back_and_what_it_did_not_stays() {
    let (bench, device) = hostile();
    let memory = bench.host.memory(PAGE as usize);
    bench.host.device_write(memory.phys(), &[1; 64]);
    let at = map(&device, memory.phys() + 8, 32, Direction::FromDevice).unwrap();
    let reached = bench.toy.reach(NIC, at, true).unwrap();
    bench.host.device_write(reached + 4, &[7; 8]);
    unmap(&device, at, 32, Direction::FromDevice).unwrap();
    let mut expected = [1; 64];
    expected[12..20].fill(7);
    assert_eq!(bench.host.device_read(memory.phys(), 64), expected);
}

#[test]
fn memory_that_is_not_ram_is_bounced_for_every_device() {
    let bench = Setup::default().bench();
    let device = bench.bind(NIC);
    let heap: Box<[u8]> = vec![5; 100].into();
    let mapping: Streaming<'_, _, FromDevice> = Streaming::map(&device, heap).unwrap();
    let reached = bench.toy.reach(NIC, mapping.dma_address(), true).unwrap();
    assert!(bench.pool.contains(reached.into()));
    bench.host.device_write(reached, &[6; 50]);
    let heap = mapping.unmap().unwrap();
    assert_eq!((heap[49], heap[50]), (6, 5));
    assert_eq!(bounces(&bench), 1);
    // RAM is not.
    let ram = DmaBuffer::<u8>::zeroed(&device, PAGE as usize).unwrap();
    let _mapping: Streaming<'_, _, ToDevice> = Streaming::map(&device, ram).unwrap();
    assert_eq!(bounces(&bench), 1);
}

#[test]
fn a_bounced_mapping_is_synced_both_ways() {
    let bench = Setup::default().bench();
    let device = bench.bind(NIC);
    let heap: Box<[u8]> = vec![0; 16].into();
    let mapping: Streaming<'_, _, dma_api::Bidirectional> = Streaming::map(&device, heap).unwrap();
    let reached = bench.toy.reach(NIC, mapping.dma_address(), true).unwrap();
    bench.host.device_write(reached, &[1; 8]);
    let mut mine = mapping.sync_for_cpu();
    assert_eq!((mine.read(7), mine.read(8)), (1, 0));
    mine.write(8, 2);
    let _theirs = mine.sync_for_device();
    assert_eq!(bench.host.device_read(reached, 9), [1, 1, 1, 1, 1, 1, 1, 1, 2]);
}

#[test]
fn a_bounce_that_cannot_be_is_refused_by_name_and_takes_nothing() {
    let (bench, device) = hostile();
    let max = device.max_mapping_size();
    assert_eq!(max, 128 * 2048, "the pool's longest run");
    let memory = bench.host.memory(max + PAGE as usize);
    let too_large = map(&device, memory.phys(), max + 1, Direction::ToDevice);
    assert_eq!(too_large, Err(DmaError::TooLargeForBounce { size: max + 1, max }));
    // SAFETY: the memory stays until the end of the test, and nobody else uses it.
    let mmio = unsafe { device.map_phys(memory.phys().into(), 8, Direction::ToDevice, Attrs::MMIO) };
    assert_eq!(mmio, Err(DmaError::NotRam), "device memory cannot be copied");
    bench.toy.set_pages_left(0);
    assert_eq!(map(&device, memory.phys(), 8, Direction::ToDevice), Err(DmaError::OutOfMemory));
    bench.toy.set_pages_left(u64::MAX);
    assert_eq!(bench.pool.statistics().used, 0);
    let held: Vec<_> =
        (0..4).map(|_| map(&device, memory.phys(), max - 1, Direction::ToDevice).unwrap()).collect();
    let full = map(&device, memory.phys(), 8, Direction::ToDevice);
    assert_eq!(full, Err(DmaError::BouncePoolFull { size: 8, used: 512, total: 512 }));
    for at in held {
        unmap(&device, at, max - 1, Direction::ToDevice).unwrap();
    }
    assert_eq!(bounces(&bench), 4);
}

#[test]
fn without_a_pool_such_memory_is_refused() {
    let host = Arc::new(common::Host::new());
    let platform: Arc<dyn Platform> = host.clone();
    let iommu = Iommu::new(platform, Default::default(), None);
    iommu.register(Arc::new(common::Toy::new(Default::default())));
    iommu.probe(&common::topology([common::endpoint(NIC)]), |_| false).unwrap();
    let device = iommu.group_of(NIC).unwrap().bind(NIC).unwrap();
    let mut heap = [0u8; 8];
    // SAFETY: the array outlives the call, which maps nothing.
    let mapped =
        unsafe { device.map_single(NonNull::from(&mut heap).cast(), 8, Direction::ToDevice, Attrs::empty()) };
    assert_eq!(mapped, Err(DmaError::NotRam));
}

#[test]
fn a_failed_unmap_keeps_the_slot_too() {
    let (bench, device) = hostile();
    let memory = bench.host.memory(PAGE as usize);
    let at = map(&device, memory.phys(), 8, Direction::FromDevice).unwrap();
    let reached = bench.toy.reach(NIC, at, true).unwrap();
    let used = bench.pool.statistics().used;
    bench.toy.set_silent(true);
    unmap(&device, at, 8, Direction::FromDevice).unwrap_err();
    assert_eq!(bench.pool.statistics().used, used);
    // The original is the CPU's again: a write that comes too late goes nowhere.
    bench.host.device_write(reached, &[9; 8]);
    assert_eq!(bench.host.device_read(memory.phys(), 8), [0; 8]);
}

#[test]
fn a_full_pool_serves_from_transient_pools_until_a_tick_makes_it_grow() {
    let mut setup = Setup::default().untrusted(NIC);
    setup.pool.max_size = 3 << 20;
    let bench = setup.bench();
    let device = bench.bind(NIC);
    let max = device.max_mapping_size();
    let memory = bench.host.memory(max);
    let fill: Vec<_> =
        (0..5).map(|_| map(&device, memory.phys() + 8, max - 8, Direction::FromDevice).unwrap()).collect();
    let counts = |bench: &Bench| {
        let statistics = bench.pool.statistics();
        (statistics.slots, statistics.used, statistics.transient_slots)
    };
    assert_eq!(counts(&bench), (512, 512, 128));
    // The device reaches the transient pool through its domain, and what it writes there comes back.
    bench.host.device_write(bench.toy.reach(NIC, fill[4], true).unwrap(), &[7; 8]);
    unmap(&device, fill[4], max - 8, Direction::FromDevice).unwrap();
    assert_eq!(bench.host.device_read(memory.phys() + 8, 9), [7, 7, 7, 7, 7, 7, 7, 7, 0]);
    assert_eq!(counts(&bench), (512, 512, 0));
    bench.tick();
    assert_eq!(counts(&bench), (1024, 512, 0));
    let more = map(&device, memory.phys() + 8, 8, Direction::FromDevice).unwrap();
    assert_eq!(counts(&bench), (1024, 514, 0), "a page of the new pool");
    bench.tick();
    assert_eq!(bench.pool.statistics().slots, 1024, "nobody asked again");
    unmap(&device, more, 8, Direction::FromDevice).unwrap();
}

#[test]
fn what_must_be_coherent_is_not_bounced() {
    let (bench, device) = hostile();
    let memory = bench.host.memory(PAGE as usize);
    let attrs = Attrs::REQUIRE_COHERENT;
    // SAFETY: the memory stays until the end of the test, and nobody else uses it.
    unsafe {
        let part = device.map_phys(memory.phys().into(), 8, Direction::ToDevice, attrs);
        assert_eq!(part, Err(DmaError::NotCoherent));
        let mut heap = [0u8; 8];
        let heap = device.map_single(NonNull::from(&mut heap).cast(), 8, Direction::ToDevice, attrs);
        assert_eq!(heap, Err(DmaError::NotCoherent));
        let whole = device.map_phys(memory.phys().into(), PAGE as usize, Direction::ToDevice, attrs).unwrap();
        device.unmap_single(whole, PAGE as usize, Direction::ToDevice, attrs).unwrap();
    }
    assert_eq!(bench.pool.statistics().maps, 0);
}

#[test]
fn more_of_an_address_than_its_place_in_a_page_is_not_kept_by_a_copy_either() {
    let (_bench, device) = hostile();
    device.parms().set_min_align_mask(0x1fff);
    let refused = Streaming::<_, ToDevice>::map(&device, vec![1_u8; 100]).unwrap_err();
    assert_eq!(refused.error, DmaError::InvalidAlignment(0x1fff));
}

#[test]
fn what_is_told_to_fit_into_a_copy_does() {
    let (bench, device) = hostile();
    let most = device.max_mapping_size();
    assert_eq!(most, bench.pool.max_mapping_size(device.parms()));
    let memory = bench.host.memory(most + 2 * PAGE as usize);
    for offset in [1, 2047, 4095] {
        let at = map(&device, memory.phys() + offset, most, Direction::ToDevice);
        unmap(&device, at.unwrap(), most, Direction::ToDevice).unwrap();
    }
    assert_eq!(bounces(&bench), 3);
    assert_eq!(Setup::default().bench().bind_trusted(NIC).max_mapping_size(), usize::MAX);
}
