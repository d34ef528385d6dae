//! What a map and unmap costs for a device that has the arena registered, from the driver's call, beside an uncontended
//! `lock cmpxchg`: of a page in the arena, which is a lookup (25 ns at most), and of one elsewhere, which is copied there and back.
//! The kernel is the tests': neither asks it anything. What it takes to ask a real one, `cargo xtask vfio` measures.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use backend_vfio::{Config, Vfio};
use common::{Bed, NVME};
use criterion::{Criterion, criterion_group, criterion_main};
use dma_api::{Attrs, Device, Direction, DmaBuffer};

const PAGE: usize = 4096;

#[inline(never)]
fn once(device: &Device, at: NonNull<u8>) {
    // SAFETY: the page outlives the mapping, which no device uses, and is unmapped once.
    unsafe {
        let mapped = device.map_single(at, PAGE, Direction::Bidirectional, Attrs::empty());
        let address = mapped.expect("there are addresses");
        device.unmap_single(address, PAGE, Direction::Bidirectional, Attrs::empty()).expect("it ends");
    }
}

fn benches(criterion: &mut Criterion) {
    let word = AtomicU64::new(0);
    criterion.bench_function("lock cmpxchg, uncontended", |bencher| {
        bencher.iter(|| {
            let old = word.load(Ordering::Relaxed);
            word.compare_exchange(old, black_box(old + 1), Ordering::AcqRel, Ordering::Relaxed)
        });
    });
    let bed = Bed::new();
    let config = Config { host: bed.host(), arena: 16 << 20, ..Config::new([NVME]) };
    let vfio = Vfio::open(config).expect("the tests' kernel has it");
    // SAFETY: the tests' device does nothing.
    let (_function, device) = unsafe { vfio.trust_registered(NVME) }.expect("there is an arena");
    let inside = DmaBuffer::<u8>::zeroed(&device, PAGE).expect("a page");
    let at = NonNull::from(&inside[0]);
    criterion.bench_function("map and unmap 4 KiB, registered", |bencher| {
        bencher.iter(|| once(&device, black_box(at)));
    });
    let mut outside = vec![0_u8; PAGE];
    let at = NonNull::from(&mut outside[0]);
    criterion.bench_function("map and unmap 4 KiB, copied", |bencher| {
        bencher.iter(|| once(&device, black_box(at)));
    });
}

criterion_group!(all, benches);
criterion_main!(all);
