//! What is told, to whom, and where a mapping was made.

use std::panic::Location;
use std::sync::Arc;

use dma_api::Direction::{FromDevice as From, ToDevice as To};
use dma_api::{
    Attrs, Checked, CoherentSlice, Counted, DeviceBuilder, DeviceParms, DmaDebug, DmaMapOps, DmaPool,
    FromDevice, Mapping, MappingKind, Mistake, ScatterList, SgEntry, Streaming, ToDevice,
};
use platform::{DmaAddr, PhysAddr};

use crate::common::{Host, Mock, PAGE};
use crate::watch::{NAME, NONE, Placed, Watch, after};

#[test]
fn the_safe_types_are_silent() {
    for coherent in [true, false] {
        let watch = Watch::with(DmaDebug::new(), coherent);
        let device = &watch.device;
        let ring = CoherentSlice::<u64>::zeroed(device, 64).unwrap();
        let pool = DmaPool::new(device, "test", 64, 64, 0).unwrap();
        let item = pool.alloc::<u64>().unwrap();
        let to = Streaming::<_, ToDevice>::map(device, watch.buffer(1)).unwrap();
        let to = to.sync_for_cpu().sync_for_device();
        let from = Streaming::<_, FromDevice>::map(device, watch.buffer(2)).unwrap();
        let from = from.sync_for_cpu().sync_for_device();
        let foreign = Streaming::<_, ToDevice>::map(device, vec![0u8; 100]).unwrap();
        let lists = vec![watch.buffer(1), watch.buffer(3)];
        let list = ScatterList::<_, FromDevice>::map(device, lists).unwrap();
        assert_eq!(watch.debug.dump().len(), 6);
        to.unmap().unwrap();
        from.unmap().unwrap();
        foreign.unmap().unwrap();
        list.unmap().unwrap();
        drop((ring, item, pool));
        assert_eq!(watch.debug.dump(), []);
        assert_eq!(watch.mock.live(), 0);
        let Watch { device, debug, .. } = watch;
        drop(device);
        assert_eq!(debug.take_reports(), []);
    }
}

#[test]
fn what_is_left_when_the_device_goes_is_told_with_the_oldest_mapping() {
    let watch = Watch::new();
    std::mem::forget(Streaming::<_, ToDevice>::map(&watch.device, watch.buffer(1)).unwrap());
    let line = line!() - 1;
    std::mem::forget(Streaming::<_, FromDevice>::map(&watch.device, watch.buffer(2)).unwrap());
    let Watch { device, debug, .. } = watch;
    drop(device);
    let reports = debug.take_reports();
    assert_eq!(reports.len(), 1);
    let Mistake::Leaked { count: 2, bytes, first } = &reports[0].mistake else { panic!("{reports:?}") };
    assert_eq!((*bytes, first.len, first.made_at.line()), (3 * PAGE, PAGE, line));
    let said = reports[0].to_string();
    assert!(
        said.starts_with("0000:00:03.0: the device is gone with 2 mappings of 12288 bytes left"),
        "{said}"
    );
    assert!(said.contains(&format!("made at {}:{line}:", file!())), "{said}");
    // What was unmapped is not missed.
    let Watch { device, debug, host, .. } = Watch::new();
    let mapped = Streaming::<_, ToDevice>::map(&device, vec![0u8; 7]).unwrap();
    mapped.unmap().unwrap();
    drop((device, host));
    assert_eq!(debug.take_reports(), []);
}

#[test]
fn the_dump_says_where_each_mapping_was_made() {
    let watch = Watch::new();
    let device = &watch.device;
    let pool = DmaPool::new(device, "test", 64, 64, 0).unwrap();
    let mut lines = Vec::new();
    let here = |lines: &mut Vec<u32>, line| lines.push(line);
    let phys = watch.buffer(1).phys();
    let _single = (here(&mut lines, line!()), watch.map(phys, 100, To));
    let streaming = (here(&mut lines, line!()), Streaming::<_, ToDevice>::map(device, vec![1u8; 7]).unwrap());
    let ring = (here(&mut lines, line!()), CoherentSlice::<u64>::zeroed(device, 2).unwrap());
    let one = (here(&mut lines, line!()), dma_api::Coherent::<u64>::new(device, 1).unwrap());
    let item = (here(&mut lines, line!()), pool.alloc::<u64>().unwrap());
    let buffers = vec![watch.buffer(1)];
    let list = (here(&mut lines, line!()), ScatterList::<_, FromDevice>::map(device, buffers).unwrap());
    let dump = watch.debug.dump();
    assert!(dump.iter().all(|(name, mapping)| &**name == NAME && mapping.made_at.file() == file!()));
    assert_eq!(dump.iter().map(|(_, mapping)| mapping.made_at.line()).collect::<Vec<_>>(), lines);
    use MappingKind::{Coherent, Foreign, Scatter, Single};
    let kinds: Vec<_> = dump.iter().map(|(_, mapping)| mapping.kind).collect();
    assert_eq!(kinds, [Single, Foreign, Coherent, Coherent, Coherent, Scatter]);
    drop((streaming, ring, one, item, list));
}

#[test]
fn the_line_comes_through_another_decorator_too() {
    let host = Arc::new(Host::new());
    let debug = Arc::new(DmaDebug::new());
    let ops: Arc<dyn DmaMapOps> = Arc::new(Checked::new(Mock::new(&host), NAME, &debug));
    let device = Arc::new(DeviceBuilder::new(NAME).build(Arc::new(Counted::new(ops, Arc::default())), host));
    let (here, _ring) = (Location::caller(), CoherentSlice::<u64>::zeroed(&device, 2).unwrap());
    let dump = debug.dump();
    assert_eq!((dump[0].1.made_at.file(), dump[0].1.made_at.line()), (here.file(), here.line()));
}

#[test]
fn only_the_device_that_was_named_is_heard() {
    let mistake = |watch: &Watch| {
        watch.unmap(DmaAddr::new(0), 1, To).unwrap_err();
        watch.map(watch.buffer(1).phys(), 100, To);
        (watch.debug.take_reports().len(), watch.debug.dump().len())
    };
    assert_eq!(mistake(&Watch::with(DmaDebug::only("0000:00:03.0"), true)), (1, 1));
    assert_eq!(mistake(&Watch::with(DmaDebug::only("0000:00:03.1"), true)), (0, 0));
}

#[test]
fn the_first_reports_are_kept_and_the_others_counted() {
    let watch = Watch::new();
    for address in 0..DmaDebug::CAPACITY as u64 + 3 {
        watch.unmap(DmaAddr::new(address), 1, To).unwrap_err();
    }
    assert_eq!(watch.debug.lost(), 3);
    let reports = watch.debug.take_reports();
    assert_eq!(reports.len(), DmaDebug::CAPACITY);
    assert!(matches!(reports[0].mistake, Mistake::NotMapped { address, .. } if address == DmaAddr::new(0)));
    // There is room again.
    watch.unmap(DmaAddr::new(7), 1, To).unwrap_err();
    watch.said();
    assert_eq!(watch.debug.lost(), 3);
}

#[test]
fn a_device_with_too_many_mappings_goes_on_unchecked() {
    let host = Arc::new(Host::new());
    let debug = Arc::new(DmaDebug::new());
    let ops = Checked::new(Placed(PhysAddr::get), NAME, &debug);
    let parms = DeviceParms::new(true, false);
    let map = |index: usize| {
        let phys = PhysAddr::new(index as u64 * 16);
        // SAFETY: no device touches anything.
        unsafe { ops.map_phys(&parms, phys, 16, From, NONE) }.unwrap()
    };
    for index in 0..DmaDebug::MAX_MAPPINGS {
        map(index);
    }
    assert_eq!(debug.take_reports(), []);
    let last = map(DmaDebug::MAX_MAPPINGS);
    let reports = debug.take_reports();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].mistake, Mistake::TooMany { limit: DmaDebug::MAX_MAPPINGS });
    assert_eq!(debug.dump(), []);
    // SAFETY: it is mapped so.
    unsafe { ops.unmap_phys(&parms, last, 16, From, NONE) }.unwrap();
    drop(ops);
    assert_eq!(debug.take_reports(), []);
    drop(host);
}

#[test]
fn a_list_takes_as_much_room_as_it_has_elements() {
    let watch = Watch::new();
    watch.device.parms().set_max_segment_size(u64::MAX);
    let buffer = watch.buffer(2 * DmaDebug::MAX_MAPPINGS * 16 / PAGE);
    // All of them lie together, so that each list is one segment, and nothing is handed over by its map.
    let map = |first: usize, count: usize| {
        let element = |index: usize| SgEntry::new(after(buffer.phys(), index * 16), 16);
        let mut list: Vec<_> = (first..first + count).map(element).collect();
        // SAFETY: the buffer outlives the watch, and no device of the test touches it.
        assert_eq!(unsafe { watch.device.map_sg(&mut list, To, Attrs::SKIP_CPU_SYNC) }, Ok(1));
        list
    };
    let half = DmaDebug::MAX_MAPPINGS / 2;
    let lists = [map(0, half), map(half, half)];
    watch.silent();
    assert_eq!(watch.unmap_sg(&lists[0], To), Ok(()));
    map(0, half);
    watch.silent();
    map(2 * half, 1);
    assert_eq!(watch.said(), Mistake::TooMany { limit: DmaDebug::MAX_MAPPINGS });
}

#[test]
fn reports_are_plain_words() {
    let mapping = Mapping {
        kind: MappingKind::Single,
        address: DmaAddr::new(0x1000),
        len: 512,
        dir: To,
        made_at: Location::caller(),
    };
    let at = format!("made at {}", mapping.made_at);
    let said = Mistake::WrongSize { mapping, len: 511 }.to_string();
    let address = mapping.address;
    let expected = format!(
        "the single mapping of 512 bytes at {address} (ToDevice, {at}) was ended as one of 511 bytes"
    );
    assert_eq!(said, expected);
}
