//! Steps in no order against a plain map of pages: the model, the walker and the engine's own lookups agree after each.

use std::collections::BTreeMap;

use io_pgtable::{Format, IoPageTable, Split};
use platform::MapError;

use super::Subject;
use crate::common::RW;

/// Numbers in no order, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

struct Model<'a, F: Format> {
    subject: &'a Subject<F>,
    /// First address to memory and size.
    pages: BTreeMap<u64, (u64, u64)>,
    numbers: Numbers,
    /// Sizes of a few levels, and an address that all have a place at.
    sizes: Vec<u64>,
    base: u64,
}

impl<F: Format> Model<'_, F> {
    fn meets(&self, first: u64, last: u64) -> bool {
        let before = self.pages.range(..=last).next_back();
        before.is_some_and(|(at, (_, size))| at + (size - 1) >= first)
    }

    /// Reads what is in a range, and asserts that it is memory from `phys` on, in one piece.
    fn take_over(&mut self, iova: u64, phys: u64, len: u64) {
        let mut next = iova;
        // SAFETY: one thread.
        unsafe {
            self.subject.bed.table.for_each_page(iova.into(), len, &mut |at, found| {
                assert_eq!((at.get(), found.phys.get()), (next, phys + (next - iova)));
                next += found.page_size;
                self.pages.insert(at.get(), (found.phys.get(), found.page_size));
            });
        }
        assert_eq!(next, iova + len);
    }

    fn place(&mut self) -> (u64, u64) {
        let size = self.sizes[self.numbers.below(self.sizes.len() as u64) as usize];
        let largest = *self.sizes.last().expect("sizes");
        // Near each other, at the start of a large page or at its end.
        let offset = size * self.numbers.below(6.min(largest / size));
        let end = self.numbers.below(2) == 0;
        let at = self.base + if end { largest - size - (offset & (largest - size)) } else { offset };
        (at & !(size - 1), size)
    }

    fn map(&mut self) {
        let (at, size) = self.place();
        let count = 1 + self.numbers.below(4);
        let phys = (self.subject.place(size) & !(64 * size - 1)) + size * self.numbers.below(32);
        let (done, result) = self.subject.bed.map(at, phys, size, count as usize, RW);
        assert!(done == 0 || !self.meets(at, at + (done - 1)), "over what is there");
        match result {
            Ok(()) => assert_eq!(done, size * count),
            Err(MapError::InUse(_)) => {
                assert!(self.meets(at + done, at + (size * count - 1)), "nothing is there")
            }
            Err(error) => assert_eq!(error, MapError::OutOfMemory),
        }
        if done > 0 {
            self.take_over(at, phys, done);
        }
    }

    fn unmap(&mut self) {
        let known =
            self.pages.keys().nth(self.numbers.below(self.pages.len().max(1) as u64) as usize).copied();
        let (mut at, size) = self.place();
        if self.numbers.below(4) != 0 {
            at = known.unwrap_or(at);
        }
        let len = size * (1 + self.numbers.below(5)) - self.numbers.below(2);
        let mut expected = 0;
        while expected < len
            && let Some((_, size)) = self.pages.remove(&(at + expected))
        {
            expected += size;
        }
        assert_eq!(self.subject.bed.unmap(at, len), expected, "{len:#x} at {at:#x}");
    }

    fn split(&mut self) {
        let chosen = self.numbers.below(self.pages.len().max(1) as u64) as usize;
        let Some((at, (phys, size))) = self.pages.iter().nth(chosen).map(|(at, page)| (*at, *page)) else {
            return;
        };
        let Some(small) = self.subject.sizes().into_iter().rfind(|small| *small < size) else { return };
        let bed = &self.subject.bed;
        let mut gather = bed.gather();
        // SAFETY: one thread.
        match unsafe { bed.table.split((at + size - 1).into(), small, &mut gather) } {
            Ok(Split::Broken(mut broken)) => {
                // SAFETY: there is no IOMMU that could remember anything.
                let flushed = unsafe { gather.flushed(&*bed.arena) };
                // SAFETY: one thread.
                assert_eq!(unsafe { bed.table.mend(&mut broken, &flushed) }, Ok(()));
            }
            Ok(Split::Done) => bed.flush(gather),
            Err(error) => panic!("{error}"),
        }
        self.take_over(at, phys, size);
        assert_eq!(self.pages[&at], (phys, small));
    }

    fn check(&self) {
        for (at, (phys, size)) in self.pages.iter().step_by(self.pages.len().div_ceil(24).max(1)) {
            self.subject.assert_page(*at, *phys, *size);
            for beside in [at - 1, at + size] {
                if !self.meets(beside, beside) {
                    self.subject.assert_nothing(beside);
                }
            }
        }
    }
}

/// Maps, unmaps and splits, near each other.
pub(crate) fn any_steps_agree_with_a_model<F: Format>(subject: &Subject<F>) {
    let sizes: Vec<u64> =
        subject.sizes_by_twos().into_iter().filter(|size| size >> F::level_shift(2) <= 64).take(12).collect();
    let largest = *sizes.last().expect("sizes");
    let base = subject.homes(4 * largest)[1] & !(4 * largest - 1);
    for seed in 1..=6u64 {
        let subject = subject.fresh();
        let numbers = Numbers(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let mut model =
            Model { subject: &subject, pages: BTreeMap::new(), numbers, sizes: sizes.clone(), base };
        for _ in 0..60 {
            match model.numbers.below(8) {
                0..4 => model.map(),
                4..7 => model.unmap(),
                _ => model.split(),
            }
            model.check();
        }
        while let Some((at, (_, size))) = model.pages.pop_first() {
            assert_eq!(subject.bed.unmap(at, size), size);
        }
        subject.assert_nothing(base);
        let arena = subject.bed.arena.clone();
        drop(subject);
        assert_eq!(arena.live(), 0);
    }
}
