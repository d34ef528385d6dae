//! A top that grows with what is mapped.

mod common;
mod walkers;

use std::sync::{Arc, Mutex, OnceLock, Weak};

use common::{Arena, RW, amdv1_cfg};
use io_pgtable::{AmdV1, ChangeTop, IoPageTable, IoPgtableCfg, PageTable, Parts, Quirks, Root, X86_64};
use platform::{DmaAddr, MapError, Prot};
use walkers::amdv1;

/// What the owner was told of: the new top, the level of the one that the table had then, and what hardware that walks from the
/// new one finds at an older page.
#[derive(Debug, Default)]
struct Told {
    tops: Mutex<Vec<(Root, u32, Option<u64>)>>,
    table: OnceLock<Weak<PageTable<AmdV1>>>,
}

const OLD: u64 = 0x5000;

fn growing(levels: u32, frames: usize) -> (Arc<Arena>, Arc<Told>, Arc<PageTable<AmdV1>>) {
    let arena = Arc::new(Arena::new(frames));
    let told = Arc::new(Told::default());
    let (memory, notes) = (arena.clone(), told.clone());
    let change_top = ChangeTop::new(6, move |root| {
        let found = amdv1::walk(&memory, root.phys.get(), root.level, OLD).map(|(_, phys)| phys);
        let table = notes.table.get().and_then(Weak::upgrade).expect("a table that maps");
        notes.tops.lock().unwrap().push((root, table.root().level, found));
        Ok(())
    });
    let parts = Parts { frames: arena.clone(), cache: None, change_top: Some(change_top) };
    let table = Arc::new(PageTable::with_parts(parts, &amdv1_cfg(levels)).unwrap());
    told.table.set(Arc::downgrade(&table)).unwrap();
    (arena, told, table)
}

fn map(table: &PageTable<AmdV1>, iova: u64, phys: u64, size: u64) -> Result<(), MapError> {
    // SAFETY: nothing walks the table but this thread.
    unsafe { table.map_pages(iova.into(), phys.into(), size, 1, RW) }.1
}

#[test]
fn the_owner_knows_a_top_before_anything_is_mapped_below_it() {
    let (arena, told, table) = growing(2, 32);
    let old_root = table.root();
    assert_eq!(map(&table, OLD, 0x7_0000_0000, 0x1000), Ok(()));
    assert_eq!(table.aperture().1.get(), u64::MAX, "all that the format reaches");
    assert!(table.page_sizes().contains(1 << 51));
    assert!(told.tops.lock().unwrap().is_empty());

    // 48 bits: level 4, by way of 3.
    assert_eq!(map(&table, 1 << 47, 0x8_0000_0000, 0x1000), Ok(()));
    let root = table.root();
    assert_eq!(root.level, 4);
    let tops = std::mem::take(&mut *told.tops.lock().unwrap());
    let levels: Vec<_> = tops.iter().map(|(new, old, _)| (new.level, *old)).collect();
    assert_eq!(levels, [(3, 2), (4, 3)], "told before the table has it");
    assert!(
        tops.iter().all(|(.., found)| *found == Some(0x7_0000_0000)),
        "what was mapped is below each top"
    );
    assert_eq!(tops[1].0, root);
    let walk = |iova| amdv1::walk(&arena, root.phys.get(), 4, iova).map(|(_, phys)| phys);
    assert_eq!((walk(OLD), walk(1 << 47)), (Some(0x7_0000_0000), Some(0x8_0000_0000)));
    // The old top is a table of the tree, and of nobody else.
    let tables = amdv1::tree(&arena, root.phys.get(), 4).tables;
    assert!(tables.contains(&old_root.phys.get()));
    assert_eq!((tables.len(), arena.live()), (table.table_pages(), table.table_pages()));

    // To the last address.
    assert_eq!(map(&table, u64::MAX - 0xfff, 0x9000, 0x1000), Ok(()));
    assert_eq!(table.root().level, 6);
    assert_eq!(table.iova_to_phys(DmaAddr::new(u64::MAX)).map(|found| found.phys.get()), Some(0x9fff));
    drop(table);
    assert_eq!(arena.live(), 0);
}

#[test]
fn a_page_too_large_for_the_top_grows_it() {
    let (_arena, told, table) = growing(1, 32);
    assert_eq!(map(&table, 0, 0, 1 << 30), Ok(()));
    assert_eq!(table.root().level, 3);
    assert_eq!(told.tops.lock().unwrap().len(), 2);
}

#[test]
fn without_memory_the_top_stays() {
    let (arena, told, table) = growing(2, 2);
    assert_eq!(map(&table, OLD, 0, 0x1000), Ok(()));
    assert_eq!(map(&table, 1 << 47, 0, 0x1000), Err(MapError::OutOfMemory));
    assert_eq!((table.root().level, arena.live()), (2, 2));
    assert!(told.tops.lock().unwrap().is_empty());
}

#[test]
fn a_table_grows_only_if_its_owner_and_its_format_can() {
    let arena = Arc::new(Arena::new(8));
    let fixed = PageTable::<AmdV1>::new(arena.clone(), &amdv1_cfg(2)).unwrap();
    let out_of_range = Err(MapError::OutOfRange(DmaAddr::new(1 << 40)));
    assert_eq!(map(&fixed, 1 << 40, 0, 0x1000), out_of_range);
    let change_top = ChangeTop::new(6, |root| panic!("{root:?}"));
    let parts = Parts { frames: arena, cache: None, change_top: Some(change_top) };
    let cfg = IoPgtableCfg::new(48).with_quirks(Quirks::SIGN_EXTEND);
    let table = PageTable::<X86_64>::with_parts(parts, &cfg).unwrap();
    let at = DmaAddr::new(1 << 50);
    // SAFETY: nothing walks the table.
    let result = unsafe { table.map_pages(at, 0.into(), 0x1000, 1, Prot::READ) };
    assert_eq!(result, (0, Err(MapError::OutOfRange(at))));
}

#[test]
fn a_table_grows_as_far_as_its_owner_lets_it() {
    let arena = Arc::new(Arena::new(8));
    let parts = Parts { frames: arena, cache: None, change_top: Some(ChangeTop::new(4, |_| Ok(()))) };
    let table = PageTable::<AmdV1>::with_parts(parts, &amdv1_cfg(3)).unwrap();
    assert_eq!(table.aperture().1.get(), (1 << 48) - 1);
    assert!(!table.page_sizes().contains(1 << 48) && table.page_sizes().contains(1 << 47));
    assert_eq!(map(&table, 1 << 48, 0, 0x1000), Err(MapError::OutOfRange(DmaAddr::new(1 << 48))));
    assert_eq!(table.root().level, 3);
    assert_eq!(map(&table, (1 << 48) - 0x1000, 0, 0x1000), Ok(()));
    assert_eq!(table.root().level, 4);
}

#[test]
fn an_owner_that_cannot_follow_fails_the_map() {
    let arena = Arc::new(Arena::new(8));
    let change_top = ChangeTop::new(6, |_| Err(MapError::Gone));
    let parts = Parts { frames: arena.clone(), cache: None, change_top: Some(change_top) };
    let table = PageTable::<AmdV1>::with_parts(parts, &amdv1_cfg(3)).unwrap();
    assert_eq!(map(&table, OLD, 0x7000, 0x1000), Ok(()));
    assert_eq!(map(&table, 1 << 40, 0, 0x1000), Err(MapError::Gone));
    assert_eq!(table.iova_to_phys(DmaAddr::new(1 << 40)), None);
    // Some unit may know the new top: it is in use, and what was mapped is below it.
    assert_eq!(table.root().level, 4);
    assert_eq!(table.iova_to_phys(DmaAddr::new(OLD)).map(|found| found.phys.get()), Some(0x7000));
    drop(table);
    assert_eq!(arena.live(), 0);
}
