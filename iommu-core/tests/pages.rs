//! Memory for a device: in one piece for it, in as many as the machine has left.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Bench, Cache, Did, NIC, PAGE, Setup};
use dma_api::{Attrs, Bidirectional, CpuPages, Device, Direction, DmaError, FromDevice, PageMemory};

const DIR: Direction = Direction::FromDevice;
const LEN: usize = PAGE as usize;

fn bench() -> (Bench, Arc<Device>) {
    let bench = Setup::default().bench();
    let device = Arc::new(bench.bind(NIC));
    (bench, device)
}

fn alloc(device: &Device, size: usize, attrs: Attrs) -> Result<PageMemory, DmaError> {
    device.alloc_pages(size, DIR, attrs)
}

fn free(device: &Device, memory: PageMemory, attrs: Attrs) {
    // SAFETY: allocated so, freed once.
    unsafe { device.free_pages(memory, DIR, attrs) }.unwrap();
}

fn lens(memory: &PageMemory) -> Vec<usize> {
    memory.pieces.iter().map(|piece| piece.len).collect()
}

#[test]
fn pages_are_in_the_largest_pieces_that_there_are() {
    let (bench, device) = bench();
    let before = bench.host.live();
    for (longest, expected) in [
        (usize::MAX, vec![7 * LEN]),
        (7 * LEN - 1, vec![4 * LEN, 3 * LEN]),
        (2 * LEN, vec![2 * LEN, 2 * LEN, 2 * LEN, LEN]),
        (LEN, vec![LEN; 7]),
    ] {
        bench.host.longest.store(longest, Ordering::Relaxed);
        let memory = alloc(&device, 6 * LEN + 1, Attrs::empty()).unwrap();
        assert_eq!(lens(&memory), expected);
        assert_eq!(memory.size, 6 * LEN + 1);
        // The device finds them one after the other, and may do what it was asked for.
        let mut at = memory.dma;
        for piece in &memory.pieces {
            let phys = device.window().phys(piece.cpu.as_ptr()).get();
            assert_eq!(bench.toy.reach(NIC, at, true), Some(phys));
            assert_eq!(bench.toy.reach(NIC, at, false), None, "from the device");
            at = at.wrapping_add(piece.len as u64);
        }
        assert_eq!(bench.toy.reach(NIC, at, true), None);
        let dma = memory.dma;
        free(&device, memory, Attrs::empty());
        assert_eq!(bench.toy.reach(NIC, dma, true), None);
        assert_eq!(bench.host.live(), before);
    }
}

#[test]
fn attributes_choose_between_one_piece_and_single_pages() {
    let (bench, device) = bench();
    let attrs = Attrs::FORCE_CONTIGUOUS;
    let memory = alloc(&device, 5 << 20, attrs).unwrap();
    assert_eq!(lens(&memory), [5 << 20]);
    free(&device, memory, attrs);
    bench.host.longest.store(2 * LEN, Ordering::Relaxed);
    assert_eq!(alloc(&device, 3 * LEN, attrs), Err(DmaError::OutOfMemory));
    assert_eq!(device.alloc_coherent(3 * LEN, Attrs::empty()).unwrap_err(), DmaError::OutOfMemory);
    let memory = alloc(&device, 3 * LEN, Attrs::ALLOC_SINGLE_PAGES).unwrap();
    assert_eq!(lens(&memory), [LEN; 3]);
    free(&device, memory, Attrs::ALLOC_SINGLE_PAGES);
    let mut pages = CpuPages::<Bidirectional>::zeroed(&device, 3 * LEN).unwrap();
    pages.copy_from_slice(2 * LEN - 1, &[1, 2]);
    let theirs = pages.sync_for_device();
    let second = bench.toy.reach(NIC, theirs.dma_address().wrapping_add(2 * PAGE), false).unwrap();
    assert_eq!(bench.host.device_read(second, 1), [2]);
}

#[test]
fn what_fails_takes_nothing() {
    let (bench, device) = bench();
    let before = bench.host.live();
    bench.host.longest.store(LEN, Ordering::Relaxed);
    bench.toy.set_pages_left(2);
    assert_eq!(alloc(&device, 3 * LEN, Attrs::empty()), Err(DmaError::OutOfMemory));
    assert_eq!(bench.host.live(), before);
    bench.toy.set_pages_left(u64::MAX);
    bench.host.longest.store(LEN - 1, Ordering::Relaxed);
    assert_eq!(alloc(&device, LEN, Attrs::empty()), Err(DmaError::OutOfMemory));
    assert_eq!(alloc(&device, usize::MAX, Attrs::empty()), Err(DmaError::InvalidLength(usize::MAX)));
    assert_eq!(bench.host.live(), before);
    assert_eq!(bench.iommu.statistics().quarantined, 0);
}

#[test]
fn pages_whose_unmap_is_not_confirmed_are_kept() {
    let (bench, device) = bench();
    let pages = CpuPages::<FromDevice>::zeroed(&device, 2 * LEN).unwrap();
    let live = bench.host.live();
    bench.toy.set_silent(true);
    drop(pages);
    assert_eq!((bench.host.live(), bench.iommu.statistics().quarantined), (live, 2 * PAGE));
}

#[test]
fn all_pieces_are_made_visible_at_once_and_synced_piece_by_piece() {
    let mut setup = Setup::default();
    setup.knobs.needs_sync_map = true;
    setup.knobs.coherent = false;
    let bench = setup.bench();
    let device = Arc::new(bench.bind_trusted(NIC));
    bench.host.longest.store(LEN, Ordering::Relaxed);
    bench.toy.take_log();
    let pages = CpuPages::<FromDevice>::zeroed(&device, 2 * LEN).unwrap();
    let synced = bench.toy.take_log().into_iter().filter(|did| matches!(did, Did::SyncMap { .. })).count();
    assert_eq!(synced, 1);
    let theirs = pages.sync_for_device();
    let phys = [0, PAGE]
        .map(|offset| bench.toy.reach(NIC, theirs.dma_address().wrapping_add(offset), true).unwrap());
    assert_eq!(bench.host.take_cache(), phys.map(|phys| Cache::Clean { phys, len: LEN }));
    drop(theirs.sync_for_cpu());
    assert_eq!(bench.host.take_cache(), phys.map(|phys| Cache::Invalidate { phys, len: LEN }));
}
