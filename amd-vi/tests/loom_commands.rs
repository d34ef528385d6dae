//! The command ring and its completions, while others drive the unit: a wait that says yes comes after what it waits
//! for, whoever else uses the ring, and commands that were lost in a reset are never said to be done.

#![cfg(loom)]

mod common;
mod loom_common;

use amd_vi::command::Command;
use amd_vi::invalidate::Cover;
use amd_vi::{CommandError, CommandQueue, Ticket};
use loom::thread;
use loom_common::Machine;
use platform::sync::atomic::Ordering;

/// What stops the unit.
// SAFETY: the unit does not execute it.
const ILLEGAL: Command = unsafe { Command::from_words([0, 0]) };

fn ring(machine: &Machine) -> &CommandQueue {
    machine.driver.units()[0].commands()
}

/// Maps a page in `domain`, and the unit uses it.
fn map(machine: &Machine, domain: usize) {
    machine.unit().present[domain].store(true, Ordering::Relaxed);
    machine.unit().cached[domain].store(true, Ordering::Relaxed);
}

/// Unmaps the page of `domain` and waits until the unit has forgotten it.
fn unmap(machine: &Machine, domain: u16) -> Result<(), CommandError> {
    let (unit, page) = (machine.unit(), usize::from(domain));
    unit.present[page].store(false, Ordering::Relaxed);
    let ticket = ring(machine).submit(&[Command::invalidate_iommu_pages(domain, Cover::ALL, true)])?;
    ring(machine).wait(ticket)?;
    assert!(!unit.cached[page].load(Ordering::Relaxed));
    Ok(())
}

/// Stops the unit; the ticket will never come.
fn halt(machine: &Machine) -> Ticket {
    let lost = ring(machine).submit(&[ILLEGAL]).unwrap();
    assert!(!machine.unit().work());
    lost
}

/// Resets the ring, and has a later number stored to the word that others wait for.
fn reset(machine: &Machine) {
    assert_eq!(machine.driver.handle_interrupt(&mut |_| ()).resets, 1);
    let later = ring(machine).submit(&[]).unwrap();
    assert_eq!(ring(machine).wait(later), Ok(()));
}

#[test]
fn a_wait_ends_after_its_commands_were_executed() {
    loom::model(|| {
        let machine = Machine::boot();
        // The ring has room for one of them at a time.
        [0, 1].into_iter().for_each(|domain| map(&machine, domain));
        let other = {
            let machine = machine.clone();
            thread::spawn(move || unmap(&machine, 1))
        };
        assert_eq!(unmap(&machine, 0), Ok(()));
        assert_eq!(other.join().unwrap(), Ok(()));
        machine.finish();
    });
}

#[test]
fn what_a_reset_lost_is_never_done() {
    loom::model(|| {
        let machine = Machine::boot();
        let lost = halt(&machine);
        let waiter = {
            let machine = machine.clone();
            thread::spawn(move || ring(&machine).wait(lost))
        };
        reset(&machine);
        assert_eq!(waiter.join().unwrap(), Err(CommandError::Reset));
        machine.finish();
    });
}

#[test]
fn what_comes_while_a_ring_is_reset_is_lost_or_done() {
    loom::model(|| {
        let machine = Machine::boot();
        map(&machine, 1);
        let lost = halt(&machine);
        let other = {
            let machine = machine.clone();
            thread::spawn(move || {
                let result = unmap(&machine, 1);
                assert!(matches!(result, Ok(()) | Err(CommandError::Reset)), "{result:?}");
                // His own number may have been stored by now.
                assert_eq!(ring(&machine).wait(lost), Err(CommandError::Reset));
            })
        };
        reset(&machine);
        other.join().unwrap();
        machine.finish();
    });
}
