//! The command ring and its completions, while others drive the unit: a wait that says yes comes after what it waits
//! for, whoever else uses the ring, and commands that were lost in a reset are never said to be done.

#![cfg(loom)]

mod common;
mod loom_common;

use amd_vi::command::Command;
use amd_vi::invalidate::Cover;
use amd_vi::{CommandError, CommandQueue};
use loom::thread;
use loom_common::Machine;
use platform::sync::atomic::Ordering;

/// What stops the unit.
const ILLEGAL: Command = Command { q0: 0, q1: 0 };

fn ring(machine: &Machine) -> &CommandQueue {
    machine.driver.units()[0].commands()
}

/// Unmaps the page of `domain` and waits until the unit has forgotten it.
fn unmap(machine: &Machine, domain: u16) {
    let unit = machine.unit();
    unit.present[usize::from(domain)].store(false, Ordering::Relaxed);
    let ticket = ring(machine).submit(&[Command::invalidate_iommu_pages(domain, Cover::ALL, true)]).unwrap();
    ring(machine).wait(ticket).unwrap();
    assert!(!unit.cached[usize::from(domain)].load(Ordering::Relaxed));
}

#[test]
fn a_wait_ends_after_its_commands_were_executed() {
    loom::model(|| {
        let machine = Machine::boot();
        // The ring has room for one of the two at a time.
        let other = {
            let machine = machine.clone();
            thread::spawn(move || unmap(&machine, 1))
        };
        unmap(&machine, 0);
        other.join().unwrap();
        machine.finish();
    });
}

#[test]
fn what_a_reset_lost_is_never_done() {
    loom::model(|| {
        let machine = Machine::boot();
        let lost = ring(&machine).submit(&[ILLEGAL]).unwrap();
        assert!(!machine.unit().work());
        let waiter = {
            let machine = machine.clone();
            thread::spawn(move || ring(&machine).wait(lost))
        };
        assert_eq!(machine.driver.handle_interrupt(&mut |_| ()).resets, 1);
        // A later number is stored to the same word.
        let later = ring(&machine).submit(&[]).unwrap();
        assert_eq!(ring(&machine).wait(later), Ok(()));
        assert_eq!(waiter.join().unwrap(), Err(CommandError::Reset));
        machine.finish();
    });
}
