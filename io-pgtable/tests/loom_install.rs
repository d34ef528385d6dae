//! Maps and unmaps of disjoint ranges at the same time. With the compare-and-swap that installs a table made a store, one of
//! two maps is lost; with a table taken out because it is empty though the range does not cover it, a neighbour's map is.

#![cfg(loom)]

mod loom_common;

use io_pgtable::AmdV1;
use loom_common::{Bed, Four, PAGE, beside};

#[test]
fn two_maps_install_one_table() {
    loom::model(|| {
        let bed = Bed::<AmdV1>::new(3);
        beside(&bed, |bed| bed.map(0, 1), |bed| bed.map(PAGE, 1));
        assert_eq!((bed.phys(0), bed.phys(PAGE)), (Some(PAGE), Some(2 * PAGE)));
        bed.finish(3);
    });
}

#[test]
fn an_emptied_table_stays_for_a_neighbours_map() {
    loom::model(|| {
        let bed = Bed::<Four>::new(2);
        // The last page of one table and the first of the next: neither table is covered.
        bed.map(3 * PAGE, 2);
        beside(&bed, |bed| bed.unmap(3 * PAGE, 2 * PAGE), |bed| bed.map(2 * PAGE, 1));
        assert_eq!((bed.phys(3 * PAGE), bed.phys(2 * PAGE)), (None, Some(3 * PAGE)));
        bed.finish(3);
    });
}

#[test]
fn a_covered_table_goes_while_its_neighbour_comes() {
    loom::model(|| {
        let bed = Bed::<Four>::new(3);
        bed.map(0, 4);
        // Both under one table of the middle level, of which neither covers all.
        beside(&bed, |bed| bed.unmap(0, 4 * PAGE), |bed| bed.map(4 * PAGE, 1));
        assert_eq!((bed.phys(0), bed.phys(4 * PAGE)), (None, Some(5 * PAGE)));
        bed.finish(3);
    });
}
