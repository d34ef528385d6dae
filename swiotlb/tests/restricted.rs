//! Everything bounced: because the pool says so, or because the device has a pool of its own.

mod common;

use std::sync::Arc;

use common::{FOUR_GIB, Host, SEGMENT, configured, pattern};
use dma_api::{
    Attrs, CoherentMemory, CoherentSlice, Device, DeviceBuilder, Direction, DmaBuffer, DmaError, DmaMapOps,
    FromDevice, SgEntry, Streaming, ToDevice,
};
use platform::{DmaAddr, FrameRequest, Frames, PhysAddr, Platform};
use proptest::prelude::*;
use swiotlb::{Config, PoolTooSmall, SEGMENT_SLOTS, SLOT_SIZE, Statistics, SwiotlbDma};

const LIMIT: PhysAddr = PhysAddr::new(FOUR_GIB - 1);

fn restricted(host: &Arc<Host>, size: usize) -> (Arc<SwiotlbDma>, Arc<Device>) {
    let platform: Arc<dyn Platform> = host.clone();
    // SAFETY: the tests are the device, and touch only what they were given.
    let ops = Arc::new(unsafe { SwiotlbDma::restricted(platform, size, LIMIT, ()) }.unwrap());
    let device = DeviceBuilder::new("restricted").build(ops.clone(), host.clone());
    (ops, Arc::new(device))
}

/// A page that the device would reach.
fn page(host: &Arc<Host>) -> PhysAddr {
    host.alloc(FrameRequest { limit: LIMIT, ..FrameRequest::ONE }).unwrap()
}

fn used(ops: &SwiotlbDma) -> usize {
    ops.pool().unwrap().statistics().used
}

#[test]
fn a_forced_pool_bounces_what_the_device_reaches_and_no_device_memory() {
    let host = Host::new();
    let pool = configured(&host, &Config { size: SEGMENT, force: true, ..Config::default() });
    assert!(pool.is_forced());
    // SAFETY: the tests are the device, and touch only what they were given.
    let ops = Arc::new(unsafe { SwiotlbDma::new(host.clone(), Some(pool.clone()), ()) });
    let device = DeviceBuilder::new("forced").build(ops, host.clone());
    let at = page(&host);
    host.device_write(at.get(), &pattern(1, 4096));
    // SAFETY: the page is the test's.
    let mapped = unsafe { device.map_phys(at, 4096, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    assert!(pool.contains(PhysAddr::new(mapped.get())));
    host.device_write(mapped.get(), &pattern(2, 10));
    assert_eq!(host.device_read(at.get(), 10), pattern(1, 10), "nothing is seen before the unmap");
    // SAFETY: mapped above, ended once.
    unsafe { device.unmap_single(mapped, 4096, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    assert_eq!(host.device_read(at.get(), 10), pattern(2, 10));
    // SAFETY: nothing is there.
    let bar = unsafe { device.map_phys(0xe000_0000.into(), 4096, Direction::ToDevice, Attrs::MMIO) };
    assert_eq!(bar, Err(DmaError::NotRam));
    // Coherent memory is in reach, and needs no copy.
    let memory = CoherentSlice::<u8>::zeroed(&Arc::new(device), 4096).unwrap();
    assert!(!pool.contains(PhysAddr::new(memory.dma_address().get())));
}

#[test]
fn a_restricted_device_gets_no_address_outside_its_pool() {
    let host = Host::new();
    let (ops, device) = restricted(&host, SEGMENT);
    let pool = ops.pool().unwrap();
    assert!(pool.is_forced());
    let inside = |at: DmaAddr, len: usize| {
        pool.contains(PhysAddr::new(at.get())) && pool.contains(PhysAddr::new(at.get() + len as u64 - 1))
    };
    let heap = Streaming::<_, ToDevice>::map(&device, vec![1_u8; 100]).unwrap();
    assert!(inside(heap.dma_address(), 100));
    let mut near = DmaBuffer::<u8>::zeroed(&device, 5000).unwrap();
    near.copy_from_slice(&pattern(3, 5000));
    let near = Streaming::<_, FromDevice>::map(&device, near).unwrap();
    assert!(inside(near.dma_address(), 5000));
    host.device_write(near.dma_address().get(), &[9; 10]);
    let back = near.unmap().unwrap();
    assert_eq!((&back[..10], &back[10..]), (&[9; 10][..], &pattern(3, 5000)[10..]));
    let coherent = CoherentSlice::<u8>::zeroed(&device, 5000).unwrap();
    assert!(inside(coherent.dma_address(), 5000));
    let at = page(&host);
    let entry = |offset: u64| SgEntry::new(PhysAddr::new(at.get() + offset), 100);
    let mut list = [entry(0), entry(1000)];
    // SAFETY: the page is the test's; the list is ended below.
    let count = unsafe { device.map_sg(&mut list, Direction::ToDevice, Attrs::empty()) }.unwrap();
    assert!(list[..count].iter().all(|segment| inside(segment.dma_address, segment.dma_len)));
    // SAFETY: mapped above, ended once.
    unsafe { device.unmap_sg(&list, Direction::ToDevice, Attrs::empty()) }.unwrap();
    // SAFETY: nothing is there.
    let bar = unsafe { device.map_phys(0xe000_0000.into(), 4096, Direction::ToDevice, Attrs::MMIO) };
    assert_eq!(bar, Err(DmaError::NotRam), "another device's registers are not in the pool");
    assert_eq!(device.max_mapping_size(), SEGMENT);
}

#[test]
fn coherent_memory_of_a_restricted_device_is_zeroed_aligned_and_given_back() {
    let host = Host::new();
    let (ops, device) = restricted(&host, 2 * SEGMENT);
    // What other mappings left.
    for _ in 0..2 {
        Streaming::<_, ToDevice>::map(&device, vec![0xee_u8; SEGMENT]).unwrap().unmap().unwrap();
    }
    // Where the next free page is no better aligned than a page.
    let _first = CoherentSlice::<u8>::zeroed(&device, 1).unwrap();
    for (size, align, slots) in
        [(1, 4096, 2), (4097, 8192, 4), (3 * 4096, 4 * 4096, 6), (SEGMENT, SEGMENT, 128)]
    {
        let memory = CoherentSlice::<u8>::zeroed(&device, size).unwrap();
        let at = memory.dma_address().get();
        assert!(at.is_multiple_of(align as u64), "{size} bytes at {at:#x}");
        assert_eq!(host.device_read(at, size.next_multiple_of(4096)), vec![0; size.next_multiple_of(4096)]);
        assert_eq!(used(&ops), 2 + slots, "{size} bytes");
        host.device_write(at, &[0xdd]);
        assert_eq!(memory.read(0), 0xdd);
        drop(memory);
        assert_eq!(used(&ops), 2);
    }
    let refused = |size| CoherentSlice::<u8>::zeroed(&device, size).unwrap_err();
    assert_eq!(refused(SEGMENT + 1), DmaError::TooLargeForBounce { size: SEGMENT + 1, max: SEGMENT });
    let _held = CoherentSlice::<u8>::zeroed(&device, SEGMENT).unwrap();
    assert_eq!(refused(SEGMENT), DmaError::BouncePoolFull { size: SEGMENT, used: 130, total: 256 });
    assert_eq!(ops.alloc(device.parms(), 0, Attrs::empty()).unwrap_err(), DmaError::InvalidLength(0));
}

#[test]
fn coherent_memory_beyond_the_coherent_mask_is_refused_and_goes_back() {
    let host = Host::new();
    let (ops, device) = restricted(&host, SEGMENT);
    device.set_coherent_mask(0xff_ffff).unwrap();
    let refused = CoherentSlice::<u8>::zeroed(&device, 100).unwrap_err();
    assert!(matches!(refused, DmaError::MaskNotReachable { mask: 0xff_ffff, .. }), "{refused}");
    assert_eq!(used(&ops), 0);
}

#[test]
fn a_sync_does_not_take_coherent_memory_for_a_copy() {
    let host = Host::new();
    let (ops, device) = restricted(&host, SEGMENT);
    // From now on syncs look for copies.
    Streaming::<_, ToDevice>::map(&device, vec![1_u8; 10]).unwrap().unmap().unwrap();
    let memory = CoherentSlice::<u8>::zeroed(&device, 100).unwrap();
    // SAFETY: not a mapping, on purpose: there is no original that could be touched.
    unsafe { ops.sync_for_cpu(device.parms(), memory.dma_address(), 100, Direction::Bidirectional) };
    assert_eq!(ops.pool().unwrap().statistics().clamped, 1);
}

#[test]
fn a_restricted_pool_has_one_area_needs_a_segment_and_never_grows() {
    let host = Host::new();
    // SAFETY: no device ever gets these.
    let none = unsafe { SwiotlbDma::restricted(host.clone(), SEGMENT - 1, LIMIT, ()) };
    assert_eq!(none.err(), Some(PoolTooSmall(SEGMENT - 1)));
    let (ops, device) = restricted(&host, 3 * SEGMENT);
    let pool = ops.pool().unwrap();
    // Areas are a power of two in number: three segments are all there, and high water is the true peak.
    let held = [(); 3].map(|()| Streaming::<_, ToDevice>::map(&device, vec![1_u8; SEGMENT]).unwrap());
    let full = Streaming::<_, ToDevice>::map(&device, vec![1_u8; 1]).unwrap_err();
    assert_eq!(full.error, DmaError::BouncePoolFull { size: 1, used: 384, total: 384 });
    assert_eq!(pool.grow(), 0);
    drop(held);
    let expected = Statistics { slots: 384, high_water: 384, maps: 3, ..Statistics::default() };
    assert_eq!(pool.statistics(), expected);
    drop((ops, device));
    assert_eq!(host.live(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize),
    Free(usize),
    Map(usize, bool),
    Unmap(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![3 => 1..5000_usize, 1 => 1..=SEGMENT];
    prop_oneof![
        2 => len.clone().prop_map(Step::Alloc),
        1 => any::<usize>().prop_map(Step::Free),
        2 => (len, any::<bool>()).prop_map(|(len, writes)| Step::Map(len, writes)),
        1 => any::<usize>().prop_map(Step::Unmap),
    ]
}

/// What a restricted device has: ranges that hold what was written to them last.
struct Held<T> {
    what: T,
    at: u64,
    data: Vec<u8>,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn maps_and_coherent_memory_share_a_pool_and_no_byte(steps in prop::collection::vec(step(), 1..60)) {
        let host = Host::new();
        let (ops, device) = restricted(&host, 2 * SEGMENT);
        let pool = ops.pool().unwrap();
        let mut memory: Vec<Held<CoherentMemory>> = Vec::new();
        let mut maps: Vec<Held<common::Original>> = Vec::new();
        for (seed, step) in steps.into_iter().enumerate() {
            let dir = Direction::Bidirectional;
            match step {
                Step::Alloc(size) => {
                    if let Ok(what) = ops.alloc(device.parms(), size, Attrs::empty()) {
                        let at = what.dma.get();
                        prop_assert_eq!(host.device_read(at, size), vec![0; size]);
                        let data = pattern(seed as u8, size);
                        host.device_write(at, &data);
                        memory.push(Held { what, at, data });
                    }
                }
                Step::Free(which) if !memory.is_empty() => {
                    let Held { what, .. } = memory.swap_remove(which % memory.len());
                    // SAFETY: from `alloc`, freed once.
                    unsafe { ops.free(device.parms(), what, Attrs::empty()) }.unwrap();
                }
                Step::Map(len, writes) => {
                    let mut data = pattern(seed as u8, len);
                    let what = common::Original::new(seed, &data);
                    // SAFETY: the original lives as long as the mapping, in `maps`.
                    let mapped = unsafe { ops.map_foreign(device.parms(), what.ptr(), len, dir, Attrs::empty()) };
                    if let Ok(at) = mapped.map(DmaAddr::get) {
                        prop_assert_eq!(host.device_read(at, len), data.clone());
                        if writes {
                            data = pattern(!seed as u8, len);
                            host.device_write(at, &data);
                        }
                        maps.push(Held { what, at, data });
                    }
                }
                Step::Unmap(which) if !maps.is_empty() => {
                    let Held { what, at, data } = maps.swap_remove(which % maps.len());
                    // SAFETY: mapped, ended once.
                    unsafe { ops.unmap_phys(device.parms(), at.into(), what.len, dir, Attrs::empty()) }.unwrap();
                    prop_assert_eq!(what.read(), data);
                }
                Step::Free(_) | Step::Unmap(_) => {}
            }
            prop_assert!(pool.is_consistent());
            let frames: usize = memory.iter().map(|held| held.data.len().next_multiple_of(4096)).sum();
            let slots: usize = maps.iter().map(|held| held.data.len().div_ceil(SLOT_SIZE)).sum();
            prop_assert_eq!(used(&ops), frames / SLOT_SIZE + slots);
            prop_assert!(used(&ops) <= 2 * SEGMENT_SLOTS);
            let all = memory.iter().map(|held| (held.at, &held.data));
            for (at, data) in all.chain(maps.iter().map(|held| (held.at, &held.data))) {
                prop_assert!(pool.contains(at.into()) && pool.contains((at + data.len() as u64 - 1).into()));
                prop_assert!(host.device_read(at, data.len()) == *data, "somebody else wrote here");
            }
        }
        prop_assert_eq!(host.live(), 2 * SEGMENT, "nothing else was taken");
    }
}
