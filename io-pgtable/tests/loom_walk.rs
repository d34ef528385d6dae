//! Lookups beside an unmap that takes a table out, and beside a top that grows. With a table that is freed before its flush a
//! lookup finds what is no mapping; with a root that is stored before what it leads to, a lookup misses a page.

#![cfg(loom)]

mod loom_common;

use std::sync::Arc;

use io_pgtable::IoPageTable;
use loom::thread;
use loom_common::{Bed, Four, PAGE, beside};
use platform::{IotlbGather, LeakCounter};

#[test]
fn a_walk_in_a_table_that_waits_for_its_flush_finds_the_page_or_nothing() {
    loom::model(|| {
        let bed = Bed::<Four>::new(2);
        bed.map(0, 4);
        let bed_there = Arc::clone(&bed);
        let there = thread::spawn(move || [bed_there.phys(0), bed_there.phys(3 * PAGE)]);
        let leaks = LeakCounter::new();
        let mut gather = IotlbGather::new(&leaks);
        bed.unmap_into(0, 4 * PAGE, &mut gather);
        let found = there.join().unwrap();
        for (found, page) in found.into_iter().zip([PAGE, 4 * PAGE]) {
            assert!(found.is_none() || found == Some(page), "{found:x?}");
        }
        // SAFETY: nobody walks any more.
        let _flushed = unsafe { gather.flushed(&*bed.frames) };
        bed.finish(1);
    });
}

#[test]
fn a_walk_beside_a_growing_top_finds_what_is_mapped() {
    loom::model(|| {
        let bed = Bed::<Four>::new(1);
        bed.map(PAGE, 1);
        let bed_there = Arc::clone(&bed);
        let there = thread::spawn(move || (bed_there.phys(PAGE), bed_there.table.root().level));
        bed.map(4 * PAGE, 1);
        let (found, level) = there.join().unwrap();
        assert_eq!(found, Some(2 * PAGE));
        assert!(level == 1 || level == 2);
        assert_eq!((bed.phys(PAGE), bed.phys(4 * PAGE)), (Some(2 * PAGE), Some(5 * PAGE)));
        bed.finish(3);
    });
}

#[test]
fn two_maps_grow_the_top_once() {
    loom::model(|| {
        let bed = Bed::<Four>::new(1);
        beside(&bed, |bed| bed.map(4 * PAGE, 1), |bed| bed.map(8 * PAGE, 1));
        assert_eq!((bed.phys(4 * PAGE), bed.phys(8 * PAGE)), (Some(5 * PAGE), Some(9 * PAGE)));
        assert_eq!(bed.table.root().level, 2);
        bed.finish(4);
    });
}

#[test]
fn a_map_below_the_old_top_stays_when_it_grows() {
    loom::model(|| {
        let bed = Bed::<Four>::new(1);
        beside(&bed, |bed| bed.map(2 * PAGE, 1), |bed| bed.map(4 * PAGE, 1));
        assert_eq!((bed.phys(2 * PAGE), bed.phys(4 * PAGE)), (Some(3 * PAGE), Some(5 * PAGE)));
        bed.finish(3);
    });
}
