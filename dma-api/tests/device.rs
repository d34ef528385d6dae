//! A device's masks, limits and faults.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{Bench, Call, MAX_MAPPING, OPT_MAPPING, UNSUPPORTED};
use dma_api::{Attrs, DeviceBuilder, DeviceFault, DeviceParms, Direction, DmaError, FaultQueue, SgEntry};
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
