//! What safe code can do to the safe types on purpose: lengths that no memory has, types without bytes, panics in odd places.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use common::{Bench, Call, PAGE};
use dma_api::{
    Bidirectional, BufferFor, Calls, CoherentSlice, Device, DeviceBuilder, DmaBuffer, DmaError, DmaPool,
    FaultPlan, Faulty, FromDevice, ScatterList, Streaming, ToDevice,
};

#[test]
fn lengths_that_no_memory_has_are_refused_before_anybody_is_asked() {
    let bench = Bench::new();
    let device = &bench.device;
    for len in [usize::MAX, usize::MAX - 10, usize::MAX - PAGE, isize::MAX as usize + 1] {
        assert!(matches!(CoherentSlice::<u8>::zeroed(device, len), Err(DmaError::InvalidLength(_))));
        assert!(matches!(CoherentSlice::<u64>::zeroed(device, len), Err(DmaError::InvalidLength(_))));
        assert!(matches!(DmaBuffer::<u8>::zeroed(device, len), Err(DmaError::InvalidLength(_))));
        assert!(matches!(DmaPool::new(device, "no", len, 8, 0), Err(DmaError::InvalidLength(_))));
    }
    // A length that wraps around to a small one.
    let wraps = usize::MAX / 8 + 2;
    assert!(matches!(CoherentSlice::<u64>::zeroed(device, wraps), Err(DmaError::InvalidLength(_))));
    assert_eq!(bench.mock.take_calls(), []);
}

#[test]
fn elements_without_bytes_are_no_buffer() {
    fn refused<B: BufferFor<FromDevice>>(device: &Device, make: impl Fn() -> B) {
        let failed = Streaming::<B, FromDevice>::map(device, make()).unwrap_err();
        assert_eq!(failed.error, DmaError::InvalidLength(0));
        let failed = ScatterList::<B, FromDevice>::map(device, vec![make(), make()]).unwrap_err();
        assert_eq!((failed.error, failed.buffer.len()), (DmaError::InvalidLength(0), 2));
    }
    let bench = Bench::new();
    refused(&bench.device, || vec![(); usize::MAX]);
    refused(&bench.device, || vec![[0u64; 0]; 5].into_boxed_slice());
    assert!(DmaBuffer::<()>::zeroed(&bench.device, 5).is_err());
    assert!(CoherentSlice::<[u64; 0]>::zeroed(&bench.device, 5).is_err());
    assert_eq!(bench.mock.take_calls(), []);
}

/// A device whose ops panic when they are asked for `calls`.
fn panicking(bench: &Bench, calls: Calls) -> Device {
    let plan = FaultPlan::delayed(move |call| assert!(call != calls, "the ops panic"));
    let ops = Faulty::new(bench.mock.clone(), Arc::new(plan));
    DeviceBuilder::new("panicking").build(Arc::new(ops), bench.platform())
}

fn panics<R>(body: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(body)).is_err()
}

/// A page of the machine's, in a buffer.
const HELD: u64 = PAGE as u64;

#[test]
fn when_the_ops_panic_in_a_map_nobody_gets_the_buffer_again() {
    let bench = Bench::new();
    let device = panicking(&bench, Calls::MAP_PHYS);
    assert!(panics(|| Streaming::<_, Bidirectional>::map(&device, bench.buffer(&[1]))));
    assert_eq!(bench.host.live(), HELD);
    let device = panicking(&bench, Calls::MAP_SG);
    let buffers = vec![bench.buffer(&[1]), bench.buffer(&[2])];
    assert!(panics(|| ScatterList::<_, Bidirectional>::map(&device, buffers)));
    assert_eq!(bench.host.live(), 3 * HELD);
}

#[test]
fn when_the_ops_panic_in_an_unmap_nobody_gets_the_buffer_again() {
    let bench = Bench::new();
    let device = panicking(&bench, Calls::UNMAP_PHYS);
    let mapped = Streaming::<_, FromDevice>::map(&device, bench.buffer(&[1])).unwrap();
    assert!(panics(|| mapped.unmap()));
    let mapped = Streaming::<_, FromDevice>::map(&device, bench.buffer(&[1])).unwrap();
    assert!(panics(|| drop(mapped)));
    assert_eq!(bench.host.live(), 2 * HELD);
    let device = panicking(&bench, Calls::UNMAP_SG);
    let list = ScatterList::<_, FromDevice>::map(&device, vec![bench.buffer(&[1])]).unwrap();
    assert!(panics(|| list.unmap()));
    let list = ScatterList::<_, FromDevice>::map(&device, vec![bench.buffer(&[1])]).unwrap();
    assert!(panics(|| drop(list)));
    assert_eq!(bench.host.live(), 4 * HELD);
}

#[test]
fn a_scoped_map_within_another_ends_first() {
    let bench = Bench::new();
    let mut outer = vec![0u8; 64];
    let (first, rest) = outer.split_at_mut(32);
    bench
        .device
        .map_scoped::<FromDevice, _, _>(&mut *first, |mapped| {
            assert!(bench.mock.device_write(mapped.dma_address(), &[1; 32]));
            // What is in use by the outer map cannot be named here; its neighbour can.
            let inner = bench.device.map_scoped::<FromDevice, _, _>(&mut *rest, |inner| {
                assert!(bench.mock.device_write(inner.dma_address(), &[2; 32]));
                inner.dma_address()
            });
            assert!(!bench.mock.device_write(inner.unwrap(), &[3; 32]));
            assert_eq!(rest[..], [2; 32]);
        })
        .unwrap();
    assert_eq!(outer, [[1; 32], [2; 32]].concat());
}

#[test]
fn limits_that_change_while_a_buffer_is_mapped_change_nothing_for_it() {
    let bench = Bench::new();
    let device = &bench.device;
    let single = Streaming::<_, FromDevice>::map(device, bench.buffer(&[0; 3 * PAGE])).unwrap();
    let list = ScatterList::<_, FromDevice>::map(device, vec![vec![0u8; 700], vec![0; 5000]]).unwrap();
    let ring = CoherentSlice::<u64>::zeroed(device, 64).unwrap();
    let parms = device.parms();
    for odd in [0, 1, 0xfff, 0x5555_5555_5555_5555, u64::MAX] {
        parms.set_max_segment_size(odd);
        parms.set_segment_boundary(odd);
        parms.set_min_align_mask(odd);
        let _ = device.set_mask(odd);
        // New lists are cut as the limits say, if they can be.
        if let Ok(list) = ScatterList::<_, ToDevice>::map(device, vec![vec![0u8; 100]]) {
            drop(list);
        }
    }
    // The mock checks that each ends as it was made.
    single.unmap().unwrap();
    list.unmap().unwrap();
    drop(ring);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
    let ends = |call: &&Call| matches!(call, Call::UnmapPhys { .. } | Call::Free { .. });
    assert!(bench.mock.take_calls().iter().filter(ends).count() >= 4);
}
