//! Maps and allocations that break a rule.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma_api::Direction::{Bidirectional, FromDevice as From, ToDevice as To};
use dma_api::{
    Attrs, CoherentSlice, Device, DeviceBuilder, DmaDebug, DmaError, MappingKind, Mistake, ScatterList,
    SgEntry, Streaming, ToDevice,
};
use platform::{DmaAddr, PhysAddr};

use crate::common::{Host, PAGE};
use crate::watch::{NAME, NONE, Placed, Watch, after, three_elements};

#[test]
fn a_map_of_nothing_is_refused() {
    let watch = Watch::new();
    let buffer = watch.buffer(1);
    let (ops, parms, attrs) = (watch.device.ops(), watch.device.parms(), NONE);
    let kind = |error| {
        assert_eq!(error, DmaError::InvalidLength(0));
        let Mistake::Empty { kind, made_at } = watch.said() else { panic!() };
        assert_eq!(made_at.file(), file!());
        kind
    };
    assert_eq!(kind(ops.alloc(parms, 0, attrs).unwrap_err()), MappingKind::Coherent);
    // SAFETY: nothing is mapped.
    let [single, foreign, list, empty] = unsafe {
        [
            ops.map_phys(parms, buffer.phys(), 0, To, attrs).unwrap_err(),
            ops.map_foreign(parms, NonNull::dangling(), 0, To, attrs).unwrap_err(),
            ops.map_sg(parms, &mut [SgEntry::new(buffer.phys(), 0)], To, attrs).unwrap_err(),
            ops.map_sg(parms, &mut [], To, attrs).unwrap_err(),
        ]
    };
    assert_eq!([single, foreign, list, empty], [DmaError::InvalidLength(0); 4]);
    let kinds = watch.debug.take_reports().into_iter().map(|report| match report.mistake {
        Mistake::Empty { kind, .. } => kind,
        other => panic!("{other}"),
    });
    use MappingKind::{Foreign, Scatter, Single};
    assert_eq!(kinds.collect::<Vec<_>>(), [Single, Foreign, Scatter, Scatter]);
    assert_eq!(watch.mock.live(), 0);
    watch.unmap(watch.map(buffer.phys(), 1, To), 1, To).unwrap();
    watch.silent();
}

#[test]
fn addresses_beyond_the_masks_are_told() {
    let watch = Watch::new();
    let buffer = watch.buffer(2);
    let first = watch.map(buffer.phys(), 16, To);
    let next = first.get() + 2 * PAGE as u64;
    watch.device.set_mask(0x1fff_ffff).unwrap();
    assert!(next < 0x1fff_ffff);
    let second = watch.map(after(buffer.phys(), PAGE), 16, To);
    watch.silent();
    watch.unmap(second, 16, To).unwrap();
    watch.device.set_streaming_mask(0x0fff_ffff).unwrap();
    let third = watch.map(after(buffer.phys(), PAGE), 16, To);
    assert!(
        matches!(watch.said(), Mistake::BeyondMask { mapping, mask: 0x0fff_ffff } if mapping.address == third)
    );
    // The coherent mask is another.
    watch.mock.next_coherent.store(0x1fff_f000, Ordering::Relaxed);
    let below = watch.alloc();
    watch.silent();
    let beyond = watch.alloc();
    let Mistake::BeyondMask { mapping, mask: 0x1fff_ffff } = watch.said() else { panic!() };
    assert_eq!(mapping.kind, MappingKind::Coherent);
    watch.free(below).unwrap();
    watch.free(beyond).unwrap();
    watch.silent();
}

#[test]
fn the_last_address_that_a_device_can_say_is_not_beyond_its_mask() {
    let (host, debug) = (Arc::new(Host::new()), Arc::new(DmaDebug::new()));
    let device = DeviceBuilder::new(NAME).build(Arc::new(Placed(PhysAddr::get)), host).checked(&debug);
    let map = |len| {
        // SAFETY: no device touches anything.
        unsafe { device.map_phys(PhysAddr::new(0xffff_ff00), len, To, NONE) }.unwrap();
        debug.take_reports().len()
    };
    assert_eq!([map(0x100), map(0x101)], [0, 1]);
}

#[test]
fn segments_that_the_device_does_not_take_are_told() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let parms = watch.device.parms();
    let map = || {
        let mut list = three_elements(&buffer);
        watch.map_sg(&mut list, To);
        watch.unmap_sg(&list, To).unwrap();
    };
    parms.set_max_segment_size(2 * PAGE as u64);
    parms.set_segment_boundary(0xfff_ffff);
    map();
    watch.silent();
    parms.set_max_segment_size(2 * PAGE as u64 - 1);
    map();
    let Mistake::SegmentTooLong { segment, max, .. } = watch.said() else { panic!() };
    assert_eq!((segment.len, max), (2 * PAGE, 2 * PAGE as u64 - 1));
    parms.set_max_segment_size(u64::MAX);
    parms.set_segment_boundary(0xfff);
    map();
    let Mistake::SegmentCrossesBoundary { segment, boundary: 0xfff, .. } = watch.said() else { panic!() };
    assert_eq!(segment.len, 2 * PAGE);
}

#[test]
fn memory_that_the_device_writes_is_mapped_once() {
    let watch = Watch::new();
    let buffer = watch.buffer(4);
    let phys = buffer.phys();
    let first = watch.map(phys, 100, To);
    // Read twice, and written beside it.
    let again = watch.map(phys, 100, To);
    let beside = watch.map(after(phys, 100), 28, From);
    watch.silent();
    let over = watch.map(after(phys, 99), 1, From);
    let Mistake::MemoryInUse { mapping, other } = watch.said() else { panic!() };
    assert_eq!((mapping.address, mapping.dir, other.dir, other.len), (over, From, To, 100));
    let read = watch.map(after(phys, 127), PAGE, To);
    let Mistake::MemoryInUse { mapping, other } = watch.said() else { panic!() };
    assert_eq!((mapping.address, other.address), (read, beside));
    // A list's elements are memory too.
    let mut list = three_elements(&buffer);
    watch.map_sg(&mut list, To);
    assert!(
        matches!(watch.said(), Mistake::MemoryInUse { mapping, .. } if mapping.kind == MappingKind::Scatter)
    );
    watch.unmap(beside, 28, From).unwrap();
    watch.unmap(over, 1, From).unwrap();
    for (address, len) in [(first, 100), (again, 100), (read, PAGE)] {
        watch.unmap(address, len, To).unwrap();
    }
    watch.unmap_sg(&list, To).unwrap();
    // What has ended is in nobody's way.
    let free = watch.map(phys, 4 * PAGE, Bidirectional);
    watch.silent();
    // Nor is what the map does not hand over.
    let held = watch.map_with(phys, 4 * PAGE, From, Attrs::SKIP_CPU_SYNC);
    watch.unmap(held, 4 * PAGE, From).unwrap();
    watch.unmap(free, 4 * PAGE, Bidirectional).unwrap();
    watch.silent();
}

#[test]
fn a_device_that_does_not_see_the_caches_has_its_lines_alone() {
    for (coherent, told) in [(true, 0), (false, 1)] {
        let watch = Watch::with(DmaDebug::new(), coherent);
        let buffer = watch.buffer(1);
        watch.map(buffer.phys(), 32, From);
        watch.map(after(buffer.phys(), 64), 1, From);
        watch.silent();
        watch.map(after(buffer.phys(), 32), 32, From);
        assert_eq!(watch.debug.take_reports().len(), told, "a line that begins before it");
        watch.map(after(buffer.phys(), 129), 1, From);
        watch.silent();
        watch.map(after(buffer.phys(), 128), 1, From);
        assert_eq!(watch.debug.take_reports().len(), told, "a line that ends after it");
    }
}

#[test]
fn bounced_memory_that_the_device_writes_is_mapped_once() {
    let watch = Watch::new();
    let mut heap = [0u8; 100];
    let cpu = NonNull::from(&mut heap[0]);
    let map = |dir| {
        // SAFETY: the bytes outlive the mapping, and no device of the test touches them.
        unsafe { watch.device.map_single(cpu, 100, dir, NONE) }.unwrap()
    };
    let addresses = [map(To), map(To)];
    watch.silent();
    let third = map(From);
    assert!(matches!(watch.said(), Mistake::MemoryInUse { mapping, .. } if mapping.address == third));
    watch.unmap(third, 100, From).unwrap();
    for address in addresses {
        watch.unmap(address, 100, To).unwrap();
    }
    watch.silent();
}

#[test]
fn two_mappings_of_different_memory_at_one_address_are_told() {
    let host = Arc::new(Host::new());
    let debug = Arc::new(DmaDebug::new());
    let map = |device: &Device, phys| {
        // SAFETY: no device touches anything.
        unsafe { device.map_phys(PhysAddr::new(phys), 0x1000, To, NONE) }.unwrap()
    };
    // Mapped where it is, the same memory has the same addresses.
    let direct =
        DeviceBuilder::new(NAME).build(Arc::new(Placed(PhysAddr::get)), host.clone()).checked(&debug);
    map(&direct, 0x1000);
    let within = map(&direct, 0x1800);
    assert_eq!(debug.take_reports(), []);
    // Each is found again although they overlap: the one that begins there.
    // SAFETY: it is mapped so.
    unsafe { direct.unmap_single(within, 0x1000, To, NONE) }.unwrap();
    assert_eq!(debug.dump().len(), 1);
    assert_eq!(debug.take_reports(), []);
    let wrong =
        DeviceBuilder::new(NAME).build(Arc::new(Placed(|phys| phys.get() & 0xfff)), host).checked(&debug);
    map(&wrong, 0x1000);
    map(&wrong, 0x2800);
    let reports = debug.take_reports();
    assert_eq!(reports.len(), 1);
    let Mistake::AddressInUse { mapping, other } = &reports[0].mistake else { panic!("{reports:?}") };
    assert_eq!((mapping.address, other.address), (DmaAddr::new(0x800), DmaAddr::new(0)));
}

#[test]
fn what_failed_to_map_is_not_mapped() {
    let watch = Watch::new();
    watch.mock.maps_left.store(0, Ordering::Relaxed);
    Streaming::<_, ToDevice>::map(&watch.device, watch.buffer(1)).unwrap_err();
    CoherentSlice::<u64>::zeroed(&watch.device, 1).unwrap_err();
    ScatterList::<_, ToDevice>::map(&watch.device, vec![watch.buffer(1)]).unwrap_err();
    Streaming::<_, ToDevice>::map(&watch.device, vec![1u8]).unwrap_err();
    assert_eq!(watch.debug.dump(), []);
    watch.silent();
}
