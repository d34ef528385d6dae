//! DMA without an IOMMU: what is in reach is mapped where it is, what is not goes through the pool.

mod common;

use std::ptr::NonNull;
use std::sync::Arc;

use common::{Cache, FOUR_GIB, Host, SEGMENT, pattern, pool};
use dma_api::{
    Attrs, Bidirectional, BusRange, BusRanges, Calls, CoherentSlice, Device, DeviceBuilder, Direction,
    DmaBuffer, DmaError, FaultPlan, Faulty, FromDevice, ScopedError, Streaming, ToDevice,
};
use platform::{FrameRequest, Frames, PhysAddr, Platform};
use swiotlb::{Swiotlb, SwiotlbDma};

/// A page below 4 GiB or above it, freed at the end.
struct Page(Arc<Host>, PhysAddr);

impl Page {
    fn below(host: &Arc<Host>) -> Self {
        let limit = PhysAddr::new(FOUR_GIB - 1);
        Self(host.clone(), host.alloc(FrameRequest { limit, ..FrameRequest::ONE }).unwrap())
    }

    fn above(host: &Arc<Host>) -> Self {
        let page = Self(host.clone(), host.alloc(FrameRequest::ONE).unwrap());
        assert!(page.1.get() >= FOUR_GIB);
        page
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: taken once; the test has ended its mappings.
        unsafe { self.0.free(self.1, 4096) };
    }
}

fn ops(host: &Arc<Host>, pool: Option<&Arc<Swiotlb>>) -> SwiotlbDma {
    let platform: Arc<dyn Platform> = host.clone();
    // SAFETY: the tests are the devices, and touch only what they were given.
    unsafe { SwiotlbDma::new(platform, pool.cloned(), ()) }
}

fn device(host: &Arc<Host>, ops: SwiotlbDma) -> Arc<Device> {
    Arc::new(DeviceBuilder::new("test").build(Arc::new(ops), host.clone()))
}

fn limited_device(host: &Arc<Host>, ops: SwiotlbDma, limit: u64) -> Arc<Device> {
    let builder = DeviceBuilder::new("test").behind_bus(BusRanges::identity(), limit);
    Arc::new(builder.build(Arc::new(ops), host.clone()))
}

fn map(device: &Device, phys: PhysAddr, len: usize, dir: Direction, attrs: Attrs) -> Result<u64, DmaError> {
    // SAFETY: tests map pages that they hold, or device memory that nobody reaches.
    unsafe { device.map_phys(phys, len, dir, attrs) }.map(|address| address.get())
}

fn unmap(device: &Device, address: u64, len: usize, dir: Direction, attrs: Attrs) {
    // SAFETY: mapped by the test, ended once.
    unsafe { device.unmap_single(address.into(), len, dir, attrs) }.unwrap();
}

#[test]
fn below_the_mask_memory_is_mapped_where_it_is() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let device = device(&host, ops(&host, Some(&pool)));
    let page = Page::below(&host);
    let at = map(&device, page.1, 4096, Direction::Bidirectional, Attrs::empty()).unwrap();
    assert_eq!(at, page.1.get());
    unmap(&device, at, 4096, Direction::Bidirectional, Attrs::empty());
    device.set_mask(u64::MAX).unwrap();
    let page = Page::above(&host);
    assert_eq!(map(&device, page.1, 4096, Direction::ToDevice, Attrs::empty()), Ok(page.1.get()));
    assert_eq!(pool.statistics().maps, 0);
    assert!(!device.parms().needs_sync());
}

#[test]
fn above_the_mask_memory_is_bounced_both_ways() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let device = device(&host, ops(&host, Some(&pool)));
    // The 32-bit mask that every device begins with.
    let mut buffer = DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
    buffer.copy_from_slice(&pattern(1, 4096));
    assert!(buffer.phys().get() >= FOUR_GIB);
    let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap();
    let at = mapped.dma_address().get();
    assert!(at < FOUR_GIB && pool.contains(PhysAddr::new(at)));
    assert_eq!(host.device_read(at, 4096), pattern(1, 4096));
    host.device_write(at, &pattern(2, 100));
    let mut mine = mapped.sync_for_cpu();
    assert_eq!((mine.read(99), mine.read(100)), (pattern(2, 100)[99], pattern(1, 101)[100]));
    mine.write(200, 0xaa);
    let mapped = mine.sync_for_device();
    assert_eq!(host.device_read(at + 200, 1), [0xaa]);
    host.device_write(at + 300, &[0xbb]);
    let buffer = mapped.unmap().unwrap();
    assert_eq!((buffer[200], buffer[300], buffer[301]), (0xaa, 0xbb, pattern(1, 302)[301]));
    assert_eq!(pool.statistics().used, 0);
}

#[test]
fn memory_that_reaches_beyond_the_mask_by_one_byte_is_bounced() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let page = Page::below(&host);
    let limit = page.1.get() + 99;
    let device = limited_device(&host, ops(&host, Some(&pool)), limit);
    assert_eq!(map(&device, page.1, 100, Direction::ToDevice, Attrs::empty()), Ok(page.1.get()));
    // The pool is above that limit here, so that the copy does not help, and is given back.
    let error = map(&device, page.1, 101, Direction::ToDevice, Attrs::empty()).unwrap_err();
    let DmaError::MaskNotReachable { address, mask } = error else { panic!("{error}") };
    assert!(pool.contains(address));
    assert_eq!((mask, pool.statistics().used, pool.statistics().maps), (limit, 0, 1));
}

#[test]
fn coherent_memory_is_below_the_coherent_mask_and_the_bus_limit() {
    let host = Host::new();
    let last = |device: &Arc<Device>| {
        let memory = CoherentSlice::<u8>::zeroed(device, 8192).unwrap();
        assert!((0..8192).all(|index| memory.read(index) == 0));
        memory.dma_address().get() + 8191
    };
    let free = device(&host, ops(&host, None));
    free.set_streaming_mask(u64::MAX).unwrap();
    assert!(last(&free) < FOUR_GIB);
    free.set_coherent_mask(u64::MAX).unwrap();
    assert!(last(&free) >= FOUR_GIB);
    let limited = limited_device(&host, ops(&host, None), FOUR_GIB - 1);
    limited.set_mask(u64::MAX).unwrap();
    assert!(last(&limited) < FOUR_GIB);
    assert_eq!(host.live(), 0, "freed when dropped");
    limited.set_mask(0xffff).unwrap();
    assert_eq!(CoherentSlice::<u8>::zeroed(&limited, 1).unwrap_err(), DmaError::OutOfMemory);
}

#[test]
fn a_bus_limit_bounces_whatever_the_mask() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let device = limited_device(&host, ops(&host, Some(&pool)), FOUR_GIB - 1);
    device.set_mask(u64::MAX).unwrap();
    let page = Page::above(&host);
    let at = map(&device, page.1, 4096, Direction::ToDevice, Attrs::empty()).unwrap();
    assert!(pool.contains(PhysAddr::new(at)));
    unmap(&device, at, 4096, Direction::ToDevice, Attrs::empty());
}

#[test]
fn device_memory_is_never_bounced_nor_its_caches_touched() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let ops = Arc::new(ops(&host, Some(&pool)));
    let device = DeviceBuilder::new("test").coherent(false).build(ops, host.clone());
    let bar = PhysAddr::new(0xe000_0000);
    let at = map(&device, bar, 4096, Direction::Bidirectional, Attrs::MMIO).unwrap();
    assert_eq!(at, bar.get());
    unmap(&device, at, 4096, Direction::Bidirectional, Attrs::MMIO);
    let high = PhysAddr::new(0x38_0000_0000);
    let refused = map(&device, high, 4096, Direction::Bidirectional, Attrs::MMIO);
    assert_eq!(refused, Err(DmaError::MaskNotReachable { address: high, mask: FOUR_GIB - 1 }));
    assert_eq!((host.take_cache(), pool.statistics().maps), (vec![], 0));
}

#[test]
fn memory_that_is_not_ram_is_bounced_or_refused_by_name() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let with = device(&host, ops(&host, Some(&pool)));
    let mapped = Streaming::<_, FromDevice>::map(&with, vec![1_u8; 100]).unwrap();
    host.device_write(mapped.dma_address().get(), &[2; 50]);
    let vec = mapped.unmap().unwrap();
    assert_eq!((vec[49], vec[50]), (2, 1));
    let failed = Streaming::<_, ToDevice>::map(&with, vec![3_u8; SEGMENT + 1]).unwrap_err();
    assert_eq!(failed.error, DmaError::TooLargeForBounce { size: SEGMENT + 1, max: SEGMENT });
    assert!(failed.buffer == vec![3; SEGMENT + 1], "the buffer comes back");
    assert_eq!(with.max_mapping_size(), SEGMENT);

    let without = device(&host, ops(&host, None));
    let failed = Streaming::<_, ToDevice>::map(&without, vec![4_u8; 100]).unwrap_err();
    assert_eq!(failed.error, DmaError::NotRam);
    let page = Page::above(&host);
    let refused = map(&without, page.1, 1, Direction::ToDevice, Attrs::empty());
    assert_eq!(refused, Err(DmaError::MaskNotReachable { address: page.1, mask: FOUR_GIB - 1 }));
    assert_eq!(without.max_mapping_size(), usize::MAX);
}

#[test]
fn caches_of_a_device_that_does_not_snoop_are_kept_in_step() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let ops = Arc::new(ops(&host, Some(&pool)));
    let device = DeviceBuilder::new("test").coherent(false).build(ops, host.clone());
    let (direct, bounced) = (Page::below(&host), Page::above(&host));
    for page in [&direct, &bounced] {
        for dir in [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional] {
            let at = map(&device, page.1, 512, dir, Attrs::empty()).unwrap();
            assert_eq!(host.take_cache(), [Cache::Clean(at, 512)], "{dir:?}");
            // The CPU's lines of what the device only reads may be newer than memory: they are not dropped.
            let invalidate =
                |at, len| if dir.device_writes() { vec![Cache::Invalidate(at, len)] } else { vec![] };
            // SAFETY: a part of the live mapping.
            unsafe { device.ops().sync_for_cpu(device.parms(), (at + 8).into(), 16, dir) };
            assert_eq!(host.take_cache(), invalidate(at + 8, 16), "{dir:?}");
            // SAFETY: as above.
            unsafe { device.ops().sync_for_device(device.parms(), (at + 8).into(), 16, dir) };
            assert_eq!(host.take_cache(), [Cache::Clean(at + 8, 16)], "{dir:?}");
            unmap(&device, at, 512, dir, Attrs::empty());
            assert_eq!(host.take_cache(), invalidate(at, 512), "{dir:?}");

            let at = map(&device, page.1, 512, dir, Attrs::SKIP_CPU_SYNC).unwrap();
            unmap(&device, at, 512, dir, Attrs::SKIP_CPU_SYNC);
            assert_eq!(host.take_cache(), [], "{dir:?}");
        }
    }
    assert_eq!(pool.statistics().maps, 6);
}

#[test]
fn what_guards_the_ops_is_dropped_with_them() {
    let host = Host::new();
    let platform: Arc<dyn Platform> = host.clone();
    let guard = Arc::new(());
    // SAFETY: no device ever gets these.
    let ops = unsafe { SwiotlbDma::new(platform, None, guard.clone()) };
    let device = DeviceBuilder::new("test").build(Arc::new(ops), host.clone());
    assert_eq!(Arc::strong_count(&guard), 2);
    drop(device);
    assert_eq!(Arc::strong_count(&guard), 1);
}

#[test]
fn a_forgotten_mapping_keeps_its_pool() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let device = device(&host, ops(&host, Some(&pool)));
    let mapped = Streaming::<_, FromDevice>::map(&device, vec![0_u8; 100]).unwrap();
    let at = mapped.dma_address();
    std::mem::forget(mapped);
    drop((device, pool));
    assert_eq!(host.live(), SEGMENT, "the device may still write there");
    host.device_write(at.get(), &[1; 100]);
}

#[test]
fn no_bytes_cannot_be_mapped() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let device = device(&host, ops(&host, Some(&pool)));
    // SAFETY: nothing is mapped.
    let none = unsafe { device.map_single(NonNull::dangling(), 0, Direction::ToDevice, Attrs::empty()) };
    assert_eq!(none, Err(DmaError::InvalidLength(0)));
    // Past the device's checks, as a scatter list's element comes.
    // SAFETY: as above.
    let none = unsafe {
        device.ops().map_phys(device.parms(), PhysAddr::new(FOUR_GIB), 0, Direction::ToDevice, Attrs::empty())
    };
    assert_eq!(none, Err(DmaError::InvalidLength(0)));
}

#[test]
fn a_scoped_map_whose_unmap_fails_costs_a_slot_and_nothing_else() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let plan = Arc::new(FaultPlan::default());
    let ops = Arc::new(Faulty::new(ops(&host, Some(&pool)), plan.clone()));
    let device = DeviceBuilder::new("test").build(ops, host.clone());
    let mut slice = pattern(1, 100);
    let write = |slice: &mut [u8]| {
        device.map_scoped::<FromDevice, _, _>(slice, |mapped| {
            host.device_write(mapped.dma_address().get(), &[7; 50]);
            mapped.dma_address().get()
        })
    };
    write(&mut slice).unwrap();
    assert_eq!((&slice[..50], &slice[50..]), (&[7; 50][..], &pattern(1, 100)[50..]));
    assert_eq!(pool.statistics().used, 0);

    plan.fail_nth(Calls::UNMAP_PHYS, 1, DmaError::IommuTimedOut);
    slice = pattern(2, 100);
    let ScopedError::Unmap(lost) = write(&mut slice).unwrap_err() else { panic!("the map failed") };
    assert_eq!((pool.statistics().used, lost.len), (1, 100));
    host.device_write(lost.address.get(), &[8; 100]);
    let other = write(&mut [0; 100]).unwrap();
    assert_ne!(other, lost.address.get(), "the slot is not used again");
    assert_eq!(slice, pattern(2, 100));
}

#[test]
fn what_must_be_coherent_is_not_bounced() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let device = device(&host, ops(&host, Some(&pool)));
    let (dir, attrs) = (Direction::ToDevice, Attrs::REQUIRE_COHERENT);
    let above = Page::above(&host);
    assert_eq!(map(&device, above.1, 8, dir, attrs), Err(DmaError::NotCoherent));
    let below = Page::below(&host);
    let at = map(&device, below.1, 8, dir, attrs).unwrap();
    unmap(&device, at, 8, dir, attrs);
    assert_eq!(pool.statistics().maps, 0);
}

/// What the bus shows elsewhere is found there, bounced or not.
#[test]
fn a_bus_that_shows_memory_elsewhere_shows_the_pool_there_too() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let shift = 0x100_0000_0000;
    let all = BusRange { phys: PhysAddr::new(0), dma: shift.into(), size: 1 << 39 };
    let builder = DeviceBuilder::new("test").behind_bus(BusRanges::new([all]).unwrap(), shift + FOUR_GIB - 1);
    let device = builder.build(Arc::new(ops(&host, Some(&pool))), host.clone());
    device.set_mask(u64::MAX).unwrap();
    let (below, above) = (Page::below(&host), Page::above(&host));
    let (dir, attrs) = (Direction::Bidirectional, Attrs::empty());
    assert_eq!(map(&device, below.1, 8, dir, attrs), Ok(below.1.get() + shift));
    let at = map(&device, above.1, 8, dir, attrs).unwrap();
    assert!(pool.contains(PhysAddr::new(at - shift)));
    unmap(&device, at, 8, dir, attrs);
    assert_eq!(pool.statistics().used, 0);
}
