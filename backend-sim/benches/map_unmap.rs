//! One 4 KiB mapping made and ended, from the driver's call to the table entry and back, beside the machine's own limit: an
//! uncontended `lock cmpxchg`.
//!
//! `strict` waits for the invalidation, which the simulated unit executes on a thread of its own: its time is that of two
//! threads meeting. `lazy` is the stack's own work; its flush of everything comes once in 256 unmaps. `bounced` is the same
//! call without an IOMMU, for memory above 4 GiB: the time of two copies.

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use backend_sim::sim_hardware::Machine;
use backend_sim::{Config, SimMachine};
use criterion::{Criterion, criterion_group, criterion_main};
use dma_api::{Attrs, Device, Direction, DmaBuffer};
use iommu_core::Settings;

const PAGE: usize = 4096;

fn machine(settings: Settings, iommu: bool) -> (tempfile::NamedTempFile, SimMachine) {
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    disk.as_file().set_len(1 << 20).expect("a disk of 1 MiB");
    let config = Config { settings, ..Config::new(disk.path()) };
    let config = if iommu { config } else { config.without_iommu() };
    (disk, SimMachine::boot(config).expect("the machine boots"))
}

fn map_and_unmap(criterion: &mut Criterion, name: &str, settings: Settings, iommu: bool) {
    let (_disk, machine) = machine(settings, iommu);
    // SAFETY: the engine is never told to do anything.
    let bound = unsafe { machine.trust(SimMachine::address(Machine::ENGINE)) };
    let (_function, device) = bound.expect("the engine is free");
    device.set_mask(u64::MAX).expect("any mask will do");
    let buffer = DmaBuffer::<u8>::zeroed(&device, PAGE).expect("a page");
    let at = NonNull::from(&buffer[0]);
    criterion.bench_function(name, |bencher| bencher.iter(|| once(&device, black_box(at))));
}

#[inline(never)]
fn once(device: &Device, at: NonNull<u8>) {
    // SAFETY: the page outlives the mapping, which no device uses, and is unmapped once.
    unsafe {
        let mapped = device.map_single(at, PAGE, Direction::Bidirectional, Attrs::empty());
        let address = mapped.expect("there are addresses");
        device
            .unmap_single(address, PAGE, Direction::Bidirectional, Attrs::empty())
            .expect("the unit answers");
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
    let lazy = Settings { lazy: true, ..Settings::default() };
    map_and_unmap(criterion, "map and unmap 4 KiB, bounced", Settings::default(), false);
    map_and_unmap(criterion, "map and unmap 4 KiB, lazy", lazy, true);
    map_and_unmap(criterion, "map and unmap 4 KiB, strict", Settings::default(), true);
}

criterion_group!(all, benches);
criterion_main!(all);
