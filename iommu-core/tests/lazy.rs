//! Lazy domains: an address is used again only after a flush that started after its unmap has finished.

mod common;

use common::{Bench, Did, NIC, PAGE, Setup, map, map_page, unmap, unmap_page};
use dma_api::{Attrs, Device, Direction};
use iommu_core::{DomainType, GroupError};
use platform::{DmaAddr, Instant};

/// Ranges that a queue holds before it flushes.
const QUEUE: usize = 256;

fn lazy() -> (Bench, Device) {
    let bench = Setup::default().lazy().bench();
    assert_eq!(bench.group(NIC).domain_type(), Some(DomainType::DmaFq));
    let device = bench.bind_trusted(NIC);
    bench.toy.take_log();
    (bench, device)
}

fn flushes(bench: &Bench) -> usize {
    bench.toy.take_log().into_iter().filter(|did| matches!(did, Did::FlushAll | Did::Sync { .. })).count()
}

#[test]
fn an_unmap_takes_the_page_out_and_leaves_the_invalidation_for_later() {
    let (bench, device) = lazy();
    let (remembered, unseen) = (map_page(&device).unwrap(), map_page(&device).unwrap());
    bench.toy.reach(NIC, remembered, false).unwrap();
    unmap_page(&device, remembered).unwrap();
    unmap_page(&device, unseen).unwrap();
    assert_eq!(flushes(&bench), 0);
    assert!(bench.toy.reach(NIC, remembered, false).is_some(), "which is why binding took trust");
    assert_eq!(bench.toy.reach(NIC, unseen, false), None);
    bench.tick();
    assert_eq!(bench.toy.reach(NIC, remembered, false), None);
}

#[test]
fn addresses_come_back_with_a_tick_and_not_before() {
    let bench = Setup::default().lazy().aperture(0, 0xffff).bench();
    let device = bench.bind_trusted(NIC);
    let mut all: Vec<DmaAddr> = std::iter::from_fn(|| map_page(&device).ok()).collect();
    assert_eq!(all.len(), 15);
    let kept = all.pop().unwrap();
    for &at in &all {
        unmap_page(&device, at).unwrap();
    }
    bench.toy.take_log();
    bench.tick();
    assert_eq!(flushes(&bench), 1);
    let mut again: Vec<DmaAddr> = (0..14).map(|_| map_page(&device).unwrap()).collect();
    assert_eq!(flushes(&bench), 0, "they had come back");
    assert!(again.iter().all(|at| bench.toy.reach(NIC, *at, false).is_some()));
    again.sort_unstable();
    all.sort_unstable();
    assert_eq!(again, all);
    map_page(&device).unwrap_err();
    unmap_page(&device, kept).unwrap();
}

#[test]
fn addresses_come_back_only_with_their_own_flush() {
    let bench = Setup::default().lazy().aperture(0, 0x2fff).bench();
    let device = bench.bind_trusted(NIC);
    let first = map_page(&device).unwrap();
    unmap_page(&device, first).unwrap();
    bench.tick();
    // One flush is behind us. What is queued now waits for another one, though pushes free what may be freed.
    let held = [map_page(&device).unwrap(), map_page(&device).unwrap()];
    for at in held {
        bench.toy.reach(NIC, at, false).unwrap();
        unmap_page(&device, at).unwrap();
    }
    bench.toy.take_log();
    let at = map(&device, 0x20_0000, PAGE as usize, Direction::ToDevice).unwrap();
    assert_eq!(bench.toy.reach(NIC, at, false), Some(0x20_0000), "not what was there before");
    assert_eq!(flushes(&bench), 1);
}

#[test]
fn when_addresses_run_out_the_queue_is_flushed() {
    let bench = Setup::default().lazy().aperture(0, 0xffff).bench();
    let device = bench.bind_trusted(NIC);
    let all: Vec<DmaAddr> = std::iter::from_fn(|| map_page(&device).ok()).collect();
    bench.toy.take_log();
    map_page(&device).unwrap_err();
    assert_eq!(flushes(&bench), 0, "nothing waits");
    for &at in &all {
        bench.toy.reach(NIC, at, false).unwrap();
        unmap_page(&device, at).unwrap();
    }
    // Of another size than what waits, and for a scatter list, too.
    let at = map(&device, 0x20_0000, 4 * PAGE as usize, Direction::ToDevice).unwrap();
    assert_eq!(flushes(&bench), 1);
    assert_eq!(bench.toy.reach(NIC, at.wrapping_add(PAGE), false), Some(0x20_1000));
    let left: Vec<DmaAddr> = std::iter::from_fn(|| map_page(&device).ok()).collect();
    assert_eq!((left.len(), flushes(&bench)), (11, 0));
    unmap(&device, at, 4 * PAGE as usize, Direction::ToDevice).unwrap();
    let mut list = [dma_api::SgEntry::new(platform::PhysAddr::new(0x30_0000), 3 * PAGE as usize)];
    // SAFETY: the toy's devices touch nothing by themselves.
    unsafe { device.map_sg(&mut list, Direction::ToDevice, Attrs::empty()) }.unwrap();
    assert_eq!((list[0].dma_address, flushes(&bench)), (at, 1));
}

#[test]
fn when_addresses_run_out_and_the_flush_fails_they_stay_lost() {
    let bench = Setup::default().lazy().aperture(0, 0x1fff).bench();
    let device = bench.bind_trusted(NIC);
    let at = map_page(&device).unwrap();
    unmap_page(&device, at).unwrap();
    bench.toy.set_silent(true);
    map_page(&device).unwrap_err();
    assert_eq!(bench.iommu.statistics().quarantined, PAGE);
    bench.tick();
    assert_eq!(bench.group(NIC).domain().unwrap().domain_type(), DomainType::Blocked);
}

#[test]
fn where_a_flush_is_dear_one_queue_holds_more_and_waits_longer() {
    let mut setup = Setup::default().lazy();
    setup.knobs.shadow_on_flush = true;
    let bench = setup.bench();
    let device = bench.bind_trusted(NIC);
    device.set_mask(u64::MAX).unwrap();
    bench.toy.take_log();
    const SINGLE_QUEUE: usize = 32_768;
    let held: Vec<DmaAddr> = (0..SINGLE_QUEUE + 1).map(|_| map_page(&device).unwrap()).collect();
    let (last, rest) = held.split_last().unwrap();
    for &at in rest {
        unmap_page(&device, at).unwrap();
    }
    bench.toy.take_log();
    // A second after the first tick that finds something, not before; and then not at once again.
    let tick = |ms: u64| bench.iommu.tick(Instant::from_nanos(ms * 1_000_000));
    [5_000, 5_010, 5_999].into_iter().for_each(tick);
    assert_eq!(flushes(&bench), 0);
    // A full queue does not wait.
    unmap_page(&device, *last).unwrap();
    assert_eq!(flushes(&bench), 1);
    tick(6_000);
    assert_eq!(flushes(&bench), 1, "the last one came after the flush");
    tick(8_000);
    assert_eq!(flushes(&bench), 0, "nothing waits");
    let at = map_page(&device).unwrap();
    unmap_page(&device, at).unwrap();
    [8_100, 9_099].into_iter().for_each(tick);
    assert_eq!(flushes(&bench), 0);
    tick(9_100);
    assert_eq!(flushes(&bench), 1);
}

#[test]
fn a_driver_that_cannot_defer_is_strict() {
    let mut setup = Setup::default().lazy();
    setup.knobs.can_defer = false;
    let bench = setup.bench();
    assert_eq!(bench.group(NIC).domain_type(), Some(DomainType::Dma));
    let device = bench.bind_trusted(NIC);
    bench.toy.take_log();
    let at = map_page(&device).unwrap();
    unmap_page(&device, at).unwrap();
    assert_eq!(flushes(&bench), 1);
}

/// Linux: `iommu_set_dma_strict` changes what is chosen, not what may be asked for.
#[test]
fn a_driver_that_would_rather_not_defer_does_when_it_is_asked_by_name() {
    let mut setup = Setup::default().lazy();
    setup.knobs.strict_by_default = true;
    let bench = setup.bench();
    let group = bench.group(NIC);
    assert_eq!(group.domain_type(), Some(DomainType::Dma), "the settings ask for lazy, but not by name");
    group.set_type(DomainType::DmaFq).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::DmaFq));
    let device = bench.bind_trusted(NIC);
    bench.toy.take_log();
    let at = map_page(&device).unwrap();
    unmap_page(&device, at).unwrap();
    assert_eq!(flushes(&bench), 0);
    bench.tick();
    assert_eq!(flushes(&bench), 1);
    drop(device);
    group.set_type(None).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::Dma), "chosen anew it is strict again");
}

#[test]
fn a_tick_flushes_once_for_all_and_not_when_nothing_waits() {
    let (bench, device) = lazy();
    bench.tick();
    assert_eq!(flushes(&bench), 0);
    let held: Vec<DmaAddr> = (0..100).map(|_| map_page(&device).unwrap()).collect();
    for at in held {
        unmap_page(&device, at).unwrap();
    }
    bench.tick();
    bench.tick();
    assert_eq!(flushes(&bench), 1);
    assert_eq!(bench.group(NIC).domain().unwrap().full_flushes(), 1);
}

#[test]
fn a_full_queue_flushes_by_itself() {
    let (bench, device) = lazy();
    let held: Vec<DmaAddr> = (0..QUEUE + 1).map(|_| map_page(&device).unwrap()).collect();
    for &at in &held[..QUEUE] {
        unmap_page(&device, at).unwrap();
    }
    assert_eq!(flushes(&bench), 0);
    assert_eq!(bench.iommu.statistics().unmaps, QUEUE as u64, "those that wait are unmapped too");
    unmap_page(&device, held[QUEUE]).unwrap();
    assert_eq!(flushes(&bench), 1);
    bench.tick();
    assert_eq!(flushes(&bench), 1, "one came after the first flush");
    assert_eq!(bench.iommu.statistics().unmaps, QUEUE as u64 + 1);
}

#[test]
fn scatter_lists_wait_as_a_whole() {
    let (bench, device) = lazy();
    let mut list =
        [(0x10_0000, 4096), (0x50_0010, 64)].map(|(phys, len)| dma_api::SgEntry::new(u64::into(phys), len));
    // SAFETY: the toy's devices touch nothing by themselves; the list is ended once, as it was left.
    unsafe {
        device.ops().map_sg(device.parms(), &mut list, Direction::ToDevice, Attrs::empty()).unwrap();
        device.ops().unmap_sg(device.parms(), &list, Direction::ToDevice, Attrs::empty()).unwrap();
    }
    assert_eq!((flushes(&bench), bench.iommu.statistics().unmaps), (0, 1));
    bench.tick();
    assert_eq!((flushes(&bench), bench.iommu.statistics().unmaps), (1, 1));
}

#[test]
fn coherent_memory_is_freed_only_after_a_flush() {
    let (bench, device) = lazy();
    let before = bench.host.live();
    let other = map_page(&device).unwrap();
    unmap_page(&device, other).unwrap();
    let memory = device.alloc_coherent(4096, Attrs::empty()).unwrap();
    bench.toy.reach(NIC, memory.dma, true).unwrap();
    // SAFETY: allocated above with these attributes, freed once.
    unsafe { device.free_coherent(memory, Attrs::empty()) }.unwrap();
    assert_eq!(flushes(&bench), 1);
    assert_eq!(bench.toy.reach(NIC, memory.dma, true), None);
    assert_eq!(bench.host.live(), before);
    assert_eq!(bench.iommu.statistics().unmaps, 2, "what waited came back with it");
}

#[test]
fn coherent_memory_is_kept_when_the_flush_fails() {
    let (bench, device) = lazy();
    let memory = device.alloc_coherent(4096, Attrs::empty()).unwrap();
    let before = bench.host.live();
    bench.toy.set_silent(true);
    // SAFETY: allocated above with these attributes, freed once.
    unsafe { device.free_coherent(memory, Attrs::empty()) }.unwrap_err();
    assert_eq!(bench.host.live(), before);
    assert_eq!(bench.iommu.statistics().quarantined, PAGE);
}

#[test]
fn a_flush_that_fails_quarantines_what_waited_and_blocks_the_group() {
    let bench = Setup::default().lazy().aperture(0, 0xffff).bench();
    let device = bench.bind_trusted(NIC);
    let (one, two) = (map_page(&device).unwrap(), map_page(&device).unwrap());
    bench.toy.reach(NIC, one, false).unwrap();
    unmap_page(&device, one).unwrap();
    bench.toy.set_silent(true);
    bench.tick();
    let group = bench.group(NIC);
    assert_eq!(group.domain().unwrap().domain_type(), DomainType::Blocked);
    assert_eq!((bench.toy.reach(NIC, one, false), bench.toy.reach(NIC, two, false)), (None, None));
    assert_eq!(bench.iommu.statistics().quarantined, PAGE);
    assert_eq!(group.default_domain().unwrap().leaked(), 1);
    // An IOMMU that answers again changes nothing for what was lost.
    bench.toy.set_silent(false);
    bench.toy.take_log();
    bench.tick();
    assert_eq!(bench.toy.take_log(), [], "it is blocked once");
    unmap_page(&device, two).unwrap();
    bench.tick();
    let rest: Vec<DmaAddr> = std::iter::from_fn(|| map_page(&device).ok()).collect();
    assert_eq!((rest.len(), rest.contains(&one), rest.contains(&two)), (14, false, true));
    assert_eq!(bench.iommu.statistics().quarantined, PAGE);
    // A new domain is the way out.
    assert_eq!(group.set_type(DomainType::Dma), Err(GroupError::Owned));
    drop(device);
    group.set_type(DomainType::Dma).unwrap();
    map_page(&bench.bind(NIC)).unwrap();
}

#[test]
fn a_full_queue_whose_flush_fails_is_given_up() {
    let (bench, device) = lazy();
    let held: Vec<DmaAddr> = (0..QUEUE + 1).map(|_| map_page(&device).unwrap()).collect();
    bench.toy.set_silent(true);
    for &at in &held {
        unmap_page(&device, at).unwrap();
    }
    assert_eq!(bench.iommu.statistics().quarantined, QUEUE as u64 * PAGE);
    bench.toy.set_silent(false);
    bench.tick();
    assert_eq!(bench.group(NIC).domain().unwrap().domain_type(), DomainType::Blocked);
    assert_eq!(bench.iommu.statistics().unmaps, 1, "the last one's flush was answered");
}

#[test]
fn a_domain_goes_over_to_lazy_in_place() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    group.set_type(DomainType::DmaFq).unwrap();
    assert_eq!(group.bind(NIC).unwrap_err(), GroupError::NeedsTrust(DomainType::DmaFq));
    let device = bench.bind_trusted(NIC);
    let at = map_page(&device).unwrap();
    bench.toy.take_log();
    unmap_page(&device, at).unwrap();
    assert_eq!(flushes(&bench), 0);
    // What waits when the domain goes is flushed.
    drop(device);
    group.set_type(DomainType::Dma).unwrap();
    assert_eq!(flushes(&bench), 1);
}

#[test]
fn a_bounced_mapping_comes_back_at_once() {
    let (bench, device) = lazy();
    let heap: Box<[u8]> = vec![1; 64].into();
    let mapping: dma_api::Streaming<'_, _, dma_api::FromDevice> =
        dma_api::Streaming::map(&device, heap).unwrap();
    let reached = bench.toy.reach(NIC, mapping.dma_address(), true).unwrap();
    bench.host.device_write(reached, &[2; 64]);
    assert_eq!(*mapping.unmap().unwrap(), [2; 64]);
    assert_eq!(flushes(&bench), 0);
}

#[test]
fn threads_unmap_while_ticks_go_by() {
    let bench = Setup::default().lazy().aperture(0, 1024 * PAGE - 1).bench();
    let device = bench.bind_trusted(NIC);
    let done = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 1..4u64 {
            let (device, bench, done) = (&device, &bench, &done);
            scope.spawn(move || {
                for turn in 0..3000 {
                    let phys = (thread << 32) + (turn << 12);
                    let at = loop {
                        match map(device, phys, PAGE as usize, Direction::ToDevice) {
                            Ok(at) => break at,
                            // All of the addresses may be waiting.
                            Err(_) => std::thread::yield_now(),
                        }
                    };
                    // An address that came back too early would lead to what was there before.
                    assert_eq!(bench.toy.reach(NIC, at, false), Some(phys));
                    unmap(device, at, PAGE as usize, Direction::ToDevice).unwrap();
                }
                done.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            });
        }
        while done.load(std::sync::atomic::Ordering::SeqCst) < 3 {
            bench.tick();
            std::thread::yield_now();
        }
    });
    bench.tick();
    let statistics = bench.iommu.statistics();
    assert_eq!((statistics.unmaps, statistics.quarantined), (9000, 0));
}
