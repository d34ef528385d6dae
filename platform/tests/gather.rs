//! Gathers and frame lists: what is collected comes back, what is dropped is counted.

#![cfg(not(loom))]

mod common;

use common::Heap;
use platform::frames::FRAME_SIZE;
use platform::{DmaAddr, FrameList, FrameRequest, Frames, IotlbGather, LeakCounter};

fn frame(heap: &Heap) -> platform::PhysAddr {
    heap.alloc(FrameRequest::ONE).expect("the heap has memory")
}

#[test]
fn ranges_join_to_one_interval() {
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    assert_eq!(gather.range(), None);
    gather.add_range(DmaAddr::new(0x5000), 0x1000);
    gather.add_range(DmaAddr::new(0x2000), 0x1000);
    gather.add_range(DmaAddr::new(0x9000), 0);
    assert_eq!(gather.range(), Some((DmaAddr::new(0x2000), DmaAddr::new(0x5fff))));
    assert!(!gather.has_tables());
}

#[test]
fn the_last_page_of_the_address_space_is_gathered() {
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    gather.add_range(DmaAddr::new(u64::MAX - 0xfff), 0x1000);
    assert_eq!(gather.range(), Some((DmaAddr::new(u64::MAX - 0xfff), DmaAddr::new(u64::MAX))));
}

#[test]
fn a_flushed_gather_gives_its_tables_back() {
    let heap = Heap::new();
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    for _ in 0..3 {
        // SAFETY: a fresh frame that nothing uses.
        unsafe { gather.add_table(heap.window(), frame(&heap), FRAME_SIZE) };
    }
    assert!(gather.has_tables());
    assert_eq!(heap.live(), 3);
    // SAFETY: no IOMMU ever saw these pages.
    let _flushed = unsafe { gather.flushed(&heap) };
    assert_eq!(heap.live(), 0);
    assert_eq!(leaks.get(), 0);
}

#[test]
fn a_dropped_gather_leaks_and_counts() {
    let heap = Heap::new();
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    for _ in 0..2 {
        // SAFETY: a fresh frame that nothing uses.
        unsafe { gather.add_table(heap.window(), frame(&heap), FRAME_SIZE) };
    }
    drop(gather);
    assert_eq!(leaks.get(), 2);
    assert_eq!(heap.live(), 2, "leaked pages must never be handed out again");
}

#[test]
fn lists_append_in_any_order() {
    let heap = Heap::new();
    for (left, right) in [(0, 0), (0, 2), (3, 0), (2, 3), (1, 1)] {
        let list = |count| {
            let mut list = FrameList::new();
            for _ in 0..count {
                // SAFETY: a fresh frame that nothing uses.
                unsafe { list.push(heap.window(), frame(&heap), FRAME_SIZE) };
            }
            list
        };
        let mut both = list(left);
        // SAFETY: both lists are of this heap.
        unsafe { both.append(heap.window(), list(right)) };
        assert_eq!(both.len(), left + right);
        // SAFETY: nothing reads the frames.
        unsafe { both.free(&heap) };
        assert_eq!(heap.live(), 0, "{left} + {right}");
    }
}

#[test]
fn a_listed_page_reads_as_not_present() {
    let heap = Heap::new();
    let mut list = FrameList::new();
    let (a, b) = (frame(&heap), frame(&heap));
    // SAFETY: fresh frames that nothing uses.
    unsafe {
        list.push(heap.window(), a, FRAME_SIZE);
        list.push(heap.window(), b, FRAME_SIZE);
    }
    for page in [a, b] {
        // SAFETY: the pages are live until the list is freed.
        let first = unsafe { heap.window().word(page) }.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(first & 0xfff, 0, "the low bits of every format's entry say whether it is present");
    }
    // SAFETY: nothing reads the frames.
    unsafe { list.free(&heap) };
}
