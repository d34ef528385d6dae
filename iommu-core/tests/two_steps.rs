//! The two-step interface: I/O addresses first, then memory piece by piece.

mod common;

use common::{Bench, Did, NIC, PAGE, Setup};
use dma_api::{Attrs, Device, Direction, DmaError, DmaIova, IovaPart, Segment};
use platform::{DmaAddr, PhysAddr, Prot};

const LEN: usize = PAGE as usize;

fn iova<'d>(device: &'d Device, phys: u64, size: usize, dir: Direction) -> DmaIova<'d> {
    let iova = DmaIova::new(device, PhysAddr::new(phys), size, dir, Attrs::empty()).unwrap();
    assert!(iova.is_contiguous());
    iova
}

fn link(iova: &mut DmaIova<'_>, offset: usize, phys: u64, len: usize) -> Result<(), DmaError> {
    // SAFETY: the toy's devices touch nothing by themselves, so any memory may be named.
    unsafe { iova.link(offset, PhysAddr::new(phys), len) }
}

/// What a device that is trusted with whole pages reaches, by reading.
fn reach(bench: &Bench, at: DmaAddr, offset: u64) -> Option<u64> {
    bench.toy.reach(NIC, at.wrapping_add(offset), false)
}

fn trusted() -> (Bench, Device) {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    (bench, device)
}

#[test]
fn pieces_anywhere_in_memory_lie_one_after_the_other_for_the_device() {
    let (bench, device) = trusted();
    let mut iova = iova(&device, 0x30_0e00, 0x200 + LEN + 100, Direction::ToDevice);
    link(&mut iova, 0, 0x30_0e00, 0x200).unwrap();
    link(&mut iova, 0x200 + LEN, 0x10_0000, 100).unwrap();
    link(&mut iova, 0x200, 0x50_0000, LEN).unwrap();
    let segments = iova.sync().unwrap();
    let [Segment { address, len }] = segments[..] else { panic!("{segments:?}") };
    assert_eq!((len, address.get() % PAGE), (0x200 + LEN + 100, 0xe00));
    assert_eq!(reach(&bench, address, 0x1ff), Some(0x30_0fff));
    assert_eq!(reach(&bench, address, 0x200), Some(0x50_0000));
    assert_eq!(reach(&bench, address, 0x200 + PAGE + 99), Some(0x10_0063));
    assert_eq!(bench.toy.reach(NIC, address, true), None, "to the device");
    iova.destroy().unwrap();
    assert_eq!(reach(&bench, address, 0x200), None);
}

#[test]
fn one_sync_makes_all_links_visible_and_one_invalidation_ends_them() {
    let mut setup = Setup::default();
    setup.knobs.needs_sync_map = true;
    let bench = setup.bench();
    let device = bench.bind_trusted(NIC);
    let mut iova = iova(&device, 0, 3 * LEN, Direction::Bidirectional);
    bench.toy.take_log();
    for page in 0..3 {
        link(&mut iova, page * LEN, 0x10_0000 + 0x10_0000 * page as u64, LEN).unwrap();
    }
    let synced = |log: &[Did]| log.iter().filter(|did| matches!(did, Did::SyncMap { .. })).count();
    assert_eq!(synced(&bench.toy.take_log()), 0, "a link is not visible yet");
    let at = iova.sync().unwrap()[0].address.get();
    assert_eq!(bench.toy.take_log(), [Did::SyncMap { iova: at, len: 3 * PAGE }]);
    iova.destroy().unwrap();
    let last = at + 3 * PAGE - 1;
    let ended = [Did::Unmap { iova: at, len: 3 * PAGE }, Did::Sync { first: at, last }];
    assert_eq!(bench.toy.take_log(), ended);
    bench.toy.set_silent(true);
    let mut iova = self::iova(&device, 0, LEN, Direction::ToDevice);
    link(&mut iova, 0, 0x10_0000, LEN).unwrap();
    assert_eq!(iova.sync(), Err(DmaError::IommuTimedOut));
    iova.destroy().unwrap_err();
}

#[test]
fn only_the_first_piece_may_begin_within_a_page() {
    let (bench, device) = trusted();
    let mut iova = iova(&device, 0x10_0010, 3 * LEN, Direction::ToDevice);
    let refused = Err(DmaError::InvalidAlignment(0x10));
    assert_eq!(link(&mut iova, LEN, 0x20_0010, LEN), refused, "its page is not the beginning's");
    assert_eq!(link(&mut iova, 0, 0x10_0000, LEN), Err(DmaError::InvalidAlignment(0)), "not as was said");
    link(&mut iova, 0, 0x10_0010, LEN - 0x10).unwrap();
    link(&mut iova, LEN - 0x10, 0x20_0000, LEN).unwrap();
    let maps = |log: Vec<Did>| log.into_iter().filter(|did| matches!(did, Did::Map { .. })).count();
    assert_eq!(maps(bench.toy.take_log()), 2);
}

#[test]
fn a_piece_that_is_not_within_or_overlaps_another_is_refused() {
    let (_bench, device) = trusted();
    for size in [0, usize::MAX, 1 << 63] {
        let refused = DmaIova::new(&device, PhysAddr::new(0), size, Direction::ToDevice, Attrs::empty());
        assert_eq!(refused.unwrap_err(), DmaError::InvalidLength(size));
    }
    let mut iova = iova(&device, 0, 4 * LEN, Direction::ToDevice);
    link(&mut iova, LEN, 0x10_0000, 2 * LEN).unwrap();
    for (offset, len) in
        [(0, 0), (0, 2 * LEN), (LEN, LEN), (2 * LEN, LEN), (3 * LEN, 2 * LEN), (0, 4 * LEN), (usize::MAX, 1)]
    {
        let refused = Err(DmaError::InvalidLength(len));
        assert_eq!(link(&mut iova, offset, 0x40_0000, len), refused, "{len:#x} bytes at {offset:#x}");
    }
    link(&mut iova, 0, 0x50_0000, LEN).unwrap();
    link(&mut iova, 3 * LEN, 0x60_0000, LEN).unwrap();
}

#[test]
fn an_unlink_is_strict_in_a_lazy_domain_and_a_destroy_is_not() {
    let bench = Setup::default().lazy().bench();
    let device = bench.bind_trusted(NIC);
    let mut iova = iova(&device, 0, 2 * LEN, Direction::ToDevice);
    link(&mut iova, 0, 0x10_0000, LEN).unwrap();
    link(&mut iova, LEN, 0x20_0000, LEN).unwrap();
    let at = iova.sync().unwrap()[0].address;
    assert!(reach(&bench, at, 0).is_some() && reach(&bench, at, PAGE).is_some());
    assert_eq!(iova.unlink(0), Ok(true));
    assert_eq!(reach(&bench, at, 0), None, "the device is out at once");
    assert!(reach(&bench, at, PAGE).is_some());
    assert_eq!(iova.unlink(0), Ok(false), "nothing is linked there");
    link(&mut iova, 0, 0x30_0000, LEN).unwrap();
    iova.sync().unwrap();
    bench.toy.take_log();
    iova.destroy().unwrap();
    let log = bench.toy.take_log();
    assert!(matches!(log[..], [Did::Unmap { .. }]), "{log:?}");
    assert!(reach(&bench, at, PAGE).is_some(), "remembered until the flush");
    bench.tick();
    assert_eq!(reach(&bench, at, PAGE), None);
}

#[test]
fn what_is_dropped_is_unlinked_with_its_holes_and_its_addresses_come_back() {
    // Room for four pages.
    let bench = Setup::default().aperture(0x4000, 0x7fff).bench();
    let device = bench.bind_trusted(NIC);
    for _ in 0..3 {
        let mut iova = iova(&device, 0, 4 * LEN, Direction::ToDevice);
        link(&mut iova, LEN, 0x10_0000, LEN).unwrap();
        link(&mut iova, 3 * LEN, 0x20_0000, LEN).unwrap();
        let segments = iova.sync().unwrap();
        assert_eq!(segments.len(), 2);
        drop(iova);
        assert_eq!(reach(&bench, segments[1].address, 0), None);
    }
    drop(iova(&device, 0, 4 * LEN, Direction::ToDevice));
    drop(iova(&device, 0, 4 * LEN, Direction::ToDevice));
}

#[test]
fn without_addresses_for_the_whole_each_piece_has_its_own() {
    let bench = Setup::default().aperture(0x1000, 0x4fff).bench();
    let device = bench.bind_trusted(NIC);
    let mut iova =
        DmaIova::new(&device, PhysAddr::new(0), 5 * LEN, Direction::ToDevice, Attrs::empty()).unwrap();
    assert!(!iova.is_contiguous());
    link(&mut iova, 0, 0x10_0010, 100).unwrap();
    link(&mut iova, 4 * LEN, 0x20_0020, 100).unwrap();
    let segments = iova.sync().unwrap();
    assert_eq!(segments.len(), 2);
    assert_eq!(reach(&bench, segments[1].address, 0), Some(0x20_0020));
    assert_eq!(iova.unlink(4 * LEN), Ok(true));
    assert_eq!(reach(&bench, segments[1].address, 0), None);
    iova.destroy().unwrap();
    assert_eq!(reach(&bench, segments[0].address, 0), None);
}

#[test]
fn a_link_that_fails_half_way_leaves_nothing_and_the_others_alone() {
    let (bench, device) = trusted();
    let mut iova = iova(&device, 0, 4 * LEN, Direction::ToDevice);
    link(&mut iova, 0, 0x10_0000, LEN).unwrap();
    bench.toy.set_pages_left(2);
    assert_eq!(link(&mut iova, LEN, 0x20_0000, 3 * LEN), Err(DmaError::OutOfMemory));
    bench.toy.set_pages_left(u64::MAX);
    let at = iova.sync().unwrap()[0].address;
    assert!(reach(&bench, at, 0).is_some());
    assert_eq!(reach(&bench, at, PAGE), None);
    link(&mut iova, LEN, 0x30_0000, 3 * LEN).unwrap();
    assert_eq!(iova.sync().unwrap()[0].len, 4 * LEN);
    assert_eq!(reach(&bench, at, PAGE), Some(0x30_0000));
    iova.destroy().unwrap();
    assert_eq!(bench.iommu.statistics().quarantined, 0);
}

#[test]
fn what_the_iommu_does_not_confirm_is_never_used_again() {
    let (bench, device) = trusted();
    // A link that cannot be undone.
    let mut first = iova(&device, 0, 2 * LEN, Direction::ToDevice);
    bench.toy.set_pages_left(1);
    bench.toy.set_silent(true);
    let failed = link(&mut first, 0, 0x20_0000, 2 * LEN);
    assert!(matches!(failed, Err(DmaError::NotUndone(lost)) if lost.len == 2 * LEN), "{failed:?}");
    bench.toy.set_pages_left(u64::MAX);
    bench.toy.set_silent(false);
    assert_eq!(link(&mut first, 0, 0x20_0000, LEN), failed, "the range is given up");
    first.destroy().unwrap_err();
    assert_eq!(bench.iommu.statistics().quarantined, 2 * PAGE);
    // An unlink and a destroy that are not answered.
    let mut second = iova(&device, 0, 2 * LEN, Direction::ToDevice);
    link(&mut second, 0, 0x10_0000, LEN).unwrap();
    bench.toy.set_silent(true);
    let lost = second.unlink(0).unwrap_err();
    assert_eq!(second.unlink(0), Err(lost));
    drop(second);
    assert_eq!(bench.iommu.statistics().quarantined, 4 * PAGE);
    let mut third = iova(&device, 0, LEN, Direction::ToDevice);
    link(&mut third, 0, 0x10_0000, LEN).unwrap();
    third.destroy().unwrap_err();
    assert_eq!(bench.iommu.statistics().quarantined, 5 * PAGE);
}

#[test]
fn an_untrusted_device_sees_copies_of_the_parts_of_pages_and_zeros_around_them() {
    let bench = Setup::default().untrusted(NIC).bench();
    let device = bench.bind(NIC);
    let memory = bench.host.memory(4 * LEN);
    bench.host.device_write(memory.phys(), &[0xee; 4 * LEN]);
    let (phys, len) = (memory.phys() + 0x100, 2 * LEN);
    for linked in [len, 50] {
        let mut iova = iova(&device, phys, len, Direction::Bidirectional);
        link(&mut iova, 0, phys, linked).unwrap();
        let at = iova.sync().unwrap()[0].address;
        let end = at.get() + linked as u64;
        for page in (at.get() & !(PAGE - 1)..end).step_by(LEN) {
            let reached = bench.toy.reach(NIC, DmaAddr::new(page), true).unwrap();
            let inside = page >= at.get() && page + PAGE <= end;
            assert_eq!(reached == memory.phys() + PAGE, inside, "only a whole page is where it is");
            let bytes = bench.host.device_read(reached, LEN);
            for (offset, byte) in bytes.into_iter().enumerate() {
                let mine = (at.get()..end).contains(&(page + offset as u64));
                assert_eq!(byte, if mine { 0xee } else { 0 }, "{offset:#x} in {page:#x}");
            }
        }
        // What the device writes at both ends comes back.
        let last = DmaAddr::new(end - 1);
        for place in [at, last] {
            bench.host.device_write(bench.toy.reach(NIC, place, true).unwrap(), &[0x11]);
        }
        iova.destroy().unwrap();
        assert_eq!(bench.host.device_read(phys, 1), [0x11]);
        assert_eq!(bench.host.device_read(phys + linked as u64 - 1, 3), [0x11, 0xee, 0xee]);
        assert_eq!(bench.toy.reach(NIC, at, false), None);
        assert_eq!(bench.pool.statistics().used, 0);
        bench.host.device_write(memory.phys(), &[0xee; 4 * LEN]);
    }
    assert_eq!(bench.iommu.statistics().bounces, 3);
}

#[test]
fn a_bounced_link_is_unlinked_strictly_and_refused_where_it_cannot_be() {
    let bench = Setup::default().untrusted(NIC).bench();
    let device = bench.bind(NIC);
    let memory = bench.host.memory(2 * LEN);
    let first = PhysAddr::new(memory.phys() + 8);
    for (attrs, error) in [(Attrs::MMIO, DmaError::NotRam), (Attrs::REQUIRE_COHERENT, DmaError::NotCoherent)]
    {
        let mut iova = DmaIova::new(&device, first, 100, Direction::ToDevice, attrs).unwrap();
        assert_eq!(link(&mut iova, 0, first.get(), 100), Err(error));
    }
    // The head is bounced before the middle fails: it goes back.
    let mut iova = iova(&device, first.get(), 2 * LEN - 8, Direction::ToDevice);
    bench.toy.set_pages_left(1);
    assert_eq!(link(&mut iova, 0, first.get(), 2 * LEN - 8), Err(DmaError::OutOfMemory));
    assert_eq!(bench.pool.statistics().used, 0);
    bench.toy.set_pages_left(u64::MAX);
    link(&mut iova, 0, first.get(), LEN).unwrap();
    let at = iova.sync().unwrap()[0].address;
    bench.toy.reach(NIC, at, false).unwrap();
    bench.toy.set_silent(true);
    let used = bench.pool.statistics().used;
    iova.unlink(0).unwrap_err();
    assert_eq!(bench.pool.statistics().used, used, "the device may still reach the copies");
}

#[test]
fn many_bounced_links_are_unlinked_together() {
    let bench = Setup::default().untrusted(NIC).bench();
    let device = bench.bind(NIC);
    let memory = bench.host.memory(LEN);
    let parms = device.parms();
    let ops = device.ops().iova_ops().unwrap();
    // Each link is a page less one byte, so that each has a copy: more than one invalidation is needed.
    let range = ops.try_alloc(parms, PhysAddr::new(0), 3 * LEN).unwrap();
    let dir = Direction::FromDevice;
    for page in 0..3 {
        let part = IovaPart { range, offset: page * LEN, len: LEN - 1 };
        // SAFETY: the memory stays until the end, and nobody uses it meanwhile.
        unsafe { ops.link(parms, part, PhysAddr::new(memory.phys()), dir, Attrs::empty()) }.unwrap();
    }
    assert_eq!(bench.pool.statistics().maps, 3);
    for page in 0..3 {
        let part = IovaPart { range, offset: page * LEN, len: LEN - 1 };
        // SAFETY: a whole link.
        unsafe { ops.unlink(parms, part, dir, Attrs::empty()) }.unwrap();
    }
    assert_eq!(bench.pool.statistics().used, 0);
    // SAFETY: nothing is linked any more.
    unsafe { ops.destroy(parms, range, 0, dir, Attrs::empty()) }.unwrap();
}

#[test]
fn caches_are_kept_in_step_unless_the_driver_does_it() {
    use common::Cache;
    let mut setup = Setup::default();
    setup.knobs.coherent = false;
    let bench = setup.bench();
    let device = bench.bind_trusted(NIC);
    let memory = bench.host.memory(LEN);
    let (phys, dir) = (PhysAddr::new(memory.phys() + 4), Direction::FromDevice);
    for attrs in [Attrs::empty(), Attrs::SKIP_CPU_SYNC] {
        let mut iova = DmaIova::new(&device, phys, 100, dir, attrs).unwrap();
        link(&mut iova, 0, phys.get(), 100).unwrap();
        iova.destroy().unwrap();
        let done =
            [Cache::Clean { phys: phys.get(), len: 100 }, Cache::Invalidate { phys: phys.get(), len: 100 }];
        let count = if attrs.is_empty() { 2 } else { 0 };
        assert_eq!(bench.host.take_cache(), &done[..count]);
    }
    let coherent = DmaIova::new(&device, phys, 100, dir, Attrs::REQUIRE_COHERENT);
    assert_eq!(coherent.unwrap_err(), DmaError::NotCoherent);
}

#[test]
fn attributes_become_permissions() {
    let (bench, device) = trusted();
    let attrs = Attrs::MMIO;
    let mut iova = DmaIova::new(&device, PhysAddr::new(0), LEN, Direction::ToDevice, attrs).unwrap();
    link(&mut iova, 0, 0xfeb0_0000, LEN).unwrap();
    let log = bench.toy.take_log();
    let mapped = log.iter().find_map(|did| match did {
        Did::Map { phys: 0xfeb0_0000, prot, .. } => Some(*prot),
        _ => None,
    });
    assert_eq!(mapped, Some(Prot::READ | Prot::MMIO));
}
