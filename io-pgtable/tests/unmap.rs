//! What an unmap takes, where it stops, and which tables go with it.

mod common;
mod walkers;

use common::Bed;
use io_pgtable::IoPageTable;

const KIB4: u64 = 0x1000;
const MIB2: u64 = 0x20_0000;
const GIB1: u64 = 0x4000_0000;

fn starts(bed: &Bed) -> Vec<u64> {
    bed.tree().pages.into_keys().collect()
}

#[test]
fn it_stops_at_a_hole() {
    let bed = Bed::new(3, 16);
    bed.must_map(0x1000, 0, KIB4, 2);
    bed.must_map(0x4000, 0, KIB4, 1);
    let mut gather = bed.gather();
    assert_eq!(bed.unmap_into(0x1000, 0x4000, &mut gather), 0x2000);
    let (first, last) = gather.range().unwrap();
    assert_eq!((first.get(), last.get()), (0x1000, 0x2fff), "only what was unmapped is invalidated");
    bed.flush(gather);
    assert_eq!(starts(&bed), [0x4000]);
}

#[test]
fn a_hole_at_the_start_leaves_everything() {
    let bed = Bed::new(3, 16);
    bed.must_map(0x1000, 0, KIB4, 1);
    let mut gather = bed.gather();
    for (iova, len) in [(0, 0x2000), (MIB2, KIB4), (GIB1, GIB1), (0x1000, 0)] {
        assert_eq!(bed.unmap_into(iova, len, &mut gather), 0, "{iova:#x}");
    }
    assert_eq!(gather.range(), None);
    bed.flush(gather);
    assert_eq!(starts(&bed), [0x1000]);
}

#[test]
fn a_page_that_ends_behind_the_range_goes_whole() {
    let bed = Bed::new(3, 16);
    bed.must_map(0, 0, KIB4, 16);
    bed.must_map(0x1_0000, 0, 0x1_0000, 1);
    let mut gather = bed.gather();
    assert_eq!(bed.unmap_into(0xf000, 0x2000, &mut gather), 0x1_1000);
    assert_eq!(gather.range().unwrap().1.get(), 0x1_ffff);
    bed.flush(gather);
    assert_eq!(starts(&bed), (0..15).map(|n| n * KIB4).collect::<Vec<_>>());

    bed.must_map(MIB2, 0, MIB2, 1);
    assert_eq!(bed.unmap(MIB2, 1), MIB2);
}

#[test]
fn it_stops_at_a_page_that_begins_before_the_range() {
    let bed = Bed::new(3, 16);
    bed.must_map(MIB2, 0, MIB2, 2);
    bed.must_map(0x1_0000, 0, 0x1_0000, 1);
    for (iova, len) in [(0x1_1000, KIB4), (0x1_8000, 0x8000), (MIB2 + KIB4, 2 * MIB2), (MIB2 + 1, 1)] {
        assert_eq!(bed.unmap(iova, len), 0, "{iova:#x}");
    }
    assert_eq!(starts(&bed), [0x1_0000, MIB2, 2 * MIB2]);
}

#[test]
fn every_copy_of_a_coded_entry_goes() {
    let bed = Bed::new(3, 16);
    for shift in [13, 16, 20] {
        bed.must_map(MIB2, 0, 1 << shift, 1);
        // The walker asserts that what is left is not half a page.
        assert_eq!(bed.unmap(MIB2, 1 << shift), 1 << shift);
        assert!(starts(&bed).is_empty());
    }
}

#[test]
fn ranges_beyond_the_table_are_left_alone() {
    let bed = Bed::new(3, 16);
    bed.must_map(0, 0, KIB4, 1);
    let end = 1 << 39;
    bed.must_map(end - KIB4, 0, KIB4, 1);
    for (iova, len) in
        [(end, KIB4), (end - KIB4, 2 * KIB4), (u64::MAX, 1), (u64::MAX, 2), (0, u64::MAX), (1 << 39, 1)]
    {
        assert_eq!(bed.unmap(iova, len), 0, "{iova:#x} {len:#x}");
    }
    assert_eq!(bed.unmap(end - KIB4, KIB4), KIB4);
    assert_eq!(starts(&bed), [0]);
}

#[test]
fn a_covered_table_goes_to_the_gather_and_nowhere_else() {
    let bed = Bed::new(3, 16);
    bed.must_map(0, 0, KIB4, 512);
    let table = *bed.tree().tables.iter().max().unwrap();
    assert_eq!(bed.arena.live(), 3);

    let mut gather = bed.gather();
    assert_eq!(bed.unmap_into(0, MIB2, &mut gather), MIB2);
    assert!(gather.has_tables());
    assert_eq!(bed.table.table_pages(), 2);
    assert!(!bed.tree().tables.contains(&table), "an entry leads to it");
    // A unit that remembers the pointer still reads the frame: it must be there, and show nothing.
    assert_eq!(bed.arena.live(), 3);
    assert!((0..512).all(|index| bed.arena.read(table + 8 * index) & 1 == 0));
    bed.flush(gather);
    assert_eq!(bed.arena.live(), 2);
}

#[test]
fn a_table_that_the_range_does_not_cover_stays() {
    let bed = Bed::new(3, 16);
    bed.must_map(0, 0, KIB4, 512);
    // Both halves; each leaves the other's user the table.
    assert_eq!(bed.unmap(0, MIB2 / 2), MIB2 / 2);
    assert_eq!(bed.unmap(MIB2 / 2, MIB2 / 2), MIB2 / 2);
    assert_eq!((bed.arena.live(), bed.tree().tables.len()), (3, 3));
    // It is used again.
    bed.must_map(0, 0, KIB4, 1);
    assert_eq!(bed.arena.live(), 3);
}

#[test]
fn a_range_over_several_levels_frees_what_it_covers() {
    let bed = Bed::new(4, 1100);
    // From the middle of one 1 GiB through a whole one into a third, in 4 KiB pages at the ends.
    let first = GIB1 - MIB2 - KIB4;
    bed.must_map(first, 0, KIB4, 513);
    bed.must_map(GIB1, 0, MIB2, 511);
    bed.must_map(2 * GIB1 - MIB2, 0, KIB4, 512);
    bed.must_map(2 * GIB1, 0, KIB4, 5);
    let tables = bed.tree().tables.len();
    let mut gather = bed.gather();
    let len = 2 * GIB1 + 5 * KIB4 - first;
    assert_eq!(bed.unmap_into(first, len, &mut gather), len);
    // Covered: the last 2 MiB of the first GiB, the second GiB with the table of its last 2 MiB. Not covered: the tables of
    // the first page and of the last five, and of the GiBs around them.
    assert_eq!(bed.tree().tables.len(), tables - 3);
    assert_eq!((bed.table.table_pages(), bed.arena.live()), (tables - 3, tables));
    bed.flush(gather);
    assert_eq!(bed.arena.live(), tables - 3);
    assert!(starts(&bed).is_empty());
}

#[test]
fn the_top_stays_when_everything_goes() {
    let bed = Bed::new(1, 4);
    bed.must_map(0, 0, KIB4, 512);
    assert_eq!(bed.unmap(0, MIB2), MIB2);
    assert_eq!((bed.arena.live(), bed.table.table_pages()), (1, 1));
}

#[test]
fn a_gather_dropped_without_a_flush_leaks_its_tables_and_counts_them() {
    let bed = Bed::new(3, 16);
    bed.must_map(0, 0, KIB4, 1024);
    let mut gather = bed.gather();
    bed.unmap_into(0, 2 * MIB2, &mut gather);
    drop(gather);
    assert_eq!(bed.leaks.get(), 2);
    drop(bed.table);
    assert_eq!(bed.arena.live(), 2, "never used again");
}

#[test]
fn the_end_of_the_address_space_is_as_good_as_any_other_place() {
    let bed = Bed::new(6, 1100);
    let before = bed.arena.live();
    // The last 2 MiB in 4 KiB pages, with a larger page before them.
    let table = (u64::MAX - MIB2) + 1;
    bed.must_map(table, 0, KIB4, 512);
    bed.must_map(table - MIB2, 0, MIB2, 1);
    assert_eq!(bed.unmap(u64::MAX - 0xfff, KIB4), KIB4);
    assert_eq!(bed.phys(u64::MAX), None);
    bed.must_map(u64::MAX - 0xfff, 0, KIB4, 1);
    let tables = bed.arena.live();
    assert_eq!(bed.unmap(table - MIB2, 2 * MIB2), 2 * MIB2);
    assert_eq!(bed.arena.live(), tables - 1, "the covered table goes here too");
    assert!(starts(&bed).is_empty());

    // The whole last entry of the top.
    let last = 127 << 57;
    for page in 0..64 {
        bed.must_map(last + (page << 51), 0, 1 << 51, 1);
    }
    assert_eq!(bed.unmap(last, 1 << 57), 1 << 57);
    assert_eq!(bed.arena.live(), before);
}

#[test]
fn a_range_of_nearly_all_addresses_is_counted_without_overflow() {
    let bed = Bed::new(6, 200);
    for page in 0..1 << 13 {
        bed.must_map(page << 51, 0, 1 << 51, 1);
    }
    // One byte short of everything; the last page goes whole, and 2^64 bytes are more than a length can say.
    let mut gather = bed.gather();
    assert_eq!(bed.unmap_into(0, u64::MAX, &mut gather), u64::MAX);
    assert_eq!(gather.range().map(|(first, last)| (first.get(), last.get() | 0xfff)), Some((0, u64::MAX)));
    bed.flush(gather);
    assert!(starts(&bed).is_empty());
    drop(bed.table);
    assert_eq!(bed.arena.live(), 0);
}
