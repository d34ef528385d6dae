//! Pages in turns, and what others get of coherent memory.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Bench, Cache, Call, PAGE, pattern};
use dma_api::{
    Attrs, Bidirectional, CoherentSlice, CpuPages, DeviceBuilder, Direction, DmaDirect, DmaError, FromDevice,
    ToDevice,
};

fn panics(f: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
}

#[test]
fn pages_in_pieces_are_one_run_for_both_sides() {
    let bench = Bench::noncoherent();
    let mut pages = CpuPages::<Bidirectional>::zeroed(&bench.device, 2 * PAGE + 100).unwrap();
    let (dir, size) = (Direction::Bidirectional, 2 * PAGE + 100);
    assert_eq!(bench.mock.take_calls(), [Call::AllocPages { size, dir }]);
    let mut bytes = vec![1; size];
    pages.copy_to_slice(0, &mut bytes);
    assert_eq!(bytes, vec![0; size]);
    pages.copy_from_slice(PAGE - 3, &pattern(1, 10));
    let theirs = pages.sync_for_device();
    let at = theirs.dma_address();
    assert_eq!(bench.mock.device_read(at.wrapping_add(PAGE as u64 - 3), 3).unwrap(), pattern(1, 10)[..3]);
    assert_eq!(bench.mock.device_read(at.wrapping_add(PAGE as u64), 7).unwrap(), pattern(1, 10)[3..]);
    assert!(bench.mock.device_write(at.wrapping_add(2 * PAGE as u64), &[5; 100]));
    let pages = theirs.sync_for_cpu();
    pages.copy_to_slice(2 * PAGE - 1, &mut bytes[..101]);
    assert_eq!((bytes[0], &bytes[1..101]), (0, &[5; 100][..]));
    let calls = bench.mock.take_calls();
    let (address, len) = (at.get(), size);
    assert_eq!(
        calls,
        [Call::SyncForDevice { address, len, dir }, Call::SyncForCpu { address, len, dir }],
        "both turns were told"
    );
    assert_eq!((pages.len(), pages.is_empty()), (size, false));
    drop(pages);
    assert_eq!(bench.mock.take_calls(), [Call::FreePages { size, dir, attrs: Attrs::empty() }]);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
}

#[test]
fn contiguous_pages_are_in_one_piece() {
    let bench = Bench::new();
    let memory = bench.device.alloc_pages(3 * PAGE, Direction::FromDevice, Attrs::FORCE_CONTIGUOUS).unwrap();
    assert_eq!(memory.pieces.len(), 1);
    // SAFETY: allocated so, freed once.
    unsafe { bench.device.free_pages(memory, Direction::FromDevice, Attrs::FORCE_CONTIGUOUS) }.unwrap();
    drop(CpuPages::<FromDevice>::contiguous(&bench.device, PAGE).unwrap());
    let attrs = Attrs::FORCE_CONTIGUOUS;
    let freed = Call::FreePages { size: PAGE, dir: Direction::FromDevice, attrs };
    assert_eq!(bench.mock.take_calls().last(), Some(&freed));
}

#[test]
fn pages_that_cannot_be_are_refused_and_bytes_beyond_the_end_panic() {
    let bench = Bench::new();
    assert_eq!(CpuPages::<ToDevice>::zeroed(&bench.device, 0).unwrap_err(), DmaError::InvalidLength(0));
    bench.maps_left(0);
    assert_eq!(CpuPages::<ToDevice>::zeroed(&bench.device, 1).unwrap_err(), DmaError::OutOfMemory);
    bench.maps_left(usize::MAX);
    let mut pages = CpuPages::<ToDevice>::zeroed(&bench.device, 10).unwrap();
    assert!(panics(|| pages.copy_to_slice(9, &mut [0; 2])));
    assert!(panics(|| pages.copy_to_slice(11, &mut [])));
    assert!(panics(|| pages.copy_from_slice(usize::MAX, &[0; 2])));
    pages.copy_from_slice(10, &[]);
    let noncoherent = Bench::noncoherent();
    let refused =
        noncoherent.device.alloc_pages(1, Direction::ToDevice, Attrs::REQUIRE_COHERENT).unwrap_err();
    assert_eq!(refused, DmaError::NotCoherent);
}

#[test]
fn pages_that_the_device_may_still_reach_are_kept() {
    let bench = Bench::new();
    let pages = CpuPages::<ToDevice>::zeroed(&bench.device, 2 * PAGE).unwrap();
    let live = bench.host.live();
    bench.unmaps_fail(true);
    drop(pages);
    assert_eq!(bench.host.live(), live);
}

#[test]
fn without_an_iommu_their_caches_are_kept_in_step_by_the_turns() {
    let host = Arc::new(common::Host::new());
    // SAFETY: the device is the test.
    let ops = unsafe { DmaDirect::new(host.clone(), ()) };
    let device = DeviceBuilder::new("direct").coherent(false).build(Arc::new(ops), host.clone());
    let pages = CpuPages::<FromDevice>::zeroed(&Arc::new(device), 100).unwrap();
    assert_eq!(host.take_cache(), []);
    let theirs = pages.sync_for_device();
    let phys = theirs.dma_address().get();
    assert_eq!(host.take_cache(), [Cache::Clean { phys, len: 100 }]);
    host.device_write(phys.into(), &[7; 100]);
    let pages = theirs.sync_for_cpu();
    assert_eq!(host.take_cache(), [Cache::Invalidate { phys, len: 100 }]);
    let mut bytes = [0; 100];
    pages.copy_to_slice(0, &mut bytes);
    assert_eq!(bytes, [7; 100]);
}

#[test]
fn views_share_coherent_memory_and_keep_it() {
    let bench = Bench::new();
    let ring = Arc::new(CoherentSlice::<u32>::zeroed(&bench.device, 16).unwrap());
    let view = ring.view(4..8);
    let other = view.clone();
    assert_eq!((view.len(), view.is_empty(), ring.view(3..3).is_empty()), (4, false, true));
    assert_eq!(view.dma_address(), ring.dma_address().wrapping_add(16));
    ring.write(4, 7);
    drop(ring);
    other.write(3, 9);
    assert_eq!((view.read(0), view.read(3)), (7, 9));
    assert_eq!(bench.mock.device_read(view.dma_address(), 4).unwrap(), 7u32.to_ne_bytes());
    assert!(panics(|| _ = view.read(4)));
    drop(view);
    assert_eq!(bench.mock.live(), 1);
    drop(other);
    assert_eq!(bench.mock.live(), 0);
    let ring = Arc::new(CoherentSlice::<u32>::zeroed(&bench.device, 16).unwrap());
    assert!(panics(|| drop(ring.view(0..17))));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 5..4;
    assert!(panics(|| drop(ring.view(reversed))));
}

#[test]
fn coherent_memory_as_a_list_is_where_the_platform_says() {
    let bench = Bench::new();
    let ring = CoherentSlice::<u8>::zeroed(&bench.device, PAGE + 100).unwrap();
    let list = ring.sg_table().unwrap();
    assert_eq!((list.len(), list[0].len, list[0].dma_address), (1, PAGE + 100, ring.dma_address()));
    bench.host.scattered.store(true, Ordering::Relaxed);
    let mut list = ring.sg_table().unwrap();
    assert_eq!(list.iter().map(|entry| entry.len).collect::<Vec<_>>(), [PAGE, 100]);
    assert_eq!(list[1].dma_address, ring.dma_address().wrapping_add(PAGE as u64));
    // Another device maps it.
    ring.write(PAGE + 99, 0x5a);
    let other = Bench::new();
    let device = DeviceBuilder::new("other").build(bench.mock.clone(), bench.host.clone());
    // SAFETY: the memory outlives the mapping, and is used by value.
    let segments = unsafe { device.map_sg(&mut list, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    let last = list[segments - 1];
    let at = last.dma_address.wrapping_add(last.dma_len as u64 - 1);
    assert_eq!(bench.mock.device_read(at, 1), Some(vec![0x5a]));
    // SAFETY: as it was mapped.
    unsafe { device.unmap_sg(&list, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    // What is not RAM is none.
    let device = DeviceBuilder::new("elsewhere").build(bench.mock.clone(), other.host.clone());
    let memory = device.alloc_coherent(8, Attrs::empty()).unwrap();
    assert_eq!(device.sg_table(memory), Err(DmaError::NotRam));
    // SAFETY: allocated so, freed once.
    unsafe { device.free_coherent(memory, Attrs::empty()) }.unwrap();
}
