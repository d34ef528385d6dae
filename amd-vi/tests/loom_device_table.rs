//! A device table entry that changes while the unit reads it in pieces. It sees the entry of before, the entry of afterwards or
//! one that blocks: never the root of one domain with the tag of another.

#![cfg(loom)]

mod common;
mod loom_common;

use iommu_core::IommuOps;
use loom::thread;
use loom_common::{DEV, Machine};

const UPWARDS: [u64; 4] = [0, 1, 2, 3];
const DOWNWARDS: [u64; 4] = [3, 2, 1, 0];

/// Moves the device from a domain to another while the unit fetches its entry, piece by piece in `order`.
fn move_while_fetching(order: [u64; 4]) {
    let mut model = loom::model::Builder::new();
    // Two are enough for each of the faults.
    model.preemption_bound = Some(2);
    // Bring-up, two attaches and shutdown take many steps.
    model.max_branches = 10_000;
    model.check(move || {
        let machine = Machine::boot();
        machine.driver.probe_device(DEV).unwrap();
        let [first, second] = [(); 2].map(|()| machine.driver.domain_alloc_paging(DEV).unwrap());
        // SAFETY: the core is not there, so nobody else moves the device; and it touches nothing.
        unsafe { first.attach_dev(DEV, None) }.unwrap();
        let before = machine.unit().entry(UPWARDS);
        let unit = {
            let machine = machine.clone();
            thread::spawn(move || machine.unit().fetch(order))
        };
        // SAFETY: as above.
        unsafe { second.attach_dev(DEV, Some(&*first)) }.unwrap();
        let seen = unit.join().unwrap();
        let after = machine.unit().entry(UPWARDS);
        assert_ne!((before[0], before[1]), (after[0], after[1]));
        // V without TV.
        let blocks = seen[0] & 3 == 1;
        assert!(blocks || seen == before || seen == after, "{seen:x?} is neither {before:x?} nor {after:x?}");
        machine.driver.release_device(DEV);
        drop((first, second));
        machine.finish();
    });
}

#[test]
fn an_entry_that_is_read_upwards_is_never_torn() {
    move_while_fetching(UPWARDS);
}

#[test]
fn an_entry_that_is_read_downwards_is_never_torn() {
    move_while_fetching(DOWNWARDS);
}
