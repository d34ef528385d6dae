//! Coherent memory and buffers of pages.

mod common;

use std::sync::atomic::Ordering;

use common::{Bench, Call, PAGE};
use dma_api::{Coherent, CoherentSlice, DmaBuffer, DmaError, dma_rmb, dma_wmb};

fn panics(f: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
}

#[test]
fn a_slice_is_zeroed_and_seen_by_both_sides() {
    let bench = Bench::new();
    let ring = CoherentSlice::<u64>::zeroed(&bench.device, 600).unwrap();
    assert_eq!(bench.mock.take_calls(), [Call::Alloc { size: 4800 }]);
    assert_eq!((ring.len(), ring.is_empty()), (600, false));
    assert!((0..600).all(|index| ring.read(index) == 0));
    ring.write(599, 0x1122_3344_5566_7788);
    dma_wmb();
    let at = ring.dma_address().wrapping_add(8 * 599);
    assert_eq!(bench.mock.device_read(at, 8).unwrap(), 0x1122_3344_5566_7788u64.to_ne_bytes());
    assert!(bench.mock.device_write(ring.dma_address(), &[1, 0, 0, 0, 0, 0, 0, 2]));
    dma_rmb();
    assert_eq!(ring.read(0), u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 2]));
    assert_eq!(ring.read(1), 0);
    let dma = ring.dma_address().get();
    drop(ring);
    assert_eq!(bench.mock.take_calls(), [Call::Free { dma, size: 4800 }]);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
}

#[test]
fn elements_beyond_the_end_panic() {
    let bench = Bench::new();
    let ring = CoherentSlice::<u16>::zeroed(&bench.device, 4).unwrap();
    assert!(panics(|| _ = ring.read(4)));
    assert!(panics(|| ring.write(usize::MAX, 1)));
    ring.write(3, 1);
}

#[test]
fn impossible_slices_are_refused() {
    #[derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes)]
    #[repr(C, align(8192))]
    struct Huge([u8; 8192]);
    let bench = Bench::new();
    let error = |len| CoherentSlice::<u64>::zeroed(&bench.device, len).unwrap_err();
    assert_eq!(error(0), DmaError::InvalidLength(0));
    assert_eq!(error(usize::MAX), DmaError::InvalidLength(usize::MAX));
    assert_eq!(CoherentSlice::<()>::zeroed(&bench.device, 3).unwrap_err(), DmaError::InvalidLength(0));
    assert_eq!(
        CoherentSlice::<Huge>::zeroed(&bench.device, 1).unwrap_err(),
        DmaError::InvalidAlignment(8192)
    );
    assert_eq!(bench.mock.take_calls(), []);
    bench.maps_left(0);
    assert_eq!(error(1), DmaError::OutOfMemory);
}

#[test]
fn one_value_is_there_from_the_start() {
    let bench = Bench::new();
    let value = Coherent::new(&bench.device, [1u32, 2, 3]).unwrap();
    assert_eq!(value.read(), [1, 2, 3]);
    assert_eq!(bench.mock.device_read(value.dma_address().wrapping_add(8), 4).unwrap(), 3u32.to_ne_bytes());
    assert!(bench.mock.device_write(value.dma_address(), &9u32.to_ne_bytes()));
    assert_eq!(value.read(), [9, 2, 3]);
    value.write([0; 3]);
    assert_eq!(bench.mock.device_read(value.dma_address(), 12).unwrap(), [0; 12]);
    assert_eq!(Coherent::<u64>::zeroed(&bench.device).unwrap().read(), 0);
}

#[test]
fn coherent_memory_that_the_device_may_still_reach_is_kept() {
    let bench = Bench::new();
    let value = Coherent::new(&bench.device, 1u64).unwrap();
    bench.unmaps_fail(true);
    drop(value);
    assert_eq!((bench.mock.live(), bench.host.live()), (1, PAGE as u64));
}

#[test]
fn coherent_memory_holds_its_device() {
    let bench = Bench::new();
    let ring = CoherentSlice::<u8>::zeroed(&bench.device, 1).unwrap();
    let Bench { device, mock, .. } = bench;
    drop(device);
    assert_eq!(mock.live(), 1);
    ring.write(0, 1);
    drop(ring);
    assert_eq!(mock.live(), 0);
}

#[test]
fn a_buffer_is_pages_used_like_a_vec() {
    let bench = Bench::new();
    let mut buffer = DmaBuffer::<u32>::zeroed(&bench.device, 1025).unwrap();
    assert_eq!(buffer.len(), 1025);
    assert!(buffer.iter().all(|&word| word == 0));
    buffer[1024] = 5;
    assert_eq!(bench.host.device_read(buffer.phys().wrapping_add(4096), 4), 5u32.to_ne_bytes());
    assert_eq!(buffer.phys().offset_in(PAGE as u64), 0);
    assert_eq!(bench.host.live(), 2 * PAGE as u64);
    drop(buffer);
    assert_eq!(bench.host.live(), 0);
    drop(DmaBuffer::<u32>::zeroed_in(&bench.platform(), 1).unwrap());
    assert_eq!(bench.mock.take_calls(), [], "a buffer is no mapping");
}

#[test]
fn impossible_buffers_are_refused() {
    let bench = Bench::new();
    let error = |len| DmaBuffer::<u64>::zeroed(&bench.device, len).unwrap_err();
    assert_eq!(error(0), DmaError::InvalidLength(0));
    assert_eq!(error(usize::MAX / 8), DmaError::InvalidLength(usize::MAX / 8));
    assert_eq!(error(usize::MAX), DmaError::InvalidLength(usize::MAX));
    assert_eq!(DmaBuffer::<()>::zeroed(&bench.device, 1).unwrap_err(), DmaError::InvalidLength(1));
    bench.host.exhausted.store(true, Ordering::Relaxed);
    assert_eq!(error(1), DmaError::OutOfMemory);
}
