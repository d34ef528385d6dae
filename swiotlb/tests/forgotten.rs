//! `mem::forget` on every safe type of `dma-api` on a machine whose memory is the heap: what was forgotten stays the device's,
//! which reads and writes it after everything else has gone. Run by `cargo xtask sanitize`, AddressSanitizer finds whoever
//! touches what is free.

#[path = "common/heap.rs"]
mod heap;

use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma_api::{
    Bidirectional, BufferFor, Coherent, CoherentSlice, Device, DmaBuffer, DmaPool, FromDevice, MapDirection,
    ScatterList, Streaming, ToDevice,
};
use heap::{Heap, device, device_word};
use platform::DmaAddr;

const MARK: u64 = u64::from_le_bytes(*b"intruder");
/// What everybody else's memory holds.
const OTHERS: u8 = b'o';

/// What a device was given.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: DmaAddr,
    len: usize,
    writable: bool,
    /// In page frames, not elsewhere in the heap.
    frames: bool,
}

/// What the device does with it: everything that it may.
fn run(places: &[Place]) {
    for place in places {
        for offset in (0..place.len as u64).step_by(8) {
            // SAFETY: the device was given it, and nobody was given it back.
            let word = unsafe { device_word(place.at.wrapping_add(offset)) };
            if place.writable {
                word.store(MARK, Ordering::Relaxed);
            } else {
                assert_eq!(word.load(Ordering::Relaxed), 0);
            }
        }
    }
}

/// `body` maps and forgets; the device goes on.
fn forgotten(body: impl Fn(&Arc<Device>, &mut Vec<Place>)) {
    let heap = Arc::new(Heap::default());
    let device = device(&heap);
    let mut places = Vec::new();
    body(&device, &mut places);
    run(&places);
    drop(device);
    run(&places);
    let lens = || places.iter().map(|place| place.len);
    let others: Vec<_> = (0..16).flat_map(|_| lens().map(|len| vec![OTHERS; len])).collect();
    run(&places);
    assert!(others.iter().flatten().all(|&byte| byte == OTHERS));
    drop(others);
    run(&places);
    for place in places.iter().filter(|place| place.frames) {
        assert!(
            heap.is_live(place.at) && heap.is_live(place.at.wrapping_add(place.len as u64 - 1)),
            "{place:?}"
        );
    }
}

/// A mapping, and one that is the CPU's for now.
fn stream<B: BufferFor<D>, D: MapDirection>(
    device: &Device,
    frames: bool,
    make: impl Fn() -> B,
    places: &mut Vec<Place>,
) {
    for turned in [false, true] {
        let mapped = Streaming::<B, D>::map(device, make()).unwrap();
        let (at, len, writable) = (mapped.dma_address(), mapped.len(), D::DIRECTION.device_writes());
        places.push(Place { at, len, writable, frames });
        if turned { forget(mapped.sync_for_cpu()) } else { forget(mapped) }
    }
}

fn stream_each_way<B>(device: &Device, frames: bool, make: impl Fn() -> B, places: &mut Vec<Place>)
where
    B: BufferFor<ToDevice> + BufferFor<FromDevice> + BufferFor<Bidirectional>,
{
    stream::<B, ToDevice>(device, frames, &make, places);
    stream::<B, FromDevice>(device, frames, &make, places);
    stream::<B, Bidirectional>(device, frames, &make, places);
}

#[test]
fn streaming_maps() {
    forgotten(|device, places| {
        stream_each_way(device, true, || DmaBuffer::<u64>::zeroed(device, 700).unwrap(), places);
        stream_each_way(device, false, || vec![0u64; 700], places);
        stream_each_way(device, false, || vec![0u64; 64].into_boxed_slice(), places);
        stream::<Arc<[u64]>, ToDevice>(device, false, || vec![0u64; 64].into(), places);
    });
}

fn list<B: BufferFor<D>, D: MapDirection>(
    device: &Device,
    frames: bool,
    buffers: Vec<B>,
    places: &mut Vec<Place>,
) {
    let list = ScatterList::<B, D>::map(device, buffers).unwrap();
    let writable = D::DIRECTION.device_writes();
    places.extend(list.segments().map(|segment| Place {
        at: segment.address,
        len: segment.len,
        writable,
        frames,
    }));
    forget(list);
}

#[test]
fn scatter_lists() {
    forgotten(|device, places| {
        let buffers = || [512, 1024].map(|len| DmaBuffer::<u64>::zeroed(device, len).unwrap()).into();
        list::<_, ToDevice>(device, true, buffers(), places);
        list::<_, FromDevice>(device, true, buffers(), places);
        list::<_, Bidirectional>(device, true, buffers(), places);
        list::<_, FromDevice>(device, false, vec![vec![0u64; 64], vec![0; 700]], places);
        list::<_, ToDevice>(device, false, vec![Arc::<[u64]>::from(vec![0u64; 700]); 3], places);
    });
}

#[test]
fn coherent_memory() {
    forgotten(|device, places| {
        let mut place = |at, len| places.push(Place { at, len, writable: true, frames: true });
        let one = Coherent::<u64>::zeroed(device).unwrap();
        place(one.dma_address(), 8);
        let many = CoherentSlice::<u64>::zeroed(device, 1500).unwrap();
        place(many.dma_address(), 12000);
        let pool = DmaPool::new(device, "forgotten", 64, 64, 0).unwrap();
        let given_back = pool.alloc::<u64>().unwrap().dma_address();
        place(given_back, 64);
        forget((one, many, pool));
        let pool = DmaPool::new(device, "gone", 64, 64, 0).unwrap();
        let item = pool.alloc::<u64>().unwrap();
        place(item.dma_address(), 64);
        forget(item);
    });
}

/// The map of a borrowed slice ends with its scope; what the device had was a copy, in the bounce pool.
#[test]
fn borrowed_slices() {
    for panics in [false, true] {
        let heap = Arc::new(Heap::default());
        let device = device(&heap);
        let mut slice = vec![0u64; 64];
        let mut place = Place { at: DmaAddr::new(0), len: 8 * 64, writable: true, frames: true };
        let scope = AssertUnwindSafe(|| {
            device.map_scoped::<FromDevice, _, _>(&mut slice[..], |mapped| {
                place.at = mapped.dma_address();
                run(&[place]);
                assert!(!panics, "the scope is left by a panic");
            })
        });
        assert_eq!(catch_unwind(scope).is_err(), panics);
        assert_eq!(slice, [MARK; 64]);
        slice.fill(7);
        // It has not stopped.
        run(&[place]);
        assert_eq!(slice, [7; 64]);
        drop(slice);
        run(&[place]);
    }
}

/// A copy that is never unmapped keeps the pool's memory when the pool goes.
#[test]
fn a_pool_with_a_forgotten_copy() {
    let heap = Arc::new(Heap::default());
    let device = device(&heap);
    let (parms, ops) = (device.parms(), device.ops());
    let original = Box::leak(Box::new([0u64; 8]));
    let at = std::ptr::NonNull::from(&mut *original).cast();
    let (dir, attrs) = (dma_api::Direction::FromDevice, dma_api::Attrs::empty());
    // SAFETY: the original is leaked, and nobody has a reference to it.
    let copy = unsafe { ops.map_foreign(parms, at, 64, dir, attrs) }.unwrap();
    let place = Place { at: copy, len: 64, writable: true, frames: true };
    run(&[place]);
    drop(device);
    run(&[place]);
    assert!(heap.is_live(copy));
}
