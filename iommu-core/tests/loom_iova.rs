//! I/O addresses: two CPUs take and give back at once, through magazines, depot and tree, and never have the same range.

#![cfg(loom)]

mod loom_common;

use iommu_core::iova::IovaDomain;
use loom::thread;
use loom_common::{boot, explore, map, unmap};
use platform::sync::Arc;
use platform::{DmaAddr, Flushed, cpu};

#[test]
fn no_range_is_handed_out_twice() {
    explore(50, || {
        // Three pages of addresses, and magazines of one: a CPU has two of the pages then, and the depot the third.
        let (machine, device) = boot(0x3fff, false);
        let held = [(); 3].map(|()| map(&device).unwrap());
        held.into_iter().for_each(|at| unmap(&device, at));
        let other = {
            let device = device.clone();
            thread::spawn(move || {
                cpu::set(1);
                if let Some(at) = map(&device) {
                    unmap(&device, at);
                }
                map(&device)
            })
        };
        // Whoever finds nothing empties the magazines of both CPUs.
        let mine = [(); 3].map(|()| map(&device));
        let theirs = other.join().unwrap();
        // The machine's table refuses a page that is mapped already, which `map` does not forgive.
        let all: Vec<_> = mine.into_iter().chain([theirs]).flatten().collect();
        assert_eq!(machine.mapped(), all.len());
        assert!(all.iter().enumerate().all(|(index, at)| !all[..index].contains(at)));
        // Nothing is lost either.
        all.into_iter().for_each(|at| unmap(&device, at));
        assert!((0..3).all(|_| map(&device).is_some()));
        assert!(map(&device).is_none());
    });
}

const PAGE: u64 = 4096;

/// Takes so many pages, and gives them back.
fn turn(iovas: &IovaDomain, pages: u64) -> bool {
    let Some(at) = iovas.alloc(pages * PAGE, DmaAddr::new(u64::MAX)) else { return false };
    // SAFETY: nothing is ever mapped.
    iovas.free(at, pages * PAGE, &unsafe { Flushed::assert() });
    true
}

#[test]
fn sizes_take_each_others_pages_beside_a_tick_and_nothing_is_lost() {
    explore(500, || {
        cpu::set(0);
        // Two pages: what one CPU has in a magazine the other must empty to have both, while a tick trims the depot.
        let iovas =
            Arc::new(IovaDomain::new(PAGE, DmaAddr::new(2 * PAGE), DmaAddr::new(4 * PAGE - 1), 2).unwrap());
        let other = {
            let iovas = Arc::clone(&iovas);
            thread::spawn(move || {
                cpu::set(1);
                turn(&iovas, 1);
                iovas.trim();
            })
        };
        turn(&iovas, 2);
        turn(&iovas, 1);
        other.join().unwrap();
        assert!(turn(&iovas, 2));
        let counts = iovas.counts();
        assert_eq!(counts.taken, counts.given_back);
    });
}

#[test]
fn the_depot_is_never_waited_for_with_the_tree_locked() {
    explore(50, || {
        cpu::set(0);
        let iovas = Arc::new(IovaDomain::new(PAGE, DmaAddr::new(0), DmaAddr::new(32 * PAGE - 1), 2).unwrap());
        let take = |pages: u64| iovas.alloc(pages * PAGE, DmaAddr::new(u64::MAX)).unwrap();
        // SAFETY: nothing is ever mapped.
        let flushed = unsafe { Flushed::assert() };
        // A magazine in the depot, none with a CPU; and the next range from the tree but one makes the depot's room larger.
        let held = [(); 3].map(|()| take(1));
        held.into_iter().for_each(|at| iovas.free(at, PAGE, &flushed));
        take(1);
        take(1);
        take(2);
        let other = {
            let iovas = Arc::clone(&iovas);
            thread::spawn(move || {
                cpu::set(1);
                iovas.alloc(2 * PAGE, DmaAddr::new(u64::MAX)).unwrap();
            })
        };
        iovas.drain();
        other.join().unwrap();
    });
}
