//! The pattern that makes a first-fit search slow: single free pages between ranges that stay, and requests for 64. A search from
//! the top looks at every hole. Prints what a request takes as what is in use grows, and plots it.

mod common;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use common::{PAGE, exchange};
use iommu_core::iova::IovaDomain;
use platform::{DmaAddr, Flushed};

const LIMIT: DmaAddr = DmaAddr::new((1 << 48) - 1);
const PAGE_LEN: u64 = PAGE as u64;
const WIDTH: usize = 48;

/// The best of some rounds, in nanoseconds for one of `count` calls.
fn best(count: u32, mut f: impl FnMut()) -> f64 {
    let round = || {
        let start = Instant::now();
        (0..count).for_each(|_| f());
        start.elapsed().as_nanos() as f64 / f64::from(count)
    };
    std::iter::repeat_with(round).take(15).fold(f64::MAX, f64::min)
}

fn ours(live: usize) -> f64 {
    let iovas = IovaDomain::new(PAGE_LEN, DmaAddr::new(0), LIMIT, 1).expect("there is memory");
    let free = |at, pages: u64| {
        // SAFETY: nothing is ever mapped.
        iovas.free(at, pages * PAGE_LEN, &unsafe { Flushed::assert() });
    };
    let take = |pages: u64| iovas.alloc(pages * PAGE_LEN, LIMIT).expect("there are addresses");
    let held: Vec<DmaAddr> = (0..2 * live).map(|_| take(1)).collect();
    held.into_iter().step_by(2).for_each(|at| free(at, 1));
    iovas.drain();
    // 64 pages pass the magazines by.
    best(1000, || free(black_box(take(64)), 64))
}

/// Free extents in order of their addresses, searched from the top.
fn first_fit(live: usize) -> f64 {
    let top = LIMIT.get() / PAGE_LEN + 1;
    let mut free: BTreeMap<u64, u64> = (0..live as u64).map(|hole| (top - 2 * hole - 1, 1)).collect();
    free.insert(1, top - 2 * live as u64 - 2);
    best((2_000_000 / live as u32).max(5), || {
        black_box(free.iter().rev().find(|(_, len)| black_box(**len) >= 64));
    })
}

fn main() {
    let word = AtomicU64::new(0);
    let limit = best(100_000, || {
        black_box(exchange(&word));
    });
    let rows: Vec<(usize, f64, f64)> =
        (0..=10).map(|step| 1000 << step).map(|live| (live, ours(live), first_fit(live))).collect();
    println!("taking and giving back 64 pages; in `lock cmpxchg` (here {limit:.1} ns)");
    println!(
        "{:>9} {:>9} {:>9}  logarithmic: o this tree, x a search from the top",
        "live", "tree", "search"
    );
    // A column is a factor of 2^(1/2).
    let column = |ratio: f64| ((2.0 * ratio.max(1.0).log2()) as usize).min(WIDTH - 1);
    for (live, tree, search) in rows {
        let (tree, search) = (tree / limit, search / limit);
        let mut line = vec![' '; WIDTH];
        line[column(search)] = 'x';
        line[column(tree)] = 'o';
        let line: String = line.into_iter().collect();
        println!("{live:>9} {tree:>9.1} {search:>9.1}  |{}", line.trim_end());
    }
}
