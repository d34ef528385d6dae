//! Lookups of addresses that are nobody's in particular, beside an unmap that takes a table page out: the page goes back to the
//! platform only when no lookup is in it, and then for certain.

#![cfg(loom)]

mod loom_common;

use loom::thread;
use loom_common::{boot, explore, map, unmap};
use platform::cpu;

#[test]
fn a_table_page_goes_back_when_no_lookup_is_in_it() {
    explore(100, || {
        let (machine, device) = boot(0x3fff, false);
        let at = map(&device).unwrap();
        machine.put_table_page();
        let other = {
            let machine = machine.clone();
            thread::spawn(move || {
                cpu::set(1);
                // The table of the model checks that its page is still there.
                machine.look_up(at);
                machine.look_up(at);
            })
        };
        unmap(&device, at);
        other.join().unwrap();
        assert!(machine.is_table_page_free());
    });
}
