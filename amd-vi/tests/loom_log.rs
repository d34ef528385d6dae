//! The reader of an event log beside the unit that fills it until it overflows: every event that found room is delivered once,
//! whole and in order, until a restart; and after the restart the log goes on.

#![cfg(loom)]

mod common;
mod loom_common;

use loom::thread;
use loom_common::Machine;

/// Event number `number`: an I/O page fault whose device and address say the same.
fn event(number: u64) -> (u64, u64) {
    (2 << 60 | number, number << 12)
}

/// Delivers what is in the log.
fn handle(machine: &Machine, delivered: &mut Vec<u64>) -> usize {
    let handled = machine.driver.handle_events(&mut |_, event| {
        let number = u64::from(event.device().expect("a fault of a device").get());
        assert_eq!(event.address, number << 12, "both words are of one event");
        delivered.push(number);
    });
    assert_eq!(handled.failures, 0);
    handled.overflows
}

#[test]
fn a_log_that_overflows_beside_its_reader_loses_nothing_that_it_took() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let machine = Machine::boot();
        // Four entries, of which three can be used; two are.
        let log = |number| machine.unit().log(event(number).0, event(number).1);
        assert!(log(1) && log(2));
        let unit = {
            let machine = machine.clone();
            thread::spawn(move || [3, 4].map(|number| machine.unit().log(event(number).0, event(number).1)))
        };
        let mut delivered = Vec::new();
        let mut overflows = handle(&machine, &mut delivered);
        let [third, fourth] = unit.join().unwrap();
        let left = !machine.driver.units()[0].events().pending().is_empty();
        assert!(machine.unit().asks_for_attention() || !left, "an event without an interrupt");
        overflows += handle(&machine, &mut delivered);
        assert!(third, "there was room");
        let expected: &[u64] = if fourth { &[1, 2, 3, 4] } else { &[1, 2, 3] };
        assert_eq!(delivered, expected);
        assert_eq!(overflows, usize::from(!fourth));
        // It goes on.
        assert!(log(5));
        delivered.clear();
        handle(&machine, &mut delivered);
        assert_eq!(delivered, [5]);
        machine.finish();
    });
}
