//! What a map and an unmap cost in the table alone, beside one uncontended `lock cmpxchg` of the same process: the ratio
//! holds on a noisy machine.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/walkers/mod.rs"]
mod walkers;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Bed, RW};
use criterion::{Criterion, criterion_group, criterion_main};
use io_pgtable::IoPageTable;

const KIB4: u64 = 0x1000;
const MIB2: u64 = 0x20_0000;

fn limit(c: &mut Criterion) {
    let word = AtomicU64::new(0);
    c.bench_function("lock cmpxchg", |bencher| {
        bencher.iter(|| {
            let seen = word.load(Ordering::Relaxed);
            black_box(&word).compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Relaxed)
        });
    });
}

/// Maps and unmaps `count` pages at `iova`, without an invalidation. Dynamic, as a domain that is generic would call it.
fn map_unmap(c: &mut Criterion, name: &str, iova: u64, page_size: u64, count: usize) {
    let bed = Bed::new(4, 64);
    // A neighbour, so that the tables above stay.
    bed.must_map(iova + MIB2 * 4, 0, KIB4, 1);
    let table: &dyn IoPageTable = &bed.table;
    c.bench_function(name, |bencher| {
        bencher.iter(|| {
            let (iova, phys) = (black_box(iova).into(), black_box(0x1_4000_0000).into());
            // SAFETY: no device walks the table, and no other thread uses it.
            let (done, result) = unsafe { table.map_pages(iova, phys, page_size, count, RW) };
            assert!(result.is_ok());
            let mut gather = bed.gather();
            // SAFETY: as above.
            assert_eq!(unsafe { table.unmap(iova, done, &mut gather) }, done);
            bed.flush(gather);
        });
    });
}

fn tables(c: &mut Criterion) {
    map_unmap(c, "map and unmap one 4 KiB page", 0x12_3456_7000, KIB4, 1);
    // Not aligned to 2 MiB, else each unmap would take the table out and each map make it again.
    map_unmap(c, "map and unmap 512 pages of 4 KiB", 0x12_3450_0000, KIB4, 512);
    map_unmap(c, "map and unmap one 2 MiB page", 0x12_3460_0000, MIB2, 1);
}

criterion_group!(benches, limit, tables);
criterion_main!(benches);
