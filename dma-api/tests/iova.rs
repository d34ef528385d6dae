//! `DmaIova`: what it asks of the two-step interface, and what it does without one. (What an IOMMU makes of it is tested with
//! the IOMMU.)

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Bench, Call, PAGE, pattern};
use dma_api::{
    Attrs, Counted, Device, DeviceBuilder, Direction, DmaBuffer, DmaError, DmaIova, OpsCounters, Segment,
};
use platform::PhysAddr;

const DIR: Direction = Direction::Bidirectional;

fn iova<'d>(device: &'d Device, size: usize) -> DmaIova<'d> {
    DmaIova::new(device, PhysAddr::new(0), size, DIR, Attrs::empty()).unwrap()
}

fn link(iova: &mut DmaIova<'_>, offset: usize, buffer: &DmaBuffer<u8>) -> Result<(), DmaError> {
    // SAFETY: the tests keep their buffers until the end, and look at them only by the device.
    unsafe { iova.link(offset, buffer.phys(), buffer.len()) }
}

/// Two pieces of a page that are linked one after the other.
fn two(bench: &Bench) -> [DmaBuffer<u8>; 2] {
    [1, 2].map(|seed| bench.buffer(&pattern(seed, PAGE)))
}

#[test]
fn links_that_lie_together_end_together_and_others_one_by_one() {
    let bench = Bench::new();
    let [first, second] = two(&bench);
    for offset in [PAGE, 2 * PAGE] {
        let mut iova = iova(&bench.device, 3 * PAGE);
        assert!(iova.is_contiguous());
        link(&mut iova, offset, &second).unwrap();
        link(&mut iova, 0, &first).unwrap();
        let segments = iova.sync().unwrap();
        assert_eq!(segments.len(), offset / PAGE, "{segments:?}");
        let last = segments[0].address.wrapping_add(offset as u64);
        assert_eq!(bench.mock.device_read(last, PAGE).unwrap(), pattern(2, PAGE));
        bench.mock.take_calls();
        iova.destroy().unwrap();
        let calls = bench.mock.take_calls();
        let ended = Call::IovaDestroy {
            linked: if offset == PAGE { 2 * PAGE } else { 0 },
            dir: DIR,
            attrs: Attrs::empty(),
        };
        assert_eq!(calls.last(), Some(&ended));
        assert_eq!(calls.len(), if offset == PAGE { 1 } else { 3 }, "{calls:?}");
        assert_eq!(bench.mock.live(), 0);
    }
}

#[test]
fn one_sync_covers_everything_that_is_linked() {
    let bench = Bench::new();
    let [first, second] = two(&bench);
    let mut iova = iova(&bench.device, 4 * PAGE);
    assert_eq!(iova.sync(), Ok(vec![]));
    link(&mut iova, 0, &first).unwrap();
    link(&mut iova, 3 * PAGE, &second).unwrap();
    bench.mock.take_calls();
    assert_eq!(iova.sync().unwrap().len(), 2);
    assert_eq!(bench.mock.take_calls(), [Call::IovaSync { offset: 0, len: 4 * PAGE }]);
    assert_eq!(format!("{iova:?}"), "DmaIova(8192 of 16384 bytes in 2 pieces, Bidirectional)");
}

/// Without I/O addresses: none at all, or none left.
#[test]
fn without_addresses_each_piece_is_mapped_for_itself() {
    let none_left = Bench::new();
    none_left.mock.no_addresses.store(true, Ordering::Relaxed);
    for bench in [Bench::with_defaults(), none_left] {
        let [first, second] = two(&bench);
        bench.mock.take_calls();
        let mut iova = iova(&bench.device, 2 * PAGE);
        assert!(!iova.is_contiguous());
        link(&mut iova, 0, &first).unwrap();
        link(&mut iova, PAGE, &second).unwrap();
        let [one, Segment { address, len }] = iova.sync().unwrap()[..] else { panic!() };
        assert_eq!(bench.mock.device_read(address, len).unwrap(), pattern(2, PAGE));
        assert_eq!(iova.unlink(PAGE), Ok(true));
        assert_eq!(bench.mock.device_read(address, 1), None);
        assert!(bench.mock.device_write(one.address, &[9]));
        drop(iova);
        assert_eq!(bench.mock.live(), 0);
        let maps = bench.mock.take_calls().iter().filter(|call| matches!(call, Call::MapPhys { .. })).count();
        assert_eq!(maps, 2);
    }
}

#[test]
fn a_lack_of_anything_else_is_an_error() {
    let bench = Bench::new();
    bench.maps_left(0);
    let failed = DmaIova::new(&bench.device, PhysAddr::new(0), PAGE, DIR, Attrs::empty());
    assert_eq!(failed.unwrap_err(), DmaError::OutOfMemory);
}

#[test]
fn a_piece_that_fails_leaves_the_others_and_one_that_cannot_end_takes_them_along() {
    let bench = Bench::new();
    let [first, second] = two(&bench);
    let mut iova = iova(&bench.device, 2 * PAGE);
    link(&mut iova, 0, &first).unwrap();
    bench.maps_left(0);
    assert_eq!(link(&mut iova, PAGE, &second), Err(DmaError::OutOfMemory));
    bench.maps_left(usize::MAX);
    link(&mut iova, PAGE, &second).unwrap();
    bench.unmaps_fail(true);
    let lost = iova.unlink(0).unwrap_err();
    bench.mock.take_calls();
    assert_eq!(link(&mut iova, 0, &first), Err(DmaError::NotUndone(lost)));
    assert_eq!(iova.unlink(PAGE), Err(lost));
    assert_eq!(iova.destroy(), Err(lost));
    assert_eq!(bench.mock.take_calls(), [], "the range is given up");
}

#[test]
fn pieces_that_are_mapped_singly_fail_singly() {
    let bench = Bench::with_defaults();
    let [first, second] = two(&bench);
    let mut iova = iova(&bench.device, 2 * PAGE);
    link(&mut iova, 0, &first).unwrap();
    link(&mut iova, PAGE, &second).unwrap();
    bench.unmaps_fail(true);
    iova.unlink(0).unwrap_err();
    bench.unmaps_fail(false);
    assert_eq!(iova.unlink(PAGE), Ok(true));
    iova.destroy().unwrap();
    assert_eq!(bench.mock.live(), 1, "what the device still reaches");
}

#[test]
fn a_range_is_counted_as_one_mapping_and_its_links_as_bytes() {
    let bench = Bench::new();
    let counters = Arc::<OpsCounters>::default();
    let ops = Counted::new(bench.mock.clone(), counters.clone());
    let device = DeviceBuilder::new("counted").build(Arc::new(ops), bench.host.clone());
    let [first, second] = two(&bench);
    let mut iova = iova(&device, 2 * PAGE);
    link(&mut iova, 0, &first).unwrap();
    link(&mut iova, PAGE, &second).unwrap();
    let bytes = 2 * PAGE as u64;
    let now = counters.statistics();
    assert_eq!((now.maps, now.live, now.mapped_bytes, now.live_bytes), (1, 1, bytes, bytes));
    assert_eq!(now.sizes.count(bytes), 1);
    iova.unlink(PAGE).unwrap();
    assert_eq!(counters.statistics().live_bytes, bytes / 2);
    iova.destroy().unwrap();
    let now = counters.statistics();
    assert_eq!((now.unmaps, now.live, now.live_bytes, now.quarantines), (1, 0, 0, 0));
    // A range that is given up has ended, and what the device reaches in it lives on.
    let mut iova = self::iova(&device, 2 * PAGE);
    link(&mut iova, 0, &first).unwrap();
    bench.maps_left(0);
    link(&mut iova, PAGE, &second).unwrap_err();
    bench.unmaps_fail(true);
    iova.unlink(0).unwrap_err();
    drop(iova);
    let now = counters.statistics();
    assert_eq!((now.failures, now.unmaps, now.live, now.quarantines), (1, 2, 0, 1));
    assert_eq!(now.live_bytes, PAGE as u64);
    assert_eq!((now.maps, bench.mock.live()), (2, 1));
}
