//! `mem::forget` on every safe type of `dma-api`, then the device writes where it was told: whatever the machine, no free frame
//! changes and nobody else's memory does. (`swiotlb`'s test of this name is the same on frames that AddressSanitizer sees.)

mod common;

use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine;
use common::engine::RawEngine;
use common::{IDENTITY, LAZY, boot, boot_without_iommu};
use dma_api::{
    Bidirectional, BufferFor, Coherent, CoherentSlice, Device, DmaBuffer, DmaPool, FromDevice, MapDirection,
    ScatterList, Streaming, ToDevice,
};
use platform::{DmaAddr, Platform};

const PAGE: usize = 4096;
const MARK: [u8; 8] = *b"intruder";
/// What everybody else's memory holds.
const OTHERS: u8 = b'o';

/// Where the device was told to write, what is there, how many bytes it was given, and whether it may write them.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: DmaAddr,
    len: usize,
    what: &'static str,
    /// When not, an IOMMU refuses; without one the device could, if it did not keep to what it was told.
    writable: bool,
}

fn machines() -> [(&'static str, SimMachine); 4] {
    [
        ("strict", boot(|_| {})),
        ("lazy", boot(|config| config.settings = LAZY)),
        ("identity", boot(|config| config.settings = IDENTITY)),
        ("without an IOMMU", boot_without_iommu()),
    ]
}

fn bound(name: &str, machine: &SimMachine) -> (RawEngine, Arc<Device>) {
    let address = SimMachine::address(Machine::ENGINE);
    let (function, device) = if name == "strict" {
        machine.bind(address).unwrap()
    } else {
        // SAFETY: the device writes only where it was told, and nobody was given that back; all of it is memory of the machine,
        // which is no memory of the process.
        unsafe { machine.trust(address) }.unwrap()
    };
    device.set_mask(u64::MAX).unwrap();
    (RawEngine::new(&*function), Arc::new(device))
}

/// Writes the first, a middle and the last word of each place; whether all of them arrived, for each.
fn write(engine: &RawEngine, places: &[Place]) -> Vec<bool> {
    let write = |&Place { at, len, .. }: &Place| {
        let reached =
            [0, (len / 2) & !7, len - 8].map(|offset| engine.write(at.wrapping_add(offset as u64), MARK));
        reached == [true; 3]
    };
    places.iter().map(write).collect()
}

/// On each machine: `body` maps and forgets, and the device writes at once, after everything else has gone, and after the
/// memory that is free then has had other owners.
fn forgotten(body: impl Fn(&Arc<Device>, &mut Vec<Place>)) {
    for (name, machine) in machines() {
        let (engine, device) = bound(name, &machine);
        let mut places = Vec::new();
        body(&device, &mut places);
        for (place, reached) in places.iter().zip(write(&engine, &places)) {
            assert!(reached || !place.writable, "{name}: no access to {} at {}", place.what, place.at);
        }
        drop(device);
        write(&engine, &places);
        assert_eq!(machine.check_free_memory(), [], "{name}: {places:?}");
        let platform: Arc<dyn Platform> = machine.platform().clone();
        let page = |_| DmaBuffer::<u8>::zeroed_in(&platform, PAGE).unwrap();
        let mut others: Vec<_> = (0..256).map(page).collect();
        others.iter_mut().for_each(|other| other.fill(OTHERS));
        write(&engine, &places);
        assert!(others.iter().flat_map(|other| &other[..]).all(|&byte| byte == OTHERS), "{name}: {places:?}");
        drop(others);
        write(&engine, &places);
        assert_eq!(machine.check_free_memory(), [], "{name}, in the end: {places:?}");
    }
}

fn pages(device: &Device, count: usize) -> DmaBuffer<u8> {
    DmaBuffer::zeroed(device, count * PAGE).unwrap()
}

fn words(device: &Device, count: usize) -> DmaBuffer<u64> {
    DmaBuffer::zeroed(device, count).unwrap()
}

/// A mapping, and one that is the CPU's for now.
fn stream<B: BufferFor<D>, D: MapDirection>(device: &Device, make: impl Fn() -> B, places: &mut Vec<Place>) {
    for turned in [false, true] {
        let mapped = Streaming::<B, D>::map(device, make()).unwrap();
        let (at, len) = (mapped.dma_address(), mapped.len());
        let writable = D::DIRECTION.device_writes();
        places.push(Place { at, len, what: std::any::type_name::<Streaming<'_, B, D>>(), writable });
        if turned { forget(mapped.sync_for_cpu()) } else { forget(mapped) }
    }
}

fn stream_each_way<B>(device: &Device, make: impl Fn() -> B, places: &mut Vec<Place>)
where
    B: BufferFor<ToDevice> + BufferFor<FromDevice> + BufferFor<Bidirectional>,
{
    stream::<B, ToDevice>(device, &make, places);
    stream::<B, FromDevice>(device, &make, places);
    stream::<B, Bidirectional>(device, &make, places);
}

#[test]
fn streaming_maps() {
    forgotten(|device, places| {
        stream_each_way(device, || pages(device, 2), places);
        stream_each_way(device, || words(device, 64), places);
        stream_each_way(device, || vec![0u64; 700], places);
        stream_each_way(device, || vec![0u8; 512].into_boxed_slice(), places);
        stream::<Arc<[u8]>, ToDevice>(device, || vec![0u8; 512].into(), places);
    });
}

/// Every segment of a list.
fn list<B: BufferFor<D>, D: MapDirection>(device: &Device, buffers: Vec<B>, places: &mut Vec<Place>) {
    let list = ScatterList::<B, D>::map(device, buffers).unwrap();
    let (what, writable) = (std::any::type_name::<ScatterList<'_, B, D>>(), D::DIRECTION.device_writes());
    places.extend(list.segments().map(|segment| Place {
        at: segment.address,
        len: segment.len,
        what,
        writable,
    }));
    forget(list);
}

#[test]
fn scatter_lists() {
    forgotten(|device, places| {
        let three = || [1, 3, 2].map(|count| pages(device, count)).into();
        list::<_, ToDevice>(device, three(), places);
        list::<_, FromDevice>(device, three(), places);
        list::<_, Bidirectional>(device, three(), places);
        list::<_, FromDevice>(device, vec![words(device, 64), words(device, 800)], places);
        list::<_, FromDevice>(device, vec![vec![0u8; 512], vec![0u8; 9000]], places);
        list::<_, ToDevice>(device, vec![Arc::<[u8]>::from(vec![0u8; 5000]); 3], places);
    });
}

#[test]
fn coherent_memory() {
    forgotten(|device, places| {
        let mut place = |at, len, what| places.push(Place { at, len, what, writable: true });
        let one = Coherent::new(device, 7u64).unwrap();
        place(one.dma_address(), 8, "Coherent");
        let many = CoherentSlice::<u64>::zeroed(device, 1500).unwrap();
        place(many.dma_address(), 12000, "CoherentSlice");
        let pool = DmaPool::new(device, "forgotten", 64, 64, 0).unwrap();
        let given_back = pool.alloc::<u64>().unwrap().dma_address();
        // The device should have stopped; but the memory is still the pool's.
        place(given_back, 64, "a block of a forgotten pool");
        forget((one, many, pool));
        let pool = DmaPool::new(device, "gone", 64, 64, 0).unwrap();
        let item = pool.alloc::<u64>().unwrap();
        place(item.dma_address(), 64, "a block whose pool is gone");
        forget(item);
    });
}

#[test]
fn a_device_and_a_buffer_that_was_never_mapped() {
    forgotten(|device, places| {
        forget(pages(device, 2));
        stream::<_, FromDevice>(device, || pages(device, 1), places);
        forget(Arc::clone(device));
    });
}

/// The map of a borrowed slice cannot be forgotten: it ends with its scope, and the device only ever had a copy.
#[test]
fn borrowed_slices_after_their_scope() {
    forgotten(|device, places| {
        for panics in [false, true] {
            let mut slice = [OTHERS; 512];
            let mut at = None;
            let scope = AssertUnwindSafe(|| {
                device.map_scoped::<FromDevice, _, _>(&mut slice[..], |mapped| {
                    at = Some(mapped.dma_address());
                    assert!(!panics, "the scope is left by a panic");
                })
            });
            assert_eq!(catch_unwind(scope).is_err(), panics);
            assert_eq!(slice, [OTHERS; 512]);
            places.push(Place { at: at.unwrap(), len: 512, what: "a scope that is over", writable: false });
        }
    });
}
