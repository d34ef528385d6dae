//! What a device's entry lets it do: V, TV, Mode, IR and IW, illegal entries, and the interrupt half.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use platform::pci::RequesterId;
use sim_hardware::bus::BusError;
use sim_hardware::iommu::Config;

const A_ID: u64 = 0x18;

/// Sends the message of a fresh vector as device A; whether it arrived.
fn message_arrives(bench: &Bench, data_bits: u32) -> Result<bool, BusError> {
    let vector = bench.interrupts.allocate().unwrap();
    let (address, data) = vector.message();
    bench.a.write_bytes(address, &(data | data_bits).to_le_bytes())?;
    Ok(vector.wait(SOON))
}

#[test]
fn a_unit_that_is_off_passes_everything() {
    let bench = Bench::off(Config::default());
    bench.poke(DATA, 0x11);
    assert_eq!(bench.a.read(DATA), Ok(0x11));
    assert_eq!(bench.a.write(DATA, 0x22), Ok(()));
    assert_eq!(bench.peek(DATA), 0x22);
    assert_eq!(message_arrives(&bench, 0), Ok(true));
    // Commands and log do not run without IommuEn.
    bench.registers().write64(CONTROL, ON & !1);
    assert_eq!(bench.status() & (COMMAND_RUN | EVENT_RUN), 0);
}

#[test]
fn without_v_everything_passes() {
    let bench = Bench::default();
    // TV and reserved bits mean nothing without V.
    bench.set_dte(A, [0x8000_0000_0000_007e, u64::MAX, 0, 0]);
    bench.poke(DATA, 0x11);
    assert_eq!(bench.a.read(DATA), Ok(0x11));
    assert_eq!(bench.a.write(DATA, 0x22), Ok(()));
    assert_eq!(bench.events(), []);
}

#[test]
fn a_blocked_device_reaches_nothing() {
    let bench = Bench::default();
    // V, and IV with IntCtl 0: what a driver writes for a device that it does not know.
    bench.set_dte(A, [1, 0x77, 1, 0]);
    bench.poke(DATA, 0x11);
    assert_eq!(bench.a.read(DATA), Err(BusError::TargetAbort));
    assert_eq!(bench.a.write(DATA, 0x22), Err(BusError::TargetAbort));
    assert_eq!(bench.peek(DATA), 0x11);
    assert_eq!(message_arrives(&bench, 0), Err(BusError::TargetAbort));
    let events = bench.events();
    assert_eq!(events[..2], [(0x2000_0077_0000_0018, DATA), (0x2020_0077_0000_0018, DATA)]);
    // INVALID_DEVICE_REQUEST of type 5: a message although IntCtl = 0.
    assert_eq!(events[2..], [(0x8a00_0000_0000_0018, 0xfee0_0000)]);
}

#[test]
fn mode_0_is_the_same_address_with_permissions() {
    for (bits, read, write) in [(0, false, false), (1_u64, true, false), (2, false, true), (3, true, true)] {
        let bench = Bench::default();
        bench.set_dte(A, [3 | bits << 61, 0x1234, 0, 0]);
        bench.poke(DATA, 0x11);
        assert_eq!(bench.a.read(DATA).is_ok(), read, "{bits}");
        assert_eq!(bench.a.write(DATA, 0x22).is_ok(), write, "{bits}");
        let mut faults = Vec::new();
        if !read {
            faults.push((0x2050_1234_0000_0018, DATA));
        }
        if !write {
            faults.push((0x2070_1234_0000_0018, DATA));
        }
        assert_eq!(bench.events(), faults);
    }
}

#[test]
fn reserved_bits_make_an_entry_illegal() {
    let cases = [
        (0, 2),
        (0, 3),
        (0, 4),
        (0, 6),
        (0, 63),
        // HAD = 2.
        (0, 8),
        // Of features that this unit does not have: PPR, GV, GLX.
        (0, 52),
        (0, 55),
        (0, 56),
    ];
    for (word, bit) in cases {
        let bench = Bench::default();
        let mut words = dte(1, 0, 0);
        words[word] |= 1 << bit;
        bench.set_dte(A, words);
        assert_eq!(bench.a.read(DATA), Err(BusError::TargetAbort), "word {word}, bit {bit}");
        assert_eq!(bench.a.write(DATA, 1), Err(BusError::TargetAbort));
        // RZ; and RW for the write.
        assert_eq!(bench.events(), [(0x1080_0000_0000_0018, DATA), (0x10a0_0000_0000_0018, DATA)]);
    }
    // The other half, when IV is set. I and RZ.
    for (word, bit) in [(2, 52), (2, 53), (3, 0), (3, 14), (3, 48), (3, 53)] {
        let bench = Bench::default();
        let mut words = dte(1, 0, 0);
        words[2] = 1 | 1 << 60;
        words[word] |= 1 << bit;
        bench.set_dte(A, words);
        assert!(bench.a.read(DATA).is_ok(), "each half for itself");
        assert_eq!(message_arrives(&bench, 0), Err(BusError::TargetAbort), "word {word}, bit {bit}");
        assert_eq!(bench.events(), [(0x1088_0000_0000_0018, 0xfee0_0000)]);
    }
}

#[test]
fn a_mode_that_the_unit_does_not_have_is_illegal() {
    // HATS in bits 11:10 of the EFR: 4, 5, 6 levels, none.
    for (hats, most) in [(0_u64, 4), (1, 5), (2, 6), (3, 0)] {
        for mode in 1..=7 {
            let bench = Bench::new(Config { efr: hats << 10, ..Config::default() });
            let root = bench.table();
            bench.attach(A, 1, mode, root);
            if mode <= most {
                bench.map(root, mode as u32, 0, 1, DATA | READ_WRITE);
                assert!(bench.a.read(0).is_ok(), "HATS {hats}, mode {mode}");
            } else {
                assert!(bench.a.read(0).is_err());
                assert_eq!(bench.events(), [(0x1000_0000_0000_0018, 0)], "HATS {hats}, mode {mode}");
            }
        }
    }
}

#[test]
fn interrupts_follow_their_own_half() {
    let cases = [
        // IV = 0: passes, whatever V and TV say.
        ([1, 0, 3 << 60, 0], None),
        // IntCtl 1: passes unchanged.
        ([0, 0, 1 | 1 << 60, 0], None),
        ([1, 0, 1 | 1 << 60, 0], None),
        // IntCtl 0: INVALID_DEVICE_REQUEST type 5.
        ([0, 0, 1, 0], Some(0x8a00_0000_0000_0018)),
        // IntCtl 3, and an IntTabLen of 12: illegal.
        ([0, 0, 1 | 3 << 60, 0], Some(0x1088_0000_0000_0018)),
        ([0, 0, 1 | 12 << 1 | 1 << 60, 0], Some(0x1008_0000_0000_0018)),
    ];
    for (words, event) in cases {
        let bench = Bench::default();
        bench.set_dte(A, words);
        let arrived = message_arrives(&bench, 0);
        let events: Vec<_> = event.map(|first| (first, 0xfee0_0000)).into_iter().collect();
        let expected = if events.is_empty() { Ok(true) } else { Err(BusError::TargetAbort) };
        assert_eq!((arrived, bench.events()), (expected, events), "{words:x?}");
    }
}

#[test]
fn the_interrupt_range_is_no_memory() {
    let bench = Bench::default();
    let root = bench.table();
    bench.attach(A, 0x1234, 3, root);
    // A page of 4 MiB, whose upper half the range starts.
    for half in [0xfec0_0000, 0xfee0_0000] {
        bench.map(root, 3, half, 2, DATA | 0x1f_fe00 | READ_WRITE);
    }
    let in_range = DATA + 0x20_0000;
    bench.poke(in_range, 0x11);
    // INVALID_DEVICE_REQUEST type 0: a read there.
    assert_eq!(bench.a.read(0xfee0_0000), Err(BusError::TargetAbort));
    assert_eq!(bench.events(), [(0x8000_0000_0000_0018, 0xfee0_0000)]);
    // Nor does a longer request get into it from below.
    assert_eq!(bench.a.read(0xfedf_fffc), Err(BusError::TargetAbort));
    assert_eq!(bench.events(), [(0x8000_0000_0000_0018, 0xfee0_0000)]);
    assert!(bench.a.write(0xfedf_fffc, 0x22).is_err());
    assert_eq!(bench.peek(in_range), 0x11);
    // Up to its edge there is memory.
    assert_eq!(bench.a.write(0xfedf_fff8, 0x33), Ok(()));
    assert_eq!(bench.peek(in_range - 8), 0x33);
}

#[test]
fn a_device_beyond_the_table_reaches_nothing() {
    let bench = Bench::off(Config::default());
    // One page: 128 devices, 00:00.0 to 00:0f.7.
    bench.registers().write64(0x00, DEVICE_TABLE);
    bench.registers().write64(EVENT_BASE, EVENTS | 8 << 56);
    bench.registers().write64(CONTROL, ON);
    bench.attach(A, 1, 0, 0);
    assert!(bench.a.read(DATA).is_ok());
    let tree = sim_hardware::pci::Builder::new();
    let far = RequesterId::from_parts(0, 16, 0);
    let probe = std::sync::Arc::new(Probe::default());
    let tree = tree.endpoint(far, probe.clone(), false, sim_hardware::pci::Acs::Absent).build(
        bench.ram.clone(),
        Some(bench.unit.clone()),
        bench.interrupts.clone(),
    );
    bus_master_on(&tree, far);
    assert_eq!(probe.write(DATA, 1), Err(BusError::TargetAbort));
    assert_eq!(probe.write_bytes(0xfee0_0000, &[0x40, 0, 0, 0]), Err(BusError::TargetAbort));
    // IO_PAGE_FAULT, domain 0, PR = 0; the message's with I and without RW.
    assert_eq!(bench.events(), [(0x2020_0000_0000_0080, DATA), (0x2008_0000_0000_0080, 0xfee0_0000)]);
}

#[test]
fn an_entry_that_is_no_memory_is_a_hardware_error() {
    let bench = Bench::off(Config::default());
    let table = 0x7_0000_0000;
    bench.registers().write64(0x00, table | 0x1ff);
    bench.registers().write64(EVENT_BASE, EVENTS | 8 << 56);
    bench.registers().write64(CONTROL, ON);
    let place = table + 32 * A_ID;
    assert!(bench.a.read(DATA).is_err());
    assert!(bench.a.write(DATA, 1).is_err());
    assert!(bench.a.write_bytes(0xfee0_0000, &[0x40, 0, 0, 0]).is_err());
    // Master abort; RW for the write, I for the message.
    let events =
        [(0x3200_0000_0000_0018, place), (0x3220_0000_0000_0018, place), (0x3208_0000_0000_0018, place)];
    assert_eq!(bench.events(), events);
}

#[test]
fn an_entry_may_change_under_running_devices() {
    // Three levels that map the page to itself, and no levels: what the device reads is the same, whichever it meets.
    let bench = Bench::default();
    let root = bench.table();
    bench.map(root, 3, DATA, 1, DATA | READ_WRITE);
    bench.poke(DATA, 0x11);
    let entries = [dte(1, 3, root), dte(1, 0, 0)];
    bench.set_dte(A, entries[0]);
    let (device, stop) = (&*bench.a, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let readers = [(); 2].map(|()| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(device.read(DATA), Ok(0x11));
                }
            })
        });
        for round in 0..2000 {
            bench.set_dte(A, entries[round % 2]);
            bench.invalidate_device(A);
            bench.invalidate_pages(1, DATA);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().is_ok()));
    });
    assert_eq!(bench.events(), []);
}
