//! What an operation costs in the table alone, one call each, beside the machine's own limits in the same process: one
//! uncontended `lock cmpxchg`, plain stores of 256 and of 262,144 entries, a fill. The ratios hold on a noisy machine.
//!
//! Maps and unmaps are timed apart: a round does as many maps as there are places, then as many unmaps.

mod frames;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use frames::Pool;
use io_pgtable::{AmdV1, Format, IoPageTable, IoPgtableCfg, PageTable, Quirks, RiscV, X86_64};
use platform::{DmaAddr, IotlbGather, LeakCounter, PhysAddr, Prot};

const KIB4: u64 = 1 << 12;
const MIB1: u64 = 1 << 20;
const MIB2: u64 = 1 << 21;
const GIB1: u64 = 1 << 30;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Where mappings lead: not aligned with their I/O addresses to more than they need.
const PHYS: u64 = 0x1_4000_0000;

fn limits(c: &mut Criterion) {
    let word = AtomicU64::new(0);
    c.bench_function("limit: lock cmpxchg", |bencher| {
        bencher.iter(|| {
            let seen = word.load(Ordering::Relaxed);
            black_box(&word).compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Relaxed)
        });
    });
    let mut entries = vec![0u64; 1 << 18];
    for count in [256, 1 << 18] {
        c.bench_function(&format!("limit: {count} plain stores"), |bencher| {
            bencher.iter(|| {
                let entries = black_box(&mut entries[..count]);
                for (n, entry) in (0u64..).zip(entries) {
                    // SAFETY: `entry` is a word of ours. Volatile: each store is one of eight bytes.
                    unsafe { std::ptr::write_volatile(entry, n << 12 | 1) };
                }
            });
        });
    }
    c.bench_function("limit: fill of 256 entries", |bencher| {
        bencher.iter(|| black_box(&mut entries[..256]).fill(black_box(1)));
    });
}

/// A table with its frames. Dynamic, as a domain that is generic would call it.
struct Bench {
    pool: Arc<Pool>,
    table: Box<dyn IoPageTable>,
    leaks: LeakCounter,
}

impl Bench {
    fn new<F: Format>(cfg: &IoPgtableCfg) -> Self {
        let pool = Arc::new(Pool::default());
        let table = Box::new(PageTable::<F>::new(pool.clone(), cfg).expect("a table"));
        Self { pool, table, leaks: LeakCounter::new() }
    }

    fn map(&self, iova: u64, page_size: u64, count: usize) {
        let (iova, phys) = (DmaAddr::new(black_box(iova)), PhysAddr::new(black_box(PHYS)));
        // SAFETY: no device walks the table, and no other thread uses it.
        let (done, result) = unsafe { self.table.map_pages(iova, phys, page_size, count, RW) };
        assert!(done == page_size * count as u64 && result.is_ok());
    }

    /// Unmaps, and gives tables back without an invalidation.
    fn unmap(&self, iova: u64, len: u64) {
        let mut gather = IotlbGather::new(&self.leaks);
        // SAFETY: as above.
        assert_eq!(unsafe { self.table.unmap_range(DmaAddr::new(black_box(iova)), len, &mut gather) }, len);
        // SAFETY: there is no IOMMU.
        let _flushed = unsafe { gather.flushed(&*self.pool) };
    }

    /// Benches a map of `count` pages and its unmap, at all of these places.
    fn pages(&self, c: &mut Criterion, name: &str, places: &[u64], page_size: u64, count: usize) {
        let len = page_size * count as u64;
        for (unmaps, what) in [(false, "map"), (true, "unmap")] {
            c.bench_function(&format!("{name}: {what}"), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut total = Duration::ZERO;
                    let mut left = rounds;
                    while left > 0 {
                        let places = &places[..places.len().min(left as usize)];
                        let start = Instant::now();
                        places.iter().for_each(|iova| self.map(*iova, page_size, count));
                        let mapped = Instant::now();
                        places.iter().for_each(|iova| self.unmap(*iova, len));
                        total += if unmaps { mapped.elapsed() } else { mapped - start };
                        left -= places.len() as u64;
                    }
                    total
                });
            });
        }
    }

    fn lookups(&self, c: &mut Criterion, name: &str, places: &[u64]) {
        places.iter().for_each(|iova| self.map(*iova, KIB4, 1));
        let mut next = places.iter().cycle();
        c.bench_function(&format!("{name}: iova_to_phys"), |bencher| {
            bencher.iter(|| self.table.iova_to_phys(DmaAddr::new(*next.next().expect("endless") + 0x123)));
        });
        places.iter().for_each(|iova| self.unmap(*iova, KIB4));
    }
}

/// `count` different pages below `end`, in no order.
fn scattered(count: usize, end: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut places = std::collections::BTreeSet::new();
    let mut order = Vec::new();
    while order.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let place = (state % end) & !(KIB4 - 1);
        if places.insert(place) {
            order.push(place);
        }
    }
    order
}

fn format<F: Format>(c: &mut Criterion, name: &str, cfg: &IoPgtableCfg) {
    let bench = Bench::new::<F>(cfg);
    let sizes = bench.table.page_sizes();
    let name = |row: &str| format!("{name}: {row}");
    // A neighbour in each table keeps it: places are all over 63 of 64 parts.
    let places =
        |base: u64, step: u64, count: u64| -> Vec<u64> { (0..count).map(|n| base + n * step).collect() };
    let base = 0x12_0000_0000;
    bench.map(base + GIB1 - KIB4, KIB4, 1);
    bench.map(base + GIB1 - MIB2 - KIB4, KIB4, 1);
    bench.pages(c, &name("1x4K"), &places(base + GIB1 - MIB2, KIB4, 256), KIB4, 1);
    // Halves of a few tables, which a CPU's first cache holds; a neighbour in the other half.
    let halves = places(base + 200 * GIB1 + MIB1, MIB2, 8);
    halves.iter().for_each(|half| bench.map(half - KIB4, KIB4, 1));
    bench.pages(c, &name("256x4K"), &halves, KIB4, 256);
    if sizes.contains(MIB1) {
        bench.pages(c, &name("1 MiB as one contiguous entry"), &halves, MIB1, 1);
    }
    bench.pages(c, &name("1x2M"), &places(base, MIB2, 256), MIB2, 1);
    bench.pages(c, &name("1x1G"), &places(base + GIB1, GIB1, 64), GIB1, 1);
    let far = base + 128 * GIB1;
    bench.map(far + GIB1, KIB4, 1);
    bench.pages(c, &name("1 GiB as 4K, tables come and go"), &[far], KIB4, 1 << 18);
    let wide = scattered(1 << 14, 64 * GIB1);
    // Tables are there.
    wide.iter().for_each(|iova| bench.map(*iova, KIB4, 1));
    wide.iter().for_each(|iova| bench.unmap(*iova, KIB4));
    bench.pages(c, &name("random 4K in 64 GiB"), &wide, KIB4, 1);
    bench.lookups(c, &name("random in 1 GiB"), &scattered(1 << 14, GIB1));
    bench.lookups(c, &name("random in 64 GiB"), &wide);
}

fn formats(c: &mut Criterion) {
    format::<AmdV1>(c, "AMD v1", &IoPgtableCfg::new(48));
    format::<X86_64>(c, "x86-64", &IoPgtableCfg::new(48).with_quirks(Quirks::SIGN_EXTEND));
    format::<RiscV>(c, "RISC-V Sv48", &IoPgtableCfg::new(48));
}

criterion_group!(benches, limits, formats);
criterion_main!(benches);
