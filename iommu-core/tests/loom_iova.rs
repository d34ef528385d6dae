//! I/O addresses: two CPUs take and give back at once, through magazines, depot and tree, and never have the same range.

#![cfg(loom)]

mod loom_common;

use loom::thread;
use loom_common::{boot, map, unmap};
use platform::cpu;

#[test]
fn no_range_is_handed_out_twice() {
    loom::model(|| {
        // Three pages of addresses: whoever finds none has drained the magazines of both CPUs.
        let (machine, device) = boot(0x3fff, false);
        // Magazines of one range: with these two both CPUs' ways to the depot are short.
        let held = [map(&device).unwrap(), map(&device).unwrap()];
        held.into_iter().for_each(|at| unmap(&device, at));
        let other = {
            let device = device.clone();
            thread::spawn(move || {
                cpu::set(1);
                let first = map(&device);
                if let Some(at) = first {
                    unmap(&device, at);
                }
                map(&device)
            })
        };
        let (one, two) = (map(&device), map(&device));
        let three = other.join().unwrap();
        // The machine's table refuses a page that is mapped already, which `map` does not forgive.
        let all: Vec<_> = [one, two, three].into_iter().flatten().collect();
        assert_eq!(machine.mapped(), all.len());
        assert!(all.iter().enumerate().all(|(index, at)| !all[..index].contains(at)));
        // Nothing is lost either.
        all.into_iter().for_each(|at| unmap(&device, at));
        assert!((0..3).all(|_| map(&device).is_some()));
        assert!(map(&device).is_none());
    });
}
