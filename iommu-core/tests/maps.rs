//! What an owner does in a domain of his own.

mod common;

use std::sync::Arc;

use common::{Did, NIC, PAGE, Setup};
use iommu_core::{Domain, PagingFlags};
use platform::{DmaAddr, MapError, PhysAddr, Prot};

const AT: DmaAddr = DmaAddr::new(0x4000_0000);
const MIB2: u64 = 2 << 20;

/// A machine whose hardware remembers what was not there, and a domain of somebody's own in it.
fn machine() -> (common::Bench, Arc<Domain>) {
    let mut setup = Setup::default();
    setup.knobs.needs_sync_map = true;
    let bench = setup.bench();
    let mine = bench.group(NIC).alloc_unmanaged(PagingFlags::empty()).unwrap();
    bench.toy.take_log();
    (bench, mine)
}

fn map_sg(domain: &Domain, pieces: &[(u64, u64)]) -> (u64, Result<(), MapError>) {
    let pieces = pieces.iter().map(|&(phys, len)| (PhysAddr::new(phys), len));
    // SAFETY: devices of the toy IOMMU touch nothing by themselves.
    unsafe { domain.map_sg(AT, pieces, Prot::READ) }
}

#[test]
fn pieces_follow_each_other_and_are_shown_together() {
    let (bench, mine) = machine();
    assert_eq!(map_sg(&mine, &[(0x5000, PAGE), (0x9000, 2 * PAGE)]), (3 * PAGE, Ok(())));
    let led = [0, PAGE, 2 * PAGE].map(|offset| mine.iova_to_phys(AT.wrapping_add(offset)).map(PhysAddr::get));
    assert_eq!(led, [Some(0x5000), Some(0x9000), Some(0xa000)]);
    let shown: Vec<_> =
        bench.toy.take_log().into_iter().filter(|did| matches!(did, Did::SyncMap { .. })).collect();
    assert_eq!(shown, [Did::SyncMap { iova: AT.get(), len: 3 * PAGE }]);
}

#[test]
fn pieces_that_are_neighbours_in_memory_become_large_pages() {
    let (bench, mine) = machine();
    assert_eq!(map_sg(&mine, &[(MIB2, PAGE), (MIB2 + PAGE, MIB2 - PAGE)]), (MIB2, Ok(())));
    let prot = Prot::READ;
    let mapped = Did::Map { iova: AT.get(), phys: MIB2, len: MIB2, prot };
    assert_eq!(bench.toy.take_log()[0], mapped);
}

#[test]
fn a_piece_that_fails_says_how_much_is_mapped_before_it() {
    let (bench, mine) = machine();
    bench.toy.set_pages_left(2);
    let (done, result) = map_sg(&mine, &[(0x5000, PAGE), (0x9000, PAGE), (0xd000, PAGE)]);
    assert_eq!((done, result), (2 * PAGE, Err(MapError::OutOfMemory)));
    let (done, result) = map_sg(&mine, &[(0x5000, 1)]);
    assert_eq!((done, result), (0, Err(MapError::NoPageSize(AT))));
}
