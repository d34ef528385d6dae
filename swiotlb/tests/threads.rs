//! Several threads at one pool.

mod common;

use std::sync::Barrier;

use common::{Host, Original, SEGMENT, configured, pattern, pool, trusted};
use dma_api::{Attrs, Direction, DmaError};
use platform::PhysAddr;
use swiotlb::{Config, SLOT_SIZE, Statistics};

const THREADS: usize = 4;

#[test]
fn threads_get_runs_of_their_own_and_the_counts_agree() {
    const ROUNDS: usize = 300;
    const LENS: [usize; 3] = [100, 5 * SLOT_SIZE, 3 * SLOT_SIZE + 1];
    let host = Host::new();
    // Fewer areas than threads, so that locks are shared.
    let pool = pool(&host, 2 * SEGMENT, 2);
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pool, host, barrier) = (&pool, &host, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS {
                    let seed = (thread * 64 + round % 64) as u8;
                    let originals = LENS.map(|len| Original::new(round % 4096, &pattern(seed, len)));
                    let copies = originals.each_ref().map(|original| {
                        let (dir, attrs) = (Direction::Bidirectional, Attrs::empty());
                        // SAFETY: the originals outlive the mappings, which end below.
                        unsafe { pool.map(&trusted(), original.ptr(), original.len, 0, dir, attrs) }.unwrap()
                    });
                    for (copy, original) in copies.iter().zip(&originals) {
                        // Nobody else's data, before and after this device writes its own.
                        assert!(host.device_read(copy.get(), original.len) == pattern(seed, original.len));
                        host.device_write(copy.get(), &pattern(!seed, original.len));
                    }
                    for (copy, original) in copies.into_iter().zip(&originals) {
                        // SAFETY: mapped above, ended once.
                        unsafe { pool.unmap(copy, original.len, Direction::Bidirectional, Attrs::empty()) };
                        assert!(original.read() == pattern(!seed, original.len));
                    }
                }
            });
        }
    });
    assert!(pool.is_consistent());
    let Statistics { slots, used, high_water, maps, .. } = pool.statistics();
    assert_eq!((slots, used, maps), (256, 0, (THREADS * ROUNDS * LENS.len()) as u64));
    let each: usize = LENS.iter().map(|len| len.div_ceil(SLOT_SIZE)).sum();
    assert!((each..=THREADS * each).contains(&high_water), "{high_water}");
}

#[test]
fn threads_keep_their_data_while_the_pool_grows() {
    const ROUNDS: usize = 200;
    let host = Host::new();
    let config = Config { size: SEGMENT, max_size: SEGMENT + (4 << 20), areas: 2, ..Config::default() };
    let pool = configured(&host, &config);
    let barrier = Barrier::new(THREADS);
    let (dir, attrs) = (Direction::Bidirectional, Attrs::empty());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pool, host, barrier) = (&pool, &host, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS {
                    let seed = (thread * 64 + round % 64) as u8;
                    let originals = [100_000, 3000, 1].map(|len| Original::new(round, &pattern(seed, len)));
                    let copies = originals.each_ref().map(|original| {
                        // SAFETY: the originals outlive the mappings, which end below.
                        unsafe { pool.map(&trusted(), original.ptr(), original.len, 0, dir, attrs) }.unwrap()
                    });
                    if round % 50 == 49 {
                        pool.grow();
                    }
                    for (copy, original) in copies.iter().zip(&originals) {
                        assert!(pool.contains(*copy));
                        assert!(host.device_read(copy.get(), original.len) == pattern(seed, original.len));
                        host.device_write(copy.get(), &pattern(!seed, original.len));
                    }
                    for (copy, original) in copies.into_iter().zip(&originals) {
                        // SAFETY: mapped above, ended once.
                        unsafe { pool.unmap(copy, original.len, dir, attrs) };
                        assert!(original.read() == pattern(!seed, original.len));
                    }
                }
            });
        }
    });
    assert!(pool.is_consistent());
    let Statistics { slots, used, transient_slots, maps, clamped, .. } = pool.statistics();
    assert_eq!((used, transient_slots, maps, clamped), (0, 0, (THREADS * ROUNDS * 3) as u64, 0));
    assert_eq!(host.live(), slots * SLOT_SIZE, "transient memory went back");
}

#[test]
fn a_thread_takes_from_every_area_before_the_pool_is_full() {
    let host = Host::new();
    let pool = pool(&host, 4 * SEGMENT, 4);
    let original = Original::new(0, &[0; SEGMENT]);
    let map = || {
        let (dir, attrs) = (Direction::ToDevice, Attrs::empty());
        // SAFETY: the original outlives the mappings; the device only reads.
        unsafe { pool.map(&trusted(), original.ptr(), SEGMENT, 0, dir, attrs) }
    };
    let mut copies: Vec<PhysAddr> = (0..4).map(|_| map().unwrap()).collect();
    copies.sort();
    copies.dedup();
    assert_eq!(copies.len(), 4);
    assert_eq!(map(), Err(DmaError::BouncePoolFull { size: SEGMENT, used: 512, total: 512 }));
    assert_eq!(pool.statistics().high_water, 512);
}

#[test]
fn threads_that_fill_the_pool_fill_all_of_it() {
    let host = Host::new();
    let pool = pool(&host, 2 * SEGMENT, 2);
    let barrier = Barrier::new(THREADS);
    let originals = [(); THREADS].map(|()| Original::new(0, &[0; SLOT_SIZE]));
    let taken: usize = std::thread::scope(|scope| {
        let fill = |original: Original| {
            let (pool, barrier) = (&pool, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let (dir, attrs) = (Direction::ToDevice, Attrs::empty());
                // SAFETY: the device only reads, and nobody uses the copies after the original is gone.
                let map = || unsafe { pool.map(&trusted(), original.ptr(), SLOT_SIZE, 0, dir, attrs) };
                std::iter::from_fn(|| map().ok()).count()
            })
        };
        originals.map(fill).map(|thread| thread.join().unwrap()).into_iter().sum()
    });
    assert_eq!(taken, 256);
    assert_eq!(
        pool.statistics(),
        Statistics { slots: 256, used: 256, high_water: 256, maps: 256, ..Statistics::default() }
    );
}
