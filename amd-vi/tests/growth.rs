//! A host table that grows: which entries are rewritten when, and what becomes of a unit that does not answer.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use iommu_core::{DomainOps, IommuOps};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, MapError, PhysAddr, Prot};

const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0100) };
const OTHER: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0010) };
/// Its requests carry the name of [`DEV`].
const ALIASED: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0101) };
/// The first address that three levels do not reach.
const BEYOND: u64 = 1 << 39;
const PHYS: u64 = 0x40_0000_0000;

fn paging(setup: &Setup, devices: &[PciAddress]) -> Arc<dyn DomainOps> {
    for dev in devices {
        setup.driver.probe_device(*dev).unwrap();
    }
    let domain = setup.driver.domain_alloc_paging(DEV).unwrap();
    for dev in devices {
        attach(&*domain, *dev, None).unwrap();
    }
    domain
}

fn map(domain: &dyn DomainOps, iova: u64) -> Result<(), MapError> {
    // SAFETY: the unit of these tests does not access memory by such mappings.
    unsafe { domain.map_range(DmaAddr::new(iova), PhysAddr::new(PHYS), 0x1000, Prot::READ) }.1
}

fn mode(entry: [u64; 4]) -> u64 {
    entry[0] >> 9 & 7
}

/// What the first entry of the top leads to, and on which level that is.
fn first_below_the_top(entry: [u64; 4]) -> (u64, u64) {
    let pointer = word(entry[0] & 0x000f_ffff_ffff_f000).load(Ordering::Relaxed);
    (pointer & 0x000f_ffff_ffff_f000, pointer >> 9 & 7)
}

#[test]
fn devices_of_the_domain_have_the_new_top_before_anything_is_mapped_below_it() {
    let setup = bring_up();
    let domain = paging(&setup, &[ALIASED, OTHER]);
    assert_eq!(domain.aperture().1.get(), (1 << 48) - 1);
    let stranger = PciAddress { segment: 0, id: RequesterId::new(0x0018) };
    setup.driver.probe_device(stranger).unwrap();
    let blocked = setup.unit.entry(0x0018);
    let old = setup.unit.entry(0x0010);
    assert_eq!(mode(old), 3);
    map(&*domain, 0x5000).unwrap();
    setup.unit.take_entries();

    map(&*domain, BEYOND).unwrap();
    let new = setup.unit.entry(0x0010);
    assert_eq!((mode(new), new[1]), (4, old[1]));
    assert_eq!(first_below_the_top(new), (old[0] & 0x000f_ffff_ffff_f000, 3));
    // One word each, and then the unit has forgotten the old one.
    let told = setup.unit.take_entries();
    assert_eq!(told, [(0x0010, new), (0x0101, new), (0x0100, new)]);
    assert_eq!(setup.unit.entry(0x0018), blocked);
    for iova in [0x5000, BEYOND] {
        assert_eq!(domain.iova_to_phys(DmaAddr::new(iova)), Some(PhysAddr::new(PHYS)));
    }
    assert!(matches!(map(&*domain, 1 << 48), Err(MapError::OutOfRange(_))));
}

#[test]
fn a_device_that_comes_later_has_the_new_top() {
    let setup = bring_up();
    setup.driver.probe_device(DEV).unwrap();
    let domain = setup.driver.domain_alloc_paging(DEV).unwrap();
    map(&*domain, BEYOND).unwrap();
    attach(&*domain, DEV, None).unwrap();
    assert_eq!(mode(setup.unit.entry(0x0100)), 4);
}

#[test]
fn a_table_grows_to_what_the_unit_walks_and_the_kernel_wants() {
    // HATS = 2: six levels.
    let features = FEATURES | 2 << 10;
    let setup = bring_up_levels(features, 6);
    let domain = paging(&setup, &[DEV]);
    assert_eq!(domain.aperture().1.get(), u64::MAX);
    map(&*domain, u64::MAX - 0xfff).unwrap();
    assert_eq!(mode(setup.unit.entry(0x0100)), 6);
    let small = bring_up_levels(features, 3);
    assert_eq!(paging(&small, &[DEV]).aperture().1.get(), BEYOND - 1);
}

#[test]
fn a_unit_that_does_not_answer_fails_the_map_and_blocks_the_device() {
    let setup = bring_up();
    let domain = paging(&setup, &[DEV]);
    map(&*domain, 0x5000).unwrap();
    setup.unit.switches.lose_completions.store(true, Ordering::Relaxed);
    assert_eq!(map(&*domain, BEYOND), Err(MapError::Gone));
    assert_eq!(setup.unit.entry(0x0100)[0] & 3, 1, "V without TV");
    assert_eq!(domain.iova_to_phys(DmaAddr::new(BEYOND)), None);
    // Attached anew, it has everything.
    setup.unit.switches.lose_completions.store(false, Ordering::Relaxed);
    attach(&*domain, DEV, Some(&*domain)).unwrap();
    assert_eq!(mode(setup.unit.entry(0x0100)), 4);
    map(&*domain, BEYOND).unwrap();
}

#[test]
fn a_range_of_any_alignment_is_one_walk_and_every_page_is_coherent() {
    let setup = bring_up();
    let domain = paging(&setup, &[DEV]);
    // Three pages before a block of 2 MiB, the block, and one page behind it.
    let (iova, len) = (0x3fd000, 0x3000 + (2 << 20) + 0x1000);
    // SAFETY: the unit of these tests does not access memory by such mappings.
    let mapped = unsafe {
        domain.map_range(DmaAddr::new(iova), PhysAddr::new(PHYS + iova), len, Prot::READ | Prot::WRITE)
    };
    assert_eq!(mapped, (len, Ok(())));
    let entry = |table: u64, index: u64| word(table + 8 * index).load(Ordering::Relaxed);
    let address = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    let top = address(setup.unit.entry(0x0100)[0]);
    let level_2 = address(entry(top, 0));
    assert_eq!(entry(level_2, 2), 0x7000_0040_0040_0001, "2 MiB, FC, IR, IW");
    assert_eq!(entry(address(entry(level_2, 1)), 0x1fd), 0x7000_0040_003f_d001);
    assert_eq!(entry(address(entry(level_2, 1)), 0x1ff), 0x7000_0040_003f_ee01, "one of two of 8 KiB");
    assert_eq!(entry(address(entry(level_2, 3)), 0), 0x7000_0040_0060_0001);
    assert!(domain.enforce_cache_coherency());
}
