//! Memory that a device has for as long as it is bound: which calls that spares, and what it leaves as it is.

mod common;

use std::sync::Arc;

use backend_vfio::{Config, Registered, Vfio, VfioError};
use common::{Bed, Call, NVME, READ, WRITE};
use dma_api::{
    Bidirectional, CoherentSlice, Device, DmaBuffer, DmaError, DmaMapOps, FromDevice, ScatterList, Streaming,
    ToDevice,
};
use platform::PhysAddr;

const GROUP: u32 = 7;
const ARENA: usize = 8 << 20;
const COPY_MAX: usize = Registered::<&dyn DmaMapOps>::COPY_MAX;

fn open(bed: &Bed, arena: usize) -> Vfio {
    Vfio::open(Config { host: bed.host(), bounce_pool: 1 << 20, arena, ..Config::new([NVME]) }).unwrap()
}

fn registered(vfio: &Vfio) -> Arc<Device> {
    // SAFETY: the tests' device does nothing.
    let (_function, device) = unsafe { vfio.trust_registered(NVME) }.unwrap();
    Arc::new(device)
}

/// Where the device finds what the process has at an address of the arena.
fn expected(bed: &Bed, at: PhysAddr) -> u64 {
    let maps = bed.mock.maps(GROUP).unwrap();
    let (iova, arena) = maps.first_key_value().unwrap();
    iova + (at.get() - arena.vaddr)
}

#[test]
fn the_arena_is_mapped_once_and_buffers_in_it_take_no_call() {
    let bed = Bed::new();
    let vfio = open(&bed, ARENA);
    bed.mock.calls();
    let device = registered(&vfio);
    let Some(&[Call::Map { iova, len, flags }]) = bed.mock.calls().first_chunk() else { panic!("no map") };
    assert_eq!((len, flags), (ARENA as u64, READ | WRITE));
    let buffer = DmaBuffer::<u8>::zeroed(&device, 12_288).unwrap();
    let wanted = expected(&bed, buffer.phys());
    let mapped = Streaming::<_, FromDevice>::map(&device, buffer).unwrap();
    assert_eq!(mapped.dma_address().get(), wanted);
    assert!(bed.mock.dma_write(GROUP, wanted + 5000, 0x5a));
    let buffer = mapped.unmap().unwrap();
    assert_eq!(buffer[5000], 0x5a);
    // A direction is not a permission here, and an unmap not an end.
    let mapped = Streaming::<_, ToDevice>::map(&device, buffer).unwrap();
    assert!(bed.mock.dma_write(GROUP, wanted, 1));
    let buffer = mapped.unmap().unwrap();
    assert!(bed.mock.dma_write(GROUP, wanted, 2));
    drop(buffer);
    let words = CoherentSlice::<u64>::zeroed(&device, 512).unwrap();
    assert!((iova..iova + len).contains(&words.dma_address().get()));
    assert_eq!((words.read(0), words.read(511)), (0, 0), "frames come zeroed, used before or not");
    assert!(bed.mock.dma_write(GROUP, words.dma_address().get(), 3));
    assert_eq!(words.read(0), 3);
    drop(words);
    assert_eq!(bed.mock.calls(), []);
    drop(device);
    assert_eq!(bed.mock.calls(), [Call::Unmap { iova, len }]);
    assert_eq!(vfio.iommu().statistics().quarantined, 0);
}

#[test]
fn a_list_in_the_arena_takes_no_call_and_one_elsewhere_is_mapped() {
    let bed = Bed::new();
    let vfio = open(&bed, ARENA);
    let device = registered(&vfio);
    bed.mock.calls();
    let pages = |len| DmaBuffer::<u8>::zeroed(&device, len).unwrap();
    let list = ScatterList::<_, Bidirectional>::map(&device, vec![pages(4096), pages(8192)]).unwrap();
    assert_eq!(list.segments().map(|segment| segment.len).collect::<Vec<_>>(), [4096, 8192]);
    for segment in list.segments() {
        assert!(bed.mock.dma_write(GROUP, segment.address.get(), 9));
    }
    assert!(list.unmap().unwrap().iter().all(|buffer| buffer[0] == 9));
    assert_eq!(bed.mock.calls(), []);
    // One of them is not in the arena.
    let list = ScatterList::<_, Bidirectional>::map(&device, vec![vec![0; 4096], vec![0_u8; 5]]).unwrap();
    assert_ne!(bed.mock.calls(), []);
    list.unmap().unwrap();
    assert_eq!(bed.mock.maps(GROUP).unwrap().len(), 1);
}

#[test]
fn a_short_buffer_elsewhere_is_copied_and_a_longer_one_mapped() {
    let bed = Bed::new();
    let vfio = open(&bed, ARENA);
    let device = registered(&vfio);
    bed.mock.calls();
    let mapped = Streaming::<_, Bidirectional>::map(&device, vec![7_u8; COPY_MAX]).unwrap();
    let at = mapped.dma_address().get();
    assert!(bed.mock.dma_write(GROUP, at + 1, 8));
    let owned = mapped.sync_for_cpu();
    let mut seen = [0; 3];
    owned.copy_to_slice(0, &mut seen);
    assert_eq!(seen, [7, 8, 7]);
    let mapped = owned.sync_for_device();
    assert!(bed.mock.dma_write(GROUP, at + 2, 9));
    assert_eq!(mapped.unmap().unwrap()[..4], [7, 8, 9, 7]);
    assert_eq!(bed.mock.calls(), []);
    assert_eq!(vfio.bounce().statistics().used, 0);
    let mapped = Streaming::<_, ToDevice>::map(&device, vec![0_u8; COPY_MAX + 1]).unwrap();
    let at = mapped.dma_address().get();
    assert!(!bed.mock.dma_write(GROUP, at, 1), "it has its direction's permission");
    mapped.unmap().unwrap();
    assert_eq!(bed.mock.maps(GROUP).unwrap().len(), 1);
}

#[test]
fn what_the_device_cannot_reach_there_is_mapped_for_itself() {
    let bed = Bed::new();
    let vfio = open(&bed, ARENA);
    let device = registered(&vfio);
    const NARROW: u64 = 0x0fff_ffff;
    device.set_mask(NARROW).unwrap();
    let mapped =
        Streaming::<_, ToDevice>::map(&device, DmaBuffer::<u8>::zeroed(&device, 4096).unwrap()).unwrap();
    assert!(mapped.dma_address().get() <= NARROW);
    let words = CoherentSlice::<u64>::zeroed(&device, 512).unwrap();
    assert!(words.dma_address().get() <= NARROW);
    mapped.unmap().unwrap();
    drop(words);
    assert_eq!(bed.mock.maps(GROUP).unwrap().len(), 1);
    drop(device);
    assert_eq!(vfio.platform().bytes_in_use(), 1 << 20, "only the bounce pool is left");
}

#[test]
fn an_arena_that_is_used_up_gives_way_to_other_memory() {
    let bed = Bed::new();
    let vfio = open(&bed, ARENA);
    let device = registered(&vfio);
    let long = CoherentSlice::<u8>::zeroed(&device, ARENA).unwrap();
    assert_eq!(bed.mock.maps(GROUP).unwrap().len(), 2);
    assert!(bed.mock.dma_write(GROUP, long.dma_address().get(), 1));
    drop(long);
    let buffers: Vec<_> = (0..5).map(|_| DmaBuffer::<u8>::zeroed(&device, 2 << 20).unwrap()).collect();
    assert_eq!(buffers.len(), 5);
}

#[test]
fn without_an_arena_there_is_nothing_to_register() {
    let bed = Bed::new();
    let vfio = open(&bed, 0);
    // SAFETY: nothing is had.
    let refused = unsafe { vfio.trust_registered(NVME) };
    assert!(matches!(refused, Err(VfioError::NoArena(NVME))));
    let vfio = {
        drop(vfio);
        open(&bed, ARENA)
    };
    bed.mock.knobs(|knobs| knobs.locked = 4096);
    // SAFETY: as above.
    let refused = unsafe { vfio.trust_registered(NVME) };
    assert!(matches!(refused, Err(VfioError::Register { address: NVME, .. })));
    // It was given back.
    bed.mock.knobs(|knobs| knobs.locked = u64::MAX);
    drop(registered(&vfio));
}

#[test]
fn a_removed_device_is_gone_though_nothing_is_asked_of_the_kernel() {
    let bed = Bed::new();
    let vfio = open(&bed, ARENA);
    let device = registered(&vfio);
    let buffer = DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
    vfio.iommu().remove(NVME);
    let refused = Streaming::<_, ToDevice>::map(&device, buffer).unwrap_err();
    assert_eq!(refused.error, DmaError::Gone);
}
