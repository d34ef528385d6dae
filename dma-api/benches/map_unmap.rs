//! A mapping made and ended where nothing is translated or copied: directly, under each decorator, and through ops that are
//! known when it is compiled; beside the machine's own limits: an uncontended `lock cmpxchg`, and the three dynamic calls that
//! are between a driver and its ops (`translate`, `map_phys`, `unmap_phys`).

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Host;
use criterion::{Criterion, criterion_group, criterion_main};
use dma_api::{
    Attrs, Calls, Checked, Counted, Device, DeviceBuilder, DeviceParms, Direction, DmaBuffer, DmaDebug,
    DmaDirect, DmaError, DmaMapOps, FaultPlan, Faulty,
};
use platform::PhysAddr;

const LENS: [(usize, &str); 3] = [(64, "64 B"), (4096, "4 KiB"), (64 << 10, "64 KiB")];
const DIR: Direction = Direction::Bidirectional;
const NONE: Attrs = Attrs::empty();

fn direct(host: &Arc<Host>) -> DmaDirect {
    // SAFETY: no device touches anything.
    unsafe { DmaDirect::new(host.clone(), ()) }
}

/// A driver's calls.
#[inline(never)]
fn once(device: &Device, at: NonNull<u8>, len: usize) {
    // SAFETY: the buffer outlives the mapping, which no device uses, and is unmapped once.
    unsafe {
        let address = device.map_single(at, len, DIR, NONE).expect("the device reaches everything");
        device.unmap_single(address, len, DIR, NONE).expect("nothing can go wrong");
    }
}

/// The ops' part alone.
#[inline(never)]
fn once_through<T: DmaMapOps + ?Sized>(ops: &T, parms: &DeviceParms, phys: PhysAddr) {
    // SAFETY: as above.
    unsafe {
        let address = ops.map_phys(parms, phys, 4096, DIR, NONE).expect("the device reaches everything");
        ops.unmap_phys(parms, address, 4096, DIR, NONE).expect("nothing can go wrong");
    }
}

/// The shape of a call through a table of functions.
trait Call {
    fn call(&self, arguments: [u64; 2]) -> u64;
}

impl Call for u64 {
    #[inline(never)]
    fn call(&self, arguments: [u64; 2]) -> u64 {
        self ^ arguments[0] ^ arguments[1]
    }
}

fn limits(criterion: &mut Criterion) {
    let word = AtomicU64::new(0);
    criterion.bench_function("lock cmpxchg, uncontended", |bencher| {
        bencher.iter(|| {
            let old = word.load(Ordering::Relaxed);
            word.compare_exchange(old, black_box(old + 1), Ordering::AcqRel, Ordering::Relaxed)
        });
    });
    let callee: &dyn Call = &7;
    criterion.bench_function("three dynamic calls", |bencher| {
        bencher.iter(|| {
            let callee = black_box(callee);
            callee.call([callee.call([callee.call([1, 2]), 3]), 4])
        });
    });
}

fn devices(criterion: &mut Criterion) {
    let host = Arc::new(Host::new());
    let (ops, debug) = (direct(&host), Arc::new(DmaDebug::new()));
    let plan = FaultPlan::default();
    plan.fail_nth(Calls::MAPS, u64::MAX, DmaError::OutOfMemory);
    let under: [(&str, Arc<dyn DmaMapOps>); 4] = [
        ("direct", Arc::new(ops)),
        ("counted", Arc::new(Counted::new(direct(&host), Arc::default()))),
        ("faulty, one rule", Arc::new(Faulty::new(direct(&host), Arc::new(plan)))),
        ("checked", Arc::new(Checked::new(direct(&host), "device", &debug))),
    ];
    for (how, ops) in under {
        let device = Arc::new(DeviceBuilder::new("device").build(ops, host.clone()));
        device.set_mask(u64::MAX).expect("any mask will do");
        for (len, name) in LENS {
            let buffer = DmaBuffer::<u8>::zeroed(&device, len).expect("there is memory");
            let at = NonNull::from(&buffer[0]);
            criterion.bench_function(&format!("map and unmap {name}, {how}"), |bencher| {
                bencher.iter(|| once(&device, black_box(at), len));
            });
        }
    }
    assert_eq!(debug.take_reports(), []);
}

fn dyn_and_generic(criterion: &mut Criterion) {
    let host = Arc::new(Host::new());
    let parms = DeviceParms::new(true, false);
    let ops = direct(&host);
    let phys = PhysAddr::new(common::BASE);
    criterion.bench_function("ops alone, direct, generic", |bencher| {
        bencher.iter(|| once_through(black_box(&ops), &parms, black_box(phys)));
    });
    let through: &dyn DmaMapOps = &ops;
    criterion.bench_function("ops alone, direct, dyn", |bencher| {
        bencher.iter(|| once_through(black_box(through), &parms, black_box(phys)));
    });
    let counted = Counted::new(&ops, Arc::default());
    criterion.bench_function("ops alone, counted, generic", |bencher| {
        bencher.iter(|| once_through(black_box(&counted), &parms, black_box(phys)));
    });
    let counted = Counted::new(through, Arc::default());
    let counted: &dyn DmaMapOps = &counted;
    criterion.bench_function("ops alone, counted, dyn in dyn", |bencher| {
        bencher.iter(|| once_through(black_box(counted), &parms, black_box(phys)));
    });
}

criterion_group!(all, limits, devices, dyn_and_generic);
criterion_main!(all);
