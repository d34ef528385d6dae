//! I/O addresses: two CPUs take and give back at once, through magazines, depot and tree, and never have the same range.

#![cfg(loom)]

mod loom_common;

use loom::thread;
use loom_common::{boot, explore, map, unmap};
use platform::cpu;

#[test]
fn no_range_is_handed_out_twice() {
    explore(1, || {
        // Three pages of addresses, and magazines of one: a CPU has two of the pages then, and the depot the third.
        let (machine, device) = boot(0x3fff, false);
        let held = [(); 3].map(|()| map(&device).unwrap());
        held.into_iter().for_each(|at| unmap(&device, at));
        let other = {
            let device = device.clone();
            thread::spawn(move || {
                cpu::set(1);
                if let Some(at) = map(&device) {
                    unmap(&device, at);
                }
                map(&device)
            })
        };
        // Whoever finds nothing empties the magazines of both CPUs.
        let mine = [(); 3].map(|()| map(&device));
        let theirs = other.join().unwrap();
        // The machine's table refuses a page that is mapped already, which `map` does not forgive.
        let all: Vec<_> = mine.into_iter().chain([theirs]).flatten().collect();
        assert_eq!(machine.mapped(), all.len());
        assert!(all.iter().enumerate().all(|(index, at)| !all[..index].contains(at)));
        // Nothing is lost either.
        all.into_iter().for_each(|at| unmap(&device, at));
        assert!((0..3).all(|_| map(&device).is_some()));
        assert!(map(&device).is_none());
    });
}
