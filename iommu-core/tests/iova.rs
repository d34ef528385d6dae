//! The allocator of I/O addresses beside a naive one that knows each page: the same answers, whatever the order of things.

use iommu_core::iova::{Counts, IovaDomain};
use platform::{DmaAddr, Flushed};
use proptest::prelude::*;

/// Ranges up to so many pages are taken in blocks of a power of two, since magazines keep them.
const CACHED: u64 = 32;

fn free(iovas: &IovaDomain, at: DmaAddr, len: u64) {
    // SAFETY: nothing is ever mapped.
    iovas.free(at, len, &unsafe { Flushed::assert() });
}

/// Every page from `first` on: whether it is free.
#[derive(Clone, Debug)]
struct Naive {
    first: u64,
    free: Vec<bool>,
}

impl Naive {
    fn pages(&self, at: u64, count: u64) -> &[bool] {
        &self.free[self.range(at, count)]
    }

    fn set(&mut self, at: u64, count: u64, free: bool) {
        let range = self.range(at, count);
        self.free[range].fill(free);
    }

    fn range(&self, at: u64, count: u64) -> std::ops::Range<usize> {
        let index = (at - self.first) as usize;
        index..index + count as usize
    }

    fn is_free(&self, at: u64, count: u64) -> bool {
        let end = self.first + self.free.len() as u64;
        at >= self.first && at + count <= end && self.pages(at, count).iter().all(|free| *free)
    }

    /// Where the highest free block for `pages` is that ends at or below `limit`.
    fn highest(&self, pages: u64, limit: u64) -> Option<u64> {
        let block = pages.next_power_of_two();
        let limit = limit.min(self.first + self.free.len() as u64 - 1);
        let top = (limit + 1).checked_sub(block)? / block * block;
        let candidates = (0..=top / block).rev().map(|number| number * block);
        candidates.take_while(|at| *at >= self.first).find(|at| self.is_free(*at, block))
    }
}

/// How many pages are taken for a range of so many.
fn taken(pages: u64) -> u64 {
    let block = pages.next_power_of_two();
    if block <= CACHED { block } else { pages }
}

#[derive(Clone, Debug)]
enum Step {
    /// Pages, and how far below the last page the limit is.
    Take(u64, u64),
    GiveBack(prop::sample::Index),
    /// From the first page, and how many.
    Reserve(u64, u64),
    Drain,
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let pages = prop_oneof![6 => 1u64..=6, 3 => 1u64..=70, 1 => 1u64..=5000];
    let below = prop_oneof![3 => Just(0), 1 => 0u64..10_000];
    prop_oneof![
        6 => (pages, below).prop_map(|(pages, below)| Step::Take(pages, below)),
        5 => any::<prop::sample::Index>().prop_map(Step::GiveBack),
        1 => (0u64..10_000, 1u64..500).prop_map(|(from, count)| Step::Reserve(from, count)),
        1 => Just(Step::Drain),
        1 => Just(Step::Trim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 400 }))]

    /// `exact` empties the magazines before each step; then the very same address must come.
    #[test]
    fn a_naive_allocator_gives_the_same(
        granule in prop_oneof![Just(12u32), Just(11), Just(16), Just(0)],
        first in prop_oneof![
            1u64..200, Just(4096), 4000u64..4200, Just((1 << 18) - 3000), Just((1 << 36) - 5001), Just((1 << 47) + 1)
        ],
        count in prop_oneof![1u64..200, 4000u64..9000],
        exact: bool,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let address = |page: u64| DmaAddr::new(page << granule);
        let last = first + count - 1;
        let iovas = IovaDomain::new(1 << granule, address(first), address(last), 1).unwrap();
        let mut naive = Naive { first, free: vec![true; count as usize] };
        let mut live: Vec<(u64, u64)> = Vec::new();
        let mut counts = (0, 0);
        for step in steps {
            if exact {
                iovas.drain();
            }
            match step {
                Step::Take(pages, below) => {
                    let limit = last.saturating_sub(below);
                    let wanted = naive.highest(pages, limit);
                    let found = iovas.alloc(pages << granule, address(limit)).map(|at| at.get() >> granule);
                    prop_assert_eq!(found.is_some(), wanted.is_some());
                    let Some(at) = found else { continue };
                    if exact {
                        prop_assert_eq!(found, wanted);
                    }
                    let pages_taken = taken(pages);
                    prop_assert_eq!(at % pages.next_power_of_two(), 0);
                    prop_assert!(at + pages_taken - 1 <= limit);
                    prop_assert!(naive.is_free(at, pages_taken));
                    naive.set(at, pages_taken, false);
                    live.push((at, pages));
                    counts.0 += 1;
                }
                Step::GiveBack(which) if !live.is_empty() => {
                    let (at, pages) = live.swap_remove(which.index(live.len()));
                    free(&iovas, address(at), pages << granule);
                    naive.set(at, taken(pages), true);
                    counts.1 += 1;
                }
                Step::GiveBack(_) => {}
                Step::Reserve(from, pages) => {
                    let at = first + from % count;
                    let pages = pages.min(last - at + 1);
                    iovas.reserve(address(at), address(at + pages - 1)).unwrap();
                    naive.set(at, pages, false);
                    // What is taken there is not free, and comes back.
                }
                Step::Drain => iovas.drain(),
                Step::Trim => iovas.trim(),
            }
        }
        let Counts { taken: takes, given_back, .. } = iovas.counts();
        prop_assert_eq!((takes, given_back), counts);
    }
}

#[test]
fn sizes_that_do_not_exist_are_never_found() {
    let iovas = IovaDomain::new(4096, DmaAddr::new(0), DmaAddr::new(u64::MAX), 1).unwrap();
    let all = DmaAddr::new(u64::MAX);
    assert_eq!(iovas.alloc(1 << 63, all).map(DmaAddr::get), Some(1 << 63));
    assert_eq!(iovas.alloc(1 << 63, all), None, "page 0 is in the other half");
    assert_eq!(iovas.alloc((1 << 63) + 4096, all), None);
    assert_eq!(iovas.alloc(u64::MAX, all), None);
    assert_eq!(iovas.alloc(4096, DmaAddr::new(4095)), None);
    assert_eq!(iovas.alloc(4096, DmaAddr::new(8191)).map(DmaAddr::get), Some(4096));
}

#[test]
fn a_domain_of_single_bytes_reaches_to_the_last_but_one() {
    let iovas = IovaDomain::new(1, DmaAddr::new(u64::MAX - 3), DmaAddr::new(u64::MAX), 1).unwrap();
    let all: Vec<u64> =
        std::iter::from_fn(|| iovas.alloc(1, DmaAddr::new(u64::MAX))).map(DmaAddr::get).collect();
    assert_eq!(all, [u64::MAX - 1, u64::MAX - 2, u64::MAX - 3]);
}

#[test]
fn an_empty_domain_has_nothing() {
    let iovas = IovaDomain::new(4096, DmaAddr::new(1 << 30), DmaAddr::new(1 << 20), 1).unwrap();
    assert_eq!(iovas.alloc(4096, DmaAddr::new(u64::MAX)), None);
}

#[test]
fn reserved_ranges_may_overlap_and_lie_outside() {
    let iovas = IovaDomain::new(4096, DmaAddr::new(0), DmaAddr::new(0xffff), 1).unwrap();
    for (first, last) in
        [(0x2000, 0x5fff), (0x4000, 0x7fff), (0x3000, 0x3000), (0xf000, u64::MAX), (0x9000, 0x8fff)]
    {
        iovas.reserve(DmaAddr::new(first), DmaAddr::new(last)).unwrap();
    }
    let mut all: Vec<u64> =
        std::iter::from_fn(|| iovas.alloc(4096, DmaAddr::new(u64::MAX))).map(DmaAddr::get).collect();
    all.sort_unstable();
    assert_eq!(all, [0x1000, 0x8000, 0x9000, 0xa000, 0xb000, 0xc000, 0xd000, 0xe000]);
}

#[test]
fn what_a_magazine_has_is_reserved_too() {
    let iovas = IovaDomain::new(4096, DmaAddr::new(0), DmaAddr::new(0xffff_ffff), 1).unwrap();
    let all = DmaAddr::new(u64::MAX);
    let at = iovas.alloc(4096, all).unwrap();
    free(&iovas, at, 4096);
    iovas.reserve(at, at).unwrap();
    assert_ne!(iovas.alloc(4096, all), Some(at));
}

#[test]
fn a_first_try_leaves_the_magazines_of_others_alone() {
    let iovas = IovaDomain::new(4096, DmaAddr::new(0), DmaAddr::new(0xffff), 1).unwrap();
    let all = DmaAddr::new(u64::MAX);
    let pages: Vec<DmaAddr> = std::iter::from_fn(|| iovas.alloc(4096, all)).collect();
    pages.into_iter().for_each(|at| free(&iovas, at, 4096));
    assert_eq!(iovas.try_alloc(2 * 4096, all), None, "everything is in a magazine of single pages");
    assert_eq!(iovas.alloc(2 * 4096, all).map(DmaAddr::get), Some(0xe000));
}

#[test]
fn a_depot_shrinks_to_a_magazine_for_each_cpu_and_size() {
    const MAGAZINE: usize = 127;
    let iovas = IovaDomain::new(4096, DmaAddr::new(0), DmaAddr::new(0xffff_ffff), 1).unwrap();
    let all = DmaAddr::new(u64::MAX);
    let held: Vec<DmaAddr> = (0..10 * MAGAZINE).map(|_| iovas.alloc(4096, all).unwrap()).collect();
    held.into_iter().for_each(|at| free(&iovas, at, 4096));
    let before = iovas.counts().hits;
    // Two magazines are the CPU's, one stays in the depot.
    (0..20).for_each(|_| iovas.trim());
    assert!((0..10 * MAGAZINE).all(|_| iovas.alloc(4096, all).is_some()));
    assert_eq!(iovas.counts().hits - before, 3 * MAGAZINE as u64);
}
