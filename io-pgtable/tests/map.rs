//! What a map does, refuses and reports.

mod common;
mod walkers;

use std::sync::Arc;

use common::{Arena, Bed, RW};
use io_pgtable::{AmdV1, CfgError, IoPageTable, IoPgtableCfg, PageTable};
use platform::{DmaAddr, MapError, Prot};

const KIB4: u64 = 0x1000;
const MIB2: u64 = 0x20_0000;
const GIB1: u64 = 0x4000_0000;

fn in_use<T>(iova: u64) -> Result<T, MapError> {
    Err(MapError::InUse(DmaAddr::new(iova)))
}

#[test]
fn pages_follow_each_other_through_tables() {
    let bed = Bed::new(3, 16);
    // From the last page of one table to the first of the next but one.
    bed.must_map(MIB2 - KIB4, 0x7_0000_0000, KIB4, 514);
    let pages = bed.tree().pages;
    assert_eq!(pages.len(), 514);
    for (n, (iova, page)) in (0..).zip(pages) {
        assert_eq!((iova, page.phys), (MIB2 - KIB4 + n * KIB4, 0x7_0000_0000 + n * KIB4));
    }
    assert_eq!((bed.table.table_pages(), bed.arena.live()), (5, 5));
}

#[test]
fn tables_take_no_more_memory_than_linuxs() {
    let bed = Bed::new(3, 514);
    bed.must_map(0x40_0000_0000, 0x7_0000_0000, KIB4, 1 << 18);
    // The top, one table below it, and one for every 2 MiB of 1 GiB.
    assert_eq!((bed.table.table_pages(), bed.arena.live()), (514, 514));
}

#[test]
fn a_lookup_answers_for_every_byte() {
    let bed = Bed::new(4, 16);
    assert_eq!(bed.map(0x5_0000, 0x9_0001_0000, 0x1_0000, 1, Prot::WRITE).1, Ok(()));
    for offset in [0, 1, 0xfff, 0x1000, 0x8123, 0xffff] {
        let found = bed.table.iova_to_phys(DmaAddr::new(0x5_0000 + offset)).unwrap();
        assert_eq!(found.phys.get(), 0x9_0001_0000 + offset);
        assert_eq!((found.page_size, found.prot), (0x1_0000, Prot::WRITE));
    }
    for iova in [0, 0x4_ffff, 0x6_0000, 0x5_0000 + (1 << 48), u64::MAX] {
        assert_eq!(bed.table.iova_to_phys(DmaAddr::new(iova)), None, "{iova:#x}");
    }
}

#[test]
fn what_is_mapped_is_never_overwritten() {
    let bed = Bed::new(4, 32);
    bed.must_map(0x3000, 0x1_0000_3000, KIB4, 1);
    bed.must_map(MIB2, 0x2_0020_0000, MIB2, 1);
    let before = bed.arena.non_zero();

    assert_eq!(bed.map(0x3000, 0x5000, KIB4, 1, RW), (0, in_use(0x3000)), "the same page");
    assert_eq!(bed.map(0x2000, 0x4000, 0x2000, 1, RW), (0, in_use(0x2000)), "the second half of a page");
    assert_eq!(bed.map(MIB2, 0, MIB2, 1, RW), (0, in_use(MIB2)), "the same large page");
    assert_eq!(bed.map(MIB2 + 0x5000, 0, KIB4, 1, RW), (0, in_use(MIB2 + 0x5000)), "inside a large page");
    assert_eq!(
        bed.map(0, 0, 2 * MIB2, 1, RW).1.map_err(|error| matches!(error, MapError::InUse(_))),
        Err(true)
    );
    assert_eq!(bed.map(0x3000, 0x5000, KIB4, 9, Prot::READ).0, 0, "not even with fewer rights");

    let pages = bed.tree().pages;
    assert_eq!(pages[&0x3000].phys, 0x1_0000_3000);
    assert_eq!(pages[&MIB2].phys, 0x2_0020_0000);
    assert!(before.iter().all(|word| bed.arena.non_zero().contains(word)), "a word was changed");
}

#[test]
fn what_was_done_before_a_clash_is_reported() {
    let bed = Bed::new(3, 16);
    bed.must_map(0x4000, 0x1_0000_0000, KIB4, 1);
    assert_eq!(bed.map(0x1000, 0x8_0000_0000, KIB4, 8, RW), (0x3000, in_use(0x4000)));
    assert_eq!(bed.phys(0x3fff), Some(0x8_0000_2fff));
    assert_eq!(bed.phys(0x4000), Some(0x1_0000_0000));
    assert_eq!(bed.phys(0x5000), None);
    // Which is what the caller needs to undo it.
    assert_eq!(bed.unmap(0x1000, 0x3000), 0x3000);
    assert_eq!(bed.tree().pages.into_keys().collect::<Vec<_>>(), [0x4000]);
}

#[test]
fn a_large_page_goes_where_an_emptied_table_was_left() {
    let bed = Bed::new(4, 32);
    bed.must_map(0x5000, 0x5000, KIB4, 1);
    assert_eq!(bed.unmap(0x5000, KIB4), KIB4);
    let tables = bed.table.table_pages();

    // No invalidation is needed: the table stays and holds smaller pages.
    bed.must_map(0, 0x2_0000_0000, MIB2, 1);
    assert_eq!(bed.table.table_pages(), tables);
    for iova in [0, 0x5678, MIB2 - 1] {
        assert_eq!(bed.phys(iova), Some(0x2_0000_0000 + iova));
    }
    assert!(bed.tree().pages.values().all(|page| page.size == MIB2 / 2), "the largest that fit below");

    // An unmap covers the table and takes it out; from then on the page is one again.
    assert_eq!(bed.unmap(0, MIB2), MIB2);
    assert_eq!(bed.table.table_pages(), tables - 1);
    bed.must_map(0, 0x2_0000_0000, MIB2, 1);
    assert_eq!(bed.tree().pages[&0].size, MIB2);
}

#[test]
fn a_page_goes_around_emptied_tables_of_several_levels() {
    let bed = Bed::new(4, 32);
    for iova in [0x5000, 7 * MIB2 + 0x9000, GIB1 + MIB2] {
        bed.must_map(iova, 0, KIB4, 1);
        assert_eq!(bed.unmap(iova, KIB4), KIB4);
    }
    bed.must_map(0, 0x8_0000_0000, 2 * GIB1, 1);
    let mut next = 0;
    for (iova, page) in bed.tree().pages {
        assert_eq!((iova, page.phys), (next, 0x8_0000_0000 + next));
        next += page.size;
    }
    assert_eq!(next, 2 * GIB1);
    assert_eq!(bed.unmap(0, 2 * GIB1), 2 * GIB1);
    assert_eq!(bed.arena.live(), 2, "the top, and the table of which the range is only a part");
}

#[test]
fn a_large_page_over_a_table_in_use_stops_at_what_is_there() {
    let bed = Bed::new(3, 16);
    bed.must_map(MIB2 / 2 + 0x3000, 0xabc_d000, KIB4, 1);
    // 1 MiB is the largest page below; the second one clashes.
    let (done, result) = bed.map(0, 0x2_0000_0000, MIB2, 1, RW);
    assert_eq!((done, result), (MIB2 / 2, in_use(MIB2 / 2)));
    assert_eq!(bed.phys(MIB2 / 2 + 0x3000), Some(0xabc_d000));
    assert_eq!(bed.unmap(0, done), done);
    assert_eq!(bed.tree().pages.len(), 1);
}

#[test]
fn a_mapping_without_rights_is_refused() {
    let bed = Bed::new(3, 8);
    for prot in [Prot::empty(), Prot::CACHE, Prot::NOEXEC | Prot::MMIO | Prot::PRIV] {
        assert_eq!(bed.map(0, 0, KIB4, 1, prot), (0, Err(MapError::NoAccess)));
    }
    assert_eq!(bed.arena.live(), 1);
}

#[test]
fn sizes_and_alignments_that_the_format_lacks_are_refused() {
    let bed = Bed::new(6, 8);
    let no_page_size = |iova| (0, Err(MapError::NoPageSize(DmaAddr::new(iova))));
    for size in [0, 1, 0x800, 0x3000, 1 << 39, 1 << 52, 1 << 63, u64::MAX] {
        assert_eq!(bed.map(0, 0, size, 1, RW), no_page_size(0), "{size:#x}");
    }
    assert_eq!(bed.map(0x10_0000, 0, MIB2, 1, RW), no_page_size(0x10_0000));
    assert_eq!(bed.map(0, 0x10_0000, MIB2, 1, RW), no_page_size(0));
    assert_eq!(bed.map(0x1001, 0, KIB4, 1, RW), no_page_size(0x1001));
    assert_eq!(bed.arena.live(), 1);
}

#[test]
fn ranges_beyond_the_table_are_refused() {
    for levels in 1..=6 {
        let bed = Bed::new(levels, 16);
        let out_of_range = |iova| (0, Err(MapError::OutOfRange(DmaAddr::new(iova))));
        let last = bed.table.aperture().1.get();
        assert_eq!(
            last,
            [0x1f_ffff, 0x3fff_ffff, 0x7f_ffff_ffff, (1 << 48) - 1, (1 << 57) - 1, u64::MAX]
                [levels as usize - 1]
        );
        let at = last - 0xfff;
        bed.must_map(at, 0x7000, KIB4, 1);
        assert_eq!(bed.phys(last), Some(0x7fff));
        assert_eq!(bed.map(at - 0x1000, 0, KIB4, 3, RW), out_of_range(at - 0x1000));
        if last != u64::MAX {
            assert_eq!(bed.map(last + 1, 0, KIB4, 1, RW), out_of_range(last + 1));
            assert_eq!(bed.map(u64::MAX - 0xfff, 0, KIB4, 1, RW), out_of_range(u64::MAX - 0xfff));
        }
        assert_eq!(bed.map(0, 0, KIB4, usize::MAX, RW), out_of_range(0));
        assert_eq!(bed.map(0, 0, KIB4, 0, RW), out_of_range(0), "no pages");
        assert_eq!(bed.map(0, (1 << 52) - 0x1000, KIB4, 2, RW), out_of_range(0), "beyond 52 bits of memory");
        assert_eq!(bed.map(0, u64::MAX - 0xfff, KIB4, 1, RW), out_of_range(0));
        assert_eq!(bed.tree().pages.len(), 1);
    }
    let bed = Bed::new(2, 8);
    assert_eq!(bed.map(0, 0, 1 << 30, 1, RW).1, Err(MapError::OutOfRange(DmaAddr::new(0))));
    assert_eq!(bed.map(0, 0, 1 << 40, 1, RW).1, Err(MapError::OutOfRange(DmaAddr::new(0))));
}

#[test]
fn without_frames_for_tables_what_was_done_is_reported_and_nothing_is_lost() {
    // The top, two tables on the way down, and one of 4 KiB pages; the next one is not there.
    let bed = Bed::new(4, 4);
    let (done, result) = bed.map(0, 0x1_0000_0000, KIB4, 600, RW);
    assert_eq!((done, result), (512 * KIB4, Err(MapError::OutOfMemory)));
    assert_eq!(bed.tree().pages.len(), 512);
    assert_eq!(bed.unmap(0, done), done);
    assert_eq!((bed.arena.live(), bed.table.table_pages()), (3, 3));
    // Deep in a walk.
    assert_eq!(bed.map(1 << 47, 0, KIB4, 1, RW), (0, Err(MapError::OutOfMemory)));
    assert_eq!((bed.arena.live(), bed.table.table_pages()), (4, 4));
    assert!(bed.tree().pages.is_empty());
    drop(bed.table);
    assert_eq!(bed.arena.live(), 0);
}

#[test]
fn without_a_frame_for_the_top_there_is_no_table() {
    let arena = Arc::new(Arena::new(1));
    let cfg = common::amdv1_cfg(3);
    let first = PageTable::<AmdV1>::new(arena.clone(), &cfg).unwrap();
    assert_eq!(PageTable::<AmdV1>::new(arena.clone(), &cfg).unwrap_err(), CfgError::OutOfMemory);
    drop(first);
    assert_eq!(arena.live(), 0);
}

#[test]
fn as_few_levels_as_the_address_takes() {
    for (ias, level) in [(13, 1), (21, 1), (22, 2), (39, 3), (48, 4), (49, 5), (57, 5), (58, 6), (64, 6)] {
        let table = PageTable::<AmdV1>::new(Arc::new(Arena::new(1)), &IoPgtableCfg::new(ias)).unwrap();
        assert_eq!(table.root().level, level, "{ias} bits");
    }
    for ias in [0, 12, 65, u32::MAX] {
        let table = PageTable::<AmdV1>::new(Arc::new(Arena::new(1)), &IoPgtableCfg::new(ias));
        assert_eq!(table.unwrap_err(), CfgError::InputSize, "{ias} bits");
    }
}

#[test]
fn a_dropped_table_gives_every_frame_back() {
    let bed = Bed::new(6, 64);
    bed.must_map(0, 0, KIB4, 513);
    bed.must_map(GIB1, 0, MIB2, 3);
    bed.must_map(1 << 60, 0, 1 << 51, 1);
    bed.must_map(u64::MAX - 0xfff, 0, KIB4, 1);
    assert_eq!(bed.arena.live(), bed.table.table_pages());
    assert_eq!(bed.tree().tables.len(), bed.table.table_pages());
    drop(bed.table);
    assert_eq!(bed.arena.live(), 0);
}
