//! Tables come and go.

use io_pgtable::{Format, IoPageTable};

use super::Subject;

/// A table that one unmap covers goes into the gather, reads as not present there, and is free after the flush. One that two
/// unmaps empty stays.
pub(crate) fn a_covered_table_is_freed_after_the_flush<F: Format>(subject: &Subject<F>) {
    let bed = &subject.bed;
    if bed.levels() == 1 {
        return;
    }
    let size = subject.smallest();
    let span = 1u64 << F::level_shift(2);
    let count = (span / size) as usize;
    let at = subject.homes(span)[1];
    // A first page makes the tables above; they stay.
    bed.must_map(at, 0, size, 1);
    let (pages, bytes) = (bed.table.table_pages(), bed.arena.live_bytes());
    assert_eq!(bed.unmap(at, size), size);
    assert_eq!(bed.table.table_pages(), pages, "not covered");

    let phys = subject.place(span);
    bed.must_map(at, phys, size, count);
    assert_eq!(bed.table.table_pages(), pages, "used again");
    subject.assert_page(at + span - size, phys + span - size, size);
    let (first_half, second_half) = (span / 2, span - span / 2);
    assert_eq!(bed.unmap(at, first_half), first_half);
    assert_eq!(bed.unmap(at + first_half, second_half), second_half);
    assert_eq!(bed.table.table_pages(), pages, "neither half covers it");

    bed.must_map(at, phys, size, count);
    let mut gather = bed.gather();
    assert_eq!(bed.unmap_into(at, span, &mut gather), span);
    assert!(gather.has_tables());
    assert_eq!(gather.range().map(|(first, last)| (first.get(), last.get())), Some((at, at + (span - 1))));
    assert_eq!(bed.table.table_pages(), pages - 1);
    assert_eq!(bed.arena.live_bytes(), bytes, "a unit may still read it");
    subject.assert_nothing(at);
    bed.flush(gather);
    assert!(bed.arena.live_bytes() < bytes);
    bed.must_map(at, phys, size, 1);
    assert_eq!((bed.table.table_pages(), bed.arena.live_bytes()), (pages, bytes));
}

/// Whatever was mapped.
pub(crate) fn a_dropped_table_gives_everything_back<F: Format>(subject: &Subject<F>) {
    let fresh = subject.fresh();
    let arena = fresh.bed.arena.clone();
    assert_eq!(fresh.bed.table.table_pages(), 1);
    let (first, last) = fresh.ends();
    for (n, size) in fresh.sizes().into_iter().enumerate() {
        // Each size in a place of its own, if the table is large enough.
        let at = (first + (last - first) / 64 * n as u64) & !(size - 1);
        let (done, _in_use) = fresh.bed.map(at, fresh.place(size), size, 1, crate::common::RW);
        assert!(done <= size);
    }
    assert!(fresh.bed.table.table_pages() > 1 || fresh.bed.levels() == 1);
    drop(fresh);
    assert_eq!(arena.live(), 0);
}
