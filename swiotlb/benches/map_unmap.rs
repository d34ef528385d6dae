//! A driver's mapping made and ended where a device reaches its buffer, and where it does not, so that a copy goes to the device
//! and back; beside the machine's own limits: an uncontended `lock cmpxchg`, and a plain copy of the same length, of which a
//! bounce needs one for each way.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{FOUR_GIB, Host, SEGMENT, pattern, pool};
use criterion::{Criterion, criterion_group, criterion_main};
use dma_api::{Attrs, Device, DeviceBuilder, Direction, DmaBuffer};
use swiotlb::SwiotlbDma;

const LENS: [(usize, &str); 3] = [(64, "64 B"), (4096, "4 KiB"), (64 << 10, "64 KiB")];

#[inline(never)]
fn once(device: &Device, at: NonNull<u8>, len: usize, dir: Direction) {
    // SAFETY: the buffer outlives the mapping, which no device uses, and is unmapped once.
    unsafe {
        let address = device.map_single(at, len, dir, Attrs::empty()).expect("there are slots");
        device.unmap_single(address, len, dir, Attrs::empty()).expect("nothing can go wrong");
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
    let host = Host::new();
    let pool = pool(&host, 16 * SEGMENT, 2);
    // SAFETY: no device touches anything.
    let ops = Arc::new(unsafe { SwiotlbDma::new(host.clone(), Some(pool), ()) });
    let device = Arc::new(DeviceBuilder::new("device").build(ops, host.clone()));
    device.set_mask(u64::MAX).expect("any mask will do");
    for (len, name) in LENS {
        let (from, mut to) = (pattern(2, len), vec![0; len]);
        criterion.bench_function(&format!("copy {name}"), |bencher| {
            bencher.iter(|| black_box(&mut to[..]).copy_from_slice(black_box(&from)));
        });
        // Frames come from the top, above 4 GiB.
        let buffer = DmaBuffer::<u8>::zeroed(&device, len).expect("there is memory");
        let at = NonNull::from(&buffer[0]);
        let ways = [
            ("direct", u64::MAX, Direction::Bidirectional),
            ("bounced to the device", FOUR_GIB - 1, Direction::ToDevice),
            ("bounced both ways", FOUR_GIB - 1, Direction::Bidirectional),
        ];
        for (how, mask, dir) in ways {
            device.set_mask(mask).expect("any mask will do");
            criterion.bench_function(&format!("map and unmap {name}, {how}"), |bencher| {
                bencher.iter(|| once(&device, black_box(at), len, dir));
            });
        }
        device.set_mask(u64::MAX).expect("any mask will do");
    }
}

criterion_group!(all, benches);
criterion_main!(all);
