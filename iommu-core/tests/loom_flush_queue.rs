//! The flush queue: an address is used again only after a flush that started after its unmap has finished.
//!
//! The model's IOMMU has a translation cache. A flush empties it, and at once the device asks again for what it had: what the
//! flush does not see unmapped is back in the cache. An address that is handed out while the cache has its old page has come
//! back too early.

#![cfg(loom)]

mod loom_common;

use loom::thread;
use loom_common::{boot, boot_with, explore, map, unmap};

#[test]
fn an_address_comes_back_only_after_a_flush_that_started_later() {
    explore(10_000, || {
        // Two pages of addresses, and one flush behind them.
        let (machine, device) = boot(0x2fff, true);
        let first = map(&device).unwrap();
        unmap(&device, first);
        machine.tick();
        let held = [map(&device).unwrap(), map(&device).unwrap()];
        held.into_iter().for_each(|at| machine.remember(at));
        let ticker = {
            let machine = machine.clone();
            thread::spawn(move || {
                platform::cpu::set(1);
                machine.tick();
            })
        };
        // The second push gives back what flushes have covered by then.
        held.into_iter().for_each(|at| unmap(&device, at));
        // Asked at once: a map that finds nothing flushes.
        let map_clean = |_| map(&device).inspect(|&at| assert!(!machine.remembers(at)));
        let mut live: Vec<u64> = (0..2).map_while(map_clean).collect();
        ticker.join().unwrap();
        // What waits is not lost: the next tick finds it.
        machine.tick();
        assert!(held.into_iter().all(|at| !machine.remembers(at)));
        live.extend((live.len()..2).map(|_| map(&device).unwrap()));
        assert!(live.iter().all(|&at| !machine.remembers(at)));
    });
}

#[test]
fn one_queue_for_all_cpus_keeps_the_same_promise() {
    explore(1_000, || {
        // Two pages of addresses, and a queue that is full with both.
        let (machine, device) = boot_with(0x2fff, true, true);
        let held = [map(&device).unwrap(), map(&device).unwrap()];
        held.into_iter().for_each(|at| machine.remember(at));
        let other = {
            let (machine, device) = (machine.clone(), device.clone());
            thread::spawn(move || {
                platform::cpu::set(1);
                unmap(&device, held[1]);
                // Late enough for a range that was there with the first tick.
                machine.tick_at(0);
                machine.tick_at(1_000_000_000);
            })
        };
        unmap(&device, held[0]);
        // Asked at once: a map that finds nothing flushes.
        let map_clean = |_| map(&device).inspect(|&at| assert!(!machine.remembers(at)));
        let mut live: Vec<u64> = (0..2).map_while(map_clean).collect();
        other.join().unwrap();
        // What waits is not lost.
        machine.tick_at(2_000_000_000);
        machine.tick_at(3_000_000_000);
        assert!(held.into_iter().all(|at| !machine.remembers(at)));
        live.extend((live.len()..2).map(|_| map(&device).unwrap()));
        assert!(live.iter().all(|&at| !machine.remembers(at)));
    });
}
