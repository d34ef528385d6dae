//! Each refusal, by its own error, and nothing done.

use io_pgtable::{Format, IoPageTable};
use platform::{DmaAddr, MapError, Prot};

use super::Subject;
use crate::common::RW;

pub(crate) fn what_is_mapped_is_never_overwritten<F: Format>(subject: &Subject<F>) {
    let in_use = |iova| (0, Err(MapError::InUse(DmaAddr::new(iova))));
    let smallest = subject.smallest();
    for size in subject.sizes() {
        let subject = subject.fresh();
        let iova = subject.homes(size)[1];
        let phys = subject.place(size);
        subject.bed.must_map(iova, phys, size, 1);
        let before = subject.bed.arena.non_zero();
        assert_eq!(subject.bed.map(iova, 0, size, 1, RW), in_use(iova), "the same page of {size:#x}");
        assert_eq!(subject.bed.map(iova, phys, size, 1, Prot::READ), in_use(iova), "not with fewer rights");
        let end = iova + size - smallest;
        assert_eq!(subject.bed.map(end, 0, smallest, 1, RW), in_use(end), "its end");
        for larger in subject.sizes().into_iter().filter(|larger| *larger > size) {
            let around = iova & !(larger - 1);
            let (done, result) = subject.bed.map(around, 0, larger, 1, RW);
            assert!(matches!(result, Err(MapError::InUse(_))), "{result:?}");
            assert_eq!(subject.bed.unmap(around, done), done, "what was done is told");
        }
        let left = subject.bed.arena.non_zero();
        assert!(before.iter().all(|word| left.contains(word)), "a word was changed");
        subject.assert_page(iova, phys, size);
        assert_eq!(subject.bed.unmap(iova, size), size);
    }
}

pub(crate) fn wrong_sizes_and_alignments_are_refused<F: Format>(subject: &Subject<F>) {
    let no_page_size = |iova| (0, Err(MapError::NoPageSize(DmaAddr::new(iova))));
    let sizes = subject.sizes();
    let at = subject.homes(sizes[0])[0];
    for bit in 0..64 {
        if !sizes.contains(&(1 << bit)) && !F::PAGE_SIZES.contains(1 << bit) {
            assert_eq!(subject.bed.map(at, 0, 1 << bit, 1, RW), no_page_size(at), "2^{bit}");
        }
    }
    assert_eq!(subject.bed.map(at, 0, 3 * sizes[0], 1, RW), no_page_size(at));
    assert_eq!(subject.bed.map(at, 0, 0, 1, RW), no_page_size(at));
    for size in sizes {
        let at = subject.homes(size)[1];
        let off = size / 2;
        assert_eq!(subject.bed.map(at + off, 0, size, 1, RW), no_page_size(at + off), "{size:#x}");
        assert_eq!(subject.bed.map(at, off, size, 1, RW), no_page_size(at), "{size:#x}");
    }
    assert!(subject.bed.arena.non_zero().is_empty());
}

pub(crate) fn ranges_beyond_the_table_are_refused<F: Format>(subject: &Subject<F>) {
    let out_of_range = |iova| (0, Err(MapError::OutOfRange(DmaAddr::new(iova))));
    let (first, last) = subject.ends();
    let size = subject.smallest();
    let top = last - (size - 1);
    assert_eq!(subject.bed.map(top, 0, size, 2, RW), out_of_range(top));
    assert_eq!(subject.bed.map(first, 0, size, usize::MAX, RW), out_of_range(first));
    assert_eq!(subject.bed.map(first, 0, size, 0, RW), out_of_range(first), "no pages");
    if last != u64::MAX {
        assert_eq!(subject.bed.map(last + 1, 0, size, 1, RW), out_of_range(last + 1));
        let mut gather = subject.bed.gather();
        assert_eq!(subject.bed.unmap_into(last + 1, size, &mut gather), 0);
        assert_eq!(subject.bed.unmap_into(top, 2 * size, &mut gather), 0);
        assert_eq!(gather.range(), None);
        subject.bed.flush(gather);
    }
    if first != 0 {
        assert_eq!(subject.bed.map(first - size, 0, size, 1, RW), out_of_range(first - size));
        assert_eq!(subject.bed.map(0, 0, size, 1, RW), out_of_range(0));
    }
    let memory = subject.max_phys();
    let end = memory - (size - 1);
    assert_eq!(subject.bed.map(first, end, size, 2, RW), out_of_range(first), "beyond memory");
    if memory != u64::MAX {
        assert_eq!(subject.bed.map(first, memory + 1, size, 1, RW), out_of_range(first));
    }
    assert!(subject.bed.arena.non_zero().is_empty());
    subject.bed.must_map(first, end, size, 1);
    subject.assert_page(first, end, size);
}

pub(crate) fn a_mapping_without_rights_is_refused<F: Format>(subject: &Subject<F>) {
    let size = subject.smallest();
    let at = subject.ends().0;
    for prot in [Prot::empty(), Prot::CACHE, Prot::NOEXEC | Prot::MMIO | Prot::PRIV] {
        assert_eq!(subject.bed.map(at, 0, size, 1, prot), (0, Err(MapError::NoAccess)), "{prot:?}");
    }
    assert!(subject.bed.arena.non_zero().is_empty());
}

/// With memory for one table less than it takes.
pub(crate) fn without_memory_for_tables_nothing_is_lost<F: Format>(subject: &Subject<F>) {
    let size = subject.smallest();
    let at = subject.homes(size)[1];
    subject.bed.must_map(at, 0, size, 1);
    let needed = subject.bed.arena.live();
    assert!(needed > 1, "a table below the top");
    for frames in needed / 2..needed {
        // The top takes what it takes; tables may be smaller than a frame.
        let Some(short) = Subject::<F>::short_of_memory(subject, frames) else { continue };
        let (done, result) = short.bed.map(at, 0, size, 1, RW);
        if result.is_ok() {
            continue;
        }
        assert_eq!((done, result), (0, Err(MapError::OutOfMemory)));
        short.assert_nothing(at);
        let arena = short.bed.arena.clone();
        drop(short);
        assert_eq!(arena.live(), 0);
    }
    assert_eq!(subject.bed.table.page_sizes().smallest(), size);
}

impl<F: Format> Subject<F> {
    /// The same on a machine of so few frames, if the top fits.
    fn short_of_memory(&self, frames: usize) -> Option<Self> {
        let top = (1usize << (self.cfg.ias.min(64) - F::level_shift(self.bed.levels()))) * F::ENTRY_BYTES;
        (frames * 4096 >= top.max(4096)).then(|| Self::with_frames(self.cfg, self.walk, frames))
    }
}
