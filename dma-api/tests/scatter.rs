//! Scatter lists: the device sees all buffers in order, and each comes back as it should.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Bench, Call, PAGE, pattern};
use dma_api::{
    Attrs, Bidirectional, BufferFor, Direction, DmaBuffer, DmaError, FromDevice, ScatterList, Segment,
    ToDevice,
};
use proptest::prelude::*;

/// What the device finds in a list.
fn device_reads<B: BufferFor<D>, D: dma_api::MapDirection>(
    bench: &Bench,
    list: &ScatterList<'_, B, D>,
) -> Vec<u8> {
    let read = |segment: Segment| bench.mock.device_read(segment.address, segment.len).unwrap();
    list.segments().flat_map(read).collect()
}

fn lens<B: BufferFor<D>, D: dma_api::MapDirection>(list: &ScatterList<'_, B, D>) -> Vec<usize> {
    list.segments().map(|segment| segment.len).collect()
}

#[test]
fn buffers_in_ram_are_mapped_as_one_list_and_come_back_in_order() {
    let bench = Bench::new();
    let bytes = [pattern(1, PAGE), pattern(2, 100), pattern(3, 3 * PAGE)];
    let buffers: Vec<_> = bytes.iter().map(|bytes| bench.buffer(bytes)).collect();
    let places: Vec<_> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
    bench.mock.take_calls();
    let list = ScatterList::<_, Bidirectional>::map(&bench.device, buffers).unwrap();
    let dir = Direction::Bidirectional;
    assert!(bench.mock.take_calls().contains(&Call::MapSg { elements: 3, dir }));
    assert_eq!(list.segments().len(), list.segments().count());
    assert_eq!(device_reads(&bench, &list), bytes.concat());
    let last = list.segments().last().unwrap();
    assert!(bench.mock.device_write(last.address.wrapping_add(last.len as u64 - 2), &[8, 9]));
    let buffers = list.unmap().unwrap();
    assert_eq!(bench.mock.take_calls(), [Call::UnmapSg { elements: 3, dir }]);
    assert_eq!(buffers.iter().map(|buffer| buffer.as_ptr()).collect::<Vec<_>>(), places);
    assert_eq!(buffers[0][..], bytes[0]);
    assert_eq!(buffers[1][..], bytes[1]);
    assert_eq!(buffers[2][3 * PAGE - 3..], [bytes[2][3 * PAGE - 3], 8, 9]);
    assert_eq!(bench.mock.live(), 0);
}

#[test]
fn there_are_as_many_segments_as_the_backend_made() {
    let bench = Bench::new();
    // The allocator gives memory from the top, so the second is below the first.
    let (high, low) = (bench.buffer(&pattern(1, PAGE)), bench.buffer(&pattern(2, PAGE)));
    assert_eq!(low.phys().wrapping_add(PAGE as u64), high.phys());
    let list = ScatterList::<_, ToDevice>::map(&bench.device, vec![low, high]).unwrap();
    assert_eq!(lens(&list), [2 * PAGE], "neighbours were joined");
    assert_eq!(device_reads(&bench, &list), [pattern(2, PAGE), pattern(1, PAGE)].concat());
    let mut buffers = list.unmap().unwrap();
    buffers.swap(0, 1);
    let list = ScatterList::<_, ToDevice>::map(&bench.device, buffers).unwrap();
    assert_eq!(lens(&list), [PAGE, PAGE]);
}

#[test]
fn a_part_that_is_not_ram_makes_every_part_be_mapped_for_itself() {
    let bench = Bench::new();
    let bytes = [pattern(1, 100), pattern(2, 70_000)];
    let list = ScatterList::<_, FromDevice>::map(&bench.device, bytes.to_vec()).unwrap();
    let calls = bench.mock.take_calls();
    let foreign = |call: &&Call| matches!(call, Call::MapForeign { dir: Direction::FromDevice, .. });
    assert_eq!(calls.iter().filter(foreign).count(), list.segments().len());
    assert!(lens(&list).iter().all(|&len| len <= 65_536));
    assert_eq!(lens(&list).iter().sum::<usize>(), 70_100);
    let mut written = Vec::new();
    for (number, segment) in list.segments().enumerate() {
        let piece = pattern(number as u8 + 40, segment.len);
        assert!(bench.mock.device_write(segment.address, &piece));
        written.extend(piece);
    }
    let buffers = list.unmap().unwrap();
    assert_eq!(buffers.concat(), written);
    assert_eq!((buffers[0].len(), buffers[1].len()), (100, 70_000));
    assert_eq!(bench.mock.live(), 0);
}

#[test]
fn memory_in_pieces_is_mapped_piece_by_piece() {
    let bench = Bench::with_defaults();
    let buffer = bench.buffer(&pattern(1, 3 * PAGE));
    bench.host.scattered.store(true, Ordering::Relaxed);
    let list = ScatterList::<_, ToDevice>::map(&bench.device, vec![buffer]).unwrap();
    assert_eq!(lens(&list), [PAGE, PAGE, PAGE]);
    assert_eq!(device_reads(&bench, &list), pattern(1, 3 * PAGE));
}

#[test]
fn shared_slices_can_be_sent_together() {
    let bench = Bench::new();
    let shared: Arc<[u8]> = pattern(3, 64).into();
    let list = ScatterList::<_, ToDevice>::map(&bench.device, vec![Arc::clone(&shared), Arc::clone(&shared)])
        .unwrap();
    assert_eq!(device_reads(&bench, &list), [&shared[..], &shared[..]].concat());
    drop(list);
    assert_eq!(Arc::strong_count(&shared), 1);
}

#[test]
fn drop_unmaps_once_and_frees_the_buffers() {
    let bench = Bench::new();
    let buffers = vec![bench.buffer(&[1; 100]), bench.buffer(&[2; PAGE])];
    drop(ScatterList::<_, ToDevice>::map(&bench.device, buffers).unwrap());
    let unmaps = |call: &&Call| matches!(call, Call::UnmapSg { .. } | Call::UnmapPhys { .. });
    assert_eq!(bench.mock.take_calls().iter().filter(unmaps).count(), 1);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
}

#[test]
fn nothing_and_empty_buffers_are_refused() {
    let bench = Bench::new();
    let failed = ScatterList::<Vec<u8>, ToDevice>::map(&bench.device, Vec::new()).unwrap_err();
    assert_eq!(failed.error, DmaError::InvalidLength(0));
    let failed = ScatterList::<_, ToDevice>::map(&bench.device, vec![vec![1u8], vec![]]).unwrap_err();
    assert_eq!(failed.error, DmaError::InvalidLength(0));
    assert_eq!(failed.buffer, [vec![1], vec![]]);
    assert_eq!(bench.mock.live(), 0);
}

#[test]
fn a_failed_map_gives_the_buffers_back_and_leaves_nothing_mapped() {
    let bench = Bench::with_defaults();
    bench.maps_left(1);
    let buffers = vec![bench.buffer(&[1; PAGE]), bench.buffer(&[2; PAGE])];
    let failed = ScatterList::<_, FromDevice>::map(&bench.device, buffers).unwrap_err();
    assert_eq!(failed.error, DmaError::OutOfMemory);
    assert_eq!((failed.buffer[0][0], failed.buffer[1][0]), (1, 2));
    assert_eq!(bench.mock.live(), 0);
    // The same where each part is mapped for itself; what the device wrote meanwhile is not copied.
    let bench = Bench::new();
    bench.maps_left(1);
    let failed =
        ScatterList::<_, FromDevice>::map(&bench.device, vec![vec![1u8; 9], vec![2; 9]]).unwrap_err();
    assert_eq!(failed.error, DmaError::OutOfMemory);
    assert_eq!(failed.buffer, [vec![1; 9], vec![2; 9]]);
    assert_eq!(bench.mock.live(), 0);
    let undone = |call: &&Call| matches!(call, Call::UnmapPhys { attrs: Attrs::SKIP_CPU_SYNC, .. });
    assert_eq!(bench.mock.take_calls().iter().filter(undone).count(), 1);
}

#[test]
fn a_failed_map_that_cannot_be_undone_leaks_the_buffers() {
    for bench in [Bench::with_defaults(), Bench::new()] {
        bench.maps_left(1);
        bench.unmaps_fail(true);
        // The first is high, so that the mock does not join them.
        let buffers = vec![bench.buffer(&[1; PAGE]), bench.buffer(&[2; PAGE])];
        let failed = ScatterList::<_, FromDevice>::map(&bench.device, buffers).unwrap_err();
        assert!(matches!(failed.error, DmaError::NotUndone(_)), "{failed:?}");
        assert!(failed.buffer.is_empty());
        assert_eq!(bench.host.live(), 2 * PAGE as u64, "the device may still reach them");
    }
    // What is bounced part by part, where the process's heap is the original.
    let bench = Bench::new();
    bench.maps_left(1);
    bench.unmaps_fail(true);
    let shared: Arc<[u8]> = pattern(3, 64).into();
    let failed =
        ScatterList::<_, ToDevice>::map(&bench.device, vec![shared.clone(), shared.clone()]).unwrap_err();
    assert!(matches!(failed.error, DmaError::NotUndone(_)), "{failed:?}");
    assert_eq!(Arc::strong_count(&shared), 3);
}

#[test]
fn a_failed_unmap_leaks_every_buffer() {
    let bench = Bench::new();
    let buffers = vec![bench.buffer(&[1; PAGE]), bench.buffer(&[2; PAGE])];
    let list = ScatterList::<_, FromDevice>::map(&bench.device, buffers).unwrap();
    let first = list.segments().next().unwrap().address;
    bench.unmaps_fail(true);
    assert_eq!(list.unmap().unwrap_err().address, first);
    assert_eq!(bench.host.live(), 2 * PAGE as u64);
    let shared: Arc<[u8]> = pattern(3, 64).into();
    drop(ScatterList::<_, ToDevice>::map(&bench.device, vec![shared.clone(), shared.clone()]).unwrap());
    assert_eq!(Arc::strong_count(&shared), 3);
}

#[test]
fn a_forgotten_list_keeps_its_buffers_for_ever() {
    let bench = Bench::new();
    let buffers = vec![bench.buffer(&[1; PAGE]), bench.buffer(&[2; PAGE])];
    std::mem::forget(ScatterList::<_, FromDevice>::map(&bench.device, buffers).unwrap());
    assert_eq!(bench.host.live(), 2 * PAGE as u64);
    assert_ne!(bench.mock.live(), 0);
}

#[test]
fn wider_elements_count_in_bytes() {
    let bench = Bench::new();
    let buffers = vec![DmaBuffer::<u64>::zeroed(&bench.device, 3).unwrap()];
    let list = ScatterList::<_, ToDevice>::map(&bench.device, buffers).unwrap();
    assert_eq!(lens(&list), [24]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the limits and the buffers, segments keep the limits and are together what the buffers are.
    #[test]
    fn segments_keep_the_devices_limits(
        buffers in proptest::collection::vec(1..40_000usize, 1..6),
        longest in 512..70_000u64,
        boundary_shift in 9..17u32,
        scattered: bool,
        heap: bool,
    ) {
        let bench = Bench::with_defaults();
        let boundary = (1u64 << boundary_shift) - 1;
        bench.device.parms().set_max_segment_size(longest);
        bench.device.parms().set_segment_boundary(boundary);
        let bytes: Vec<_> = buffers.iter().enumerate().map(|(seed, &len)| pattern(seed as u8, len)).collect();
        if heap {
            // The default operations have no pool, so nothing can be mapped.
            let failed = ScatterList::<_, ToDevice>::map(&bench.device, bytes.clone()).unwrap_err();
            prop_assert_eq!(failed.error, DmaError::NotRam);
            prop_assert_eq!(failed.buffer, bytes);
            return Ok(());
        }
        let buffers = bytes.iter().map(|bytes| bench.buffer(bytes)).collect();
        bench.host.scattered.store(scattered, Ordering::Relaxed);
        bench.mock.take_calls();
        let list = ScatterList::<_, ToDevice>::map(&bench.device, buffers).unwrap();
        prop_assert_eq!(device_reads(&bench, &list), bytes.concat());
        for call in bench.mock.take_calls() {
            let Call::MapPhys { phys, len, .. } = call else { continue };
            prop_assert!(len as u64 <= longest);
            prop_assert!((phys & boundary) + len as u64 - 1 <= boundary, "{:#x} and {} bytes", phys, len);
        }
        let back = list.unmap().unwrap();
        prop_assert!(back.iter().zip(&bytes).all(|(buffer, bytes)| buffer[..] == bytes[..]));
    }
}

/// Buffers in RAM are synced as one list, others one by one.
#[test]
fn a_list_goes_from_hand_to_hand() {
    let bench = Bench::noncoherent();
    let dir = Direction::Bidirectional;
    let list = ScatterList::<_, Bidirectional>::map(
        &bench.device,
        vec![bench.buffer(&[1; 8]), bench.buffer(&[2; 8])],
    )
    .unwrap();
    let at = list.segments().last().unwrap().address;
    bench.mock.take_calls();
    assert!(bench.mock.device_write(at, &[9]));
    let mut owned = list.sync_for_cpu();
    let mut bytes = [0; 2];
    owned.copy_to_slice(1, 0, &mut bytes);
    assert_eq!((bytes, owned.len_of(1)), ([9, 2], 8));
    owned.copy_from_slice(1, 1, &[7]);
    let list = owned.sync_for_device();
    assert_eq!(
        bench.mock.take_calls(),
        [Call::SyncSgForCpu { elements: 2, dir }, Call::SyncSgForDevice { elements: 2, dir }]
    );
    assert_eq!(bench.mock.device_read(at, 2).unwrap(), [9, 7]);
    assert_eq!(list.sync_for_cpu().unmap().unwrap()[1][..3], [9, 7, 2]);
}

#[test]
fn a_bounced_list_is_copied_in_each_turn_and_what_the_cpu_wrote_stays() {
    let bench = Bench::new();
    let list = ScatterList::<_, Bidirectional>::map(&bench.device, vec![vec![1u8; 4], vec![2u8; 4]]).unwrap();
    let at: Vec<_> = list.segments().map(|segment| segment.address).collect();
    assert!(bench.mock.device_write(at[0], &[8]));
    let mut owned = list.sync_for_cpu();
    let mut bytes = [0; 2];
    owned.copy_to_slice(0, 0, &mut bytes);
    assert_eq!(bytes, [8, 1]);
    owned.copy_from_slice(1, 3, &[6]);
    let list = owned.sync_for_device();
    assert_eq!(bench.mock.device_read(at[1], 4).unwrap(), [2, 2, 2, 6]);
    assert!(bench.mock.device_write(at[1], &[5]));
    let mut owned = list.sync_for_cpu();
    owned.copy_from_slice(1, 1, &[4]);
    assert_eq!(owned.unmap().unwrap(), [vec![8, 1, 1, 1], vec![5, 4, 2, 6]]);
    assert_eq!(bench.mock.live(), 0);
}
