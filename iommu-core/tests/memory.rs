//! Memory of the core's own: giving back allocates nothing, and where there is none, that is an error.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

mod common;

use common::{NIC, PAGE, Setup, map_page, unmap_page};
use iommu_core::iova::IovaDomain;
use iommu_core::{DomainError, DomainType, GroupError};
use platform::{DmaAddr, Flushed};

thread_local! {
    /// Blocks of at least so many bytes, and not as many as that, are refused.
    static REFUSED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Allocator;

// SAFETY: the system's allocator, or nothing.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        let (first, end) = REFUSED.get();
        if (first..end).contains(&layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The sizes of a chunk of the tree's nodes, and of a flush queue of 256 entries.
const NODES: (usize, usize) = (4097, 8192);
const QUEUE: (usize, usize) = (256 * 48, 256 * 48 + 1);

/// What `f` does without such blocks.
fn refusing<R>(sizes: (usize, usize), f: impl FnOnce() -> R) -> R {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            REFUSED.set((0, 0));
        }
    }
    let _end = End;
    REFUSED.set(sizes);
    f()
}

fn allocations<R>(f: impl FnOnce() -> R) -> (R, usize) {
    let before = ALLOCATIONS.get();
    let result = f();
    (result, ALLOCATIONS.get() - before)
}

const ALL: DmaAddr = DmaAddr::new(u64::MAX);

fn free(iovas: &IovaDomain, at: DmaAddr, pages: u64) {
    // SAFETY: nothing is ever mapped.
    iovas.free(at, pages * PAGE, &unsafe { Flushed::assert() });
}

fn domain() -> IovaDomain {
    IovaDomain::new(PAGE, DmaAddr::new(0), DmaAddr::new((1 << 48) - 1), 2).unwrap()
}

#[test]
fn giving_back_allocates_nothing_and_what_it_leaves_is_used_again() {
    let iovas = domain();
    // All orders, and sizes beyond the magazines, so that magazines, depot and tree all overflow.
    let size = |number: u64| if number % 7 == 6 { 33 + number % 5000 } else { 1 << (number % 7).min(5) };
    let round = || {
        let held: Vec<_> = (0..20_000)
            .map(|number| (iovas.alloc(size(number) * PAGE, ALL).unwrap(), size(number)))
            .collect();
        // First every other one, so that all is fragmented.
        let (_, count) = allocations(|| {
            held.iter().step_by(2).for_each(|&(at, pages)| free(&iovas, at, pages));
            held.iter().skip(1).step_by(2).for_each(|&(at, pages)| free(&iovas, at, pages));
            iovas.trim();
            iovas.drain();
        });
        assert_eq!(count, 0);
    };
    round();
    // The vector itself is one.
    assert_eq!(allocations(round).1, 1);
}

#[test]
fn taking_fails_when_the_tree_cannot_grow_and_nothing_is_lost() {
    let iovas = domain();
    // Each is alone in 16 MiB, which takes a node.
    let pages = 2049;
    let mut held = Vec::with_capacity(100);
    refusing(NODES, || {
        held.extend(std::iter::from_fn(|| iovas.alloc(pages * PAGE, ALL)).take(100));
    });
    assert!(held.len() < 100);
    let more = iovas.alloc(pages * PAGE, ALL).unwrap();
    assert!(!held.contains(&more));
    free(&iovas, more, pages);
    held.iter().for_each(|&at| free(&iovas, at, pages));
    assert_eq!(iovas.alloc(1 << 47, ALL).map(DmaAddr::get), Some(1 << 47), "all of it is free again");
}

#[test]
fn reserving_and_making_fail_when_there_is_no_memory() {
    refusing(NODES, || IovaDomain::new(PAGE, DmaAddr::new(0), ALL, 1)).unwrap_err();
    let iovas = domain();
    let far = |number: u64| (DmaAddr::new(number << 40), DmaAddr::new((number << 40) + 1));
    refusing(NODES, || (1..100).try_for_each(|number| iovas.reserve(far(number).0, far(number).1)))
        .unwrap_err();
}

#[test]
fn a_domain_whose_flush_queue_finds_no_memory_is_strict() {
    let (bench, result) = refusing(QUEUE, || Setup::default().lazy().boot());
    assert_eq!((result, bench.group(NIC).domain_type()), (Ok(()), Some(DomainType::Dma)));
    let group = bench.group(NIC);
    let refused = refusing(QUEUE, || group.set_type(DomainType::DmaFq));
    assert_eq!(refused, Err(GroupError::Domain(DomainError::Exhausted)));
    assert_eq!(group.domain_type(), Some(DomainType::Dma));
    group.set_type(DomainType::DmaFq).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::DmaFq));
    let device = bench.bind_trusted(NIC);
    let at = map_page(&device).unwrap();
    unmap_page(&device, at).unwrap();
}
