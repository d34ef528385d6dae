//! A mapping made and ended, by one thread and by two in areas of their own, beside the machine's own limits: an uncontended
//! `lock cmpxchg`, of which a mapping needs two, and a plain copy of the same length, of which a mapping for reading needs one.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Host, Original, SEGMENT, pattern, pool, trusted};
use criterion::{Criterion, criterion_group, criterion_main};
use dma_api::{Attrs, DeviceParms, Direction};
use swiotlb::Swiotlb;

const LENS: [(usize, &str); 3] = [(64, "64 B"), (4096, "4 KiB"), (64 << 10, "64 KiB")];

#[inline(never)]
fn once(pool: &Swiotlb, parms: &DeviceParms, original: &Original) {
    let (dir, attrs) = (Direction::ToDevice, Attrs::empty());
    // SAFETY: the original outlives the mapping, which no device uses, and which ends once.
    unsafe {
        let copy = pool.map(parms, black_box(original.ptr()), original.len, 0, dir, attrs);
        pool.unmap(black_box(copy.expect("there are slots")), original.len, dir, attrs);
    }
}

/// The time that `count` threads take for `rounds` mappings each, at the same time.
fn together(pool: &Swiotlb, count: usize, len: usize, rounds: u64) -> Duration {
    let barrier = Barrier::new(count);
    let run = || {
        let (parms, original) = (trusted(), Original::new(0, &pattern(1, len)));
        barrier.wait();
        let start = Instant::now();
        for _ in 0..rounds {
            once(pool, &parms, &original);
        }
        start.elapsed()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).max()
    })
    .unwrap_or_default()
}

fn benches(criterion: &mut Criterion) {
    let word = AtomicU64::new(0);
    criterion.bench_function("lock cmpxchg, uncontended", |bencher| {
        bencher.iter(|| {
            let old = word.load(Ordering::Relaxed);
            word.compare_exchange(old, black_box(old + 1), Ordering::AcqRel, Ordering::Relaxed)
        });
    });
    let host = Host::new();
    let pool = pool(&host, 16 * SEGMENT, 2);
    for (len, name) in LENS {
        let (from, mut to) = (pattern(2, len), vec![0; len]);
        criterion.bench_function(&format!("copy {name}"), |bencher| {
            bencher.iter(|| black_box(&mut to[..]).copy_from_slice(black_box(&from)));
        });
        for (count, threads) in [(1, "one thread"), (2, "two threads")] {
            criterion.bench_function(&format!("map and unmap {name}, {threads}"), |bencher| {
                bencher.iter_custom(|rounds| together(&pool, count, len, rounds));
            });
        }
    }
}

criterion_group!(all, benches);
criterion_main!(all);
