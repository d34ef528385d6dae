//! Scatter lists: one block of I/O addresses, joined as the device's limits allow, all of it or nothing.

mod common;

use common::{Bench, Did, NIC, PAGE, Setup};
use dma_api::{Attrs, Device, Direction, DmaError, SgEntry};
use platform::PhysAddr;
use proptest::prelude::*;

const DIR: Direction = Direction::Bidirectional;

/// Elements by physical address and length.
fn list(elements: &[(u64, usize)]) -> Vec<SgEntry> {
    elements.iter().map(|&(phys, len)| SgEntry::new(PhysAddr::new(phys), len)).collect()
}

fn map_sg(device: &Device, list: &mut [SgEntry]) -> Result<usize, DmaError> {
    // SAFETY: the toy's devices touch nothing by themselves, so any memory may be named.
    unsafe { device.ops().map_sg(device.parms(), list, DIR, Attrs::empty()) }
}

fn unmap_sg(device: &Device, list: &[SgEntry]) -> Result<(), dma_api::Quarantined> {
    // SAFETY: the list is as `map_sg` left it, ended once.
    unsafe { device.ops().unmap_sg(device.parms(), list, DIR, Attrs::empty()) }
}

/// The segments as offset from the first page, and length.
fn segments(list: &[SgEntry], count: usize) -> Vec<(u64, usize)> {
    let start = list[0].dma_address.get() & !(PAGE - 1);
    list[..count].iter().map(|entry| (entry.dma_address.get() - start, entry.dma_len)).collect()
}

/// Every byte's physical address, read through the segments, against the elements in order.
fn check_reaches(bench: &Bench, list: &[SgEntry], count: usize) {
    let mut seen = list[..count].iter().flat_map(|entry| {
        (0..entry.dma_len as u64).map(|byte| bench.toy.reach(NIC, entry.dma_address.wrapping_add(byte), true))
    });
    for entry in list {
        for byte in 0..entry.len as u64 {
            assert_eq!(seen.next(), Some(Some(entry.phys.get() + byte)));
        }
    }
    assert_eq!(seen.next(), None);
}

#[test]
fn elements_that_fill_their_pages_join() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    let mut elements = list(&[(0x10_0000, 4096), (0x50_0000, 8192), (0x20_0000, 100)]);
    let count = map_sg(&device, &mut elements).unwrap();
    assert_eq!(segments(&elements, count), [(0, 4096 + 8192 + 100)]);
    check_reaches(&bench, &elements, count);
    assert_eq!(elements[1].dma_len, 0, "the end is marked");
    unmap_sg(&device, &elements).unwrap();
    assert_eq!(bench.toy.reach(NIC, elements[0].dma_address, true), None);
}

#[test]
fn a_gap_ends_a_segment() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    // The first does not reach its page's end, the third does not start at its page's start.
    let mut elements = list(&[(0x10_0000, 100), (0x50_0000, 4096), (0x20_0800, 2048), (0x30_0000, 4096)]);
    let count = map_sg(&device, &mut elements).unwrap();
    assert_eq!(segments(&elements, count), [(0, 100), (4096, 4096), (2 * 4096 + 0x800, 2048 + 4096)]);
    check_reaches(&bench, &elements, count);
}

#[test]
fn a_segment_is_no_longer_than_the_device_takes() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    device.parms().set_max_segment_size(8192);
    let mut elements = list(&[(0x10_0000, 4096); 5]);
    let count = map_sg(&device, &mut elements).unwrap();
    assert_eq!(segments(&elements, count), [(0, 8192), (8192, 8192), (16384, 4096)]);
    // One element that is longer stays whole: nobody can cut it.
    let mut elements = list(&[(0x10_0000, 16384), (0x20_0000, 4096)]);
    let count = map_sg(&device, &mut elements).unwrap();
    assert_eq!(segments(&elements, count), [(0, 16384), (16384, 4096)]);
}

#[test]
fn no_segment_crosses_the_boundary() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    device.parms().set_segment_boundary(0x3fff);
    // The second would lie across 16 KiB and moves up to it; the third joins it, and the fourth begins a new one.
    let mut elements = list(&[(0x10_0000, 12288), (0x20_0000, 8192), (0x30_0000, 8192), (0x40_0000, 4096)]);
    let count = map_sg(&device, &mut elements).unwrap();
    assert_eq!(segments(&elements, count), [(0, 12288), (0x4000, 16384), (0x8000, 4096)]);
    check_reaches(&bench, &elements, count);
    let hole = elements[0].dma_address.wrapping_add(12288);
    assert_eq!(bench.toy.reach(NIC, hole, true), None, "the padding is not mapped");
    unmap_sg(&device, &elements).unwrap();
    assert_eq!(bench.iommu.statistics().quarantined, 0);
}

#[test]
fn a_list_is_unmapped_as_it_was_mapped_whatever_the_limits_are_by_then() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    device.parms().set_segment_boundary(0x3fff);
    let mut elements = list(&[(0x10_0000, 12288), (0x20_0000, 8192)]);
    map_sg(&device, &mut elements).unwrap();
    device.parms().set_segment_boundary(u64::MAX);
    bench.toy.take_log();
    unmap_sg(&device, &elements).unwrap();
    let iova = elements[0].dma_address.get();
    assert_eq!(
        bench.toy.take_log(),
        [
            Did::Unmap { iova, len: 12288 },
            Did::Unmap { iova: iova + 0x4000, len: 8192 },
            Did::Sync { first: iova, last: iova + 0x5fff },
        ]
    );
    // And the whole block is free again.
    device.parms().set_segment_boundary(0x3fff);
    let mut again = list(&[(0x10_0000, 12288), (0x20_0000, 8192)]);
    map_sg(&device, &mut again).unwrap();
    assert_eq!(again[0].dma_address.get(), iova);
}

#[test]
fn a_list_takes_one_range_of_addresses_and_one_invalidation() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    let mut elements = list(&[(0x10_0000, 4096), (0x50_0100, 64), (0x20_0000, 100)]);
    map_sg(&device, &mut elements).unwrap();
    assert_eq!(bench.iommu.statistics().maps, 1);
    bench.toy.take_log();
    unmap_sg(&device, &elements).unwrap();
    let syncs = bench.toy.take_log().into_iter().filter(|did| matches!(did, Did::Sync { .. })).count();
    assert_eq!(syncs, 1);
    assert_eq!(bench.iommu.statistics().unmaps, 1);
}

#[test]
fn a_list_is_shown_at_once_to_hardware_that_remembers_absence() {
    let mut setup = Setup::default();
    setup.knobs.needs_sync_map = true;
    let bench = setup.bench();
    let device = bench.bind_trusted(NIC);
    let mut elements = list(&[(0x1000, 4096), (0x5000, 4096)]);
    bench.toy.take_log();
    map_sg(&device, &mut elements).unwrap();
    let first = elements[0].dma_address.get();
    let shown = Did::SyncMap { iova: first, len: 8192 };
    assert_eq!(
        bench.toy.take_log().iter().filter(|did| matches!(did, Did::SyncMap { .. })).collect::<Vec<_>>(),
        [&shown]
    );
    unmap_sg(&device, &elements).unwrap();
    bench.toy.set_silent(true);
    assert_eq!(map_sg(&device, &mut elements), Err(DmaError::IommuTimedOut));
    assert_eq!(bench.iommu.statistics().quarantined, 2 * PAGE, "what was shown to some is not used again");
}

#[test]
fn a_list_that_fails_in_the_middle_leaves_nothing() {
    let bench = Setup::default().aperture(0, 0xffff).bench();
    let device = bench.bind_trusted(NIC);
    for left in 0..8 {
        bench.toy.set_pages_left(left);
        let mut elements = list(&[(0x10_0000, 4096), (0x50_0000, 3 * 4096), (0x20_0000, 4 * 4096)]);
        assert_eq!(map_sg(&device, &mut elements), Err(DmaError::OutOfMemory), "{left} pages");
        assert!((1..16).all(|page| bench.toy.reach(NIC, (page * PAGE).into(), true).is_none()));
    }
    bench.toy.set_pages_left(u64::MAX);
    assert_eq!(bench.iommu.statistics().quarantined, 0);
    map_sg(&device, &mut list(&[(0x10_0000, 8 * 4096)])).unwrap();
}

#[test]
fn a_list_whose_unmap_is_not_confirmed_is_quarantined_whole() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    let mut elements = list(&[(0x10_0000, 4096), (0x50_0000, 4096)]);
    map_sg(&device, &mut elements).unwrap();
    bench.toy.set_silent(true);
    unmap_sg(&device, &elements).unwrap_err();
    assert_eq!(bench.iommu.statistics().quarantined, 2 * PAGE);
}

#[test]
fn empty_lists_and_elements_are_refused() {
    let bench = Setup::default().bench();
    let device = bench.bind_trusted(NIC);
    map_sg(&device, &mut []).unwrap_err();
    map_sg(&device, &mut list(&[(0x10_0000, 4096), (0x20_0000, 0)])).unwrap_err();
    map_sg(&device, &mut list(&[(0x10_0000, usize::MAX), (0x10_0000, usize::MAX)])).unwrap_err();
    assert_eq!(bench.iommu.statistics().maps, 0);
}

#[test]
fn an_untrusted_device_gets_every_element_for_itself_when_one_must_be_bounced() {
    let bench = Setup::default().untrusted(NIC).bench();
    let device = bench.bind_trusted(NIC);
    let memory = bench.host.memory(3 * PAGE as usize);
    let phys = memory.phys();
    bench.host.device_write(phys + 2 * PAGE, &[3; 64]);
    let mut elements = list(&[(phys, 4096), (phys + PAGE, 4096), (phys + 2 * PAGE, 64)]);
    assert_eq!(map_sg(&device, &mut elements), Ok(3));
    assert_eq!(bench.iommu.statistics().bounces, 1, "whole pages are not");
    assert_eq!(bench.toy.reach(NIC, elements[1].dma_address, true), Some(phys + PAGE));
    let copy = bench.toy.reach(NIC, elements[2].dma_address, true).unwrap();
    assert_eq!(bench.host.device_read(copy, 64), [3; 64]);
    bench.host.device_write(copy, &[4; 64]);
    unmap_sg(&device, &elements).unwrap();
    assert_eq!(bench.host.device_read(phys + 2 * PAGE, 64), [4; 64]);
    assert_eq!(bench.pool.statistics().used, 0);
    assert!(elements.iter().all(|entry| bench.toy.reach(NIC, entry.dma_address, false).is_none()));
    // When the last cannot be mapped, the others are taken back without copying.
    bench.toy.set_pages_left(2);
    let mut elements = list(&[(phys + 8, 64), (phys + PAGE, 4096), (phys + 2 * PAGE, 64)]);
    assert_eq!(map_sg(&device, &mut elements), Err(DmaError::OutOfMemory));
    assert_eq!(bench.pool.statistics().used, 0);
    let statistics = bench.iommu.statistics();
    assert_eq!((statistics.maps - statistics.unmaps, statistics.quarantined), (0, 0));
}

proptest! {
    /// Invariants that a device relies on, whatever the elements and limits.
    #[test]
    fn segments_keep_the_devices_limits(
        elements in proptest::collection::vec((0u64..4, 0u64..4096, 1usize..20_000, any::<bool>()), 1..12),
        max_segment in 12u32..18,
        boundary in 15u32..20,
    ) {
        let bench = Setup::default().bench();
        let device = bench.bind_trusted(NIC);
        let (max_segment, boundary) = (1u64 << max_segment, 1u64 << boundary);
        device.parms().set_max_segment_size(max_segment);
        device.parms().set_segment_boundary(boundary - 1);
        let elements: Vec<_> = elements.iter().enumerate().map(|(number, &(page, offset, len, whole))| {
            let base = (number as u64 + 1) << 20;
            if whole { (base + page * PAGE, len.next_multiple_of(4096)) } else { (base + page * PAGE + offset, len) }
        }).collect();
        let mut list = list(&elements);
        let count = map_sg(&device, &mut list).unwrap();
        let longest = elements.iter().map(|&(_, len)| len as u64).max().unwrap();
        for entry in &list[..count] {
            let (first, len) = (entry.dma_address.get(), entry.dma_len as u64);
            prop_assert!(len <= max_segment.max(longest));
            // All elements are shorter than a boundary's distance.
            prop_assert_eq!(first / boundary, (first + len - 1) / boundary);
        }
        check_reaches(&bench, &list, count);
        unmap_sg(&device, &list).unwrap();
        for entry in &list[..count] {
            prop_assert_eq!(bench.toy.reach(NIC, entry.dma_address, true), None);
        }
        let statistics = bench.iommu.statistics();
        prop_assert_eq!((statistics.maps, statistics.unmaps, statistics.quarantined), (1, 1, 0));
    }
}
