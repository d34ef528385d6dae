//! Taking I/O addresses and giving them back, beside the machine's own limit. A pair is one of each.

mod common;

use std::hint::black_box;
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use common::{Random, domain, fragmented, give_back, limit, take};
use criterion::{Criterion, criterion_group, criterion_main};
use iommu_core::iova::IovaDomain;
use platform::DmaAddr;

/// The time that each of `count` threads takes for `rounds` pairs, at the same time as the others.
fn together(iovas: &IovaDomain, count: usize, rounds: u64) -> Duration {
    let barrier = Barrier::new(count);
    let run = || {
        give_back(iovas, take(iovas, 1), 1);
        barrier.wait();
        let start = Instant::now();
        for _ in 0..rounds {
            give_back(iovas, black_box(take(iovas, 1)), 1);
        }
        start.elapsed()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).max()
    })
    .unwrap_or_default()
}

/// The time of `rounds` takes on one thread and as many give-backs on another, handed over by the hundred; the handing over
/// itself is not counted.
fn across(iovas: &IovaDomain, rounds: u64) -> Duration {
    const BATCH: u64 = 128;
    let (sender, receiver) = mpsc::sync_channel::<Vec<DmaAddr>>(4);
    let (empty_sender, empty_receiver) = mpsc::channel();
    (0..6).for_each(|_| empty_sender.send(Vec::with_capacity(BATCH as usize)).expect("open"));
    let batches = rounds.div_ceil(BATCH);
    let sum = std::thread::scope(|scope| {
        let giver = scope.spawn(move || {
            let mut sum = Duration::ZERO;
            for mut batch in receiver {
                let start = Instant::now();
                batch.drain(..).for_each(|at| give_back(iovas, at, 1));
                sum += start.elapsed();
                let _ = empty_sender.send(batch);
            }
            sum
        });
        let mut sum = Duration::ZERO;
        for _ in 0..batches {
            let mut batch: Vec<DmaAddr> = empty_receiver.recv().expect("open");
            let start = Instant::now();
            batch.extend((0..BATCH).map(|_| take(iovas, 1)));
            sum += start.elapsed();
            sender.send(batch).expect("open");
        }
        drop(sender);
        sum + giver.join().expect("no thread panics")
    });
    sum.mul_f64(rounds as f64 / (batches * BATCH) as f64)
}

/// The time of `rounds` takes of 1 to 16 pages that no magazine has.
fn from_tree(iovas: &IovaDomain, random: &mut Random, rounds: u64) -> Duration {
    const BATCH: u64 = 64;
    let mut sum = Duration::ZERO;
    let batches = rounds.div_ceil(BATCH);
    let mut held = Vec::new();
    for _ in 0..batches {
        held.extend((0..BATCH).map(|_| (DmaAddr::new(0), 1 + random.below(16))));
        let start = Instant::now();
        held.iter_mut().for_each(|(at, pages)| *at = take(iovas, *pages));
        sum += start.elapsed();
        held.drain(..).for_each(|(at, pages)| give_back(iovas, at, pages));
        iovas.drain();
    }
    sum.mul_f64(rounds as f64 / (batches * BATCH) as f64)
}

fn benches(criterion: &mut Criterion) {
    limit(criterion);
    let iovas = domain();
    criterion.bench_function("pair of 1 page, one thread", |bencher| {
        bencher.iter(|| give_back(&iovas, black_box(take(&iovas, 1)), 1));
    });
    criterion.bench_function("pair of 1 page, two threads, each", |bencher| {
        bencher.iter_custom(|rounds| together(&iovas, 2, rounds));
    });
    criterion.bench_function("pair of 1 page, taken by one thread, given back by another", |bencher| {
        bencher.iter_custom(|rounds| across(&iovas, rounds));
    });
    for live in [1_000, 100_000] {
        let mut random = Random::new();
        let iovas = fragmented(live, &mut random);
        criterion.bench_function(&format!("take 1 to 16 pages from the tree, {live} live"), |bencher| {
            bencher.iter_custom(|rounds| from_tree(&iovas, &mut random, rounds));
        });
    }
}

criterion_group!(all, benches);
criterion_main!(all);
