//! What is in a table, entry by entry and page by page, and what hardware has marked.

use io_pgtable::{Decoded, Format, IoPageTable, NoDirtyMarks, WalkEntry};
use platform::{DmaAddr, PhysAddr, Prot};

use super::Subject;
use crate::common::RW;

/// An entry that is read and written again is the same: nothing is lost of rights and kinds.
pub(crate) fn what_is_read_is_what_was_written<F: Format>(subject: &Subject<F>) {
    let (format, _) = F::new(&subject.cfg).expect("a configuration that has a table");
    for bits in 0..64 {
        let prot = Prot::from_bits_truncate(bits);
        if !format.accepts(prot) {
            continue;
        }
        for size in subject.sizes() {
            let (phys, shift) = (PhysAddr::new(subject.place(size)), size.trailing_zeros());
            let level = F::leaf_level(shift);
            let entry = format.leaf(phys, shift, level, prot);
            let Decoded::Leaf { phys: found, shift: found_shift, prot: found_prot } =
                format.decode(entry, level)
            else {
                panic!("{entry:#x} is no page");
            };
            assert_eq!((found, found_shift), (phys, shift), "{entry:#x}");
            assert_eq!(format.leaf(phys, shift, level, found_prot), entry, "{prot:?} became {found_prot:?}");
            let (mask, value) = format.page_pattern();
            assert!(
                entry & mask != value || shift == F::GRANULE_SHIFT || level > 1,
                "{entry:#x}: no small page"
            );
        }
    }
    for word in [0, subject.bed.root(), u64::MAX << 10 & subject.max_phys()] {
        for level in 1..=subject.bed.levels() {
            assert_eq!(format.decode(word, level), Decoded::Empty, "{word:#x} links freed tables");
        }
    }
}

/// Each page that a range meets, in order, whatever is between them.
pub(crate) fn every_page_is_shown_once<F: Format>(subject: &Subject<F>) {
    let (small, (page, large)) = (subject.smallest(), subject.larger());
    let (first, last) = subject.ends();
    let at = subject.homes(8 * large)[1] & !(8 * large - 1);
    let mut expected = vec![(first, small), (at + small, small), (at + large, page), (at + 3 * large, small)];
    expected.push((last - (small - 1), small));
    for (iova, size) in &expected {
        subject.bed.must_map(*iova, subject.place(*size), *size, 1);
    }
    let shown = |iova: u64, len| {
        let mut pages = Vec::new();
        // SAFETY: one thread.
        unsafe {
            subject.bed.table.for_each_page(iova.into(), len, &mut |at, found| {
                assert_eq!(found.phys.get(), subject.place(found.page_size));
                pages.push((at.get(), found.page_size));
            });
        }
        pages
    };
    assert_eq!(shown(first, (last - first).saturating_add(1)), expected[..5], "the whole aperture");
    assert_eq!(shown(at, 4 * large), expected[1..4]);
    assert_eq!(shown(at + large + page / 2, 1), expected[2..3], "a part of a page is the page");
    assert_eq!(shown(at + small, 0), []);
    assert_eq!(shown(at + 4 * large, large), []);

    let mut way: Vec<WalkEntry> = Vec::new();
    subject.bed.table.walk(DmaAddr::new(at + small), &mut |entry| way.push(entry));
    let levels: Vec<u32> = way.iter().map(|entry| entry.level).collect();
    assert_eq!(levels, (1..=subject.bed.levels()).rev().collect::<Vec<_>>(), "one entry a level");
    assert!(way.iter().all(|entry| subject.entry_at(entry.at.get()) == entry.entry));
    way.clear();
    subject.bed.table.walk(DmaAddr::new(at + large), &mut |entry| way.push(entry));
    assert_eq!(way.last().map(|entry| entry.level), Some(F::leaf_level(page.trailing_zeros())));
}

/// A page is written when any of its entries says so, until it is cleared.
pub(crate) fn written_pages_are_found_and_forgotten<F: Format>(subject: &Subject<F>) {
    let dirty = |iova: u64, len, clear, gather: &mut _| {
        let mut pages = Vec::new();
        let mut visit = |at: DmaAddr, size| pages.push((at.get(), size));
        // SAFETY: one thread.
        let result =
            unsafe { subject.bed.table.read_and_clear_dirty(iova.into(), len, clear, gather, &mut visit) };
        result.map(|()| pages)
    };
    let mut gather = subject.bed.gather();
    let (format, _) = F::new(&subject.cfg).expect("a configuration that has a table");
    if !format.marks_dirty() {
        assert_eq!(dirty(0, 0x1000, true, &mut gather), Err(NoDirtyMarks));
        return subject.bed.flush(gather);
    }
    for size in subject.sizes_by_twos() {
        let subject = subject.fresh();
        let at = subject.homes(2 * size)[1] & !(2 * size - 1);
        assert_eq!(subject.bed.map(at, subject.place(2 * size), size, 2, RW), (2 * size, Ok(())));
        // Formats that write pages as written say so at first.
        let _at_first = dirty_of(&subject, at, size, true, &mut gather);
        assert_eq!(dirty_of(&subject, at, size, false, &mut gather), []);
        let level = F::leaf_level(size.trailing_zeros());
        for offset in [0, size - (1 << F::level_shift(level))] {
            let mut last = None;
            subject.bed.table.walk(DmaAddr::new(at + offset), &mut |entry| last = Some(entry));
            let last = last.expect("an entry");
            subject.set_entry(last.at.get(), format.set_dirty(last.entry, true));
            let mut gather = subject.bed.gather();
            assert_eq!(dirty_of(&subject, at, size, false, &mut gather), [(at, size)], "{size:#x}");
            assert_eq!(gather.range(), None, "only looked at");
            assert_eq!(dirty_of(&subject, at, size, true, &mut gather), [(at, size)], "still there");
            let range = gather.range().map(|(first, last)| (first.get(), last.get()));
            assert_eq!(range, Some((at, at + (size - 1))));
            assert_eq!(dirty_of(&subject, at, size, false, &mut gather), []);
            subject.bed.flush(gather);
            subject.assert_page(at, subject.place(2 * size), size);
        }
    }
    subject.bed.flush(gather);
}

fn dirty_of<F: Format>(
    subject: &Subject<F>,
    iova: u64,
    size: u64,
    clear: bool,
    gather: &mut platform::IotlbGather<'_>,
) -> Vec<(u64, u64)> {
    let mut pages = Vec::new();
    let mut visit = |at: DmaAddr, size| pages.push((at.get(), size));
    // SAFETY: one thread.
    unsafe { subject.bed.table.read_and_clear_dirty(iova.into(), 2 * size, clear, gather, &mut visit) }
        .expect("a format with dirty marks");
    pages
}

impl<F: Format> Subject<F> {
    /// The entry at a physical address.
    fn entry_at(&self, at: u64) -> u64 {
        if F::ENTRY_BYTES == 4 { u64::from(self.bed.arena.read_half(at)) } else { self.bed.arena.read(at) }
    }

    /// Writes an entry, as hardware does.
    pub(super) fn set_entry(&self, at: u64, entry: u64) {
        assert_eq!(F::ENTRY_BYTES, 8, "no format of small entries has dirty marks");
        self.bed.arena.write(at, entry);
    }
}
