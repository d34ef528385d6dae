//! Marks of use and of writing (HAD): which entries get them, when, and what the unit refuses.

mod common;

use common::*;
use sim_hardware::iommu::Config;

const DOMAIN: u16 = 0x42;
const LEVELS: u32 = 3;
const IOVA: u64 = 0x4020_1000;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Everything of the domain.
const ALL: u64 = 0x7fff_ffff_ffff_f003;

fn had(value: u64, root: u64) -> [u64; 4] {
    let [first, second, ..] = dte(DOMAIN, LEVELS.into(), root);
    [first | value << 7, second, 0, 0]
}

/// A page at [`IOVA`] for A, whose entry has this HAD.
fn bench(value: u64) -> (Bench, u64) {
    let bench = Bench::default();
    let root = bench.table();
    bench.map(root, LEVELS, IOVA, 1, DATA | READ_WRITE);
    bench.set_dte(A, had(value, root));
    (bench, root)
}

/// The marks of the entries of levels 3, 2 and 1.
fn marks(bench: &Bench, root: u64) -> [u64; 3] {
    [3, 2, 1].map(|level| bench.peek(bench.place(root, LEVELS, IOVA, level)) & (ACCESSED | DIRTY))
}

#[test]
fn without_had_nothing_is_marked() {
    let (bench, root) = bench(0);
    assert_eq!(bench.a.write(IOVA, 1), Ok(()));
    assert_eq!(marks(&bench, root), [0; 3]);
}

#[test]
fn used_entries_are_marked_and_written_leaves() {
    let (bench, root) = bench(3);
    assert!(bench.a.read(IOVA).is_ok());
    assert_eq!(marks(&bench, root), [ACCESSED; 3]);
    // The translation is remembered; the first write marks it all the same.
    assert_eq!(bench.a.write(IOVA, 1), Ok(()));
    assert_eq!(marks(&bench, root), [ACCESSED, ACCESSED, ACCESSED | DIRTY]);
}

#[test]
fn accessed_alone_marks_no_writes() {
    let (bench, root) = bench(1);
    assert_eq!(bench.a.write(IOVA, 1), Ok(()));
    assert_eq!(marks(&bench, root), [ACCESSED; 3]);
}

#[test]
fn a_mark_that_was_taken_away_comes_back_only_after_an_invalidation() {
    let (bench, root) = bench(3);
    let leaf = bench.place(root, LEVELS, IOVA, 1);
    assert_eq!(bench.a.write(IOVA, 1), Ok(()));
    bench.poke(leaf, DATA | READ_WRITE);
    assert_eq!(bench.a.write(IOVA, 2), Ok(()));
    assert_eq!(bench.peek(leaf) & DIRTY, 0);
    bench.invalidate_pages(DOMAIN, IOVA);
    assert_eq!(bench.a.write(IOVA, 3), Ok(()));
    assert_eq!(bench.peek(leaf) & DIRTY, DIRTY);
}

#[test]
fn what_was_remembered_before_tracking_began_marks_nothing() {
    let (bench, root) = bench(0);
    assert_eq!(bench.a.write(IOVA, 1), Ok(()));
    bench.set_dte(A, had(3, root));
    bench.invalidate_device(A);
    assert_eq!(bench.a.write(IOVA, 2), Ok(()));
    assert_eq!(marks(&bench, root)[2], 0);
    bench.invalidate_pages(DOMAIN, ALL);
    assert_eq!(bench.a.write(IOVA, 3), Ok(()));
    assert_eq!(marks(&bench, root)[2], ACCESSED | DIRTY);
}

#[test]
fn a_refused_write_marks_nothing_as_written() {
    let bench = Bench::default();
    let root = bench.table();
    bench.map(root, LEVELS, IOVA, 1, DATA | READ_ONLY);
    bench.set_dte(A, had(3, root));
    assert!(bench.a.write(IOVA, 1).is_err());
    assert_eq!(marks(&bench, root)[2], 0);
}

/// 64 KiB in 16 entries: the one that was walked.
#[test]
fn of_a_page_of_several_entries_one_is_marked() {
    let bench = Bench::default();
    let root = bench.table();
    for slot in 0..16 {
        bench.map(root, LEVELS, 0x10_0000 + 0x1000 * slot, 1, DATA | 0x7e00 | READ_WRITE);
    }
    bench.set_dte(A, had(3, root));
    assert_eq!(bench.a.write(0x10_5000, 1), Ok(()));
    let first = bench.place(root, LEVELS, 0x10_0000, 1);
    let marked: Vec<u64> = (0..16).filter(|slot| bench.peek(first + 8 * slot) & DIRTY != 0).collect();
    assert_eq!(marked, [5]);
}

/// A leaf that was not marked as written is looked at again, and the page may be of another size by then: pages were merged,
/// and nobody has said so yet.
#[test]
fn a_page_that_became_larger_is_found_by_its_first_write() {
    let bench = Bench::default();
    let root = bench.table();
    bench.map(root, LEVELS, 0x1000, 1, DATA | READ_WRITE);
    bench.set_dte(A, had(3, root));
    assert!(bench.a.read(0x1000).is_ok());
    // The table's own entry is remembered, so the large page goes where that points: two entries of 8 KiB.
    for slot in 0..2 {
        bench.map(root, LEVELS, 0x1000 * slot, 1, DATA | 0xe00 | READ_WRITE);
    }
    assert_eq!(bench.a.write(0x1000, 7), Ok(()));
    assert_eq!(bench.peek(DATA + 0x1000), 7);
}

#[test]
fn a_unit_without_the_feature_refuses_the_entry() {
    const HA: u64 = 1 << 49;
    const HD: u64 = 1 << 52;
    let all = Config::default().efr;
    for (efr, value, allowed) in [
        (all, 2, false),
        (all & !HD, 3, false),
        (all & !HD, 1, true),
        (all & !HA, 1, false),
        (all & !HA, 3, false),
    ] {
        let bench = Bench::new(Config { efr, ..Config::default() });
        let root = bench.table();
        bench.map(root, LEVELS, IOVA, 1, DATA | READ_WRITE);
        bench.set_dte(A, had(value, root));
        assert_eq!(bench.a.read(IOVA).is_ok(), allowed, "EFR {efr:#x}, HAD {value}");
        // ILLEGAL_DEV_TABLE_ENTRY.
        assert_eq!(bench.events().iter().map(|event| event.0 >> 60).next(), (!allowed).then_some(1));
    }
}
