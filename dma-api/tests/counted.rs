//! `Counted`: what it counts, and that what ends is subtracted as it was added.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{Bench, PAGE, Required};
use dma_api::{
    Attrs, CoherentSlice, Counted, Device, DeviceBuilder, DeviceParms, Direction, DmaError, DmaMapOps,
    FromDevice, OpsCounters, OpsStatistics, ScatterList, Streaming, ToDevice,
};

fn counted(bench: &Bench) -> (Arc<Device>, Arc<OpsCounters>) {
    let counters = Arc::<OpsCounters>::default();
    let ops = Counted::new(bench.mock.clone(), counters.clone());
    (Arc::new(DeviceBuilder::new("counted").build(Arc::new(ops), bench.host.clone())), counters)
}

#[test]
fn every_kind_of_mapping_is_counted_while_it_lives_and_after() {
    let bench = Bench::new();
    let (device, counters) = counted(&bench);
    let ram = Streaming::<_, ToDevice>::map(&device, bench.buffer(&[1; 100])).unwrap();
    let heap = Streaming::<_, FromDevice>::map(&device, vec![2u8; 300]).unwrap();
    let buffers = vec![bench.buffer(&[3; PAGE]), bench.buffer(&[4; 9])];
    let list = ScatterList::<_, ToDevice>::map(&device, buffers).unwrap();
    let coherent = CoherentSlice::<u64>::zeroed(&device, 1024).unwrap();

    let all = counters.statistics();
    let (list_bytes, mapped_bytes) = (PAGE as u64 + 9, 400 + PAGE as u64 + 9);
    let expected = OpsStatistics {
        maps: 3,
        mapped_bytes,
        allocations: 1,
        allocated_bytes: 8192,
        live: 4,
        live_bytes: mapped_bytes + 8192,
        high_water: 4,
        high_water_bytes: mapped_bytes + 8192,
        sizes: all.sizes,
        ..OpsStatistics::default()
    };
    assert_eq!(all, expected);

    drop(ram);
    assert_eq!(counters.statistics().live_bytes, 300 + list_bytes + 8192);
    drop(heap);
    assert_eq!(counters.statistics().live_bytes, list_bytes + 8192);
    drop(list);
    assert_eq!(counters.statistics().live_bytes, 8192);
    drop(coherent);
    let ended = OpsStatistics { unmaps: 3, frees: 1, live: 0, live_bytes: 0, ..expected };
    assert_eq!(counters.statistics(), ended);
}

#[test]
fn the_high_water_is_what_lived_at_once() {
    let bench = Bench::new();
    let (device, counters) = counted(&bench);
    let map = |len| Streaming::<_, ToDevice>::map(&device, vec![0u8; len]).unwrap();
    let first = map(1000);
    drop(map(500));
    drop(map(200));
    let high = counters.statistics();
    assert_eq!((high.high_water, high.high_water_bytes), (2, 1500));
    drop(first);
    let (_a, _b, _c) = (map(1), map(2), map(3));
    let high = counters.statistics();
    assert_eq!((high.high_water, high.high_water_bytes), (3, 1500));
}

#[test]
fn sizes_are_counted_by_their_highest_bit() {
    let bench = Bench::new();
    let (device, counters) = counted(&bench);
    for len in [1, 2, 3, 4, 4095, 4096, 8191] {
        drop(Streaming::<_, ToDevice>::map(&device, vec![0u8; len]).unwrap());
    }
    drop(CoherentSlice::<u8>::zeroed(&device, 8192).unwrap());
    let sizes = counters.statistics().sizes;
    assert_eq!(sizes.iter().collect::<Vec<_>>(), [(1, 1), (2, 2), (4, 1), (2048, 1), (4096, 2), (8192, 1)]);
    assert_eq!((sizes.count(3), sizes.count(5000), sizes.count(16384)), (2, 2, 0));
    assert_eq!(format!("{sizes:?}"), "{1: 1, 2: 2, 4: 1, 2048: 1, 4096: 2, 8192: 1}");
}

#[test]
fn what_fails_is_counted_and_does_not_live() {
    let bench = Bench::new();
    let counters = Arc::new(OpsCounters::default());
    // Ops without bounce buffers.
    let ops = Counted::new(Required(bench.mock.clone()), counters.clone());
    let parms = DeviceParms::new(true, false);
    let mut byte = 0u8;
    // SAFETY: the byte outlives the call, which maps nothing.
    let mapped =
        unsafe { ops.map_foreign(&parms, NonNull::from(&mut byte), 1, Direction::ToDevice, Attrs::empty()) };
    assert_eq!(mapped, Err(DmaError::NotRam));
    bench.maps_left(0);
    ops.alloc(&parms, 1, Attrs::empty()).unwrap_err();
    assert_eq!(counters.statistics(), OpsStatistics { failures: 2, ..OpsStatistics::default() });
}

#[test]
fn what_is_quarantined_has_ended() {
    let bench = Bench::new();
    let (device, counters) = counted(&bench);
    let mapped = Streaming::<_, FromDevice>::map(&device, vec![0u8; 7]).unwrap();
    let coherent = CoherentSlice::<u8>::zeroed(&device, 7).unwrap();
    bench.unmaps_fail(true);
    drop((mapped, coherent));
    let seen = counters.statistics();
    assert_eq!((seen.unmaps, seen.frees, seen.quarantines), (1, 1, 2));
    assert_eq!((seen.live, seen.live_bytes), (0, 0));
}
