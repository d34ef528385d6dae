//! Which I/O addresses are handed out: below the mask, never 0, never reserved, aligned to their size, never twice.

mod common;

use std::collections::BTreeMap;

use common::{
    Bench, FOUR_GIB, NIC, PAGE, Setup, endpoint, map, map_page, multifunction, region, topology, unmap,
    unmap_page,
};
use dma_api::{Attrs, BusRanges, Device, DeviceParms, Direction, DmaError, DmaIova, SgEntry};
use iommu_core::ResvType;
use platform::pci::PciAddress;
use platform::{DmaAddr, PhysAddr};
use proptest::prelude::*;

const TO: Direction = Direction::ToDevice;

/// Everything that is left, page by page.
fn take_all(device: &Device) -> Vec<u64> {
    std::iter::from_fn(|| map_page(device).ok()).map(DmaAddr::get).collect()
}

fn small() -> Bench {
    Setup::default().aperture(0, 0xffff).bench()
}

#[test]
fn every_page_but_the_first_is_handed_out_once() {
    let bench = small();
    let device = bench.bind_trusted(NIC);
    let mut all = take_all(&device);
    all.sort_unstable();
    assert_eq!(all, (1..16).map(|page| page * PAGE).collect::<Vec<_>>());
}

#[test]
fn exhaustion_is_an_error_that_says_what_was_asked_and_ends_when_something_comes_back() {
    let bench = small();
    let device = bench.bind_trusted(NIC);
    let all = take_all(&device);
    let exhausted = DmaError::AddressSpaceExhausted { size: PAGE as usize, limit: DmaAddr::new(0xffff) };
    assert_eq!(map_page(&device), Err(exhausted));
    let back = DmaAddr::new(all[7]);
    unmap_page(&device, back).unwrap();
    assert_eq!(map_page(&device), Ok(back));
    assert_eq!(map_page(&device), Err(exhausted));
}

#[test]
fn what_the_magazines_hold_serves_other_sizes_when_nothing_else_is_left() {
    let bench = small();
    let device = bench.bind_trusted(NIC);
    for page in take_all(&device) {
        unmap_page(&device, DmaAddr::new(page)).unwrap();
    }
    // All of it is in a magazine of single pages now.
    let at = map(&device, 0x10_0000, 8 * PAGE as usize, TO).unwrap();
    assert_eq!(at.get(), 8 * PAGE);
}

#[test]
fn masks_are_honoured() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    device.set_mask(0xff_ffff).unwrap();
    for _ in 0..100 {
        assert!(map_page(&device).unwrap().get() < 0x100_0000);
    }
    assert!(device.alloc_coherent(4096, Attrs::empty()).unwrap().dma.get() < 0x100_0000);
    device.set_mask(0xffff).unwrap();
    assert!(
        map_page(&device).unwrap().get() <= 0xffff,
        "a magazine's address above a narrower mask is passed over"
    );
    device.set_streaming_mask(0xff_ffff).unwrap();
    device.set_coherent_mask(0x1f_ffff).unwrap();
    assert!(device.alloc_coherent(4096, Attrs::empty()).unwrap().dma.get() <= 0x1f_ffff);
}

#[test]
fn a_magazine_is_searched_for_an_address_below_the_mask() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    device.set_mask(0xffff).unwrap();
    let low = map_page(&device).unwrap();
    device.set_mask(0xffff_ffff).unwrap();
    let high = map_page(&device).unwrap();
    assert!(high.get() > 0xffff);
    unmap_page(&device, low).unwrap();
    unmap_page(&device, high).unwrap();
    device.set_mask(0xffff).unwrap();
    assert_eq!(map_page(&device), Ok(low), "though the high one is newer");
    assert_eq!(bench.iommu.statistics().magazine_hits, 1);
}

#[test]
fn a_mask_below_which_nothing_is_left_is_not_supported() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    assert_eq!(device.set_mask(0xfff), Err(DmaError::MaskNotSupported { mask: 0xfff }));
    assert_eq!(device.set_mask(0x1fff), Ok(()), "page 1 is the only one");
    assert_eq!(map_page(&device).map(DmaAddr::get), Ok(0x1000));
    map_page(&device).unwrap_err();
    let bench = Setup::default().aperture(0x10_0000, u64::MAX).bench();
    let device = bench.bind_trusted(NIC);
    device.set_mask(0xf_ffff).unwrap_err();
    device.set_mask(0x1f_ffff).unwrap();
}

/// Addresses below 4 GiB are reserved but for three pages.
fn little_below_4_gib() -> Setup {
    Setup::default().region(NIC, region(0x4000, FOUR_GIB, ResvType::Reserved))
}

#[test]
fn low_addresses_come_first_and_when_they_are_gone_high_ones() {
    let bench = little_below_4_gib().bench();
    let device = bench.bind_trusted(NIC);
    device.set_mask(u64::MAX).unwrap();
    let low: Vec<u64> = (0..3).map(|_| map_page(&device).unwrap().get()).collect();
    assert_eq!(low, [0x3000, 0x2000, 0x1000]);
    assert!(map_page(&device).unwrap().get() >= FOUR_GIB);
    // From then on high addresses come first, though there is room below again.
    unmap_page(&device, DmaAddr::new(0x2000)).unwrap();
    unmap_page(&device, DmaAddr::new(0x3000)).unwrap();
    assert!(map(&device, 0x10_0000, 64 * PAGE as usize, TO).unwrap().get() >= FOUR_GIB);
    device.set_mask(0xffff_ffff).unwrap();
    assert!(map_page(&device).unwrap().get() < FOUR_GIB);
}

#[test]
fn each_device_remembers_for_itself_that_low_addresses_ran_out_from_one_driver_to_the_next() {
    let other = PciAddress::new(0, 0, 3, 1);
    let mut setup = little_below_4_gib();
    setup.topology = topology([multifunction(endpoint(NIC)), multifunction(endpoint(other))]);
    let bench = setup.bench();
    assert_eq!(bench.group(NIC).devices(), [NIC, other], "one group, one domain");
    let device = bench.bind_trusted(NIC);
    device.set_mask(u64::MAX).unwrap();
    let held: Vec<DmaAddr> = (0..4).map(|_| map_page(&device).unwrap()).collect();
    held.into_iter().for_each(|at| unmap_page(&device, at).unwrap());
    let second = bench.bind_trusted(other);
    second.set_mask(u64::MAX).unwrap();
    let high = |device: &Device| map_page(device).unwrap().get() >= FOUR_GIB;
    // The one that came back last is high.
    assert!(!high(&second));
    drop(device);
    let device = bench.bind_trusted(NIC);
    device.set_mask(u64::MAX).unwrap();
    assert!(high(&device));
}

#[test]
fn forcedac_takes_high_addresses_at_once() {
    let mut setup = Setup::default();
    setup.settings.forcedac = true;
    let bench = setup.bench();
    let device = bench.bind_trusted(NIC);
    device.set_mask(u64::MAX).unwrap();
    assert_eq!(map_page(&device).map(DmaAddr::get), Ok((1 << 48) - PAGE), "the highest of the aperture");
    assert!(device.alloc_coherent(4096, Attrs::empty()).unwrap().dma.get() > FOUR_GIB);
}

#[test]
fn reserved_regions_of_every_kind_are_never_handed_out() {
    let kinds = [ResvType::Reserved, ResvType::Msi, ResvType::Direct, ResvType::DirectRelaxable];
    for kind in kinds {
        // Pages 4 to 7, named by bytes in their middle.
        let bench = Setup::default().aperture(0, 0xffff).region(NIC, region(0x4800, 0x7001, kind)).bench();
        let device = bench.bind_trusted(NIC);
        let mut all = take_all(&device);
        all.sort_unstable();
        let expected = (1..16).filter(|page| !(4..8).contains(page)).map(|page| page * PAGE);
        assert_eq!(all, expected.collect::<Vec<_>>(), "{kind:?}");
    }
}

#[test]
fn an_empty_or_endless_region_reserves_nothing() {
    let mut endless = region(0x4000, 0x5000, ResvType::Reserved);
    endless.len = u64::MAX;
    let setup = Setup::default().aperture(0, 0xffff).region(NIC, endless);
    let bench = setup.region(NIC, region(0x8000, 0x8000, ResvType::Reserved)).bench();
    assert_eq!(take_all(&bench.bind_trusted(NIC)).len(), 15);
}

#[test]
fn ranges_are_aligned_to_their_size_rounded_up() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    for pages in [1, 2, 3, 5, 8, 31, 33, 64, 100, 513] {
        let at = map(&device, 0x4000_0000, pages * PAGE as usize, TO).unwrap();
        let aligned_to = (pages as u64).next_power_of_two() * PAGE;
        assert!(at.is_aligned(aligned_to), "{pages} pages at {at}");
    }
}

#[test]
fn the_offset_in_the_page_is_kept_and_the_last_byte_counts() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    let at = map(&device, 0x10_0ffe, 4, TO).unwrap();
    assert_eq!(at.get() & 0xfff, 0xffe);
    assert_eq!(bench.toy.reach(NIC, at, false), Some(0x10_0ffe));
    assert_eq!(bench.toy.reach(NIC, at.wrapping_add(3), false), Some(0x10_1001), "the second page");
    unmap(&device, at, 4, TO).unwrap();
    assert_eq!(bench.toy.reach(NIC, at.wrapping_add(3), false), None);
}

#[test]
fn absurd_lengths_are_errors() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    assert_eq!(map(&device, 0x1000, 0, TO), Err(DmaError::InvalidLength(0)));
    assert_eq!(map(&device, 0xfff, usize::MAX, TO), Err(DmaError::InvalidLength(usize::MAX)));
    let size = 1 << 60;
    let limit = DmaAddr::new(0xffff_ffff);
    assert_eq!(map(&device, 0, size, TO), Err(DmaError::AddressSpaceExhausted { size, limit }));
    assert_eq!(device.alloc_coherent(0, Attrs::empty()).unwrap_err(), DmaError::InvalidLength(0));
    assert_eq!(
        device.alloc_coherent(usize::MAX, Attrs::empty()).unwrap_err(),
        DmaError::InvalidLength(usize::MAX)
    );
}

#[test]
fn an_aperture_to_the_very_end_of_the_address_space_works() {
    let bench = Setup::default().aperture(0, u64::MAX).bench();
    let device = bench.bind_trusted(NIC);
    device.set_mask(u64::MAX).unwrap();
    for _ in 0..3 {
        map(&device, 0x1000, PAGE as usize, TO).unwrap();
    }
}

#[test]
fn the_sizes_that_are_mapped_fast_are_told() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    assert_eq!(device.opt_mapping_size(), 32 * PAGE as usize);
    assert_eq!(device.max_mapping_size(), usize::MAX);
    assert_eq!(device.ops().merge_boundary(), PAGE - 1);
}

#[test]
fn many_ranges_go_through_magazines_depot_and_tree_and_come_back() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    // More than two magazines and the depot hold, so that every way is taken both ways.
    for round in 0..3 {
        let count = 5000;
        let held: Vec<DmaAddr> = (0..count).map(|_| map_page(&device).unwrap()).collect();
        let distinct: std::collections::BTreeSet<_> = held.iter().collect();
        assert_eq!(distinct.len(), count, "round {round}");
        for at in held {
            unmap_page(&device, at).unwrap();
        }
    }
    let statistics = bench.iommu.statistics();
    assert_eq!((statistics.maps, statistics.unmaps, statistics.quarantined), (15_000, 15_000, 0));
    // The first round took all from the tree; after it there are 2 magazines of a CPU and 32 of the depot to serve from.
    assert_eq!(statistics.magazine_hits, 2 * 34 * 127);
}

#[test]
fn threads_never_get_the_same_addresses() {
    let bench = Setup::default().aperture(0, 64 * PAGE - 1).bench();
    let device = bench.bind_trusted(NIC);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let device = &device;
            scope.spawn(move || {
                for turn in 0..2000u64 {
                    let pages = 1 + (turn + thread) % 5;
                    // A map of a page that is mapped already fails in the toy's table.
                    let len = (pages * PAGE) as usize;
                    let at = map(device, 0x10_0000 * (thread + 1), len, TO).unwrap();
                    unmap(device, at, len, TO).unwrap();
                }
            });
        }
    });
    let statistics = bench.iommu.statistics();
    assert_eq!((statistics.maps, statistics.unmaps), (8000, 8000));
}

proptest! {
    /// Whatever is mapped and unmapped: live ranges are apart, in reach, aligned, and lead where they should.
    #[test]
    fn live_ranges_never_overlap(
        steps in proptest::collection::vec((any::<bool>(), 1u64..70, 0usize..64), 1..200),
        wide in any::<bool>(),
    ) {
        let bench = Setup::default().aperture(0, 0x7f_ffff).region(NIC, region(0x10_0000, 0x18_0000, ResvType::Msi)).bench();
        let device = bench.bind_trusted(NIC);
        let mask = if wide { u64::MAX } else { 0x3f_ffff };
        device.set_mask(mask).unwrap();
        let mut live: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (number, (take, pages, which)) in steps.into_iter().enumerate() {
            if take || live.is_empty() {
                let (len, phys) = (pages * PAGE, (number as u64 + 1) << 24);
                let Ok(at) = map(&device, phys, len as usize, TO) else { continue };
                let (at, end) = (at.get(), at.get() + len);
                prop_assert!(at >= PAGE && end - 1 <= mask.min(0x7f_ffff));
                prop_assert!(end <= 0x10_0000 || at >= 0x18_0000);
                prop_assert_eq!(at % (pages.next_power_of_two() * PAGE), 0);
                let before = live.range(..end).next_back();
                prop_assert!(before.is_none_or(|(start, (len, _))| start + len <= at));
                live.insert(at, (len, phys));
            } else {
                let at = *live.keys().nth(which % live.len()).unwrap();
                let (len, _) = live.remove(&at).unwrap();
                unmap(&device, DmaAddr::new(at), len as usize, TO).unwrap();
                prop_assert_eq!(bench.toy.reach(NIC, DmaAddr::new(at), false), None);
            }
        }
        for (at, (len, phys)) in live {
            prop_assert_eq!(bench.toy.reach(NIC, DmaAddr::new(at), false), Some(phys));
            prop_assert_eq!(bench.toy.reach(NIC, DmaAddr::new(at + len - 1), false), Some(phys + len - 1));
        }
    }
}

#[test]
fn translated_a_device_needs_no_more_than_32_bits() {
    let required = |first, last| Setup::default().aperture(first, last).bench().bind(NIC).required_mask();
    assert_eq!(required(0, (1 << 48) - 1), 0xffff_ffff);
    assert_eq!(required(0, 0x1f_ffff), 0x1f_ffff, "nothing is above");
    assert_eq!(required(5 * FOUR_GIB, (1 << 48) - 1), 0x7_ffff_ffff, "nothing is below");
    let device = Setup::default().bench().bind(NIC);
    assert!(!device.addressing_limited());
    device.set_mask(0xff_ffff).unwrap();
    assert!(device.addressing_limited());
}

#[test]
fn more_of_an_address_than_its_place_in_a_page_is_not_kept() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    device.parms().set_min_align_mask(0xfff);
    let at = map(&device, 0x10_0abc, 8, TO).unwrap();
    assert_eq!(at.get() & 0xfff, 0xabc);
    device.parms().set_min_align_mask(0x1fff);
    let refused = DmaError::InvalidAlignment(0x1fff);
    assert_eq!(map(&device, 0x10_1abc, 8, TO), Err(refused));
    let mut list = [SgEntry::new(PhysAddr::new(0x10_0000), 4096)];
    // SAFETY: nothing is mapped.
    assert_eq!(unsafe { device.map_sg(&mut list, TO, Attrs::empty()) }, Err(refused));
    let phys = PhysAddr::new(0);
    let two_steps = DmaIova::new(&device, phys, 8, TO, Attrs::empty());
    assert_eq!(two_steps.unwrap_err(), refused);
}

/// A limit of the bus is one of the addresses, whatever the device's masks.
#[test]
fn addresses_are_below_the_limit_of_the_bus() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    let limited = DeviceParms::new(true, false).behind_bus(BusRanges::identity(), 0xff_ffff);
    let phys = PhysAddr::new(0x10_0000);
    // SAFETY: the toy's devices touch nothing by themselves.
    let at = unsafe { device.ops().map_phys(&limited, phys, 4096, TO, Attrs::empty()) }.unwrap();
    assert!(at.get() <= 0xff_f000);
    assert!(device.ops().alloc(&limited, 4096, Attrs::empty()).unwrap().dma.get() <= 0xff_f000);
    assert!(device.ops().dma_supported(&limited, 0xffff_ffff));
    let nothing = DeviceParms::new(true, false).behind_bus(BusRanges::identity(), 0xfff);
    assert!(!device.ops().dma_supported(&nothing, 0xffff_ffff), "only page 0 is below");
}
