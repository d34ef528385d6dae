//! The machine's own limits: what no page table can be faster than.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::Criterion;
use io_pgtable::{IoPageTable, Root};
use platform::{DmaAddr, PhysAddr};

/// One atomic access, and stores and loads of as many words as tables have.
pub(crate) fn words(c: &mut Criterion) {
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
            bencher.iter(|| store(black_box(&mut entries[..count])));
        });
    }
    c.bench_function("limit: fill of 256 entries", |bencher| {
        bencher.iter(|| black_box(&mut entries[..256]).fill(black_box(1)));
    });
    c.bench_function("limit: test of 256 entries, then a fill", |bencher| {
        bencher.iter(|| {
            let entries = black_box(&mut entries[..256]);
            assert!(is_any_bit_clear(entries));
            entries.fill(black_box(1));
        });
    });
    c.bench_function("limit: test and store of 256 entries, by 8", |bencher| {
        bencher.iter(|| {
            for line in black_box(&mut entries[..256]).chunks_exact_mut(8) {
                assert!(is_any_bit_clear(line));
                store(line);
            }
        });
    });
    c.bench_function("limit: zeros to 512 tables, then 262144 plain stores", |bencher| {
        bencher.iter(|| {
            for table in black_box(&mut entries[..]).chunks_exact_mut(512) {
                black_box(&mut *table).fill(0);
                store(table);
            }
        });
    });
    c.bench_function("limit: test and clear of 262144 entries, by 8", |bencher| {
        bencher.iter(|| {
            for line in black_box(&mut entries[..]).chunks_exact_mut(8) {
                assert!(is_any_bit_clear(line));
                black_box(line).fill(0);
            }
        });
    });
}

fn store(entries: &mut [u64]) {
    for (n, entry) in (0u64..).zip(entries) {
        // SAFETY: `entry` is a word of ours. Volatile: each store is one of eight bytes.
        unsafe { std::ptr::write_volatile(entry, n << 12 | 1) };
    }
}

/// Looks at each bit, as a test for empty entries does, and compilers make vectors of it.
fn is_any_bit_clear(entries: &[u64]) -> bool {
    entries.iter().fold(u64::MAX, |all, entry| all & entry) != u64::MAX
}

/// The four loads that lead to a 4 KiB page in four levels of nine bits, and nothing else: no check, no rights, no size. It goes
/// through a table of ours, behind a dynamic call as a table's own functions are.
pub(crate) trait Chase {
    fn place(&self, iova: u64) -> *mut u64;

    /// What is in the entry: the least that a lookup does.
    #[inline(never)]
    fn look(&self, iova: u64) -> u64 {
        // SAFETY: the address is one of those that the table was made for.
        unsafe { self.place(iova).read_volatile() }
    }

    /// Writes nothing to an empty entry: the least that a map or an unmap does.
    #[inline(never)]
    fn clear(&self, iova: u64) {
        // SAFETY: as above.
        unsafe { self.place(iova).write_volatile(0) };
    }
}

struct Levels(AtomicU64);

impl Chase for Levels {
    #[inline(always)]
    fn place(&self, iova: u64) -> *mut u64 {
        let index = |shift: u32| (iova >> shift & 0x1ff) as usize;
        let mut table = self.0.load(Ordering::Acquire);
        for shift in [39, 30, 21] {
            let entry = std::ptr::with_exposed_provenance::<u64>(table as usize).wrapping_add(index(shift));
            // SAFETY: physical addresses are pointers in the benchmark, and tables lead to this page.
            table = unsafe { entry.read_volatile() } & 0x000f_ffff_ffff_f000;
        }
        std::ptr::with_exposed_provenance_mut::<u64>(table as usize).wrapping_add(index(12))
    }
}

/// Benches the loads, and the loads and a store, at places below a table that has entries of the lowest level for them.
pub(crate) fn chases(c: &mut Criterion, name: &str, table: &dyn IoPageTable, places: &[u64]) {
    let Root { phys, level: 4 } = table.root() else { panic!("four levels") };
    let mapped = |iova: &u64| table.iova_to_phys(DmaAddr::new(*iova)).is_some();
    let chase: Box<dyn Chase> = black_box(Box::new(Levels(AtomicU64::new(PhysAddr::get(phys)))));
    if places.iter().all(mapped) {
        return lookups(c, &format!("limit: four loads, {name}"), places, |iova| chase.look(iova));
    }
    assert!(!places.iter().any(mapped));
    let mut next = places.iter().cycle();
    c.bench_function(&format!("limit: three loads and a store, {name}"), |bencher| {
        bencher.iter(|| chase.clear(black_box(*next.next().expect("endless"))));
    });
}

/// Benches lookups at all of these places: as many at once as the processor does, and each after the one before has its answer.
pub(crate) fn lookups(c: &mut Criterion, name: &str, places: &[u64], look: impl Fn(u64) -> u64) {
    let mut next = places.iter().cycle();
    let mut next = || black_box(*next.next().expect("endless"));
    c.bench_function(name, |bencher| bencher.iter(|| look(next())));
    let (none, mut found) = (black_box(0), 0);
    c.bench_function(&format!("{name}, one after the other"), |bencher| {
        bencher.iter(|| found = look(next() + (found & none)));
    });
}
