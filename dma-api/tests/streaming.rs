//! Streaming maps: whose the buffer is at each moment, and what happens to it when something fails.

mod common;

use std::sync::Arc;

use common::{Bench, Call, PAGE, pattern};
use dma_api::{
    Bidirectional, BufferFor, Direction, DmaBuffer, DmaError, FromDevice, MapDirection, Quarantined,
    Streaming, ToDevice,
};

fn map<B: BufferFor<D>, D: MapDirection>(bench: &Bench, buffer: B) -> Streaming<'_, B, D> {
    Streaming::map(&bench.device, buffer).unwrap()
}

#[test]
fn unmap_gives_the_same_buffer_back_with_what_the_device_wrote() {
    let bench = Bench::new();
    let buffer = bench.buffer(&pattern(1, 100));
    let (at, phys) = (buffer.as_ptr(), buffer.phys());
    let mapped = map::<_, Bidirectional>(&bench, buffer);
    assert_eq!((mapped.len(), mapped.is_empty()), (100, false));
    assert_eq!(bench.mock.device_read(mapped.dma_address(), 100).unwrap(), pattern(1, 100));
    assert!(bench.mock.device_write(mapped.dma_address(), &pattern(2, 50)));
    let buffer = mapped.unmap().unwrap();
    assert_eq!((buffer.as_ptr(), buffer.phys()), (at, phys));
    assert_eq!(buffer[..50], pattern(2, 50));
    assert_eq!(buffer[50..], pattern(1, 100)[50..]);
    assert_eq!(bench.mock.live(), 0);
}

#[test]
fn a_vec_comes_back_with_its_capacity() {
    let bench = Bench::new();
    let mut vec = Vec::with_capacity(1000);
    vec.extend(0..100u64);
    let at = vec.as_ptr();
    let mapped = map::<_, Bidirectional>(&bench, vec);
    assert_eq!(mapped.len(), 800);
    assert!(bench.mock.device_write(mapped.dma_address().wrapping_add(8 * 99), &7u64.to_ne_bytes()));
    let mut vec = mapped.unmap().unwrap();
    assert_eq!((vec.as_ptr(), vec.len()), (at, 100));
    assert!(vec.capacity() >= 1000);
    assert_eq!((vec[98], vec[99]), (98, 7));
    vec.push(1);
}

#[test]
fn a_box_comes_back() {
    let bench = Bench::new();
    let boxed: Box<[u16]> = (0..300).collect();
    let at = boxed.as_ptr();
    let mapped = map::<_, ToDevice>(&bench, boxed);
    let seen = bench.mock.device_read(mapped.dma_address(), 600).unwrap();
    assert_eq!(seen[598..], 299u16.to_ne_bytes());
    let boxed = mapped.unmap().unwrap();
    assert_eq!((boxed.as_ptr(), boxed.len()), (at, 300));
}

#[test]
fn a_shared_slice_is_kept_alive_and_stays_readable() {
    let bench = Bench::new();
    let shared: Arc<[u8]> = pattern(3, 64).into();
    let mapped = map::<_, ToDevice>(&bench, Arc::clone(&shared));
    assert_eq!(Arc::strong_count(&shared), 2);
    assert_eq!(shared[..], pattern(3, 64)[..]);
    assert_eq!(bench.mock.device_read(mapped.dma_address(), 64).unwrap(), pattern(3, 64));
    drop(mapped);
    assert_eq!(Arc::strong_count(&shared), 1);
}

#[test]
fn the_direction_is_what_the_type_says() {
    fn check<D: MapDirection>(dir: Direction)
    where
        DmaBuffer<u8>: BufferFor<D>,
        Vec<u8>: BufferFor<D>,
    {
        let bench = Bench::new();
        let ram = map::<_, D>(&bench, bench.buffer(&[1; 10]));
        let heap = map::<_, D>(&bench, vec![2u8; 20]);
        let (ram_at, heap_at) = (ram.dma_address().get(), heap.dma_address().get());
        drop((ram, heap));
        let calls = bench.mock.take_calls();
        assert!(matches!(calls[0], Call::MapPhys { len: 10, dir: seen, .. } if seen == dir));
        assert!(matches!(calls[1], Call::MapForeign { len: 20, dir: seen, .. } if seen == dir));
        let attrs = dma_api::Attrs::empty();
        assert_eq!(calls[2], Call::UnmapPhys { address: ram_at, len: 10, dir, attrs });
        assert_eq!(calls[3], Call::UnmapPhys { address: heap_at, len: 20, dir, attrs });
        assert_eq!(calls.len(), 4);
    }
    check::<ToDevice>(Direction::ToDevice);
    check::<FromDevice>(Direction::FromDevice);
    check::<Bidirectional>(Direction::Bidirectional);
}

#[test]
fn drop_unmaps_once_and_frees_the_buffer() {
    let bench = Bench::new();
    drop(map::<_, ToDevice>(&bench, bench.buffer(&[1; 100])));
    let unmaps = |call: &&Call| matches!(call, Call::UnmapPhys { .. });
    assert_eq!(bench.mock.take_calls().iter().filter(unmaps).count(), 1);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
    // Nor does the drop of what `unmap` consumed unmap again.
    map::<_, ToDevice>(&bench, bench.buffer(&[1; 100])).unmap().unwrap();
    assert_eq!(bench.mock.take_calls().iter().filter(unmaps).count(), 1);
    map::<_, ToDevice>(&bench, bench.buffer(&[1; 100])).sync_for_cpu().unmap().unwrap();
    assert_eq!(bench.mock.take_calls().iter().filter(unmaps).count(), 1);
    drop(map::<_, ToDevice>(&bench, bench.buffer(&[1; 100])).sync_for_cpu());
    assert_eq!(bench.mock.take_calls().iter().filter(unmaps).count(), 1);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
}

#[test]
fn a_failed_map_gives_the_buffer_back() {
    let bench = Bench::new();
    bench.maps_left(0);
    let buffer = bench.buffer(&pattern(4, 100));
    let at = buffer.as_ptr();
    let failed = Streaming::<_, FromDevice>::map(&bench.device, buffer).unwrap_err();
    assert_eq!(failed.error, DmaError::OutOfMemory);
    assert_eq!(failed.to_string(), "out of memory");
    assert_eq!(failed.buffer.as_ptr(), at);
    assert_eq!(failed.buffer[..], pattern(4, 100)[..]);
    drop(failed);
    assert_eq!(bench.host.live(), 0);
}

#[test]
fn a_buffer_without_bytes_cannot_be_mapped() {
    let bench = Bench::new();
    let failed = Streaming::<_, ToDevice>::map(&bench.device, Vec::<u8>::new()).unwrap_err();
    assert_eq!(failed.error, DmaError::InvalidLength(0));
    let failed = Streaming::<_, ToDevice>::map(&bench.device, vec![(); 5]).unwrap_err();
    assert_eq!(failed.error, DmaError::InvalidLength(0));
    assert_eq!(failed.buffer.len(), 5);
    assert_eq!(bench.mock.take_calls(), []);
}

#[test]
fn a_failed_unmap_leaks_the_buffer() {
    let bench = Bench::new();
    let mapped = map::<_, FromDevice>(&bench, bench.buffer(&[0; PAGE]));
    let address = mapped.dma_address();
    bench.unmaps_fail(true);
    assert_eq!(mapped.unmap().unwrap_err(), Quarantined { address, len: PAGE });
    assert_eq!(bench.host.live(), PAGE as u64, "the device may still write there");
    drop(map::<_, FromDevice>(&bench, bench.buffer(&[0; PAGE])));
    assert_eq!(bench.host.live(), 2 * PAGE as u64);
}

#[test]
fn a_failed_unmap_leaks_a_shared_slice() {
    let bench = Bench::new();
    let shared: Arc<[u8]> = pattern(3, 64).into();
    let mapped = map::<_, ToDevice>(&bench, Arc::clone(&shared));
    bench.unmaps_fail(true);
    drop(mapped);
    assert_eq!(Arc::strong_count(&shared), 2);
}

#[test]
fn a_forgotten_mapping_keeps_its_buffer_for_ever() {
    let bench = Bench::new();
    let mapped = map::<_, FromDevice>(&bench, bench.buffer(&[0; PAGE]));
    let address = mapped.dma_address();
    std::mem::forget(mapped);
    assert_eq!((bench.mock.live(), bench.host.live()), (1, PAGE as u64));
    // What the device writes goes where nobody else is.
    assert!(bench.mock.device_write(address, &[1; PAGE]));
    let other = bench.buffer(&[0; PAGE]);
    assert!(other.iter().all(|&byte| byte == 0));
}

#[test]
fn turns_are_told_to_the_backend_in_order() {
    let bench = Bench::noncoherent();
    let mapped = map::<_, Bidirectional>(&bench, bench.buffer(&[0; 40]));
    let address = mapped.dma_address().get();
    bench.mock.take_calls();
    let mapped = mapped.sync_for_cpu().sync_for_device();
    mapped.sync_for_cpu().unmap().unwrap();
    let (len, dir) = (40, Direction::Bidirectional);
    let expected = [
        Call::SyncForCpu { address, len, dir },
        Call::SyncForDevice { address, len, dir },
        Call::SyncForCpu { address, len, dir },
        Call::UnmapPhys { address, len, dir, attrs: dma_api::Attrs::SKIP_CPU_SYNC },
    ];
    assert_eq!(bench.mock.take_calls(), expected);
}

#[test]
fn a_coherent_device_pays_for_syncs_only_after_a_bounce() {
    let bench = Bench::new();
    let mapped = map::<_, Bidirectional>(&bench, bench.buffer(&[0; 40]));
    bench.mock.take_calls();
    let mapped = mapped.sync_for_cpu().sync_for_device();
    assert_eq!(bench.mock.take_calls(), []);
    bench.device.parms().set_needs_sync();
    let mapped = mapped.sync_for_cpu().sync_for_device();
    assert_eq!(bench.mock.take_calls().len(), 2);
    drop(mapped);
}

#[test]
fn between_turns_elements_are_read_and_written_by_value() {
    let bench = Bench::new();
    let mut buffer = DmaBuffer::<u32>::zeroed(&bench.device, 10).unwrap();
    buffer[3] = 33;
    let mut owned = map::<_, Bidirectional>(&bench, buffer).sync_for_cpu();
    assert_eq!((owned.len(), owned.is_empty()), (10, false));
    assert_eq!((owned.read(3), owned.read(4)), (33, 0));
    owned.write(9, 99);
    owned.copy_from_slice(4, &[40, 50]);
    let mapped = owned.sync_for_device();
    let at = |index: u64| mapped.dma_address().wrapping_add(4 * index);
    assert_eq!(bench.mock.device_read(at(9), 4).unwrap(), 99u32.to_ne_bytes());
    assert!(bench.mock.device_write(at(5), &55u32.to_ne_bytes()));
    let owned = mapped.sync_for_cpu();
    let mut seen = [0; 3];
    owned.copy_to_slice(4, &mut seen);
    assert_eq!(seen, [40, 55, 0]);
    assert_eq!(owned.unmap().unwrap()[..], [0, 0, 0, 33, 40, 55, 0, 0, 0, 99]);
}

#[test]
fn elements_of_any_size_and_place_are_moved_whole() {
    #[derive(Clone, Copy, PartialEq, Debug, zerocopy::FromBytes, zerocopy::IntoBytes)]
    #[repr(C, packed)]
    struct Odd {
        a: u8,
        b: u64,
        c: u16,
    }
    let bench = Bench::new();
    let odd = |n: u8| Odd { a: n, b: u64::from(n) * 0x0101_0101_0101_0101, c: 0x1122 };
    let mut owned = map::<_, Bidirectional>(&bench, vec![odd(0); 7]).sync_for_cpu();
    for index in 0..7 {
        owned.write(index, odd(index as u8 + 1));
    }
    for index in 0..7 {
        assert_eq!(owned.read(index), odd(index as u8 + 1));
    }
}

#[test]
fn a_mapping_may_end_on_another_thread() {
    let bench = Bench::new();
    let mapped = map::<_, FromDevice>(&bench, bench.buffer(&[0; 100]));
    let list =
        dma_api::ScatterList::<_, FromDevice>::map(&bench.device, vec![bench.buffer(&[0; 100])]).unwrap();
    assert!(bench.mock.device_write(mapped.dma_address(), &pattern(1, 100)));
    assert!(bench.mock.device_write(list.segments().next().unwrap().address, &pattern(2, 100)));
    let (one, many) = std::thread::scope(|scope| {
        let one = scope.spawn(|| mapped.unmap().unwrap());
        let many = scope.spawn(|| list.unmap().unwrap());
        (one.join().unwrap(), many.join().unwrap())
    });
    assert_eq!(one[..], pattern(1, 100));
    assert_eq!(many[0][..], pattern(2, 100));
}

#[test]
fn what_the_cpu_wrote_in_its_turn_stays_when_the_mapping_ends() {
    // In a copy, and where the device does not see the caches.
    let bench = Bench::noncoherent();
    let mapped = map::<_, Bidirectional>(&bench, vec![1u8; 8]);
    assert!(bench.mock.device_write(mapped.dma_address(), &[2; 8]));
    let mut owned = mapped.sync_for_cpu();
    owned.write(0, 3);
    bench.mock.take_calls();
    assert_eq!(owned.unmap().unwrap(), [3, 2, 2, 2, 2, 2, 2, 2]);
    let skips = |call: &Call| matches!(call, Call::UnmapPhys { attrs: dma_api::Attrs::SKIP_CPU_SYNC, .. });
    assert!(bench.mock.take_calls().iter().all(skips));
    // The next turn is handed over as ever.
    let mut owned = map::<_, Bidirectional>(&bench, vec![1u8; 8]).sync_for_cpu();
    owned.write(0, 3);
    let mapped = owned.sync_for_device();
    assert_eq!(bench.mock.device_read(mapped.dma_address(), 2).unwrap(), [3, 1]);
    assert!(bench.mock.device_write(mapped.dma_address().wrapping_add(1), &[4]));
    assert_eq!(mapped.unmap().unwrap()[..3], [3, 4, 1]);
}

fn panics(f: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
}

#[test]
fn elements_beyond_the_end_panic() {
    let bench = Bench::new();
    let mut owned = map::<_, Bidirectional>(&bench, vec![0u16; 8]).sync_for_cpu();
    assert!(panics(|| _ = owned.read(8)));
    assert!(panics(|| _ = owned.read(usize::MAX)));
    assert!(panics(|| owned.copy_to_slice(7, &mut [0; 2])));
    assert!(panics(|| owned.copy_to_slice(9, &mut [])));
    assert!(panics(|| owned.copy_to_slice(usize::MAX, &mut [0; 2])));
    assert!(panics(|| owned.write(8, 1)));
    assert!(panics(|| owned.copy_from_slice(5, &[1; 4])));
    owned.copy_to_slice(8, &mut []);
    owned.copy_from_slice(6, &[5, 6]);
    assert_eq!(owned.unmap().unwrap(), [0, 0, 0, 0, 0, 0, 5, 6]);
}

#[test]
fn memory_that_is_not_in_one_piece_is_not_mapped_as_if_it_were() {
    let bench = Bench::new();
    let buffer = bench.buffer(&pattern(7, 2 * PAGE));
    bench.host.scattered.store(true, std::sync::atomic::Ordering::Relaxed);
    drop(map::<_, ToDevice>(&bench, buffer));
    let calls = bench.mock.take_calls();
    assert!(matches!(calls[0], Call::MapForeign { len, .. } if len == 2 * PAGE), "{calls:?}");
}

#[test]
fn a_part_of_a_buffer_is_the_cpus_for_a_while() {
    let bench = Bench::new();
    let mut mapped = map::<_, Bidirectional>(&bench, vec![1u16; 8]);
    let at = mapped.dma_address();
    assert!(bench.mock.device_write(at.wrapping_add(4), &[9, 0, 8, 0]));
    bench.mock.take_calls();
    let mut part = mapped.sync_range_for_cpu(2, 3);
    let mut elements = [0; 3];
    part.copy_to_slice(0, &mut elements);
    assert_eq!((elements, part.len(), part.is_empty()), ([9, 8, 1], 3, false));
    part.copy_from_slice(2, &[7]);
    assert!(panics(|| part.copy_to_slice(1, &mut elements)));
    drop(part);
    let (address, len, dir) = (at.get() + 4, 6, dma_api::Direction::Bidirectional);
    assert_eq!(
        bench.mock.take_calls(),
        [Call::SyncForCpu { address, len, dir }, Call::SyncForDevice { address, len, dir }]
    );
    assert_eq!(bench.mock.device_read(at.wrapping_add(6), 4).unwrap(), [8, 0, 7, 0]);
    assert!(panics(|| drop(mapped.sync_range_for_cpu(7, 2))));
    assert_eq!(mapped.unmap().unwrap(), [1, 1, 9, 8, 7, 1, 1, 1]);
}
