//! Pages, lists in turns, and the two-step interface under watch.

use std::ptr::NonNull;

use dma_api::{
    Bidirectional, CpuPages, Direction, DmaIova, MappingKind, Mistake, PageMemory, PagePiece, ScatterList,
    SgEntry,
};
use platform::PhysAddr;

use crate::common::{Call, PAGE};
use crate::watch::{NAME, NONE, Watch};

const DIR: Direction = Direction::ToDevice;

/// Two pages that are linked one after the other.
fn linked<'d>(watch: &'d Watch, phys: PhysAddr) -> DmaIova<'d> {
    let mut iova = DmaIova::new(&watch.device, phys, 2 * PAGE, DIR, NONE).unwrap();
    // SAFETY: a test's memory is there as long as its machine, and no device of the test touches it.
    unsafe {
        iova.link(0, phys, PAGE).unwrap();
        iova.link(PAGE, phys.wrapping_add(PAGE as u64), PAGE).unwrap();
    }
    iova
}

#[test]
fn links_that_end_as_they_were_made_are_silent() {
    let watch = Watch::new();
    let buffer = watch.buffer(2);
    drop(linked(&watch, buffer.phys()));
    let mut iova = linked(&watch, buffer.phys());
    iova.unlink(0).unwrap();
    iova.destroy().unwrap();
    watch.silent();
}

#[test]
fn links_that_are_left_or_ended_otherwise_are_told() {
    let watch = Watch::new();
    let buffer = watch.buffer(2);
    std::mem::forget(linked(&watch, buffer.phys()));
    let ops = watch.device.ops().iova_ops().unwrap();
    let live = watch.debug.take_reports();
    assert_eq!(live, []);
    // The range is known from what it was asked for.
    let range = ops.try_alloc(watch.device.parms(), buffer.phys(), PAGE).unwrap();
    let part = dma_api::IovaPart { range, offset: 0, len: PAGE };
    // SAFETY: what the ledger does not have is not handed on.
    unsafe { ops.unlink(watch.device.parms(), part, DIR, NONE) }.unwrap_err();
    let not_mapped = Mistake::NotMapped { kind: MappingKind::Linked, address: range.address, len: PAGE };
    assert_eq!(watch.said(), not_mapped);
    // SAFETY: as above, or as the contracts say.
    unsafe {
        ops.link(watch.device.parms(), part, buffer.phys(), DIR, NONE).unwrap();
        watch.mock.take_calls();
        ops.destroy(watch.device.parms(), range, 0, DIR, NONE).unwrap_err();
    }
    let Mistake::NotMapped { kind: MappingKind::Linked, len: 0, .. } = watch.said() else { panic!() };
    assert_eq!(watch.mock.take_calls(), [], "it is not handed on while something is linked");
    // SAFETY: a whole link; the other direction is put right.
    unsafe { ops.destroy(watch.device.parms(), range, PAGE, Direction::FromDevice, NONE) }.unwrap();
    assert!(matches!(watch.said(), Mistake::WrongDirection { dir: Direction::FromDevice, .. }));
    assert!(matches!(watch.mock.take_calls()[..], [Call::IovaDestroy { linked: PAGE, dir: DIR, .. }]));
    drop(ops);
    let Watch { debug, device, .. } = watch;
    drop(device);
    let report = debug.take_reports().pop().unwrap();
    assert_eq!(&*report.device, NAME);
    assert!(matches!(report.mistake, Mistake::Leaked { count: 2, bytes, .. } if bytes == 2 * PAGE));
}

#[test]
fn pages_are_freed_as_they_were_allocated() {
    let watch = Watch::new();
    drop(CpuPages::<Bidirectional>::zeroed(&watch.device, 2 * PAGE).unwrap().sync_for_device());
    watch.silent();
    let memory = watch.device.alloc_pages(2 * PAGE, DIR, NONE).unwrap();
    let other = PageMemory { size: 100, ..memory.clone() };
    // SAFETY: it is freed as it was made.
    unsafe { watch.device.free_pages(other, Direction::FromDevice, NONE) }.unwrap();
    let mistakes: Vec<_> = watch.debug.take_reports().into_iter().map(|report| report.mistake).collect();
    assert!(
        matches!(mistakes[..], [Mistake::WrongSize { len: 100, .. }, Mistake::WrongDirection { .. }]),
        "{mistakes:?}"
    );
    // SAFETY: what the ledger does not have is not handed on.
    unsafe { watch.device.free_pages(memory, DIR, NONE) }.unwrap_err();
    assert!(matches!(watch.said(), Mistake::EndedTwice { .. }));
    let nowhere = PagePiece { cpu: NonNull::dangling(), len: 8 };
    let memory = PageMemory { dma: 0x10.into(), size: 8, pieces: Box::new([nowhere]) };
    // SAFETY: as above.
    unsafe { watch.device.free_pages(memory, DIR, NONE) }.unwrap_err();
    assert!(matches!(watch.said(), Mistake::NotMapped { kind: MappingKind::Pages, .. }));
    watch.device.ops().alloc_pages(watch.device.parms(), 0, DIR, NONE).unwrap_err();
    assert!(matches!(watch.said(), Mistake::Empty { kind: MappingKind::Pages, .. }));
}

#[test]
fn a_list_is_synced_while_it_is_mapped() {
    let watch = Watch::with(dma_api::DmaDebug::new(), false);
    let list = ScatterList::<_, Bidirectional>::map(&watch.device, vec![watch.buffer(1), watch.buffer(1)]);
    drop(list.unwrap().sync_for_cpu().sync_for_device());
    watch.silent();
    let mut entry = SgEntry::new(PhysAddr::new(0), PAGE);
    (entry.dma_address, entry.dma_len) = (0x1000.into(), PAGE);
    watch.mock.take_calls();
    // SAFETY: what is not mapped is not handed on.
    unsafe { watch.device.sync_sg_for_cpu(&[entry], DIR) };
    assert!(matches!(watch.said(), Mistake::SyncNotMapped { .. }));
    assert_eq!(watch.mock.take_calls(), []);
}

#[test]
fn memory_that_is_known_to_be_mapped_twice_is_not_told() {
    let watch = Watch::new();
    let buffer = watch.buffer(1);
    let attrs = dma_api::Attrs::DEBUGGING_IGNORE_CACHELINES;
    let dir = Direction::FromDevice;
    let twice = [(); 2].map(|()| watch.map_with(buffer.phys(), 64, dir, attrs));
    watch.silent();
    for at in twice {
        // SAFETY: mapped so, once each.
        unsafe { watch.device.unmap_single(at, 64, dir, attrs) }.unwrap();
    }
}
