//! What a pool of a checked device reports.

use dma_api::{DmaDebug, DmaPool, MappingKind, Mistake};

use crate::watch::{NAME, Watch};

const SIZE: usize = 200;

fn pool(watch: &Watch) -> DmaPool {
    DmaPool::new(&watch.device, "blocks", SIZE, 8, 0).unwrap()
}

fn changed(watch: &Watch) -> (u64, u64, u8) {
    match watch.said() {
        Mistake::FreeBlockChanged { pool, block, at, found } => {
            assert_eq!(&*pool, "blocks");
            (block.get(), at.get() - block.get(), found)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_writes_to_a_block_given_back_is_told_when_it_is_taken_again() {
    let watch = Watch::new();
    let pool = pool(&watch);
    for offset in [0, 63, 64, SIZE as u64 - 1] {
        let item = pool.alloc::<u8>().unwrap();
        let block = item.dma_address();
        assert!(watch.mock.device_write(block.wrapping_add(offset), &[1]));
        drop(item);
        watch.silent();
        assert!(watch.mock.device_write(block.wrapping_add(offset), &[2]));
        watch.silent();
        let item = pool.alloc::<u8>().unwrap();
        assert_eq!(item.dma_address(), block);
        assert_eq!(changed(&watch), (block.get(), offset, 2));
        // It is as clean as any other, and told once.
        assert!((0..SIZE).all(|index| item.read(index) == 0));
        drop(item);
        drop(pool.alloc::<u8>().unwrap());
        watch.silent();
    }
}

#[test]
fn a_block_that_was_never_taken_is_watched_too() {
    let watch = Watch::new();
    let pool = pool(&watch);
    let item = pool.alloc::<u8>().unwrap();
    let [(_, slab)] = watch.debug.dump()[..] else { panic!("one slab") };
    assert_eq!((slab.kind, slab.made_at.file()), (MappingKind::Coherent, file!()));
    assert_ne!(slab.address, item.dma_address());
    assert!(watch.mock.device_write(slab.address.wrapping_add(5), &[3]));
    drop((item, pool));
    assert_eq!(changed(&watch), (slab.address.get(), 5, 3));
}

#[test]
fn a_block_in_use_is_the_devices_to_write() {
    let watch = Watch::new();
    let pool = pool(&watch);
    let items: Vec<_> = (0..50).map(|_| pool.alloc::<u8>().unwrap()).collect();
    for item in &items {
        assert!(watch.mock.device_write(item.dma_address(), &[0xff; SIZE]));
    }
    drop((items, pool));
    watch.silent();
    assert_eq!(watch.mock.live(), 0);
}

#[test]
fn what_is_written_after_a_block_was_last_used_is_told_when_the_pool_goes() {
    let watch = Watch::new();
    let pool = pool(&watch);
    let item = pool.alloc::<u8>().unwrap();
    let block = item.dma_address();
    drop(item);
    assert!(watch.mock.device_write(block, &[9]));
    drop(pool);
    assert_eq!(changed(&watch), (block.get(), 0, 9));
    assert_eq!(watch.mock.live(), 0);
}

#[test]
fn a_forgotten_block_is_told_when_the_last_handle_of_its_pool_goes() {
    let watch = Watch::new();
    let pool = pool(&watch);
    let (kept, first_line) = (pool.alloc::<u8>().unwrap(), line!());
    let forgotten = pool.alloc::<u8>().unwrap();
    let blocks = [kept.dma_address(), forgotten.dma_address()];
    std::mem::forget(forgotten);
    drop(pool.clone());
    watch.silent();
    drop(pool);
    let Mistake::PoolBusy { pool, count: 2, block, taken_at } = watch.said() else { panic!("not busy") };
    assert_eq!((&*pool, block), ("blocks", *blocks.iter().min().unwrap()));
    assert!(taken_at.file() == file!() && taken_at.line() - first_line < 2);
    // Nothing of it is anybody else's.
    drop(kept);
    assert_eq!(watch.mock.live(), 1);
    watch.silent();
}

#[test]
fn a_pool_whose_blocks_are_back_goes_in_silence() {
    let watch = Watch::new();
    let pool = pool(&watch);
    drop(pool.alloc::<u8>().unwrap());
    drop(pool);
    watch.silent();
}

#[test]
fn pools_are_heard_as_their_device_is() {
    for (only, heard) in [(NAME, 1), ("0000:00:04.0", 0)] {
        let watch = Watch::with(DmaDebug::only(only), true);
        let pool = pool(&watch);
        std::mem::forget(pool.alloc::<u8>().unwrap());
        drop(pool);
        let reports = watch.debug.take_reports();
        assert_eq!(reports.len(), heard);
        for report in reports {
            let said = report.to_string();
            assert!(
                said.starts_with("0000:00:03.0: the pool \"blocks\" is gone with 1 blocks in use"),
                "{said}"
            );
        }
    }
}
