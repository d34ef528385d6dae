//! A device's masks, limits and faults.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{Bench, Call, MAX_MAPPING, MERGE_BOUNDARY, OPT_MAPPING, REQUIRED_MASK, UNSUPPORTED};
use dma_api::{
    Attrs, DeviceBuilder, DeviceFault, DeviceParms, Direction, DmaError, FaultQueue, ScatterList, SgEntry,
    ToDevice,
};
use platform::{DmaAddr, PhysAddr};

const LOW_32: u64 = 0xffff_ffff;

#[test]
fn a_device_begins_with_32_bits_and_linuxs_limits() {
    let parms = DeviceParms::new(true, false);
    assert_eq!((parms.streaming_mask(), parms.coherent_mask()), (LOW_32, LOW_32));
    assert_eq!((parms.max_segment_size(), parms.segment_boundary()), (65_536, LOW_32));
    assert_eq!(parms.min_align_mask(), 0);
    assert!(parms.is_coherent() && !parms.is_untrusted() && !parms.needs_sync());
    let parms = DeviceParms::new(false, true);
    assert!(!parms.is_coherent() && parms.is_untrusted() && parms.needs_sync());
    let bench = Bench::new();
    assert_eq!(bench.device.parms().streaming_mask(), LOW_32);
    assert_eq!(bench.device.name(), "0000:00:03.0");
}

#[test]
fn masks_are_set_together_and_apart() {
    let bench = Bench::new();
    let masks = || (bench.device.parms().streaming_mask(), bench.device.parms().coherent_mask());
    bench.device.set_mask(u64::MAX).unwrap();
    assert_eq!(masks(), (u64::MAX, u64::MAX));
    bench.device.set_streaming_mask(0xff_ffff).unwrap();
    assert_eq!(masks(), (0xff_ffff, u64::MAX));
    bench.device.set_coherent_mask(1).unwrap();
    assert_eq!(masks(), (0xff_ffff, 1));
}

#[test]
fn masks_that_are_no_masks_or_cannot_be_served_change_nothing() {
    let bench = Bench::new();
    for mask in [0, 0xffff_fffe, 0xf0f0, 1 << 63, u64::MAX - 1, UNSUPPORTED] {
        let error = Err(DmaError::MaskNotSupported { mask });
        assert_eq!(bench.device.set_mask(mask), error);
        assert_eq!(bench.device.set_streaming_mask(mask), error);
        assert_eq!(bench.device.set_coherent_mask(mask), error);
    }
    let parms = bench.device.parms();
    assert_eq!((parms.streaming_mask(), parms.coherent_mask()), (LOW_32, LOW_32));
    let asked = bench.mock.take_calls();
    assert_eq!(asked, [Call::DmaSupported { mask: UNSUPPORTED }; 3], "only a mask is worth asking for");
}

#[test]
fn nothing_is_mapped_without_a_length() {
    let bench = Bench::new();
    let mut byte = 0u8;
    let (dir, attrs, refused) = (Direction::ToDevice, Attrs::empty(), DmaError::InvalidLength(0));
    // SAFETY: nothing is mapped.
    unsafe {
        assert_eq!(bench.device.map_single(NonNull::from(&mut byte), 0, dir, attrs), Err(refused));
        assert_eq!(bench.device.map_phys(PhysAddr::new(common::BASE), 0, dir, attrs), Err(refused));
        assert_eq!(bench.device.map_sg(&mut [], dir, attrs), Err(refused));
        let at = PhysAddr::new(common::BASE);
        let mut list = [SgEntry::new(at, 1), SgEntry::new(at, 0)];
        assert_eq!(bench.device.map_sg(&mut list, dir, attrs), Err(refused));
    }
    assert_eq!(bench.device.alloc_coherent(0, attrs).unwrap_err(), refused);
    assert_eq!(bench.mock.take_calls(), []);
}

#[test]
fn sizes_are_the_backends() {
    let bench = Bench::new();
    assert_eq!(bench.device.max_mapping_size(), MAX_MAPPING);
    assert_eq!(bench.device.opt_mapping_size(), OPT_MAPPING);
    let bench = Bench::with_defaults();
    assert_eq!(bench.device.opt_mapping_size(), usize::MAX);
}

fn fault(number: u64) -> DeviceFault {
    DeviceFault { address: DmaAddr::new(number), write: number % 2 == 1 }
}

#[test]
fn a_drivers_faults_arrive_in_order() {
    let bench = Bench::new();
    assert_eq!(bench.device.take_fault(), None);
    let faults = Arc::new(FaultQueue::new());
    let builder = DeviceBuilder::new("device").faults(faults.clone());
    let device = builder.build(bench.mock.clone(), bench.platform());
    faults.push(fault(1));
    faults.push(fault(2));
    assert_eq!(device.take_fault(), Some(fault(1)));
    assert_eq!(device.take_fault(), Some(fault(2)));
    assert_eq!(device.take_fault(), None);
    assert_eq!(faults.lost(), 0);
}

#[test]
fn a_flood_of_faults_keeps_the_newest_and_counts_the_rest() {
    let faults = FaultQueue::new();
    let capacity = FaultQueue::CAPACITY as u64;
    for number in 0..capacity + 10 {
        faults.push(fault(number));
    }
    assert_eq!(faults.lost(), 10);
    for number in 10..capacity + 10 {
        assert_eq!(faults.pop(), Some(fault(number)));
    }
    assert_eq!(faults.pop(), None);
    faults.push(fault(7));
    assert_eq!((faults.pop(), faults.lost()), (Some(fault(7)), 10));
}

#[test]
fn odd_limits_count_as_what_keeps_them() {
    let parms = DeviceParms::new(true, false);
    parms.set_max_segment_size(0);
    assert_eq!(parms.max_segment_size(), 1);
    for (set, kept) in [
        (0, 0),
        (0xfff, 0xfff),
        (0x3ffe, 0x1fff),
        (0x4000, 0x3fff),
        (1, 1),
        (u64::MAX, u64::MAX),
        (u64::MAX - 1, u64::MAX >> 1),
    ] {
        parms.set_segment_boundary(set);
        assert_eq!(parms.segment_boundary(), kept, "boundary {set:#x}");
    }
    for (set, kept) in [(0, 0), (0x1ff, 0x1ff), (0x600, 0x7ff), (1 << 63, u64::MAX)] {
        parms.set_min_align_mask(set);
        assert_eq!(parms.min_align_mask(), kept, "alignment {set:#x}");
    }
}

#[test]
fn no_limit_of_a_driver_makes_a_list_endless() {
    let bench = Bench::with_defaults();
    let parms = bench.device.parms();
    parms.set_max_segment_size(0);
    parms.set_segment_boundary(0);
    let list = ScatterList::<_, ToDevice>::map(&bench.device, vec![bench.buffer(&[1; 5])]).unwrap();
    assert_eq!(list.segments().map(|segment| segment.len).collect::<Vec<_>>(), [1; 5]);
}

#[test]
fn linuxs_numbers_of_directions_are_three() {
    let directions = [0, 1, 2].map(Direction::try_from);
    let expected = [Direction::Bidirectional, Direction::ToDevice, Direction::FromDevice];
    assert_eq!(directions, expected.map(Ok));
    for none in [3, 4, u32::MAX] {
        assert_eq!(Direction::try_from(none), Err(DmaError::InvalidDirection));
    }
}

#[test]
fn the_other_names_of_a_map_say_the_same() {
    let bench = Bench::new();
    let (device, mock) = (&bench.device, &bench.mock);
    let buffer = bench.buffer(&[1; 200]);
    let dir = Direction::ToDevice;
    // SAFETY: the buffer outlives the mappings, which end here, as they were made.
    unsafe {
        let at = device.map_page(buffer.phys(), 100, 50, dir, Attrs::empty()).unwrap();
        assert_eq!(mock.device_read(at, 50).unwrap(), [1; 50]);
        device.unmap_single(at, 50, dir, Attrs::empty()).unwrap();
        let at = device.map_resource(buffer.phys(), 8, dir, Attrs::empty()).unwrap();
        device.unmap_single(at, 8, dir, Attrs::MMIO).unwrap();
        let beyond = device.map_page(PhysAddr::new(u64::MAX), 1, 8, dir, Attrs::empty());
        assert_eq!(beyond, Err(DmaError::InvalidLength(8)));
    }
    assert_eq!((device.required_mask(), device.merge_boundary()), (REQUIRED_MASK, MERGE_BOUNDARY));
    assert!(device.addressing_limited() && !device.need_sync());
    device.set_mask(REQUIRED_MASK).unwrap();
    assert!(!device.addressing_limited());
}

#[test]
fn what_must_be_coherent_is_not_mapped_where_caches_are_in_between() {
    let bench = Bench::noncoherent();
    let device = &bench.device;
    assert!(device.need_sync());
    let mut buffer = bench.buffer(&[1; 8]);
    let (dir, attrs, refused) = (Direction::ToDevice, Attrs::REQUIRE_COHERENT, DmaError::NotCoherent);
    bench.mock.take_calls();
    // SAFETY: nothing is mapped.
    unsafe {
        assert_eq!(device.map_phys(buffer.phys(), 8, dir, attrs), Err(refused));
        assert_eq!(device.map_single(NonNull::from(&mut buffer[0]), 8, dir, attrs), Err(refused));
        assert_eq!(device.map_sg(&mut [SgEntry::new(buffer.phys(), 8)], dir, attrs), Err(refused));
    }
    assert_eq!(bench.mock.take_calls(), []);
}

#[test]
fn syncs_reach_the_backend_only_when_they_do_something() {
    let dir = Direction::Bidirectional;
    for bench in [Bench::new(), Bench::noncoherent()] {
        let buffer = bench.buffer(&[1; 64]);
        let mut list = [SgEntry::new(buffer.phys(), 64)];
        // SAFETY: the buffer outlives the mapping, which ends here, as it was made.
        let calls = unsafe {
            bench.device.map_sg(&mut list, dir, Attrs::empty()).unwrap();
            bench.mock.take_calls();
            let part = list[0].dma_address.wrapping_add(16);
            bench.device.sync_single_for_cpu(part, 8, dir);
            bench.device.sync_single_for_device(part, 8, dir);
            bench.device.sync_sg_for_cpu(&list, dir);
            bench.device.sync_sg_for_device(&list, dir);
            let calls = bench.mock.take_calls();
            bench.device.unmap_sg(&list, dir, Attrs::empty()).unwrap();
            calls
        };
        assert_eq!(calls.len(), if bench.device.need_sync() { 4 } else { 0 }, "{calls:?}");
    }
}
