//! The DMA API over an IOMMU that does nothing: what the core itself costs from a driver's call to the IOMMU driver's and back,
//! beside the machine's own limit.

mod common;

use std::hint::black_box;
use std::ptr::NonNull;

use common::{Machine, PAGE, boot, limit};
use criterion::{Criterion, criterion_group, criterion_main};
use dma_api::{Attrs, Device, Direction, SgEntry};
use platform::FrameRequest;

const BOTH: Direction = Direction::Bidirectional;

#[inline(never)]
fn single(device: &Device, at: NonNull<u8>) {
    // SAFETY: the page outlives the mapping, which no device uses, and is unmapped once.
    unsafe {
        let address = device.map_single(at, PAGE, BOTH, Attrs::empty()).expect("there are addresses");
        device.unmap_single(address, PAGE, BOTH, Attrs::empty()).expect("the IOMMU answers");
    }
}

#[inline(never)]
fn list(device: &Device, list: &mut [SgEntry]) {
    // SAFETY: the memory outlives the mapping, which no device uses, and is unmapped once.
    unsafe {
        device.map_sg(list, BOTH, Attrs::empty()).expect("there are addresses");
        device.unmap_sg(list, BOTH, Attrs::empty()).expect("the IOMMU answers");
    }
}

fn benches(criterion: &mut Criterion) {
    limit(criterion);
    for (name, lazy) in [("strict", false), ("lazy", true)] {
        let Machine { device, iommu: _iommu } = &boot(lazy);
        device.set_mask(u64::MAX).expect("any mask will do");
        let frames = device.platform();
        // Every other page, so that no two become one.
        let memory = frames.alloc(FrameRequest::anywhere(512 * PAGE)).expect("memory");
        let at = NonNull::new(device.window().ptr(memory)).expect("not null");
        criterion.bench_function(&format!("map and unmap 4 KiB, {name}"), |bencher| {
            bencher.iter(|| single(device, black_box(at)));
        });
        let page = |number: u64| SgEntry::new(memory.wrapping_add(2 * number * PAGE as u64), PAGE);
        let mut pages: Vec<_> = (0..256).map(page).collect();
        criterion.bench_function(&format!("map and unmap a list of 256 x 4 KiB, {name}"), |bencher| {
            bencher.iter(|| list(device, black_box(&mut pages)));
        });
        // SAFETY: allocated above, and every mapping has ended.
        unsafe { frames.free(memory, 512 * PAGE) };
    }
}

criterion_group!(all, benches);
criterion_main!(all);
