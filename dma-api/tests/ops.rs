//! `DmaMapOps`: a pointer to ops is as good as the ops, and what the members do that a backend does not write.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{
    BASE, Bench, Call, MAX_MAPPING, MERGE_BOUNDARY, OPT_MAPPING, PAGE, REQUIRED_MASK, Required, UNSUPPORTED,
    pattern,
};
use dma_api::{
    Attrs, Checked, Counted, DeviceParms, Direction, DmaDebug, DmaError, DmaMapOps, Faulty, IovaPart,
    Quarantined, SgEntry,
};
use platform::PhysAddr;

/// Calls every member through `ops`, with the values that only the mock answers.
fn call_every_member(ops: impl DmaMapOps, bench: &Bench) -> Vec<Call> {
    let parms = DeviceParms::new(true, false);
    let mut buffer = bench.buffer(&pattern(1, 2 * PAGE));
    let phys = buffer.phys();
    let cpu = NonNull::from(&mut buffer[0]);
    let (dir, attrs) = (Direction::FromDevice, Attrs::NO_WARN);
    bench.mock.take_calls();
    let memory = ops.alloc(&parms, 100, attrs).unwrap();
    // SAFETY: the memory stays valid and nobody uses it until everything is unmapped, once, as it was mapped.
    unsafe {
        ops.free(&parms, memory, attrs).unwrap();
        let memory = ops.alloc_pages(&parms, 5000, dir, attrs).unwrap();
        assert_eq!(memory.pieces.len(), 2);
        ops.free_pages(&parms, memory, dir, attrs).unwrap();
        let address = ops.map_phys(&parms, phys, 200, dir, attrs).unwrap();
        ops.sync_for_cpu(&parms, address, 20, dir);
        ops.sync_for_device(&parms, address, 30, dir);
        ops.unmap_phys(&parms, address, 200, dir, attrs).unwrap();
        let address = ops.map_foreign(&parms, cpu, 300, dir, attrs).unwrap();
        ops.unmap_phys(&parms, address, 300, dir, attrs).unwrap();
        let mut list = [SgEntry::new(phys, 16), SgEntry::new(phys.wrapping_add(16), 16)];
        assert_eq!(ops.map_sg(&parms, &mut list, dir, attrs).unwrap(), 1, "the mock joins neighbours");
        ops.sync_sg_for_cpu(&parms, &list, dir);
        ops.sync_sg_for_device(&parms, &list, dir);
        ops.unmap_sg(&parms, &list, dir, attrs).unwrap();
        let iova = ops.iova_ops().unwrap();
        let range = iova.try_alloc(&parms, phys, 40).unwrap();
        let part = |offset, len| IovaPart { range, offset, len };
        iova.link(&parms, part(0, 10), phys, dir, attrs).unwrap();
        iova.link(&parms, part(10, 30), phys.wrapping_add(4096), dir, attrs).unwrap();
        iova.sync(&parms, part(0, 40)).unwrap();
        iova.unlink(&parms, part(10, 30), dir, attrs).unwrap();
        iova.destroy(&parms, range, 10, dir, attrs).unwrap();
    }
    assert!(!ops.dma_supported(&parms, UNSUPPORTED));
    assert_eq!(ops.required_mask(&parms), REQUIRED_MASK);
    assert_eq!(ops.max_mapping_size(&parms), MAX_MAPPING);
    assert_eq!(ops.opt_mapping_size(), OPT_MAPPING);
    assert_eq!(ops.merge_boundary(), MERGE_BOUNDARY);
    let calls = bench.mock.take_calls();
    let dir_seen = |call: &Call| match *call {
        Call::MapPhys { dir, .. } | Call::MapForeign { dir, .. } | Call::UnmapPhys { dir, .. } => Some(dir),
        Call::MapSg { dir, .. } | Call::UnmapSg { dir, .. } => Some(dir),
        Call::SyncForCpu { dir, .. } | Call::SyncForDevice { dir, .. } => Some(dir),
        Call::SyncSgForCpu { dir, .. } | Call::SyncSgForDevice { dir, .. } => Some(dir),
        Call::AllocPages { dir, .. } | Call::FreePages { dir, .. } => Some(dir),
        Call::IovaLink { dir, .. } | Call::IovaUnlink { dir, .. } | Call::IovaDestroy { dir, .. } => {
            Some(dir)
        }
        _ => None,
    };
    assert!(calls.iter().filter_map(dir_seen).all(|seen| seen == dir));
    calls
}

/// The names of calls, for comparing runs whose addresses differ.
fn names(calls: &[Call]) -> Vec<String> {
    calls.iter().map(|call| format!("{call:?}").split(' ').next().unwrap().to_owned()).collect()
}

const EVERY_MEMBER: [&str; 26] = [
    "Alloc",
    "Free",
    "AllocPages",
    "FreePages",
    "MapPhys",
    "SyncForCpu",
    "SyncForDevice",
    "UnmapPhys",
    "MapForeign",
    "UnmapPhys",
    "MapSg",
    "SyncSgForCpu",
    "SyncSgForDevice",
    "UnmapSg",
    "IovaOps",
    "IovaTryAlloc",
    "IovaLink",
    "IovaLink",
    "IovaSync",
    "IovaUnlink",
    "IovaDestroy",
    "DmaSupported",
    "RequiredMask",
    "MaxMappingSize",
    "OptMappingSize",
    "MergeBoundary",
];

#[test]
fn every_member_arrives_through_a_reference() {
    let bench = Bench::new();
    let ops: &dyn DmaMapOps = &*bench.mock;
    assert_eq!(names(&call_every_member(ops, &bench)), EVERY_MEMBER);
}

#[test]
fn every_member_arrives_through_an_arc() {
    let bench = Bench::new();
    let ops: Arc<dyn DmaMapOps> = bench.mock.clone();
    assert_eq!(names(&call_every_member(ops, &bench)), EVERY_MEMBER);
}

#[test]
fn every_member_arrives_through_the_counting_decorator() {
    let bench = Bench::new();
    let ops = Counted::new(bench.mock.clone(), Arc::default());
    assert_eq!(names(&call_every_member(ops, &bench)), EVERY_MEMBER);
}

#[test]
fn every_member_arrives_through_the_checking_decorator_which_is_silent() {
    let bench = Bench::new();
    let debug = Arc::new(DmaDebug::new());
    let ops = Checked::new(bench.mock.clone(), "0000:00:03.0", &debug);
    assert_eq!(names(&call_every_member(ops, &bench)), EVERY_MEMBER);
    assert_eq!(debug.take_reports(), []);
}

#[test]
fn every_member_arrives_through_the_failing_decorator() {
    let bench = Bench::new();
    let ops = Faulty::new(bench.mock.clone(), Arc::default());
    assert_eq!(names(&call_every_member(ops, &bench)), EVERY_MEMBER);
}

#[test]
fn arguments_arrive_as_they_were_given() {
    let bench = Bench::new();
    let calls = call_every_member(&bench.mock, &bench);
    let dir = Direction::FromDevice;
    let attrs = Attrs::NO_WARN;
    assert_eq!(calls[0], Call::Alloc { size: 100 });
    assert_eq!(calls[2], Call::AllocPages { size: 5000, dir });
    assert_eq!(calls[3], Call::FreePages { size: 5000, dir, attrs });
    assert!(matches!(calls[4], Call::MapPhys { phys, len: 200, .. } if phys >= BASE));
    assert!(matches!(calls[5], Call::SyncForCpu { len: 20, .. }));
    assert!(matches!(calls[6], Call::SyncForDevice { len: 30, .. }));
    assert!(matches!(calls[7], Call::UnmapPhys { len: 200, attrs: Attrs::NO_WARN, .. }));
    assert!(matches!(calls[10], Call::MapSg { elements: 2, .. }));
    assert_eq!(calls[11], Call::SyncSgForCpu { elements: 2, dir });
    assert!(matches!(calls[15], Call::IovaTryAlloc { size: 40, .. }));
    assert!(matches!(calls[17], Call::IovaLink { offset: 10, len: 30, phys, .. } if phys >= BASE + 4096));
    assert_eq!(calls[18], Call::IovaSync { offset: 0, len: 40 });
    assert_eq!(calls[19], Call::IovaUnlink { offset: 10, len: 30, dir, attrs });
    assert_eq!(calls[20], Call::IovaDestroy { linked: 10, dir, attrs });
    assert_eq!(calls[21], Call::DmaSupported { mask: UNSUPPORTED });
}

/// The same list of members for every wrapper, which nobody can forget to lengthen: what is in the trait is in the macro.
#[test]
fn every_member_of_the_trait_is_in_the_one_list() {
    let trait_source = include_str!("../src/ops.rs");
    let list = include_str!("../src/forward.rs");
    let list = list.split_once("forward_members!($self => $to;").unwrap().1.split_once(");").unwrap().0;
    let listed: Vec<&str> = list.split(',').map(str::trim).collect();
    let body =
        trait_source.split_once("pub unsafe trait DmaMapOps").unwrap().1.split_once("\n}\n").unwrap().0;
    let members = body.lines().filter_map(|line| {
        let line = line.strip_prefix("    ")?;
        let line = line.strip_prefix("unsafe ").unwrap_or(line);
        line.strip_prefix("fn ")?.split_once('(').map(|(name, _)| name)
    });
    assert_eq!(members.collect::<Vec<_>>(), listed);
}

#[test]
fn by_default_nothing_is_limited_and_nothing_is_bounced() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    assert!(ops.dma_supported(&parms, UNSUPPORTED));
    assert_eq!(ops.required_mask(&parms), u64::MAX);
    assert!(ops.iova_ops().is_none());
    assert_eq!(ops.max_mapping_size(&parms), usize::MAX);
    assert_eq!(ops.opt_mapping_size(), usize::MAX);
    assert_eq!(ops.merge_boundary(), 0);
    let mut byte = 0u8;
    // SAFETY: the byte outlives the call, which maps nothing.
    let mapped =
        unsafe { ops.map_foreign(&parms, NonNull::from(&mut byte), 1, Direction::ToDevice, Attrs::empty()) };
    assert_eq!(mapped, Err(DmaError::NotRam));
}

const DIR: Direction = Direction::Bidirectional;

fn three_elements(bench: &Bench) -> (dma_api::DmaBuffer<u8>, [SgEntry; 3]) {
    let buffer = bench.buffer(&pattern(2, 4 * PAGE));
    let at = |page: u64| PhysAddr::new(buffer.phys().get() + page * PAGE as u64);
    let list = [SgEntry::new(at(0), 100), SgEntry::new(at(1), PAGE), SgEntry::new(at(3), 7)];
    (buffer, list)
}

#[test]
fn by_default_a_list_without_bytes_somewhere_is_refused() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    let (_buffer, list) = three_elements(&bench);
    let mut holed = list;
    holed[1].len = 0;
    for list in [&mut holed[..], &mut []] {
        // SAFETY: nothing is mapped.
        let mapped = unsafe { ops.map_sg(&parms, list, DIR, Attrs::empty()) };
        assert_eq!(mapped, Err(DmaError::InvalidLength(0)));
    }
    assert_eq!(bench.mock.take_calls(), []);
}

#[test]
fn by_default_each_element_of_a_list_is_mapped_for_itself() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    let (_buffer, mut list) = three_elements(&bench);
    // SAFETY: the buffer outlives the mapping, which ends below.
    assert_eq!(unsafe { ops.map_sg(&parms, &mut list, DIR, Attrs::empty()) }, Ok(3));
    assert_eq!(list.map(|entry| entry.dma_len), [100, PAGE, 7]);
    let bytes = pattern(2, 4 * PAGE);
    assert_eq!(bench.mock.device_read(list[1].dma_address, PAGE).unwrap(), bytes[PAGE..2 * PAGE]);
    assert_eq!(bench.mock.device_read(list[2].dma_address, 7).unwrap(), bytes[3 * PAGE..][..7]);
    // SAFETY: the list is as it was mapped.
    unsafe { ops.unmap_sg(&parms, &list, DIR, Attrs::empty()) }.unwrap();
    assert_eq!(bench.mock.live(), 0);
}

#[test]
fn a_list_that_fails_half_way_is_undone_without_copying_back() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    let (_buffer, mut list) = three_elements(&bench);
    bench.maps_left(2);
    // SAFETY: the buffer outlives the call, which leaves nothing mapped.
    let mapped = unsafe { ops.map_sg(&parms, &mut list, DIR, Attrs::empty()) };
    assert_eq!(mapped, Err(DmaError::OutOfMemory));
    assert_eq!(bench.mock.live(), 0);
    let undone = |call: &&Call| matches!(call, Call::UnmapPhys { attrs: Attrs::SKIP_CPU_SYNC, .. });
    assert_eq!(bench.mock.take_calls().iter().filter(undone).count(), 2);
}

#[test]
fn a_list_that_cannot_be_undone_says_that_the_device_may_still_reach_it() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    let (_buffer, mut list) = three_elements(&bench);
    bench.maps_left(2);
    bench.unmaps_fail(true);
    // SAFETY: the buffer outlives what stays mapped, since the test's device does nothing more.
    let mapped = unsafe { ops.map_sg(&parms, &mut list, DIR, Attrs::empty()) };
    let Err(DmaError::NotUndone(Quarantined { address, len })) = mapped else { panic!("{mapped:?}") };
    assert_eq!((address, len), (list[0].dma_address, 100));
}

#[test]
fn an_unmap_goes_on_after_an_element_that_fails() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    let (_buffer, mut list) = three_elements(&bench);
    // SAFETY: the buffer outlives what stays mapped, since the test's device does nothing more.
    unsafe { ops.map_sg(&parms, &mut list, DIR, Attrs::empty()) }.unwrap();
    bench.unmaps_fail(true);
    bench.mock.take_calls();
    // SAFETY: the list is as it was mapped.
    let unmapped = unsafe { ops.unmap_sg(&parms, &list, DIR, Attrs::empty()) };
    assert_eq!(unmapped, Err(Quarantined { address: list[0].dma_address, len: 100 }));
    assert_eq!(bench.mock.take_calls().len(), 3);
}

#[test]
fn by_default_pages_are_coherent_memory_in_one_piece() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    let memory = ops.alloc_pages(&parms, 9000, DIR, Attrs::empty()).unwrap();
    assert_eq!((memory.pieces.len(), memory.pieces[0].len), (1, 9000));
    assert!(bench.mock.device_write(memory.dma, &[7; 9000]));
    // SAFETY: allocated so, freed once.
    unsafe { ops.free_pages(&parms, memory, DIR, Attrs::empty()) }.unwrap();
    assert!(matches!(bench.mock.take_calls()[..], [Call::Alloc { size: 9000 }, Call::Free { .. }]));
    assert_eq!(bench.host.live(), 0);
}

#[test]
fn by_default_each_segment_of_a_list_is_synced_for_itself() {
    let bench = Bench::new();
    let ops = Required(bench.mock.clone());
    let parms = DeviceParms::new(true, false);
    let (_buffer, mut list) = three_elements(&bench);
    // SAFETY: the buffer outlives the mapping, which ends below, as it was made.
    unsafe {
        ops.map_sg(&parms, &mut list, DIR, Attrs::empty()).unwrap();
        ops.sync_sg_for_cpu(&parms, &list, DIR);
        ops.sync_sg_for_device(&parms, &list, DIR);
        ops.unmap_sg(&parms, &list, DIR, Attrs::empty()).unwrap();
    }
}
