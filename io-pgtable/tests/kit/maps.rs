//! What is mapped is found, and nothing else.

use io_pgtable::Format;
use platform::Prot;

use super::Subject;
use crate::common::RW;

/// A page of each size, at the first place, the last and one between, found as it was mapped, and gone after its unmap.
pub(crate) fn every_size_round_trips<F: Format>(subject: &Subject<F>) {
    let (first, last) = subject.ends();
    for size in subject.sizes() {
        let phys = subject.place(size);
        for iova in subject.homes(size) {
            let subject = subject.fresh();
            subject.bed.must_map(iova, phys, size, 1);
            subject.assert_page(iova, phys, size);
            if iova > first {
                subject.assert_nothing(iova - 1);
            }
            if iova + (size - 1) < last {
                subject.assert_nothing(iova + size);
            }
            assert_eq!(subject.bed.unmap(iova, size), size, "{size:#x} at {iova:#x}");
            for offset in [0, size / 2, size - 1] {
                subject.assert_nothing(iova + offset);
            }
        }
    }
}

/// A device can do what a mapping says. It writes only where it may; it may read what it may write where the format cannot
/// say otherwise.
pub(crate) fn rights_are_what_was_asked<F: Format>(subject: &Subject<F>) {
    let kinds = [Prot::empty(), Prot::CACHE, Prot::NOEXEC, Prot::MMIO, Prot::CACHE | Prot::NOEXEC];
    for size in subject.sizes() {
        let subject = subject.fresh();
        let iova = subject.homes(size)[1];
        for rights in [RW, Prot::READ, Prot::WRITE] {
            for kind in kinds {
                let prot = rights | kind;
                assert_eq!(subject.bed.map(iova, subject.place(size), size, 1, prot), (size, Ok(())));
                let found = subject.walk(iova + size - 1).expect("a page");
                assert_eq!(found.write, prot.contains(Prot::WRITE), "{prot:?}");
                assert!(found.read || !prot.contains(Prot::READ), "{prot:?}");
                let looked_up = io_pgtable::IoPageTable::iova_to_phys(&subject.bed.table, iova.into());
                let looked_up = looked_up.expect("a page").prot;
                assert_eq!(looked_up.contains(Prot::WRITE), found.write, "{prot:?}");
                assert_eq!(looked_up.contains(Prot::READ), found.read, "{prot:?}");
                assert_eq!(subject.bed.unmap(iova, size), size);
            }
        }
    }
}

/// Runs of the smallest pages over the border of each level's tables.
pub(crate) fn runs_cross_levels<F: Format>(subject: &Subject<F>) {
    let (first, last) = subject.ends();
    let size = subject.smallest();
    for level in 2..=subject.bed.levels() {
        let Some(border) = first.checked_add(1 << F::level_shift(level)).filter(|border| *border < last)
        else {
            continue;
        };
        let (iova, phys) = (border - 3 * size, subject.place(8 * size));
        subject.bed.must_map(iova, phys, size, 7);
        for page in 0..7 {
            subject.assert_page(iova + page * size, phys + page * size, size);
        }
        subject.assert_nothing(iova - 1);
        subject.assert_nothing(iova + 7 * size);
        assert_eq!(subject.bed.unmap(iova, 7 * size), 7 * size);
        subject.assert_nothing(border);
    }
}

/// No bit of an address is left out: pages at both ends of the aperture, and nothing where one bit differs.
pub(crate) fn the_ends_of_the_aperture_are_apart<F: Format>(subject: &Subject<F>) {
    let (first, last) = subject.ends();
    let size = subject.smallest();
    let phys = subject.place(2 * size);
    let top = last - (size - 1);
    subject.bed.must_map(first, phys, size, 1);
    subject.bed.must_map(top, phys + size, size, 1);
    subject.assert_page(first, phys, size);
    subject.assert_page(top, phys + size, size);
    for bit in size.ilog2()..64 {
        subject.assert_nothing(first ^ 1 << bit);
        if top ^ 1 << bit != first {
            subject.assert_nothing(top ^ 1 << bit);
        }
    }
    assert_eq!(subject.bed.unmap(first, size), size);
    subject.assert_page(top, phys + size, size);
    assert_eq!(subject.bed.unmap(top, size), size);
}

/// At a hole, at a page that begins before the range; a page that ends behind it goes whole.
pub(crate) fn an_unmap_stops_where_it_must<F: Format>(subject: &Subject<F>) {
    let size = subject.smallest();
    let at = subject.homes(8 * size)[1] & !(8 * size - 1);
    subject.bed.must_map(at, subject.place(size), size, 2);
    subject.bed.must_map(at + 3 * size, subject.place(size), size, 1);
    assert_eq!(subject.bed.unmap(at, 8 * size), 2 * size, "a hole");
    assert_eq!(subject.bed.unmap(at, 8 * size), 0, "a hole at the start");
    assert_eq!(subject.bed.unmap(at + 3 * size, 1), size, "a part is the whole");
    for large in subject.sizes().into_iter().skip(1) {
        let subject = subject.fresh();
        let at = subject.homes(large)[1];
        subject.bed.must_map(at, subject.place(large), large, 1);
        assert_eq!(subject.bed.unmap(at + large / 2, large / 2), 0, "inside a page of {large:#x}");
        subject.assert_page(at, subject.place(large), large);
        assert_eq!(subject.bed.unmap(at, size), large, "the front of a page of {large:#x}");
        subject.assert_nothing(at + large - 1);
    }
}
