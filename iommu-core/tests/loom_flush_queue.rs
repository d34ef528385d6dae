//! The flush queue: an address is used again only after a flush that started after its unmap has finished.
//!
//! The model's IOMMU has one translation cache of one page. A flush empties it, and at once the device asks for the page
//! again: what the flush does not see unmapped is back in the cache. An address that is handed out while the cache has its
//! old page has come back too early.

#![cfg(loom)]

mod loom_common;

use loom::thread;
use loom_common::{boot, map, unmap};
use platform::Instant;

#[test]
fn an_address_comes_back_only_after_a_flush_that_started_later() {
    loom::model(|| {
        // One page of addresses.
        let (machine, device) = boot(0x1fff, true);
        map(&device).unwrap();
        machine.remember();
        let ticker = {
            let machine = machine.clone();
            thread::spawn(move || {
                platform::cpu::set(1);
                machine.iommu().tick(Instant::from_nanos(0));
            })
        };
        unmap(&device, 0x1000);
        // Free again or not yet: when it is, the cache has forgotten it.
        if map(&device).is_some() {
            assert!(!machine.remembers());
            unmap(&device, 0x1000);
        }
        ticker.join().unwrap();
        // What waits is not lost: the queue is armed.
        machine.iommu().tick(Instant::from_nanos(0));
        assert!(map(&device).is_some());
        assert!(!machine.remembers());
    });
}
