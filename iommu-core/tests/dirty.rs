//! What a domain can be asked to note and to enforce.

mod common;

use common::{NIC, PAGE, Setup};
use iommu_core::{DirtyError, DomainError, GroupError, Owner, PagingFlags};
use platform::{DmaAddr, Prot};

const AT: DmaAddr = DmaAddr::new(0x10_0000);

#[test]
fn a_written_page_is_reported_once_and_again_when_it_is_written_again() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    group.claim_dma_owner(Owner(1)).unwrap();
    let mine = group.alloc_unmanaged(PagingFlags::DIRTY_TRACKING).unwrap();
    group.attach(&mine).unwrap();
    let access = Prot::READ | Prot::WRITE;
    // SAFETY: devices of the toy IOMMU touch nothing by themselves.
    unsafe { mine.map(AT, 0x7000.into(), 2 * PAGE, access) }.1.unwrap();
    let read = |clear| {
        let mut pages = Vec::new();
        mine.read_and_clear_dirty(AT, 2 * PAGE, clear, &mut |at, len| pages.push((at, len))).unwrap();
        pages
    };
    let error = mine.read_and_clear_dirty(AT, PAGE, true, &mut |_, _| {});
    assert_eq!(error, Err(DirtyError::Off));
    mine.set_dirty_tracking(true).unwrap();
    assert_eq!(read(true), []);
    bench.toy.reach(NIC, AT.wrapping_add(PAGE), true).unwrap();
    let written = [(AT.wrapping_add(PAGE), PAGE)];
    assert_eq!(read(false), written);
    assert_eq!(read(true), written, "it was only looked at");
    assert_eq!(read(true), []);
    bench.toy.reach(NIC, AT.wrapping_add(PAGE), true).unwrap();
    assert_eq!(read(true), written, "the IOMMU was told to look again");
    mine.set_dirty_tracking(false).unwrap();
}

#[test]
fn a_domain_tracks_only_when_it_was_made_for_that() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    let plain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    assert_eq!(plain.set_dirty_tracking(true), Err(DirtyError::Unsupported));
    let nested = group.alloc_unmanaged(PagingFlags::NEST_PARENT);
    assert_eq!(nested.unwrap_err(), GroupError::Domain(DomainError::Unsupported));
}

#[test]
fn coherency_is_enforced_where_there_is_a_table() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    assert!(group.alloc_unmanaged(PagingFlags::empty()).unwrap().enforce_cache_coherency());
    group.claim_dma_owner(Owner(1)).unwrap();
    assert!(!group.domain().unwrap().enforce_cache_coherency(), "nothing passes here");
}
