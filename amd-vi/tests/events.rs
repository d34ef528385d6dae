//! The event log: order, wrap-around, overflow, entries that are late, and faults as values.

mod common;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use amd_vi::event::Event;
use amd_vi::fault;
use common::*;
use iommu_core::{FaultFlags, FaultKind};
use platform::DmaAddr;
use platform::pci::PciAddress;

const ENTRIES_OF_LOG: u64 = 256;

/// A page fault of device 01:00.0 in domain 1234h.
const PAGE_FAULT: u64 = 0x2020_1234_0000_0100;

fn addresses(setup: &Setup) -> Vec<u64> {
    let mut addresses = Vec::new();
    let handled = setup.driver.handle_events(&mut |_, event| addresses.push(event.address));
    assert_eq!(handled.events, addresses.len());
    addresses
}

#[test]
fn events_come_in_order_across_the_end_of_the_log() {
    let setup = bring_up();
    let mut next = 0;
    for burst in [1, 100, 200, 255, 3, 255] {
        for number in next..next + burst {
            setup.unit.log(PAGE_FAULT, number);
        }
        assert_eq!(addresses(&setup), (next..next + burst).collect::<Vec<_>>());
        next += burst;
    }
    assert_eq!(addresses(&setup), []);
}

#[test]
fn the_status_bits_are_cleared() {
    let setup = bring_up();
    setup.unit.log(PAGE_FAULT, 1);
    assert_eq!(setup.unit.register(0x2020) & 0b111, 0b010);
    addresses(&setup);
    assert_eq!(setup.unit.register(0x2020) & 0b111, 0);
}

#[test]
fn an_event_that_comes_while_the_log_is_read_is_not_left_behind() {
    let setup = bring_up();
    setup.unit.log(PAGE_FAULT, 1);
    let mut seen = Vec::new();
    let handled = setup.driver.handle_events(&mut |_, event| {
        seen.push(event.address);
        if event.address < 40 {
            setup.unit.log(PAGE_FAULT, event.address + 1);
        }
    });
    assert_eq!((handled.events, seen), (40, (1..=40).collect()));
    assert_eq!(setup.unit.register(0x2020) & 0b111, 0);
}

#[test]
fn after_an_overflow_the_log_runs_again() {
    let setup = bring_up();
    for number in 0..ENTRIES_OF_LOG + 10 {
        setup.unit.log(PAGE_FAULT, number);
    }
    assert_eq!(setup.unit.register(0x2020) >> 3 & 1, 0, "the log has stopped");
    let mut seen = Vec::new();
    let handled = setup.driver.handle_events(&mut |_, event| seen.push(event.address));
    assert_eq!(seen, (0..ENTRIES_OF_LOG - 1).collect::<Vec<_>>());
    assert_eq!((handled.overflows, handled.failures), (1, 0));
    assert_eq!(setup.driver.units()[0].events().statistics().overflows, 1);
    assert_eq!(setup.unit.register(0x2020) & 1, 0);
    assert_eq!(setup.unit.register(0x18) & 0b1100, 0b1100, "the log and its interrupt are on");
    setup.unit.log(PAGE_FAULT, 7);
    assert_eq!(addresses(&setup), [7]);
}

#[test]
fn a_log_that_stops_only_at_the_second_try_keeps_its_interrupt() {
    let setup = bring_up();
    for number in 0..ENTRIES_OF_LOG {
        setup.unit.log(PAGE_FAULT, number);
    }
    setup.unit.switches.never_stop.store(true, Ordering::Relaxed);
    let handled = setup.driver.handle_events(&mut |_, _| {});
    assert_eq!((handled.overflows, handled.failures), (0, 1));
    setup.unit.switches.never_stop.store(false, Ordering::Relaxed);
    let handled = setup.driver.handle_events(&mut |_, _| {});
    assert_eq!((handled.overflows, handled.failures), (1, 0));
    assert_eq!(setup.unit.register(0x18) & 0b1100, 0b1100, "the log and its interrupt are on");
}

#[test]
fn an_entry_that_is_written_after_the_tail_is_waited_for() {
    let setup = bring_up();
    let at = setup.unit.log_late();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(2));
            word(at + 8).store(0x5000, Ordering::Relaxed);
            word(at).store(PAGE_FAULT, Ordering::Release);
        });
        assert_eq!(addresses(&setup), [0x5000]);
    });
}

#[test]
fn an_entry_that_is_never_written_is_passed_over() {
    let setup = bring_up();
    setup.unit.log_late();
    setup.unit.log(PAGE_FAULT, 9);
    assert_eq!(addresses(&setup), [9]);
    assert_eq!(setup.driver.units()[0].events().statistics().unwritten, 1);
}

#[test]
fn old_entries_are_not_taken_for_new_ones() {
    let setup = bring_up();
    for number in 0..ENTRIES_OF_LOG {
        setup.unit.log(PAGE_FAULT, number);
        addresses(&setup);
    }
    // The tail passes the first entry again, and nothing is written there.
    setup.unit.log_late();
    assert_eq!(addresses(&setup), []);
}

#[test]
fn page_faults_are_values() {
    let setup = bring_up();
    setup.unit.log(PAGE_FAULT, 0x7f00_1234_5678);
    setup.unit.log(0x2050_1234_0000_0100, 0x1000);
    setup.unit.log(0x1080_0000_0000_0100, 0x2000);
    setup.unit.log(0x5000_0000_0000_0000, 0x3000);
    let mut faults = Vec::new();
    let _ = setup.driver.handle_interrupt(&mut |fault| faults.push(fault));
    assert_eq!(faults.len(), 3, "a command's error is no fault of a device");
    assert_eq!(faults[0].kind, FaultKind::Page);
    assert_eq!(faults[0].requester, PciAddress::new(0, 1, 0, 0));
    assert_eq!(faults[0].address, DmaAddr::new(0x7f00_1234_5678));
    assert_eq!((faults[0].domain, faults[0].flags), (0x1234, FaultFlags::WRITE));
    assert_eq!(faults[1].flags, FaultFlags::PRESENT | FaultFlags::PERMISSION);
    assert_eq!((faults[2].kind, faults[2].flags), (FaultKind::DeviceEntry, FaultFlags::RESERVED));
}

#[test]
fn invalid_requests_say_what_they_were_by_their_type() {
    const WRITE: FaultFlags = FaultFlags::WRITE;
    const INTERRUPT: FaultFlags = FaultFlags::INTERRUPT;
    let expected = [
        FaultFlags::empty(),
        FaultFlags::empty(),
        FaultFlags::empty(),
        WRITE,
        FaultFlags::empty(),
        WRITE.union(INTERRUPT),
        WRITE.union(INTERRUPT),
        FaultFlags::empty(),
    ];
    for (kind, flags) in (0u64..).zip(expected) {
        let event = Event::from_words(8 << 60 | kind << 57 | 0x0100, 0xfee0_0000);
        assert_eq!(fault(0, event).map(|fault| (fault.kind, fault.flags)), Some((FaultKind::Request, flags)));
    }
    // With TR set the request was one for a translation.
    let event = Event::from_words(8 << 60 | 5 << 57 | 1 << 56 | 0x0100, 0x1000);
    assert_eq!(fault(0, event).map(|fault| fault.flags), Some(FaultFlags::TRANSLATION));
}
