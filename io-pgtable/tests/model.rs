//! Any sequence of maps and unmaps against a plain map of pages. After each step three readings agree: the model, a walker
//! that knows nothing of the engine, and the engine's own lookup.

mod common;
mod walkers;

use std::collections::BTreeMap;

use common::{Bed, RW};
use io_pgtable::IoPageTable;
use platform::{DmaAddr, MapError, Prot};
use proptest::prelude::*;
use walkers::amdv1::Page;

/// A step, in pages of 2^`shift` bytes counted from the start or the end of the address space.
#[derive(Clone, Debug)]
enum Step {
    Map {
        shift: u32,
        from_end: bool,
        page: u64,
        count: usize,
        phys: u64,
        prot: Prot,
    },
    Unmap {
        shift: u32,
        from_end: bool,
        page: u64,
        count: u64,
    },
    /// An unmap from the start of some mapped page on.
    UnmapAt {
        page: prop::sample::Index,
        len: u64,
    },
}

/// Sizes near each other and near the borders of levels, so that steps meet.
const SHIFTS: [u32; 12] = [12, 12, 13, 16, 20, 21, 21, 22, 29, 30, 38, 40];

fn steps() -> impl Strategy<Value = Step> {
    let shift = || prop::sample::select(&SHIFTS[..]);
    let prot = prop::sample::select(vec![RW, Prot::READ, Prot::WRITE, RW | Prot::CACHE]);
    let count = || prop_oneof![4 => 1..5usize, 1 => 500..520usize];
    let map = (shift(), any::<bool>(), 0..6u64, count(), any::<u64>(), prot).prop_map(
        |(shift, from_end, page, count, phys, prot)| Step::Map { shift, from_end, page, count, phys, prot },
    );
    let unmap = (shift(), any::<bool>(), 0..6u64, count()).prop_map(|(shift, from_end, page, count)| {
        Step::Unmap { shift, from_end, page, count: count as u64 }
    });
    let len = prop_oneof![shift().prop_map(|shift| 1 << shift), 1..0x100_0000u64];
    let unmap_at = (any::<prop::sample::Index>(), len).prop_map(|(page, len)| Step::UnmapAt { page, len });
    prop_oneof![3 => map, 1 => unmap, 2 => unmap_at]
}

/// The first address of the `page`th page from the start, or such that so many follow it until the end.
fn place(bed: &Bed, shift: u32, from_end: bool, page: u64) -> u64 {
    let (offset, last) = (page << shift, bed.table.aperture().1.get());
    if from_end { last.saturating_sub(offset) >> shift << shift } else { offset }
}

struct Model {
    bed: Bed,
    pages: BTreeMap<u64, Page>,
}

impl Model {
    fn at(&self, iova: u64) -> Option<(u64, Page)> {
        let (first, page) = self.pages.range(..=iova).next_back()?;
        (iova - first < page.size).then_some((*first, *page))
    }

    /// Whether something is mapped in a range, by its last address.
    fn meets(&self, first: u64, last: u64) -> bool {
        self.at(first).is_some() || self.pages.range(first..=last).next().is_some()
    }

    fn map(&mut self, iova: u64, shift: u32, count: usize, phys: u64, prot: Prot) {
        let size = 1u64 << shift;
        let phys = (phys & 0x7_ffff_ffff_ffff) >> shift << shift;
        let (done, result) = self.bed.map(iova, phys, size, count, prot);
        let len = size.checked_mul(count as u64);
        let last = len.and_then(|len| iova.checked_add(len - 1));
        let top = self.bed.table.aperture().1.get();
        let in_reach = last.is_some_and(|last| last <= top && phys + (last - iova) < 1 << 52);
        if !in_reach || !self.bed.table.page_sizes().contains(size) {
            assert_eq!((done, result), (0, Err(MapError::OutOfRange(DmaAddr::new(iova)))));
            return;
        }
        match result {
            Ok(()) => assert_eq!(Some(done), len),
            Err(MapError::InUse(at)) => {
                assert_eq!(at.get(), iova + done);
                // What it named is in use: a page of the size asked for, or of a smaller one in an emptied table.
                assert!(self.meets(at.get(), at.get() | (size - 1)), "{at} is free");
            }
            Err(error) => panic!("{error}"),
        }
        // Smaller pages where an emptied table was; which, the table says. That they are right is checked here.
        let mut tiled = 0;
        for (at, page) in self.bed.tree().pages.range(iova..) {
            if tiled == done {
                break;
            }
            let (read, write) = (prot.contains(Prot::READ), prot.contains(Prot::WRITE));
            let rights = (read, write, prot.contains(Prot::CACHE));
            assert_eq!((*at, page.phys), (iova + tiled, phys + tiled));
            assert_eq!((page.read, page.write, page.coherent), rights);
            assert!(page.size <= size);
            assert!(!self.meets(*at, at + (page.size - 1)), "{at:#x} was mapped already");
            self.pages.insert(*at, *page);
            tiled += page.size;
        }
        assert_eq!(tiled, done);
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        let mut expected = 0;
        let in_reach = len.checked_sub(1).and_then(|span| iova.checked_add(span));
        if in_reach.is_some_and(|last| last <= self.bed.table.aperture().1.get()) {
            while expected < len {
                let Some(page) = self.pages.remove(&iova.wrapping_add(expected)) else { break };
                expected += page.size;
            }
        }
        let mut gather = self.bed.gather();
        assert_eq!(self.bed.unmap_into(iova, len, &mut gather), expected);
        let range = gather.range().map(|(first, last)| (first.get(), last.get()));
        assert_eq!(range, (expected > 0).then(|| (iova, iova + (expected - 1))));
        // Before the flush: what the gather holds is not reached, but still there.
        let tables = self.bed.tree().tables.len();
        assert_eq!(gather.has_tables(), self.bed.arena.live() > tables);
        self.bed.flush(gather);
    }

    fn check(&self) {
        let tree = self.bed.tree();
        assert_eq!(tree.pages, self.pages);
        assert_eq!(tree.tables.len(), self.bed.table.table_pages());
        assert_eq!(tree.tables.len(), self.bed.arena.live());
        let edges = self.pages.iter().flat_map(|(first, page)| {
            let last = first + (page.size - 1);
            [first.wrapping_sub(1), *first, first + page.size / 2, last, last.wrapping_add(1)]
        });
        for iova in edges.take(64).chain([0, u64::MAX, self.bed.table.aperture().1.get()]) {
            let expected = self.at(iova).map(|(first, page)| (page, page.phys + (iova - first)));
            assert_eq!(self.bed.walk(iova), expected, "the walker at {iova:#x}");
            let found = self.bed.table.iova_to_phys(DmaAddr::new(iova));
            let found = found.map(|found| (found.page_size, found.prot, found.phys.get()));
            let expected = expected.map(|(page, phys)| {
                let mut prot = Prot::empty();
                prot.set(Prot::READ, page.read);
                prot.set(Prot::WRITE, page.write);
                prot.set(Prot::CACHE, page.coherent);
                (page.size, prot, phys)
            });
            assert_eq!(found, expected, "the engine at {iova:#x}");
        }
    }

    /// Unmaps every page, then gives up the table.
    fn empty(mut self) {
        while let Some((first, page)) = self.pages.first_key_value().map(|(first, page)| (*first, *page)) {
            self.unmap(first, page.size);
        }
        self.check();
        let (arena, leaks) = (self.bed.arena.clone(), self.bed.leaks.get());
        drop(self.bed);
        assert_eq!((arena.live(), leaks), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn three_readings_agree(levels in 1..=6u32, steps in prop::collection::vec(steps(), 1..24)) {
        let mut model = Model { bed: Bed::new(levels, 2048), pages: BTreeMap::new() };
        for step in steps {
            match step {
                Step::Map { shift, from_end, page, count, phys, prot } => {
                    let iova = place(&model.bed, shift, from_end, page);
                    model.map(iova, shift, count, phys, prot);
                }
                Step::Unmap { shift, from_end, page, count } => {
                    let iova = place(&model.bed, shift, from_end, page);
                    model.unmap(iova, count << shift);
                }
                Step::UnmapAt { page, len } => {
                    if let Some(iova) = (!model.pages.is_empty()).then(|| page.index(model.pages.len())) {
                        let iova = *model.pages.keys().nth(iova).unwrap();
                        model.unmap(iova, len);
                    }
                }
            }
            model.check();
        }
        model.empty();
    }

    /// One unmap of all that the entries of the top stand for leaves the top alone, however the pages lie.
    #[test]
    fn a_range_that_covers_its_tables_takes_them_along(
        levels in 2..=3u32,
        entries in 1..4u64,
        choices in prop::collection::vec(0..9u32, 1..40),
    ) {
        let bed = Bed::new(levels, 2048);
        let len = entries << (12 + 9 * (levels - 1));
        let mut choices = choices.into_iter().cycle();
        let mut done = 0;
        while done < len {
            // Small pages only now and then: there may be three gigabytes to fill.
            let wish = if levels == 2 { 12 } else { 20 } + choices.next().unwrap_or(0);
            let shift = wish.min(done.trailing_zeros()).min((len - done).ilog2());
            bed.must_map(done, done, 1 << shift, 1);
            done += 1 << shift;
        }
        prop_assert_eq!(bed.unmap(0, len), len);
        prop_assert_eq!((bed.arena.live(), bed.table.table_pages()), (1, 1));
    }
}
