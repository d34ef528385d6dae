//! `Faulty`: which calls fail, and that the safe types lose nothing whichever it is.

mod common;

use std::sync::{Arc, Mutex};

use common::{Bench, LOW, PAGE, Required};
use dma_api::{
    Attrs, Bidirectional, Calls, Coherent, CoherentSlice, CpuPages, Device, DeviceBuilder, Direction,
    DmaError, DmaIova, DmaMapOps, DmaPool, FaultPlan, Faulty, FromDevice, Quarantined, ScatterList,
    Streaming, ToDevice,
};

const ERROR: DmaError = DmaError::IommuTimedOut;

fn faulty(bench: &Bench, plan: FaultPlan) -> (Arc<Device>, Arc<FaultPlan>) {
    let plan = Arc::new(plan);
    let ops = Faulty::new(bench.mock.clone(), plan.clone());
    (device(bench, ops), plan)
}

fn device(bench: &Bench, ops: impl DmaMapOps + 'static) -> Arc<Device> {
    Arc::new(DeviceBuilder::new("faulty").build(Arc::new(ops), bench.host.clone()))
}

/// What the next `count` streaming maps do.
fn maps(device: &Device, count: usize) -> Vec<Result<(), DmaError>> {
    let map =
        |_| Streaming::<_, ToDevice>::map(device, vec![0u8; 8]).map(drop).map_err(|failed| failed.error);
    (0..count).map(map).collect()
}

#[test]
fn the_nth_call_fails_and_no_other() {
    let bench = Bench::new();
    let (device, plan) = faulty(&bench, FaultPlan::default());
    plan.fail_nth(Calls::MAP_FOREIGN, 3, ERROR);
    assert_eq!(maps(&device, 5), [Ok(()), Ok(()), Err(ERROR), Ok(()), Ok(())]);
    assert_eq!(plan.failed(), 1);
}

#[test]
fn only_the_kinds_of_call_that_were_named_fail() {
    let bench = Bench::new();
    let (device, plan) = faulty(&bench, FaultPlan::default());
    plan.fail_nth(Calls::ALLOC | Calls::MAP_SG, 2, ERROR);
    assert_eq!(maps(&device, 2), [Ok(()), Ok(())]);
    let list = || ScatterList::<_, ToDevice>::map(&device, vec![bench.buffer(&[1; 8])]);
    drop(list().unwrap());
    assert_eq!(Coherent::<u8>::zeroed(&device).unwrap_err(), ERROR);
    drop(list().unwrap());
    assert_eq!(plan.failed(), 1);
}

#[test]
fn rules_count_for_themselves_and_the_oldest_names_the_error() {
    let bench = Bench::new();
    let (device, plan) = faulty(&bench, FaultPlan::default());
    plan.fail_nth(Calls::MAPS, 2, ERROR);
    plan.fail_nth(Calls::MAPS, 2, DmaError::Gone);
    plan.fail_nth(Calls::MAPS, 3, DmaError::Gone);
    assert_eq!(maps(&device, 4), [Ok(()), Err(ERROR), Err(DmaError::Gone), Ok(())]);
    assert_eq!(plan.failed(), 2);
    plan.fail_nth(Calls::MAPS, 1, ERROR);
    plan.clear();
    assert_eq!(maps(&device, 1), [Ok(())]);
}

#[test]
fn chance_is_the_same_for_the_same_seed_and_near_what_was_asked() {
    let run = |per_mille, seed| {
        let bench = Bench::new();
        let (device, plan) = faulty(&bench, FaultPlan::default());
        plan.fail_by_chance(Calls::MAP_FOREIGN, per_mille, seed, ERROR);
        (maps(&device, 2000), plan.failed())
    };
    for seed in [0, 1, u64::MAX] {
        let (results, failed) = run(250, seed);
        assert_eq!(results.iter().filter(|result| result.is_err()).count() as u64, failed);
        assert!((400..600).contains(&failed), "{failed} of 2000 with seed {seed}");
        assert_eq!(run(250, seed).0, results);
    }
    assert_ne!(run(250, 1).0, run(250, 2).0);
    assert_eq!((run(0, 1).1, run(1000, 1).1), (0, 2000));
}

#[test]
fn the_delay_is_called_before_each_call_with_its_kind() {
    let bench = Bench::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let plan = FaultPlan::delayed({
        let (seen, mock) = (seen.clone(), bench.mock.clone());
        move |call| seen.lock().unwrap().push((call, mock.live()))
    });
    let (device, plan) = faulty(&bench, plan);
    plan.fail_nth(Calls::MAP_FOREIGN, 2, ERROR);
    drop(Coherent::<u8>::zeroed(&device).unwrap());
    assert_eq!(maps(&device, 2), [Ok(()), Err(ERROR)]);
    drop(Streaming::<_, ToDevice>::map(&device, bench.buffer(&[1; 8])).unwrap());
    drop(ScatterList::<_, ToDevice>::map(&device, vec![bench.buffer(&[1; 8])]).unwrap());
    let expected = [
        (Calls::ALLOC, 0),
        (Calls::FREE, 1),
        (Calls::MAP_FOREIGN, 0),
        (Calls::UNMAP_PHYS, 1),
        (Calls::MAP_FOREIGN, 0),
        (Calls::MAP_PHYS, 0),
        (Calls::UNMAP_PHYS, 1),
        (Calls::MAP_SG, 0),
        (Calls::UNMAP_SG, 1),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn an_unmap_that_fails_leaves_the_memory_with_the_device() {
    let bench = Bench::new();
    let (device, plan) = faulty(&bench, FaultPlan::default());
    plan.fail_nth(Calls::UNMAP_PHYS, 1, ERROR);
    plan.fail_nth(Calls::UNMAP_SG, 1, ERROR);
    plan.fail_nth(Calls::FREE, 1, ERROR);

    let mapped = Streaming::<_, FromDevice>::map(&device, bench.buffer(&[0; 100])).unwrap();
    let address = mapped.dma_address();
    assert_eq!(mapped.unmap().unwrap_err(), Quarantined { address, len: 100 });
    assert!(bench.mock.device_write(address, &[1; 100]));

    let list = ScatterList::<_, FromDevice>::map(&device, vec![bench.buffer(&[0; 9])]).unwrap();
    let segment = list.segments().next().unwrap();
    assert_eq!(list.unmap().unwrap_err(), Quarantined { address: segment.address, len: 9 });
    assert!(bench.mock.device_write(segment.address, &[1; 9]));

    let coherent = CoherentSlice::<u8>::zeroed(&device, 50).unwrap();
    let address = coherent.dma_address();
    drop(coherent);
    assert!(bench.mock.device_write(address, &[1; 50]));
    assert_eq!((bench.mock.live(), bench.host.live()), (3, 3 * PAGE as u64), "leaked, not freed");
}

/// A driver's use of every safe type, given up at the first error.
fn use_everything(bench: &Bench, device: &Arc<Device>) -> Result<(), DmaError> {
    device.set_mask(LOW)?;
    let ring = CoherentSlice::<u64>::zeroed(device, 64)?;
    let one = Coherent::new(device, 7u32)?;
    let pool = DmaPool::new(device, "small", 1024, 64, 0)?;
    // More blocks than one slab holds.
    let items = (0..9).map(|_| pool.alloc::<u8>()).collect::<Result<Vec<_>, _>>()?;
    let ram = Streaming::<_, Bidirectional>::map(device, bench.buffer(&[1; 300])).map_err(|f| f.error)?;
    let heap = Streaming::<_, FromDevice>::map(device, vec![0u8; 300]).map_err(|f| f.error)?;
    let ram = ram.sync_for_cpu().sync_for_device();
    let buffers = vec![bench.buffer(&[1; PAGE]), bench.buffer(&[2; 10])];
    let together = ScatterList::<_, ToDevice>::map(device, buffers).map_err(|f| f.error)?;
    let singly = vec![vec![1u8; 10], vec![2; 20], vec![3; 30]];
    let singly = ScatterList::<_, ToDevice>::map(device, singly).map_err(|f| f.error)?;
    drop((ring, one, pool, items));
    ram.unmap().and(heap.unmap().map(drop).and(together.unmap().map(drop))).unwrap();
    assert_eq!(singly.unmap().unwrap(), [vec![1; 10], vec![2; 20], vec![3; 30]]);
    Ok(())
}

/// Lets the first, the second, ... call fail, until nothing does any more, and returns how many calls there were.
fn fail_each_in_turn(
    make: impl Fn(&Bench, Arc<FaultPlan>) -> Arc<Device>,
    run: impl Fn(&Bench, &Arc<Device>) -> Result<(), DmaError>,
) -> u64 {
    for n in 1.. {
        let bench = Bench::new();
        let plan = Arc::new(FaultPlan::default());
        plan.fail_nth(Calls::MAPS, n, ERROR);
        let result = run(&bench, &make(&bench, plan.clone()));
        assert_eq!((bench.mock.live(), bench.host.live()), (0, 0), "call {n}");
        if plan.failed() == 0 {
            assert_eq!(result, Ok(()));
            return n - 1;
        }
        assert_eq!(result, Err(ERROR), "call {n}");
    }
    unreachable!()
}

#[test]
fn whichever_call_fails_nothing_is_lost() {
    let over_mock =
        |bench: &Bench, plan: Arc<FaultPlan>| device(bench, Faulty::new(bench.mock.clone(), plan));
    let calls = fail_each_in_turn(over_mock, use_everything);
    // Two rings, three slabs of blocks, two buffers, a list at once and one of three parts.
    assert_eq!(calls, 2 + 3 + 2 + 1 + 3);
}

#[test]
fn whichever_element_of_a_list_fails_nothing_is_lost() {
    let under_defaults =
        |bench: &Bench, plan: Arc<FaultPlan>| device(bench, Required(Faulty::new(bench.mock.clone(), plan)));
    let calls = fail_each_in_turn(under_defaults, |bench, device| {
        let buffers = (0..5).map(|seed| bench.buffer(&[seed; 100])).collect();
        let list = ScatterList::<_, Bidirectional>::map(device, buffers).map_err(|failed| failed.error)?;
        list.unmap().map(drop).map_err(DmaError::NotUndone)
    });
    assert_eq!(calls, 5);
}

#[test]
fn whichever_unmap_fails_as_much_stays_with_the_device_as_is_leaked() {
    let bench = Bench::new();
    let (device, plan) = faulty(&bench, FaultPlan::default());
    for n in 1..=3 {
        plan.clear();
        plan.fail_nth(Calls::UNMAPS, n, ERROR);
        let ring = CoherentSlice::<u8>::zeroed(&device, PAGE).unwrap();
        let ram = Streaming::<_, FromDevice>::map(&device, bench.buffer(&[1; PAGE])).unwrap();
        let list = ScatterList::<_, FromDevice>::map(&device, vec![bench.buffer(&[1; PAGE])]).unwrap();
        drop((ring, ram, list));
        assert_eq!((bench.mock.live() as u64, bench.host.live()), (n, n * PAGE as u64));
    }
}

#[test]
fn each_call_of_the_two_steps_and_of_pages_fails_when_it_is_named() {
    let bench = Bench::new();
    let (device, plan) = faulty(&bench, FaultPlan::default());
    let buffer = bench.buffer(&[1; PAGE]);
    let dir = Direction::ToDevice;
    let new = || DmaIova::new(&device, buffer.phys(), PAGE, dir, Attrs::empty());
    // SAFETY: the buffer stays, and no device of the test touches it.
    let link = |iova: &mut DmaIova<'_>| unsafe { iova.link(0, buffer.phys(), PAGE) };
    plan.fail_nth(Calls::IOVA_TRY_ALLOC, 1, ERROR);
    assert_eq!(new().unwrap_err(), ERROR);
    plan.fail_nth(Calls::IOVA_LINK, 1, ERROR);
    plan.fail_nth(Calls::IOVA_SYNC, 1, ERROR);
    let mut iova = new().unwrap();
    assert_eq!(link(&mut iova), Err(ERROR));
    link(&mut iova).unwrap();
    assert_eq!(iova.sync(), Err(ERROR));
    iova.sync().unwrap();
    plan.fail_nth(Calls::IOVA_DESTROY, 1, ERROR);
    assert_eq!(iova.destroy().unwrap_err().len, PAGE);
    let mut iova = new().unwrap();
    link(&mut iova).unwrap();
    plan.fail_nth(Calls::IOVA_UNLINK, 1, ERROR);
    iova.unlink(0).unwrap_err();
    drop(iova);
    assert_eq!(bench.mock.live(), 2, "both are still reached");
    plan.fail_nth(Calls::ALLOC_PAGES, 1, ERROR);
    assert_eq!(CpuPages::<ToDevice>::zeroed(&device, 8).unwrap_err(), ERROR);
    plan.fail_nth(Calls::FREE_PAGES, 1, ERROR);
    let memory = device.alloc_pages(8, dir, Attrs::empty()).unwrap();
    // SAFETY: allocated so, freed once.
    unsafe { device.free_pages(memory, dir, Attrs::empty()) }.unwrap_err();
    assert_eq!((plan.failed(), bench.mock.live()), (7, 3));
}
