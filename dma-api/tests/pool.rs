//! Pools of coherent blocks.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::{Bench, Call, PAGE};
use dma_api::{Calls, DeviceBuilder, DmaError, DmaPool, FaultPlan, Faulty, PoolItem};
use proptest::prelude::*;

#[test]
fn a_block_is_seen_by_cpu_and_device() {
    let bench = Bench::new();
    let pool = DmaPool::new(&bench.device, "descriptors", 64, 16, 0).unwrap();
    let item: PoolItem<u32> = pool.alloc().unwrap();
    assert_eq!((item.len(), item.is_empty()), (16, false));
    item.write(15, 0x0102_0304);
    let at = item.dma_address().wrapping_add(60);
    assert_eq!(bench.mock.device_read(at, 4).unwrap(), 0x0102_0304u32.to_ne_bytes());
    assert!(bench.mock.device_write(item.dma_address(), &7u32.to_ne_bytes()));
    assert_eq!((item.read(0), item.read(1)), (7, 0));
}

#[test]
fn blocks_are_zeroed_each_time() {
    let bench = Bench::new();
    let pool = DmaPool::new(&bench.device, "blocks", 200, 8, 0).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let items: Vec<PoolItem<u8>> = (0..25).map(|_| pool.alloc().unwrap()).collect();
        for item in &items {
            assert!((0..200).all(|index| item.read(index) == 0));
            (0..200).for_each(|index| item.write(index, 0xff));
        }
        let mut addresses: Vec<_> = items.iter().map(PoolItem::dma_address).collect();
        addresses.sort_unstable();
        seen.push(addresses);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "the same blocks each time");
    let allocations = |call: &&Call| matches!(call, Call::Alloc { .. });
    assert_eq!(
        bench.mock.take_calls().iter().filter(allocations).count(),
        2,
        "25 blocks of 200 are two pages"
    );
}

#[test]
fn memory_goes_back_when_pool_and_blocks_are_gone() {
    let bench = Bench::new();
    let pool = DmaPool::new(&bench.device, "blocks", 3000, 8, 0).unwrap();
    assert_eq!(bench.mock.live(), 0, "nothing is taken before the first block");
    let items: Vec<PoolItem<u64>> = (0..3).map(|_| pool.alloc().unwrap()).collect();
    let clone = pool.clone();
    drop(pool);
    assert_eq!(bench.mock.live(), 3);
    drop(clone);
    assert_eq!(bench.mock.live(), 3, "the blocks hold the pool");
    items[0].write(374, 1);
    drop(items);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
}

#[test]
fn threads_share_a_pool() {
    let bench = Bench::new();
    let pool = DmaPool::new(&bench.device, "blocks", 512, 8, 0).unwrap();
    std::thread::scope(|scope| {
        for thread in 1..=4u64 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..200 {
                    let items: Vec<PoolItem<u64>> =
                        (0..1 + round % 13).map(|_| pool.alloc().unwrap()).collect();
                    items.iter().for_each(|item| item.write(63, thread));
                    std::thread::yield_now();
                    assert!(items.iter().all(|item| item.read(63) == thread && item.read(0) == 0));
                }
            });
        }
    });
    // 52 blocks in use at most, 8 a page; threads that found it empty at once took a page each.
    assert!(bench.mock.live() <= 52usize.div_ceil(8) + 4, "{} pages", bench.mock.live());
    drop(pool);
    assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
}

#[test]
fn blocks_go_back_while_the_pool_grows() {
    let bench = Bench::new();
    let held: Arc<Mutex<Option<PoolItem<u8>>>> = Arc::default();
    let went_back = Arc::new(AtomicBool::new(false));
    let (taken, seen) = (held.clone(), went_back.clone());
    let plan = FaultPlan::delayed(move |call| {
        if let Some(item) = taken.lock().unwrap().take().filter(|_| call == Calls::ALLOC) {
            let (done, wait) = mpsc::channel();
            std::thread::spawn(move || {
                drop(item);
                done.send(()).unwrap();
            });
            seen.store(wait.recv_timeout(Duration::from_secs(10)).is_ok(), Ordering::Relaxed);
        }
    });
    let ops = Arc::new(Faulty::new(bench.mock.clone(), Arc::new(plan)));
    let device = Arc::new(DeviceBuilder::new("slow").build(ops, bench.platform()));
    let pool = DmaPool::new(&device, "blocks", PAGE, 8, 0).unwrap();
    *held.lock().unwrap() = Some(pool.alloc().unwrap());
    let second = pool.alloc::<u8>().unwrap();
    assert!(went_back.load(Ordering::Relaxed), "a block could not go back while the pool grew");
    let first = pool.alloc::<u8>().unwrap();
    assert_eq!(bench.mock.live(), 2);
    drop((first, second));
}

#[test]
fn running_out_is_told_and_got_over() {
    let bench = Bench::new();
    let pool = DmaPool::new(&bench.device, "blocks", PAGE, 8, 0).unwrap();
    bench.maps_left(2);
    let (first, second) = (pool.alloc::<u8>().unwrap(), pool.alloc::<u8>().unwrap());
    assert_eq!(pool.alloc::<u8>().unwrap_err(), DmaError::OutOfMemory);
    let at = first.dma_address();
    drop(first);
    assert_eq!(pool.alloc::<u8>().unwrap().dma_address(), at);
    drop(second);
}

#[test]
fn a_failed_free_keeps_the_memory() {
    let bench = Bench::new();
    let pool = DmaPool::new(&bench.device, "blocks", 64, 8, 0).unwrap();
    drop(pool.alloc::<u8>().unwrap());
    bench.unmaps_fail(true);
    drop(pool);
    assert_eq!(bench.host.live(), PAGE as u64);
}

#[test]
fn impossible_pools_are_refused() {
    let bench = Bench::new();
    let pool = |size, align, boundary| DmaPool::new(&bench.device, "no", size, align, boundary).unwrap_err();
    assert_eq!(pool(0, 8, 0), DmaError::InvalidLength(0));
    assert_eq!(pool(usize::MAX, 8, 0), DmaError::InvalidLength(usize::MAX));
    assert_eq!(pool(8, 0, 0), DmaError::InvalidAlignment(0));
    assert_eq!(pool(8, 24, 0), DmaError::InvalidAlignment(24));
    assert_eq!(pool(8, 8192, 0), DmaError::InvalidAlignment(8192));
    assert_eq!(pool(64, 8, 32), DmaError::InvalidAlignment(32));
    assert_eq!(pool(64, 8, 96), DmaError::InvalidAlignment(96));
}

#[test]
fn elements_must_fit_the_blocks() {
    #[derive(Debug, zerocopy::FromBytes, zerocopy::IntoBytes)]
    #[repr(C, align(32))]
    struct Wide([u8; 32]);
    let bench = Bench::new();
    let pool = DmaPool::new(&bench.device, "blocks", 20, 8, 0).unwrap();
    assert_eq!(pool.alloc::<Wide>().unwrap_err(), DmaError::InvalidAlignment(32));
    assert_eq!(pool.alloc::<()>().unwrap_err(), DmaError::InvalidAlignment(1));
    assert_eq!(pool.alloc::<u64>().unwrap().len(), 2);
    let none = pool.alloc::<[u64; 3]>().unwrap();
    assert!(none.is_empty());
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| none.read(0)));
    assert!(read.is_err(), "there is no element to read");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take,
    GiveBack(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => Just(Step::Take), 2 => any::<usize>().prop_map(Step::GiveBack)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Wherever the backend puts the memory: blocks are aligned, cross no boundary and never overlap.
    #[test]
    fn blocks_are_where_they_may_be(
        size in prop_oneof![1..200usize, 1..20_000usize],
        align_shift in 0..13u32,
        boundary_above in prop_oneof![Just(None), (0..4u32).prop_map(Some)],
        first_page in 0..64u64,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let bench = Bench::new();
        let align = 1usize << align_shift;
        let boundary = boundary_above.map_or(0, |shift| size.next_power_of_two() << shift);
        bench.mock.next_coherent.store(first_page * PAGE as u64, Ordering::Relaxed);
        let pool = DmaPool::new(&bench.device, "blocks", size, align, boundary).unwrap();
        let mut items: BTreeMap<u64, PoolItem<u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Take => {
                    let item = pool.alloc::<u8>().unwrap();
                    let at = item.dma_address().get();
                    let last = at + size as u64 - 1;
                    prop_assert_eq!(at % align as u64, 0);
                    if boundary != 0 {
                        prop_assert_eq!(at / boundary as u64, last / boundary as u64, "{:#x}..={:#x}", at, last);
                    }
                    let before = items.range(..=last).next_back();
                    prop_assert!(before.is_none_or(|(&other, _)| other + size as u64 <= at));
                    // All of it is the device's, up to the last byte.
                    prop_assert!(bench.mock.device_write(item.dma_address(), &vec![1; size]));
                    items.insert(at, item);
                }
                Step::GiveBack(which) if !items.is_empty() => {
                    let at = *items.keys().nth(which % items.len()).unwrap();
                    items.remove(&at);
                }
                Step::GiveBack(_) => {}
            }
        }
        drop((items, pool));
        prop_assert_eq!((bench.mock.live(), bench.host.live()), (0, 0));
    }
}
