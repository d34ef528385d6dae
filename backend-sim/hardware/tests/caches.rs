//! The switches of the caches: how much is kept, and how strictly a command is read.

mod common;

use common::*;
use sim_hardware::iommu::Config;

/// Reads pages, changes them all, and tells which ones are still old.
fn stale(config: Config, pages: &[u64]) -> Vec<u64> {
    let bench = Bench::new(config);
    bench.poke(DATA, 1);
    bench.poke(DATA + 0x1000, 2);
    let root = bench.table();
    bench.attach(A, 1, 3, root);
    for &page in pages {
        bench.map(root, 3, page, 1, DATA | READ_WRITE);
        assert_eq!(bench.a.read(page), Ok(1));
    }
    for &page in pages {
        bench.map(root, 3, page, 1, (DATA + 0x1000) | READ_WRITE);
    }
    // Newest first: what is read anew pushes out what is oldest.
    let mut stale: Vec<u64> =
        pages.iter().rev().copied().filter(|&page| bench.a.read(page) == Ok(1)).collect();
    stale.reverse();
    stale
}

#[test]
fn without_a_capacity_nothing_is_forgotten() {
    let pages: Vec<u64> = (0..3000).map(|page| page * 0x1000).collect();
    assert_eq!(stale(Config::default(), &pages), pages);
}

#[test]
fn with_a_capacity_the_oldest_go_first() {
    let with = |capacity| Config { iotlb_capacity: Some(capacity), ..Config::default() };
    let pages = [0x3000, 0x1000, 0x9000, 0x5000];
    assert_eq!(stale(with(4), &pages), pages);
    assert_eq!(stale(with(3), &pages), pages[1..]);
    assert_eq!(stale(with(1), &pages), pages[3..]);
    assert_eq!(stale(with(0), &pages), pages[3..], "one at least: the request that is under way needs it");
}

#[test]
fn hits_and_misses_are_counted() {
    let bench = Bench::new(Config { iotlb_capacity: Some(2), ..Config::default() });
    let root = bench.table();
    bench.attach(A, 1, 3, root);
    for page in [0, 0x1000, 0x2000] {
        bench.map(root, 3, page, 1, DATA | READ_WRITE);
    }
    // Misses, hits, and a third page that pushes the first out.
    for page in [0, 0x1000, 0, 0x1000, 0x2000, 0] {
        assert!(bench.a.read(page).is_ok());
    }
    bench.set_dte(B, [3 | 3 << 61, 0, 0, 0]);
    assert!(bench.b.read(DATA).is_ok());
    let stats = bench.unit.stats();
    assert_eq!((stats.requests, stats.iotlb_hits, stats.iotlb_misses), (7, 2, 4));
}

#[test]
fn a_lenient_unit_drops_the_whole_large_leaf() {
    for lenient_invalidation in [false, true] {
        let bench = Bench::new(Config { lenient_invalidation, ..Config::default() });
        bench.poke(DATA, 1);
        bench.poke(DATA + (2 << 20), 2);
        let root = bench.table();
        bench.attach(A, 1, 3, root);
        for large in [0, 2 << 20] {
            bench.map(root, 3, large, 2, DATA | READ_WRITE);
            assert_eq!(bench.a.read(large), Ok(1));
            bench.map(root, 3, large, 2, (DATA + (2 << 20)) | READ_WRITE);
        }
        // A page in the middle of the first.
        bench.invalidate_pages(1, 0x8_0000);
        assert_eq!(bench.a.read(0), Ok(if lenient_invalidation { 2 } else { 1 }));
        assert_eq!(bench.a.read(2 << 20), Ok(1), "the neighbour");
    }
}
