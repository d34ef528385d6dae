//! The command buffer: wrap-around, a full ring, completions that never come, illegal commands, many producers.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use amd_vi::CommandError;
use amd_vi::command::Command;
use common::*;

/// A command that no unit knows.
// SAFETY: the unit does not execute it.
const ILLEGAL: Command = unsafe { Command::from_words([0xf << 60, 0]) };
/// Entries of the ring.
const ENTRIES_OF_RING: usize = 256;

fn dte(device: u16) -> Command {
    Command::invalidate_devtab_entry(device)
}

#[test]
fn commands_come_out_in_order_across_the_end_of_the_ring() {
    let setup = bring_up();
    let queue = setup.driver.units()[0].commands();
    setup.unit.take_commands();
    for device in 0..2000u16 {
        let ticket = queue.submit(&[dte(device), dte(device ^ 1)]).unwrap();
        queue.wait(ticket).unwrap();
    }
    let seen: Vec<u16> = setup.unit.take_invalidations().iter().map(|(q0, _)| *q0 as u16).collect();
    assert_eq!(seen, (0..2000).flat_map(|device| [device, device ^ 1]).collect::<Vec<_>>());
    // Asked for only when the ring looked full: a few times in 6000 commands.
    assert!(queue.statistics().head_reads <= 2 * 6000 / (ENTRIES_OF_RING as u64 - 1) + 2);
}

#[test]
fn more_commands_than_the_ring_holds_go_through() {
    let setup = bring_up();
    let queue = setup.driver.units()[0].commands();
    setup.unit.take_commands();
    let commands: Vec<Command> = (0..1000).map(dte).collect();
    queue.wait(queue.submit(&commands).unwrap()).unwrap();
    assert_eq!(setup.unit.take_invalidations().len(), 1000);
}

#[test]
fn a_full_ring_times_out_and_overwrites_nothing() {
    let setup = bring_up();
    let queue = setup.driver.units()[0].commands();
    setup.unit.take_commands();
    setup.unit.switches.manual.store(true, Ordering::Relaxed);
    let mut tickets = Vec::new();
    let error = loop {
        match queue.submit(&[dte(tickets.len() as u16)]) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
    };
    assert_eq!(error, CommandError::Full);
    // Pairs of a command and a wait; one entry always stays empty.
    assert_eq!(tickets.len(), (ENTRIES_OF_RING - 1) / 2);
    setup.unit.step();
    let seen: Vec<u16> = setup.unit.take_invalidations().iter().map(|(q0, _)| *q0 as u16).collect();
    assert_eq!(seen, (0..tickets.len() as u16).collect::<Vec<_>>());
    tickets.into_iter().for_each(|ticket| queue.wait(ticket).unwrap());
}

#[test]
fn a_full_ring_waits_for_room() {
    let setup = bring_up();
    let (unit, queue) = (&setup.unit, setup.driver.units()[0].commands());
    unit.switches.manual.store(true, Ordering::Relaxed);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                unit.step();
                thread::yield_now();
            }
        });
        let _finish = Finish(&done);
        for device in 0..3000 {
            let _ = queue.submit(&[dte(device)]).unwrap();
        }
        let last = queue.submit(&[]).unwrap();
        assert_eq!(queue.wait(last), Ok(()));
    });
}

#[test]
fn a_completion_that_never_comes_is_an_error() {
    let setup = bring_up();
    let queue = setup.driver.units()[0].commands();
    setup.unit.switches.lose_completions.store(true, Ordering::Relaxed);
    let lost = queue.submit(&[dte(8)]).unwrap();
    assert_eq!(queue.wait(lost), Err(CommandError::Timeout));
    // A later one says that everything before it is done, the lost one included.
    setup.unit.switches.lose_completions.store(false, Ordering::Relaxed);
    let next = queue.submit(&[]).unwrap();
    assert_eq!((queue.wait(next), queue.wait(lost)), (Ok(()), Ok(())));
}

#[test]
fn a_wait_does_not_end_before_its_commands_are_executed() {
    let setup = bring_up();
    let queue = setup.driver.units()[0].commands();
    setup.unit.switches.manual.store(true, Ordering::Relaxed);
    let ticket = queue.submit(&[dte(8)]).unwrap();
    assert_eq!(queue.wait(ticket), Err(CommandError::Timeout));
    setup.unit.step();
    assert_eq!(queue.wait(ticket), Ok(()));
}

#[test]
fn after_an_illegal_command_the_ring_runs_again_and_what_was_in_it_counts_as_lost() {
    let setup = bring_up();
    let queue = setup.driver.units()[0].commands();
    let before = queue.submit(&[dte(1)]).unwrap();
    queue.wait(before).unwrap();
    let bad = queue.submit(&[ILLEGAL]).unwrap();
    let behind = queue.submit(&[dte(2)]).unwrap();
    assert_eq!(setup.unit.register(0x2020) >> 4 & 1, 0, "the unit has stopped");

    let mut events = Vec::new();
    let handled = setup.driver.handle_events(&mut |_, event| events.push(event));
    assert_eq!((handled.events, handled.resets, handled.failures), (1, 1, 0));
    assert!(events[0].halts_commands());

    setup.unit.take_commands();
    let after = queue.submit(&[dte(3)]).unwrap();
    assert_eq!(queue.wait(after), Ok(()));
    assert_eq!(setup.unit.take_invalidations(), [(2 << 60 | 3, 0)]);
    // A later number is stored, and yet these were never executed.
    assert_eq!(queue.wait(bad), Err(CommandError::Reset));
    assert_eq!(queue.wait(behind), Err(CommandError::Reset));
    assert_eq!(queue.statistics().resets, 1);
}

#[test]
fn commands_that_are_lost_while_others_wait_for_room_behind_them_are_not_said_to_be_done() {
    let setup = bring_up();
    let (unit, queue) = (&setup.unit, setup.driver.units()[0].commands());
    unit.switches.manual.store(true, Ordering::Relaxed);
    let start = unit.register(0x2008) / 16;
    let _ = queue.submit(&[ILLEGAL]).unwrap();
    // With their waits these leave room for some of the commands below, and not for all.
    for device in 0..116 {
        let _ = queue.submit(&[dte(device)]).unwrap();
    }
    let many: Vec<Command> = (0..40).map(dte).collect();
    let submitted = thread::scope(|scope| {
        let submitted = scope.spawn(|| queue.submit(&many));
        while unit.register(0x2008) / 16 != (start + 2 * 117 + 16) % ENTRIES_OF_RING as u64 {
            assert!(!submitted.is_finished(), "all of them fitted");
            thread::yield_now();
        }
        unit.step();
        assert_eq!(setup.driver.handle_events(&mut |_, _| {}).resets, 1);
        submitted.join().unwrap()
    });
    assert_eq!(submitted, Err(CommandError::Reset));
    // What comes later is not concerned.
    unit.switches.manual.store(false, Ordering::Relaxed);
    assert_eq!(queue.wait(queue.submit(&many).unwrap()), Ok(()));
}

#[test]
fn many_producers_each_see_their_own_commands_done() {
    let setup = bring_up();
    let (unit, queue) = (&setup.unit, setup.driver.units()[0].commands());
    unit.take_commands();
    unit.switches.manual.store(true, Ordering::Relaxed);
    let executed: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let producers: Vec<_> = (0..4u16)
            .map(|producer| {
                let executed = &executed;
                scope.spawn(move || {
                    for number in 1..=500u16 {
                        let ticket = queue.submit(&[dte(producer << 12 | number)]).unwrap();
                        queue.wait(ticket).unwrap();
                        assert!(executed[usize::from(producer)].load(Ordering::Relaxed) >= u64::from(number));
                    }
                })
            })
            .collect();
        let executed = &executed;
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                // One command at a time is noted before its completion is stored, since the wait comes behind it.
                unit.step_noting(|q0| {
                    if q0 >> 60 == 2 {
                        executed[usize::from(q0 as u16 >> 12)].store(q0 & 0xfff, Ordering::Relaxed);
                    }
                });
                thread::yield_now();
            }
        });
        let _finish = Finish(done);
        for producer in producers {
            producer.join().unwrap();
        }
    });
    assert_eq!(unit.take_invalidations().len(), 2000);
}
