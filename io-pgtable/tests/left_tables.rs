//! Tables that earlier mappings have left, empty, are in nobody's way.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

use io_pgtable::{AmdV1, IoPageTable, IoPgtableCfg, PageTable};
use platform::frames::FRAME_SIZE;
use platform::{
    DmaAddr, Extent, FrameRequest, Frames, IotlbGather, LeakCounter, MapError, OutOfFrames, PhysAddr, Prot,
    Window,
};

/// The process's heap as page frames.
#[derive(Debug)]
struct Heap;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, FRAME_SIZE).unwrap()
}

// SAFETY: frames are zeroed allocations of their own, aligned to their size, and physical addresses are pointers.
unsafe impl Frames for Heap {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        // SAFETY: a frame is not empty.
        let frame = unsafe { alloc_zeroed(layout(request.size)) };
        assert!(!frame.is_null());
        Ok(PhysAddr::new(frame.expose_provenance() as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        // SAFETY: the caller gives back what `alloc` returned, once.
        unsafe { dealloc(self.window().ptr(at), layout(size)) };
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are pointers here.
        unsafe { Window::new(0) }
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

const PAGE: u64 = 4 << 10;
const LARGE: u64 = 2 << 20;
const RW: Prot = Prot::READ.union(Prot::WRITE);

fn table() -> PageTable<AmdV1> {
    PageTable::new(Arc::new(Heap), &IoPgtableCfg::new(48)).unwrap()
}

fn map(table: &PageTable<AmdV1>, iova: u64, phys: u64, page_size: u64) -> (u64, Result<(), MapError>) {
    // SAFETY: no device reads the table; there is one thread.
    unsafe { table.map_pages(DmaAddr::new(iova), PhysAddr::new(phys), page_size, 1, RW) }
}

fn unmap(table: &PageTable<AmdV1>, iova: u64, len: u64) -> u64 {
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    // SAFETY: there is one thread.
    let unmapped = unsafe { table.unmap_range(DmaAddr::new(iova), len, &mut gather) };
    // SAFETY: no IOMMU reads the table, and its pages are the heap's.
    let _ = unsafe { gather.flushed(&Heap) };
    unmapped
}

/// Maps a page and unmaps it, which leaves the tables above it.
fn leave_tables(table: &PageTable<AmdV1>, iova: u64) {
    assert_eq!(map(table, iova, 0x1000, PAGE), (PAGE, Ok(())));
    assert_eq!(unmap(table, iova, PAGE), PAGE);
}

fn phys(table: &PageTable<AmdV1>, iova: u64) -> Option<u64> {
    table.iova_to_phys(DmaAddr::new(iova)).map(|found| found.phys.get())
}

#[test]
fn a_large_page_is_mapped_where_a_table_was_left() {
    let table = table();
    leave_tables(&table, LARGE + 5 * PAGE);
    assert_eq!(table.table_pages(), 4);
    assert_eq!(map(&table, LARGE, 0x4000_0000, LARGE), (LARGE, Ok(())));
    for offset in (0..LARGE).step_by(PAGE as usize) {
        assert_eq!(phys(&table, LARGE + offset + 0x123), Some(0x4000_0123 + offset));
    }
    assert_eq!((phys(&table, LARGE - 1), phys(&table, 2 * LARGE)), (None, None));
    // Its own unmap covers the table, so that goes.
    assert_eq!(unmap(&table, LARGE, LARGE), LARGE);
    assert_eq!(table.table_pages(), 3);
    assert_eq!(phys(&table, LARGE), None);
}

#[test]
fn a_coded_page_keeps_large_parts_beside_a_left_table() {
    let table = table();
    // The third of the four entries of an 8 MiB page leads to a table.
    leave_tables(&table, 4 * LARGE + 2 * LARGE);
    assert_eq!(map(&table, 4 * LARGE, 0x4000_0000, 4 * LARGE), (4 * LARGE, Ok(())));
    let size = |iova| table.iova_to_phys(DmaAddr::new(iova)).unwrap().page_size;
    assert_eq!(size(4 * LARGE), 2 * LARGE);
    assert_eq!(size(6 * LARGE), LARGE / 2);
    assert_eq!(size(7 * LARGE), LARGE);
    for part in 0..64 {
        let offset = part * 0x2_0000;
        assert_eq!(phys(&table, 4 * LARGE + offset), Some(0x4000_0000 + offset));
    }
    assert_eq!(unmap(&table, 4 * LARGE, 4 * LARGE), 4 * LARGE);
}

#[test]
fn a_size_that_hardware_gets_wrong_is_not_used_for_a_part() {
    const GIB: u64 = 1 << 30;
    const TIB: u64 = 1 << 40;
    let table = table();
    // The first of the two entries of a 1 TiB page leads to a table, so the second stands alone: 512 GiB.
    leave_tables(&table, TIB);
    assert_eq!(map(&table, TIB, TIB, TIB), (TIB, Ok(())));
    for offset in [0, 511 * GIB, 512 * GIB, 1023 * GIB] {
        let found = table.iova_to_phys(DmaAddr::new(TIB + offset)).unwrap();
        assert_eq!(found.phys.get(), TIB + offset);
        assert_ne!(found.page_size, 512 * GIB);
    }
    assert_eq!(unmap(&table, TIB, TIB), TIB);
}

#[test]
fn a_page_that_is_still_there_is_in_use() {
    let table = table();
    assert_eq!(map(&table, LARGE + 3 * PAGE, 0x1000, PAGE), (PAGE, Ok(())));
    let (done, result) = map(&table, LARGE, 0x4000_0000, LARGE);
    assert!(matches!(result, Err(MapError::InUse(_))), "{result:?}");
    assert!(done <= 3 * PAGE);
    // What was done is the caller's to undo, and the page is as it was.
    assert_eq!(unmap(&table, LARGE, done), done);
    assert_eq!(phys(&table, LARGE + 3 * PAGE), Some(0x1000));
}
