//! Maps of borrowed slices: the device gets a copy, and the slice is right again however the closure ends.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Bench, Call, pattern};
use dma_api::{
    Bidirectional, BorrowedFor, Device, Direction, DmaError, FromDevice, MapDirection, Quarantined, Scoped,
    ScopedError, ToDevice,
};

fn scoped<D: MapDirection, R>(
    device: &Device,
    slice: impl BorrowedFor<D>,
    body: impl FnOnce(&Scoped<'_, D>) -> R,
) -> Result<R, ScopedError> {
    device.map_scoped::<D, _, R>(slice, body)
}

#[test]
fn what_the_device_writes_is_there_afterwards() {
    let bench = Bench::new();
    let mut slice = pattern(1, 100);
    let answer = scoped::<FromDevice, _>(&bench.device, &mut slice[..], |mapped| {
        assert_eq!((mapped.len(), mapped.is_empty()), (100, false));
        assert!(bench.mock.device_write(mapped.dma_address(), &[7; 40]));
        5
    });
    assert_eq!(answer, Ok(5));
    assert_eq!(slice[..40], [7; 40]);
    assert_eq!(slice[40..], pattern(1, 100)[40..], "what the device did not write is as it was");
    assert_eq!(bench.mock.live(), 0);
}

#[test]
fn the_device_reads_the_slice_and_it_may_be_shared() {
    let bench = Bench::new();
    let shared = [1u32, 2, 3];
    let again = &shared;
    let seen = scoped::<ToDevice, _>(&bench.device, &shared[..], |mapped| {
        assert_eq!(again[2], 3);
        bench.mock.device_read(mapped.dma_address(), 12).unwrap()
    });
    assert_eq!(seen.unwrap(), shared.map(u32::to_ne_bytes).concat());
}

#[test]
fn both_ways_the_device_reads_and_writes() {
    let bench = Bench::new();
    let mut slice = [1u16, 2, 3];
    scoped::<Bidirectional, _>(&bench.device, &mut slice[..], |mapped| {
        let seen = bench.mock.device_read(mapped.dma_address(), 6).unwrap();
        assert!(bench.mock.device_write(mapped.dma_address().wrapping_add(2), &seen[4..]));
    })
    .unwrap();
    assert_eq!(slice, [1, 3, 3]);
}

#[test]
fn ram_is_copied_too_and_the_direction_is_what_the_type_says() {
    fn check<D: MapDirection>(dir: Direction)
    where
        for<'a> &'a mut [u8]: BorrowedFor<D>,
    {
        let bench = Bench::new();
        let mut ram = bench.buffer(&[1; 10]);
        let cpu = ram.as_ptr().addr();
        let address = scoped::<D, _>(&bench.device, &mut ram[..], |mapped| mapped.dma_address()).unwrap();
        let attrs = dma_api::Attrs::empty();
        let unmap = Call::UnmapPhys { address: address.get(), len: 10, dir, attrs };
        assert_eq!(bench.mock.take_calls(), [Call::MapForeign { cpu, len: 10, dir }, unmap]);
    }
    check::<ToDevice>(Direction::ToDevice);
    check::<FromDevice>(Direction::FromDevice);
    check::<Bidirectional>(Direction::Bidirectional);
}

#[test]
fn a_panic_ends_the_mapping_once_and_copies_back() {
    let bench = Bench::new();
    let mut slice = [0u8; 8];
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        scoped::<FromDevice, ()>(&bench.device, &mut slice[..], |mapped| {
            assert!(bench.mock.device_write(mapped.dma_address(), &[9; 8]));
            panic!("on purpose")
        })
    }));
    assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "on purpose");
    assert_eq!(slice, [9; 8]);
    let unmaps = bench.mock.take_calls().iter().filter(|call| matches!(call, Call::UnmapPhys { .. })).count();
    assert_eq!((unmaps, bench.mock.live()), (1, 0));
}

#[test]
fn an_unmap_that_fails_costs_the_copy_alone() {
    let bench = Bench::new();
    let mut slice = [1u8; 8];
    bench.unmaps_fail(true);
    let mut address = None;
    let failed = scoped::<FromDevice, _>(&bench.device, &mut slice[..], |mapped| {
        address = Some(mapped.dma_address());
        assert!(bench.mock.device_write(mapped.dma_address(), &[2; 8]));
    });
    let address = address.unwrap();
    assert_eq!(failed, Err(ScopedError::Unmap(Quarantined { address, len: 8 })));
    assert_eq!(slice, [1; 8]);
    assert!(bench.mock.device_write(address, &[3; 8]), "the device still reaches the copy");
    assert_eq!(slice, [1; 8], "and not the slice");
}

#[test]
fn what_cannot_be_mapped_does_not_run() {
    let bench = Bench::new();
    let run = |device: &Device, slice: &mut [u8]| {
        scoped::<FromDevice, ()>(device, slice, |_| panic!("called without a mapping"))
    };
    assert_eq!(run(&bench.device, &mut []), Err(DmaError::InvalidLength(0).into()));
    assert_eq!(bench.mock.take_calls(), []);
    bench.maps_left(0);
    assert_eq!(run(&bench.device, &mut [0]), Err(DmaError::OutOfMemory.into()));
    let without_pool = Bench::with_defaults();
    let failed = run(&without_pool.device, &mut [0]).unwrap_err();
    assert_eq!(failed, ScopedError::Map(DmaError::NotRam));
    assert_eq!(failed.to_string(), DmaError::NotRam.to_string());
}
