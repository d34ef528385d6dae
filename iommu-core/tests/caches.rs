//! A device whose accesses do not agree with the CPU's caches: what is written back and dropped, and when.

mod common;

use common::{Bench, Cache, NIC, PAGE, Setup, map, unmap};
use dma_api::{Attrs, Device, Direction, SgEntry};
use platform::PhysAddr;

fn setup() -> Setup {
    let mut setup = Setup::default();
    setup.knobs.coherent = false;
    setup
}

/// Whole pages are mapped where they are.
fn trusted() -> (Bench, Device) {
    let bench = setup().bench();
    let device = bench.bind_trusted(NIC);
    assert!(!device.parms().is_coherent() && device.parms().needs_sync());
    (bench, device)
}

#[test]
fn memory_is_written_back_for_the_device_and_dropped_for_the_cpu_where_the_device_writes() {
    let (bench, device) = trusted();
    let memory = bench.host.memory(2 * PAGE as usize);
    let (phys, len) = (memory.phys() + 8, 5000);
    for dir in [Direction::ToDevice, Direction::FromDevice, Direction::Bidirectional] {
        let at = map(&device, phys, len, dir).unwrap();
        assert_eq!(bench.host.take_cache(), [Cache::Clean { phys, len }]);
        unmap(&device, at, len, dir).unwrap();
        let dropped = [Cache::Invalidate { phys, len }];
        assert_eq!(bench.host.take_cache(), &dropped[..usize::from(dir.device_writes())], "{dir:?}");
    }
}

#[test]
fn a_sync_follows_the_segment_of_a_list_from_page_to_page() {
    let (bench, device) = trusted();
    let memory = bench.host.memory(4 * PAGE as usize);
    let (first, second) = (memory.phys() + 3 * PAGE, memory.phys() + PAGE);
    let entry = |phys| SgEntry::new(PhysAddr::new(phys), PAGE as usize);
    let mut list = [entry(first), entry(second)];
    let dir = Direction::FromDevice;
    // SAFETY: the memory stays until the list is unmapped.
    assert_eq!(unsafe { device.map_sg(&mut list, dir, Attrs::empty()) }, Ok(1), "one segment of two pages");
    bench.host.take_cache();
    let (from, len) = (list[0].dma_address.wrapping_add(PAGE - 16), 32);
    // SAFETY: the range is in the mapping.
    unsafe { device.ops().sync_for_cpu(device.parms(), from, len, dir) };
    let dropped = |phys, len| Cache::Invalidate { phys, len };
    assert_eq!(bench.host.take_cache(), [dropped(first + PAGE - 16, 16), dropped(second, 16)]);
    // SAFETY: as above.
    unsafe { device.ops().sync_for_device(device.parms(), from, len, dir) };
    let cleaned = |phys, len| Cache::Clean { phys, len };
    assert_eq!(bench.host.take_cache(), [cleaned(first + PAGE - 16, 16), cleaned(second, 16)]);
    // SAFETY: the list is as it was mapped.
    unsafe { device.unmap_sg(&list, dir, Attrs::empty()) }.unwrap();
}

#[test]
fn a_bounced_copy_is_written_back_with_its_zeros_and_dropped_before_it_is_copied_back() {
    let bench = setup().untrusted(NIC).bench();
    let device = bench.bind(NIC);
    let memory = bench.host.memory(PAGE as usize);
    for attrs in [Attrs::empty(), Attrs::SKIP_CPU_SYNC] {
        let dir = Direction::FromDevice;
        // SAFETY: the memory stays until it is unmapped.
        let at = unsafe { device.map_phys(PhysAddr::new(memory.phys() + 8), 100, dir, attrs) }.unwrap();
        let copy = bench.toy.reach(NIC, at, true).unwrap();
        let page = Cache::Clean { phys: copy & !(PAGE - 1), len: PAGE as usize };
        assert_eq!(bench.host.take_cache(), [page], "the whole page is the device's to see");
        // SAFETY: it was mapped so.
        unsafe { device.unmap_single(at, 100, dir, attrs) }.unwrap();
        let dropped = [Cache::Invalidate { phys: copy, len: 100 }];
        let skipped = attrs.contains(Attrs::SKIP_CPU_SYNC);
        assert_eq!(bench.host.take_cache(), &dropped[..usize::from(!skipped)]);
    }
}
