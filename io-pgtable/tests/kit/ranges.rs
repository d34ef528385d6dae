//! Ranges and lists of any length.

use io_pgtable::{Format, IoPageTable};
use platform::{DmaAddr, Extent, MapError, PhysAddr};

use super::Subject;
use crate::common::RW;

/// From a page before the second largest size's border to a page behind the next: small pages at the ends, large ones between.
pub(crate) fn ranges_take_the_largest_pages<F: Format>(subject: &Subject<F>) {
    let sizes = subject.sizes();
    let small = sizes[0];
    // What small pages make of a large one takes a few tables.
    let larges = sizes.iter().copied().skip(1).filter(|large| large >> F::level_shift(2) <= 64);
    for large in larges {
        let subject = subject.fresh();
        let at = subject.homes(4 * large)[1] & !(4 * large - 1);
        let (first, phys) = (at + large - small, subject.place(4 * large) + large - small);
        let len = large + 2 * small;
        // SAFETY: nothing walks the table.
        let mapped = unsafe { subject.bed.table.map_range(first.into(), phys.into(), len, RW) };
        assert_eq!(mapped, (len, Ok(())), "{large:#x}");
        subject.assert_page(first, phys, small);
        subject.assert_page(first + small, phys + small, large);
        subject.assert_page(first + small + large, phys + small + large, small);
        assert_eq!(subject.bed.unmap(first, len), len);

        // Addresses that are not alike to the large page's size are mapped by smaller ones.
        let phys = phys + small;
        // SAFETY: as above.
        let mapped =
            unsafe { subject.bed.table.map_range((at + large).into(), (phys + small).into(), large, RW) };
        assert_eq!(mapped, (large, Ok(())));
        for offset in [0, large / 2, large - 1] {
            let found = subject.walk(at + large + offset).expect("mapped");
            assert_eq!(found.phys, phys + small + offset);
            assert!(found.size < large);
        }
        assert_eq!(subject.bed.unmap(at + large, large), large);
    }
    let at = subject.ends().0;
    // SAFETY: as above.
    let map =
        |iova: u64, phys: u64, len| unsafe { subject.bed.table.map_range(iova.into(), phys.into(), len, RW) };
    let no_page_size = |iova| Err(MapError::NoPageSize(DmaAddr::new(iova)));
    assert_eq!(map(at, small / 2, small), (0, no_page_size(at)));
    assert_eq!(map(at, 0, small / 2), (0, no_page_size(at)));
    assert_eq!(map(at, 0, small + small / 2), (small, no_page_size(at + small)), "what was done is told");
    assert_eq!(map(at, 0, 0), (0, Err(MapError::OutOfRange(DmaAddr::new(at)))));
    assert_eq!(subject.bed.unmap(at, small), small);
}

/// Extents anywhere in memory, one behind the other; neighbours share a page.
pub(crate) fn a_list_is_one_range<F: Format>(subject: &Subject<F>) {
    let (small, (page, large)) = (subject.smallest(), subject.larger());
    let at = subject.homes(4 * large)[1] & !(4 * large - 1);
    let base = subject.place(4 * large);
    let extent = |phys, len: u64| Extent { phys: PhysAddr::new(phys), len: len as usize };
    let (half, rest) = (large / 2, large - large / 2);
    let list = [
        // Two neighbours that are a large page together.
        extent(base, half),
        extent(base + half, rest),
        extent(0, 0),
        extent(base + 3 * large, small),
        extent(base + 2 * large, small),
    ];
    // SAFETY: nothing walks the table.
    let map = |iova: u64, list: &[Extent]| unsafe { subject.bed.table.map_sg(iova.into(), list, RW) };
    assert_eq!(map(at, &list), (large + 2 * small, Ok(())));
    subject.assert_page(at, base, page);
    subject.assert_page(at + large - page, base + large - page, page);
    subject.assert_page(at + large, base + 3 * large, small);
    subject.assert_page(at + large + small, base + 2 * large, small);
    subject.assert_nothing(at + large + 2 * small);

    let clash = MapError::InUse(DmaAddr::new(at));
    assert_eq!(map(at - small, &[extent(0, small), extent(2 * small, small)]), (small, Err(clash)));
    assert_eq!(subject.bed.unmap(at - small, small), small);
    let end = subject.max_phys() - (small - 1);
    let (done, result) = map(at + 2 * large, &[extent(base, small), extent(end, 2 * small)]);
    assert_eq!((done, result), (small, Err(MapError::OutOfRange(DmaAddr::new(at + 2 * large + small)))));
    assert_eq!(subject.bed.unmap(at + 2 * large, done), done);
    assert_eq!(map(at + 2 * large, &[]), (0, Ok(())));
}
