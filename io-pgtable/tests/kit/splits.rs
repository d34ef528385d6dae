//! Splitting pages.

use io_pgtable::{Format, IoPageTable, Split, SplitError};
use platform::DmaAddr;

use super::Subject;

/// Each size into the next smaller one and into the smallest: the same memory, in smaller pages.
pub(crate) fn a_page_splits<F: Format>(subject: &Subject<F>) {
    let sizes = subject.sizes();
    for (n, large) in sizes.iter().copied().enumerate().skip(1) {
        let next = sizes[n - 1];
        // As small as a few tables hold.
        let tables = |size: u64| large >> F::level_shift(F::leaf_level(size.trailing_zeros()) + 1);
        let smallest = sizes.iter().copied().find(|size| tables(*size) <= 64).unwrap_or(next);
        for small in [next, smallest] {
            let subject = subject.fresh();
            let bed = &subject.bed;
            let (at, phys) = (subject.homes(large)[1], subject.place(large));
            bed.must_map(at, phys, large, 1);
            let inside = DmaAddr::new(at + large / 2 + 1);
            let mut gather = bed.gather();
            // SAFETY: one thread.
            let split = unsafe { bed.table.split(inside, small, &mut gather) }.expect("a page that splits");
            let range = gather.range().map(|(first, last)| (first.get(), last.get()));
            assert_eq!(range, Some((at, at + (large - 1))), "the large page must be forgotten");
            match split {
                Split::Done => bed.flush(gather),
                Split::Broken(mut broken) => {
                    subject.assert_nothing(at);
                    subject.assert_nothing(at + large - 1);
                    // SAFETY: there is no IOMMU that could remember anything.
                    let flushed = unsafe { gather.flushed(&*bed.arena) };
                    // SAFETY: one thread.
                    assert_eq!(unsafe { bed.table.mend(&mut broken, &flushed) }, Ok(()));
                }
            }
            for offset in [0, (large / 2) & !(small - 1), large - small] {
                subject.assert_page(at + offset, phys + offset, small);
            }
            assert_eq!(bed.unmap(at, large), large);
            subject.assert_nothing(at);
        }
    }
}

/// What hardware wrote to is written, in whatever pages.
pub(crate) fn a_written_page_splits_into_written_ones<F: Format>(subject: &Subject<F>) {
    let (format, _) = F::new(&subject.cfg).expect("a configuration that has a table");
    let sizes = subject.sizes();
    if !format.marks_dirty() {
        return;
    }
    for pair in sizes.windows(2).take(12) {
        let (small, large) = (pair[0], pair[1]);
        let subject = subject.fresh();
        let bed = &subject.bed;
        let at = subject.homes(large)[1];
        bed.must_map(at, subject.place(large), large, 1);
        let mut gather = bed.gather();
        let mut ignore = |_, _| ();
        // SAFETY: one thread.
        let read =
            unsafe { bed.table.read_and_clear_dirty(at.into(), large, true, &mut gather, &mut ignore) };
        assert_eq!(read, Ok(()));
        let mut last = None;
        bed.table.walk(DmaAddr::new(at + (large - 1)), &mut |entry| last = Some(entry));
        let last = last.expect("an entry");
        subject.set_entry(last.at.get(), format.set_dirty(last.entry, true));
        // SAFETY: one thread.
        let split = unsafe { bed.table.split(at.into(), small, &mut gather) }.expect("a page that splits");
        // SAFETY: there is no IOMMU that could remember anything.
        let flushed = unsafe { gather.flushed(&*bed.arena) };
        if let Split::Broken(mut broken) = split {
            // SAFETY: one thread.
            assert_eq!(unsafe { bed.table.mend(&mut broken, &flushed) }, Ok(()));
        }
        let mut written = 0;
        let mut gather = bed.gather();
        let mut visit = |_, size| written += size;
        // SAFETY: one thread.
        let read = unsafe { bed.table.read_and_clear_dirty(at.into(), large, true, &mut gather, &mut visit) };
        assert_eq!((read, written), (Ok(()), large), "{large:#x} into {small:#x}");
        bed.flush(gather);
        subject.assert_page(at, subject.place(large), small);
    }
}

/// Refused, and nothing changed.
pub(crate) fn what_cannot_be_split_stays<F: Format>(subject: &Subject<F>) {
    let sizes = subject.sizes();
    let (small, (large, _)) = (sizes[0], subject.larger());
    let at = subject.homes(large)[1];
    let mut gather = subject.bed.gather();
    // SAFETY: one thread.
    let mut split =
        |iova: u64, size| unsafe { subject.bed.table.split(iova.into(), size, &mut gather) }.map(drop);
    assert_eq!(split(at, small), Err(SplitError::NotMapped(DmaAddr::new(at))));
    subject.bed.must_map(at, subject.place(large), large, 1);
    for size in [large, 0, 3 * small, sizes.last().copied().unwrap_or(large), small / 2] {
        assert_eq!(split(at, size), Err(SplitError::NoPageSize(DmaAddr::new(at))), "{size:#x}");
    }
    assert_eq!(gather.range(), None);
    subject.assert_page(at, subject.place(large), large);
    subject.bed.flush(gather);
}
