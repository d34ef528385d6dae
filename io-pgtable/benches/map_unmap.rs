//! What an operation costs in the table alone, one call each, beside the machine's own limits (`limits`) and page tables of other
//! crates (`others`) in the same process. The ratios hold on a noisy machine.
//!
//! Maps and unmaps are timed apart: a round does as many maps as there are places, then as many unmaps.

mod every;
mod frames;
mod limits;
#[cfg(target_arch = "x86_64")]
mod others;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use frames::Pool;
use io_pgtable::{AmdV1, Format, IoPageTable, IoPgtableCfg, PageTable, Quirks, RiscV, X86_64};
use platform::{DmaAddr, Frames, IotlbGather, LeakCounter, PhysAddr, Prot};

const KIB4: u64 = 1 << 12;
const MIB1: u64 = 1 << 20;
const MIB2: u64 = 1 << 21;
const GIB1: u64 = 1 << 30;
const RW: Prot = Prot::READ.union(Prot::WRITE);
/// Where mappings lead: not aligned with their I/O addresses to more than they need.
const PHYS: u64 = 0x1_4000_0000;

/// A page table, ours or another's.
trait Subject {
    /// Maps `count` pages, always to the same place.
    fn map(&mut self, iova: u64, page_size: u64, count: usize);
    /// Unmaps what was mapped by one call.
    fn unmap(&mut self, iova: u64, len: u64);
}

/// Benches a map of `count` pages and its unmap, at all of these places.
fn pages(
    c: &mut Criterion,
    subject: &mut impl Subject,
    name: &str,
    places: &[u64],
    page_size: u64,
    count: usize,
) {
    let len = page_size * count as u64;
    for (unmaps, what) in [(false, "map"), (true, "unmap")] {
        c.bench_function(&format!("{name}: {what}"), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut total = Duration::ZERO;
                let mut left = rounds;
                while left > 0 {
                    let places = &places[..places.len().min(left as usize)];
                    let start = Instant::now();
                    places.iter().for_each(|iova| subject.map(black_box(*iova), page_size, count));
                    let mapped = Instant::now();
                    places.iter().for_each(|iova| subject.unmap(black_box(*iova), len));
                    total += if unmaps { mapped.elapsed() } else { mapped - start };
                    left -= places.len() as u64;
                }
                total
            });
        });
    }
}

/// A table with its frames. Dynamic, as a domain that is generic would call it.
struct Bench {
    frames: Arc<dyn Frames>,
    table: Box<dyn IoPageTable>,
    leaks: LeakCounter,
    /// Where mappings lead.
    phys: u64,
}

impl Bench {
    fn new<F: Format>(frames: Arc<dyn Frames>, cfg: &IoPgtableCfg) -> Self {
        let table = Box::new(PageTable::<F>::new(frames.clone(), cfg).expect("a table"));
        Self { frames, table, leaks: LeakCounter::new(), phys: PHYS }
    }

    /// Where a byte of a mapped page is.
    fn look(&self, iova: u64) -> u64 {
        let found = self.table.iova_to_phys(DmaAddr::new(iova + 0x123));
        found.expect("a mapped page").phys.get()
    }

    fn lookups(&mut self, c: &mut Criterion, name: &str, places: &[u64], limits: Option<&str>) {
        places.iter().for_each(|iova| self.map(*iova, KIB4, 1));
        limits::lookups(c, &format!("{name}: iova_to_phys"), places, |iova| self.look(iova));
        if let Some(name) = limits {
            limits::chases(c, name, &*self.table, places);
        }
        places.iter().for_each(|iova| self.unmap(*iova, KIB4));
    }
}

impl Subject for Bench {
    fn map(&mut self, iova: u64, page_size: u64, count: usize) {
        let (iova, phys) = (DmaAddr::new(iova), PhysAddr::new(black_box(self.phys)));
        // SAFETY: no device walks the table, and no other thread uses it.
        let (done, result) = unsafe { self.table.map_pages(iova, phys, page_size, count, RW) };
        assert!(done == page_size * count as u64 && result.is_ok());
    }

    /// Unmaps, and gives tables back without an invalidation.
    fn unmap(&mut self, iova: u64, len: u64) {
        let mut gather = IotlbGather::new(&self.leaks);
        // SAFETY: as above.
        assert_eq!(unsafe { self.table.unmap_range(DmaAddr::new(iova), len, &mut gather) }, len);
        // SAFETY: there is no IOMMU.
        let _flushed = unsafe { gather.flushed(&*self.frames) };
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

/// So many places, the same way apart.
fn places(base: u64, step: u64, count: u64) -> Vec<u64> {
    (0..count).map(|n| base + n * step).collect()
}

const BASE: u64 = 0x12_0000_0000;

/// Places for 4 KiB pages in one table. A neighbour keeps it.
fn singles(subject: &mut impl Subject) -> Vec<u64> {
    subject.map(BASE + GIB1 - KIB4, KIB4, 1);
    subject.map(BASE + GIB1 - MIB2 - KIB4, KIB4, 1);
    places(BASE + GIB1 - MIB2, KIB4, 256)
}

/// Halves of a few tables, which a CPU's first cache holds. A neighbour in the other half keeps each.
fn halves(subject: &mut impl Subject) -> Vec<u64> {
    let halves = places(BASE + 200 * GIB1 + MIB1, MIB2, 8);
    halves.iter().for_each(|half| subject.map(half - KIB4, KIB4, 1));
    halves
}

/// Places all over 64 GiB whose tables are there.
fn wide(subject: &mut impl Subject) -> Vec<u64> {
    let wide = scattered(1 << 14, 64 * GIB1);
    wide.iter().for_each(|iova| subject.map(*iova, KIB4, 1));
    wide.iter().for_each(|iova| subject.unmap(*iova, KIB4));
    wide
}

/// Benches a format; one of four levels of nine bits at 12 beside the loads that this takes at least.
fn format<F: Format>(c: &mut Criterion, name: &str, cfg: &IoPgtableCfg, limits: bool) {
    let mut bench = Bench::new::<F>(Arc::new(Pool::default()), cfg);
    let sizes = bench.table.page_sizes();
    let name = |row: &str| format!("{name}: {row}");
    let singles = singles(&mut bench);
    if limits {
        limits::chases(c, "in one table", &*bench.table, &singles);
    }
    pages(c, &mut bench, &name("1x4K"), &singles, KIB4, 1);
    let halves = halves(&mut bench);
    pages(c, &mut bench, &name("256x4K"), &halves, KIB4, 256);
    if sizes.contains(MIB1) {
        pages(c, &mut bench, &name("1 MiB as one contiguous entry"), &halves, MIB1, 1);
    }
    pages(c, &mut bench, &name("1x2M"), &places(BASE, MIB2, 256), MIB2, 1);
    pages(c, &mut bench, &name("1x1G"), &places(BASE + GIB1, GIB1, 64), GIB1, 1);
    let far = BASE + 128 * GIB1;
    bench.map(far + GIB1, KIB4, 1);
    pages(c, &mut bench, &name("1 GiB as 4K, tables come and go"), &[far], KIB4, 1 << 18);
    let wide = wide(&mut bench);
    pages(c, &mut bench, &name("random 4K in 64 GiB"), &wide, KIB4, 1);
    if limits {
        limits::chases(c, "random in 64 GiB", &*bench.table, &wide);
    }
    let near = scattered(1 << 14, GIB1);
    bench.lookups(c, &name("random in 1 GiB"), &near, limits.then_some("random in 1 GiB"));
    bench.lookups(c, &name("random in 64 GiB"), &wide, limits.then_some("random in 64 GiB"));
}

fn formats(c: &mut Criterion) {
    format::<AmdV1>(c, "AMD v1", &IoPgtableCfg::new(48), true);
    format::<X86_64>(c, "x86-64", &IoPgtableCfg::new(48).with_quirks(Quirks::SIGN_EXTEND), false);
    format::<RiscV>(c, "RISC-V Sv48", &IoPgtableCfg::new(48), false);
}

#[cfg(target_arch = "x86_64")]
fn others(c: &mut Criterion) {
    other(c, "page_table_multiarch (x86-64)", others::Multiarch::new());
    other(c, "x86_64, one page a call", others::X86::new());
    other(c, "aarch64-paging (stage 2)", others::Aarch64::new());
}

#[cfg(target_arch = "x86_64")]
fn other(c: &mut Criterion, name: &str, mut subject: impl Subject) {
    let name = |row: &str| format!("{name}: {row}");
    let singles = singles(&mut subject);
    pages(c, &mut subject, &name("1x4K"), &singles, KIB4, 1);
    let halves = halves(&mut subject);
    pages(c, &mut subject, &name("256x4K"), &halves, KIB4, 256);
    let wide = wide(&mut subject);
    pages(c, &mut subject, &name("random 4K in 64 GiB"), &wide, KIB4, 1);
}

#[cfg(not(target_arch = "x86_64"))]
fn others(_: &mut Criterion) {}

criterion_group!(benches, limits::words, formats, others);
criterion_group! {
    name = every_format;
    // Many, so each is short.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(200))
        .sample_size(20);
    targets = every::formats
}
criterion_main!(benches, every_format);
