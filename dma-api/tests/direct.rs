//! `DmaDirect`: where a device finds memory, which memory it finds, and what is refused by which name.

mod common;

use std::sync::Arc;

use common::{BASE, Cache, Host, LOW, PAGE, SIZE, pattern};
use dma_api::{
    Attrs, Bidirectional, BusRange, BusRanges, CoherentSlice, Device, DeviceBuilder, DeviceParms, Direction,
    DmaBuffer, DmaDirect, DmaError, DmaMapOps, InvalidBusRange, Streaming, ToDevice,
};
use platform::{DmaAddr, PhysAddr, Platform};

/// Where the upper half of memory begins.
const HIGH: u64 = LOW + 1;
const HALF: u64 = SIZE / 2;

fn range(phys: u64, dma: u64, size: u64) -> BusRange {
    BusRange { phys: PhysAddr::new(phys), dma: DmaAddr::new(dma), size }
}

/// The two halves of memory change places: the upper one is shown from 0x1000 on, the lower one far above.
fn swapped() -> BusRanges {
    BusRanges::new([range(BASE, FAR, HALF), range(HIGH, 0x1000, HALF)]).unwrap()
}

const FAR: u64 = 0x40_0000_0000;

fn ops(host: &Arc<Host>) -> Arc<DmaDirect> {
    let platform: Arc<dyn Platform> = host.clone();
    // SAFETY: the devices of these tests are the tests themselves, which write where they were told to.
    Arc::new(unsafe { DmaDirect::new(platform, ()) })
}

fn device(host: &Arc<Host>, ranges: BusRanges) -> Arc<Device> {
    limited_device(host, ranges, u64::MAX)
}

fn limited_device(host: &Arc<Host>, ranges: BusRanges, limit: u64) -> Arc<Device> {
    let builder = DeviceBuilder::new("direct").behind_bus(ranges, limit);
    let device = builder.build(ops(host), host.clone());
    device.set_mask(u64::MAX).unwrap();
    Arc::new(device)
}

fn map(device: &Device, phys: u64, len: usize, attrs: Attrs) -> Result<u64, DmaError> {
    // SAFETY: nobody uses the mapping.
    let mapped = unsafe { device.map_phys(PhysAddr::new(phys), len, Direction::ToDevice, attrs) };
    mapped.map(DmaAddr::get)
}

#[test]
fn without_ranges_memory_is_where_it_is() {
    let host = Arc::new(Host::new());
    let device = device(&host, BusRanges::identity());
    let mut buffer = DmaBuffer::<u8>::zeroed(&device, 100).unwrap();
    buffer.copy_from_slice(&pattern(1, 100));
    let phys = buffer.phys();
    let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap();
    assert_eq!(mapped.dma_address().get(), phys.get());
    assert_eq!(host.device_read(phys, 100), pattern(1, 100));
    host.device_write(phys, &[7; 100]);
    assert_eq!(mapped.unmap().unwrap()[..], [7; 100]);
    assert_eq!(host.live(), 0);
}

#[test]
fn each_range_has_its_distance() {
    let host = Arc::new(Host::new());
    let device = device(&host, swapped());
    for (phys, dma) in
        [(BASE, FAR), (BASE + 5, FAR + 5), (HIGH, 0x1000), (HIGH + HALF - 8, 0x1000 + HALF - 8)]
    {
        assert_eq!(map(&device, phys, 8, Attrs::empty()), Ok(dma));
    }
    let phys = |at| swapped().to_phys(DmaAddr::new(at)).map(PhysAddr::get);
    assert_eq!((phys(FAR), phys(FAR + HALF - 1), phys(FAR + HALF)), (Some(BASE), Some(LOW), None));
    assert_eq!((phys(0xfff), phys(0x1000), phys(0x1000 + HALF)), (None, Some(HIGH), None));
}

#[test]
fn what_no_range_holds_whole_is_not_on_the_bus() {
    let host = Arc::new(Host::new());
    let device = device(&host, swapped());
    let not_on_bus = |phys| Err(DmaError::NotOnBus { address: PhysAddr::new(phys) });
    for (phys, len) in [(BASE - 1, 1), (BASE - 1, 2), (LOW, 2), (HIGH + HALF - 1, 2), (HIGH + HALF, 1)] {
        assert_eq!(map(&device, phys, len, Attrs::empty()), not_on_bus(phys), "{phys:#x}");
    }
    assert_eq!(map(&device, u64::MAX, 2, Attrs::empty()), Err(DmaError::InvalidLength(2)));
}

#[test]
fn the_mask_is_of_the_devices_addresses() {
    let host = Arc::new(Host::new());
    let device = device(&host, swapped());
    device.set_streaming_mask(0xffff).unwrap();
    assert_eq!(map(&device, HIGH + 0xeff0, 16, Attrs::empty()), Ok(0xfff0));
    let refused = |phys, mask| Err(DmaError::MaskNotReachable { address: PhysAddr::new(phys), mask });
    assert_eq!(map(&device, HIGH + 0xeff0, 17, Attrs::empty()), refused(HIGH + 0xeff0, 0xffff));
    assert_eq!(map(&device, BASE, 1, Attrs::empty()), refused(BASE, 0xffff));

    let limited = limited_device(&host, swapped(), FAR + 9);
    assert_eq!(map(&limited, BASE, 10, Attrs::empty()), Ok(FAR));
    assert_eq!(map(&limited, BASE, 11, Attrs::empty()), refused(BASE, FAR + 9));
}

#[test]
fn a_mask_is_supported_when_it_reaches_a_range() {
    let host = Arc::new(Host::new());
    let high = || BusRanges::new([range(BASE, FAR, HALF)]).unwrap();
    let device = device(&host, high());
    assert_eq!(device.set_mask(FAR - 1), Err(DmaError::MaskNotSupported { mask: FAR - 1 }));
    assert_eq!(device.parms().streaming_mask(), u64::MAX);
    device.set_mask((FAR << 1) - 1).unwrap();
    let parms = DeviceParms::new(true, false).behind_bus(high(), FAR - 1);
    assert!(!ops(&host).dma_supported(&parms, u64::MAX), "the bus does not let it through");
}

#[test]
fn the_required_mask_reaches_the_last_of_the_ram() {
    let host = Arc::new(Host::new());
    let required = |ranges, limit| limited_device(&host, ranges, limit).required_mask();
    // RAM ends below 2 GiB + 32 MiB.
    assert_eq!(required(BusRanges::identity(), u64::MAX), 0xffff_ffff);
    assert_eq!(required(swapped(), 0xffff_ffff), 0x7f_ffff_ffff);
    let upper_at = |dma| BusRanges::new([range(HIGH, dma, HALF)]).unwrap();
    assert_eq!(required(upper_at(0x1000), u64::MAX), 0x3ff_ffff);
    // A range that is longer than the RAM in it counts as far as RAM goes, one beyond it not at all.
    assert_eq!(required(BusRanges::new([range(HIGH, 0, 1 << 40)]).unwrap(), u64::MAX), 0x1ff_ffff);
    assert_eq!(required(BusRanges::new([range(BASE + SIZE, FAR, HALF)]).unwrap(), u64::MAX), 0);
    let device = device(&host, BusRanges::identity());
    assert!(!device.addressing_limited());
    device.set_mask(LOW).unwrap();
    assert!(device.addressing_limited());
    assert!(limited_device(&host, BusRanges::identity(), LOW).addressing_limited());
}

#[test]
fn coherent_memory_comes_from_a_range_that_the_mask_reaches() {
    let host = Arc::new(Host::new());
    let device = device(&host, swapped());
    let at = |device| {
        let memory = CoherentSlice::<u8>::zeroed(device, 2 * PAGE).unwrap();
        memory.write(2 * PAGE - 1, 3);
        memory.dma_address().get()
    };
    // The first range reaches the upper end of the lower half.
    assert_eq!(at(&device), FAR + HALF - 2 * PAGE as u64);
    device.set_coherent_mask(0xff_ffff).unwrap();
    assert_eq!(at(&device), 0x100_0000 - 2 * PAGE as u64);
    assert_eq!(host.live(), 0);
    device.set_coherent_mask(0x1fff).unwrap();
    let refused = CoherentSlice::<u8>::zeroed(&device, 2 * PAGE).unwrap_err();
    // The highest that the limit allows reaches into the half below, which is shown elsewhere.
    assert_eq!(refused, DmaError::NotOnBus { address: PhysAddr::new(HIGH - PAGE as u64) });
    assert_eq!(host.live(), 0, "what did not do was given back");
}

#[test]
fn memory_that_is_not_ram_is_refused_by_name() {
    let host = Arc::new(Host::new());
    let device = device(&host, swapped());
    let failed = Streaming::<_, ToDevice>::map(&device, vec![1u8; 10]).unwrap_err();
    assert_eq!((failed.error, failed.buffer), (DmaError::NotRam, vec![1; 10]));
}

#[test]
fn another_devices_registers_are_where_they_are() {
    let host = Arc::new(Host::new());
    let device = limited_device(&host, swapped(), 0xffff_ffff);
    assert_eq!(map(&device, 0xffff_f000, 4096, Attrs::MMIO), Ok(0xffff_f000));
    let refused = DmaError::MaskNotReachable { address: PhysAddr::new(FAR), mask: 0xffff_ffff };
    assert_eq!(map(&device, FAR, 4096, Attrs::MMIO), Err(refused));
}

#[test]
fn caches_are_kept_in_step_at_the_physical_address() {
    let host = Arc::new(Host::new());
    let snooping = device(&host, swapped());
    let device = DeviceBuilder::new("direct")
        .coherent(false)
        .behind_bus(swapped(), u64::MAX)
        .build(ops(&host), host.clone());
    device.set_mask(u64::MAX).unwrap();
    let phys = HIGH + 0x2000;
    for dir in [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional] {
        let clean = |at: u64, len| vec![Cache::Clean { phys: at, len }];
        let invalidate = |at: u64, len| {
            if dir.device_writes() { vec![Cache::Invalidate { phys: at, len }] } else { vec![] }
        };
        // SAFETY: nobody uses the memory; unmapped once as mapped, and synced within.
        unsafe {
            let address = device.map_phys(PhysAddr::new(phys), 64, dir, Attrs::empty()).unwrap();
            assert_eq!((address.get(), host.take_cache()), (0x3000, clean(phys, 64)), "{dir:?}");
            device.ops().sync_for_cpu(device.parms(), address.wrapping_add(8), 16, dir);
            assert_eq!(host.take_cache(), invalidate(phys + 8, 16), "{dir:?}");
            device.ops().sync_for_device(device.parms(), address.wrapping_add(8), 16, dir);
            assert_eq!(host.take_cache(), clean(phys + 8, 16), "{dir:?}");
            device.unmap_single(address, 64, dir, Attrs::empty()).unwrap();
            assert_eq!(host.take_cache(), invalidate(phys, 64), "{dir:?}");

            for (device, attrs) in
                [(&device, Attrs::SKIP_CPU_SYNC), (&device, Attrs::MMIO), (&snooping, Attrs::empty())]
            {
                let address = device.map_phys(PhysAddr::new(phys), 64, dir, attrs).unwrap();
                device.unmap_single(address, 64, dir, attrs).unwrap();
            }
        }
        assert_eq!(host.take_cache(), [], "{dir:?}");
    }
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let ok = range(BASE, 0x1000, 0x1000);
    for bad in [
        range(BASE, 0, 0),
        range(u64::MAX, 0, 2),
        range(0, u64::MAX, 2),
        range(0, 0xfff, 2),
        range(0, 0x1fff, 1),
        range(0, 0, 0x4000),
    ] {
        assert_eq!(BusRanges::new([ok, bad]), Err(InvalidBusRange(bad)));
    }
    // The same memory twice is what some buses have; it is shown through the first range.
    let twice = BusRanges::new([ok, range(BASE, 0, 0x1000), range(0, 0x2000, 1)]).unwrap();
    let host = Arc::new(Host::new());
    assert_eq!(map(&device(&host, twice), BASE, 8, Attrs::empty()), Ok(0x1000));
}

#[test]
fn gaps_are_what_no_range_shows() {
    let gaps = |ranges: &[BusRange]| {
        let gaps = BusRanges::new(ranges.to_vec()).unwrap().gaps();
        gaps.into_iter().map(|(first, last)| (first.get(), last.get())).collect::<Vec<_>>()
    };
    let shown = [range(0, 0x9000, 0x1000), range(BASE, 0x2000, 0x1000), range(0, 0xa000, 0x10)];
    assert_eq!(gaps(&shown), [(0, 0x1fff), (0x3000, 0x8fff), (0xa010, u64::MAX)]);
    assert_eq!(gaps(&[range(0, 0, u64::MAX)]), [(u64::MAX, u64::MAX)]);
    assert_eq!(gaps(&[range(0, 1 << 63, 1 << 63)]), [(0, (1 << 63) - 1)]);
    assert_eq!(gaps(&[]), [(0, u64::MAX)]);
    assert_eq!(BusRanges::identity().gaps(), []);
}

#[test]
fn what_guards_the_ops_is_dropped_with_them() {
    let host = Arc::new(Host::new());
    let guard = Arc::new(());
    // SAFETY: no device ever gets these.
    let ops = unsafe { DmaDirect::new(host.clone(), guard.clone()) };
    let mapped = DeviceBuilder::new("direct").build(Arc::new(ops), host.clone());
    assert_eq!(Arc::strong_count(&guard), 2);
    drop(mapped);
    assert_eq!(Arc::strong_count(&guard), 1);
}
