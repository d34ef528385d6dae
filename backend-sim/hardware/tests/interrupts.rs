//! Interrupt remapping: tables of 32 and of 128 bits, which messages reach them, what is refused and logged, and what the unit
//! remembers.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use platform::Mmio;
use platform::pci::RequesterId;
use sim_hardware::bus::{BusError, Remapper};
use sim_hardware::interrupts::Vector;
use sim_hardware::iommu::Config;
use sim_hardware::{Hpet, IoApic};

const RANGE: u64 = 0xfee0_0000;
const GA_EN: u64 = 1 << 17;
const MODE_2K: u64 = 1 << 43;
const XT_EN: u64 = 1 << 50;
const INT_CAP_XT_EN: u64 = 1 << 51;

/// A running unit with these bits of the control register set as well.
fn bench(control: u64) -> Bench {
    let bench = Bench::off(Config::default());
    bench.registers().write64(0x00, DEVICE_TABLE | 0x1ff);
    bench.registers().write64(COMMAND_BASE, COMMANDS | 8 << 56);
    bench.registers().write64(EVENT_BASE, EVENTS | 8 << 56);
    bench.registers().write64(CONTROL, control);
    bench.registers().write64(CONTROL, control | ON);
    bench
}

/// Leads device A's interrupts to a table of `2^log2` entries, with further bits of the entry.
fn remap(bench: &Bench, device: RequesterId, table: u64, log2: u64, bits: u64) {
    bench.set_dte(device, [1, 0x77, 1 | log2 << 1 | table | 2 << 60 | bits, 0]);
}

/// Writes a 32-bit entry.
fn put_32(bench: &Bench, table: u64, index: u64, entry: u64) {
    let (at, shift) = (table + 4 * (index & !1), 32 * (index & 1));
    bench.poke(at, bench.peek(at) & !(0xffff_ffff << shift) | entry << shift);
}

fn put_128(bench: &Bench, table: u64, index: u64, entry: [u64; 2]) {
    bench.poke(table + 16 * index, entry[0]);
    bench.poke(table + 16 * index + 8, entry[1]);
}

fn send(bench: &Bench, address: u64, data: u32) -> Result<(), BusError> {
    bench.a.write_bytes(address, &data.to_le_bytes())
}

/// What arrived as `vector`.
#[track_caller]
fn arrived(bench: &Bench, vector: &Vector) -> (u64, u32) {
    assert!(vector.wait(SOON), "nothing arrives");
    bench.interrupts.last_message(vector.number()).unwrap()
}

fn invalidate_interrupts(bench: &Bench, device: RequesterId) {
    bench.run(5 << 60 | u64::from(device.get()), 0);
}

#[test]
fn a_message_becomes_what_its_entry_of_32_bits_says() {
    let bench = bench(0);
    let table = bench.table();
    remap(&bench, A, table, 9, 0);
    let vector = bench.interrupts.allocate().unwrap();
    let number = u64::from(vector.number());
    // Fixed, physical, APIC 3; arbitrated, logical, APIC 8.
    put_32(&bench, table, 4, number << 16 | 0x0301);
    put_32(&bench, table, 511, number << 16 | 0x0845);
    assert_eq!(send(&bench, RANGE, 4), Ok(()));
    assert_eq!(arrived(&bench, &vector), (0xfee0_3000, number as u32));
    // What the device says of destination, vector and trigger counts for nothing.
    assert_eq!(send(&bench, RANGE | 0xf_f008, 0xc000 | 511), Ok(()));
    assert_eq!(arrived(&bench, &vector), (0xfee0_8004, 0x100 | number as u32));
    assert_eq!(bench.events(), []);
}

#[test]
fn an_entry_of_128_bits_has_a_wide_destination_with_xten() {
    let expected = [
        (GA_EN | XT_EN, 0x0501_0200_fee0_3000),
        (GA_EN, 0xfee0_3000),
        (GA_EN | XT_EN | MODE_2K, 0x0501_0200_fee0_3000),
    ];
    for (control, address) in expected {
        let bench = bench(control);
        let table = bench.table();
        remap(&bench, A, table, 5, 0);
        let vector = bench.interrupts.allocate().unwrap();
        let number = u64::from(vector.number());
        // The specification's sample: x2APIC 0501_0203h.
        put_128(&bench, table, 0x1f, [0x0000_0000_0102_0301, 0x0500_0000_0000_0000 | number]);
        assert_eq!(send(&bench, RANGE, 0x1f), Ok(()));
        assert_eq!(arrived(&bench, &vector), (address, number as u32), "{control:#x}");
    }
}

#[test]
fn the_width_of_entries_does_not_change_while_the_unit_runs() {
    let bench = bench(0);
    bench.registers().write64(CONTROL, ON | GA_EN);
    assert_eq!(bench.registers().read64(CONTROL), ON);
    bench.registers().write64(CONTROL, 0);
    bench.registers().write64(CONTROL, GA_EN);
    bench.registers().write64(CONTROL, ON | GA_EN);
    bench.registers().write64(CONTROL, ON);
    assert_eq!(bench.registers().read64(CONTROL), ON | GA_EN);
}

#[test]
fn with_2048_entries_the_delivery_mode_is_a_part_of_the_index() {
    for (control, found) in [(MODE_2K, true), (0, false)] {
        let bench = bench(control);
        let tables = [(); 2].map(|()| bench.table());
        assert_eq!(tables[1], tables[0] + 0x1000, "8 KiB");
        remap(&bench, A, tables[0], 11, 0);
        let vector = bench.interrupts.allocate().unwrap();
        put_32(&bench, tables[0], 0x7fe, u64::from(vector.number()) << 16 | 1);
        // The destination's mode is logical, so the delivery mode is none.
        assert_eq!(send(&bench, RANGE | 4, 0x7fe).is_ok(), found);
        let events: &[_] = if found { &[] } else { &[(0x2008_0077_0000_0018, RANGE | 4)] };
        assert_eq!(bench.events(), events);
        assert_eq!(vector.wait(A_WHILE), found);
        // Otherwise 7 is ExtInt, which this device may not send.
        assert!(send(&bench, RANGE, 0x7fe).is_err());
    }
}

#[test]
fn what_no_entry_allows_is_refused_and_logged() {
    const NOT_PRESENT: u64 = 0x2008_0077_0000_0018;
    const RESERVED: u64 = 0x2098_0077_0000_0018;
    // Index, entry, event: I; with PR and RZ for what is reserved.
    let cases = [
        (0, 0, Some(NOT_PRESENT)),
        // SupIOPF: refused, and not a word.
        (1, 2, None),
        (2, 0x0041_0300, Some(NOT_PRESENT)),
        // Beyond the table.
        (32, 0x0041_0301, Some(NOT_PRESENT)),
        // IntType 2, GuestMode, and the reserved bits.
        (3, 0x0041_0309, Some(RESERVED)),
        (4, 0x0041_0381, Some(RESERVED)),
        (5, 0x0141_0301, Some(RESERVED)),
        (6, 0x8041_0301, Some(RESERVED)),
    ];
    let bench = bench(0);
    let table = bench.table();
    remap(&bench, A, table, 5, 0);
    for (index, entry, event) in cases {
        put_32(&bench, table, index, entry);
        assert_eq!(send(&bench, RANGE | 0x4000, index as u32), Err(BusError::TargetAbort), "{index}");
        let expected: Vec<_> = event.map(|event| (event, RANGE | 0x4000)).into_iter().collect();
        assert_eq!(bench.events(), expected, "{index}");
    }
    assert_eq!(bench.interrupts.spurious(), 0);
    // IG: what is not mapped is not logged; what is wrong is.
    remap(&bench, A, table, 5, 1 << 5);
    bench.invalidate_device(A);
    for index in [0, 2, 32] {
        assert!(send(&bench, RANGE, index).is_err());
    }
    assert_eq!(bench.events(), []);
    assert!(send(&bench, RANGE, 3).is_err());
    assert_eq!(bench.events(), [(RESERVED, RANGE)]);
}

#[test]
fn reserved_bits_of_128_bits_are_seen() {
    let bench = bench(GA_EN);
    let table = bench.table();
    remap(&bench, A, table, 5, 0);
    for entry in [[1 << 32 | 1, 0x41], [1 << 63 | 1, 0x41], [1, 0x141], [1, 1 << 55 | 0x41], [0x81, 0x41]] {
        put_128(&bench, table, 0, entry);
        assert!(send(&bench, RANGE, 0).is_err(), "{entry:x?}");
        assert_eq!(bench.events(), [(0x2098_0077_0000_0018, RANGE)]);
    }
}

#[test]
fn a_table_that_is_no_memory_is_a_hardware_error() {
    let bench = bench(0);
    let table = 0x7_0000_0000;
    remap(&bench, A, table, 9, 0);
    assert!(send(&bench, RANGE, 3).is_err());
    // PAGE_TAB_HARDWARE_ERROR with I, master abort.
    assert_eq!(bench.events(), [(0x4208_0077_0000_0018, table + 8)]);
}

#[test]
fn other_kinds_pass_as_the_device_table_entry_says() {
    // Delivery mode, the bit that lets it pass.
    for (mode, bit) in [(4, 58), (5, 56), (7, 57)] {
        for passes in [false, true] {
            let bench = bench(0);
            let vector = bench.interrupts.allocate().unwrap();
            let data = u32::from(vector.number()) | mode << 8;
            remap(&bench, A, bench.table(), 9, u64::from(passes) << bit);
            assert_eq!(send(&bench, RANGE, data).is_ok(), passes, "mode {mode}");
            assert_eq!(vector.wait(A_WHILE), passes);
            let events: &[_] = if passes { &[] } else { &[(0x8a00_0000_0000_0018, RANGE)] };
            assert_eq!(bench.events(), events);
        }
    }
    // SMI is for its own filter; 3 and 6 are nothing.
    let bench = bench(0);
    let vector = bench.interrupts.allocate().unwrap();
    remap(&bench, A, bench.table(), 9, 7 << 56);
    assert_eq!(send(&bench, RANGE, 0x200 | u32::from(vector.number())), Ok(()));
    assert!(vector.wait(SOON));
    assert!(send(&bench, RANGE, 0x300).is_err() && send(&bench, RANGE, 0x600).is_err());
}

#[test]
fn an_entry_is_remembered_until_its_device_is_named() {
    let bench = bench(0);
    let table = bench.table();
    remap(&bench, A, table, 9, 0);
    remap(&bench, B, table, 9, 0);
    let vectors = [(); 2].map(|()| bench.interrupts.allocate().unwrap());
    let entry = |vector: &Vector| u64::from(vector.number()) << 16 | 1;
    // What was not there is looked for again.
    assert!(send(&bench, RANGE, 0).is_err());
    put_32(&bench, table, 0, entry(&vectors[0]));
    for vector in [&vectors[0], &vectors[0]] {
        assert_eq!(send(&bench, RANGE, 0), Ok(()));
        assert!(vector.wait(SOON));
        put_32(&bench, table, 0, entry(&vectors[1]));
        // Neither its device table entry nor another device's interrupts are these.
        bench.invalidate_device(A);
        invalidate_interrupts(&bench, B);
    }
    // The other device has looked now.
    assert_eq!(bench.b.write_bytes(RANGE, &[0; 4]), Ok(()));
    assert!(vectors[1].wait(SOON));
    invalidate_interrupts(&bench, A);
    assert_eq!(send(&bench, RANGE, 0), Ok(()));
    assert!(vectors[1].wait(SOON) && !vectors[0].wait(A_WHILE));
    // INVALIDATE_IOMMU_ALL.
    put_32(&bench, table, 0, 0);
    assert_eq!(send(&bench, RANGE, 0), Ok(()));
    bench.run(8 << 60, 0);
    assert_eq!(send(&bench, RANGE, 0), Err(BusError::TargetAbort));
}

#[test]
fn a_completion_waits_for_a_message_that_is_under_way() {
    let bench = bench(0);
    let table = bench.table();
    remap(&bench, A, table, 9, 0);
    put_32(&bench, table, 0, 0x0041_0001);
    let (under_way, let_go) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            bench.unit.interrupt(A, RANGE, 0, &mut |_, _| {
                under_way.store(true, Ordering::Release);
                eventually("the end", || let_go.load(Ordering::Acquire));
            })
        });
        eventually("the message", || under_way.load(Ordering::Acquire));
        put_32(&bench, table, 0, 0);
        bench.command(5 << 60 | u64::from(A.get()), 0);
        bench.command(1 << 60 | COMPLETION | 1, 7);
        std::thread::sleep(A_WHILE);
        let early = bench.peek(COMPLETION);
        let_go.store(true, Ordering::Release);
        assert_eq!(early, 0);
        eventually("the completion", || bench.peek(COMPLETION) == 7);
    });
}

#[test]
fn the_units_own_interrupts_are_not_remapped() {
    let bench = bench(EVENT_INT_EN);
    remap(&bench, IOMMU, bench.table(), 9, 0);
    let by_msi = bench.msi();
    assert!(send(&bench, 0xfee0_0000, 0).is_ok(), "an entry of zeros passes everything");
    bench.set_dte(A, [1, 0, 1, 0]);
    bench.invalidate_device(A);
    assert!(send(&bench, RANGE, 0).is_err());
    assert!(by_msi.wait(SOON));
    // Where the XT register says: logical, x2APIC 0501_0203h, arbitrated.
    let by_register = bench.interrupts.allocate().unwrap();
    let number = u64::from(by_register.number());
    bench.registers().write64(0x170, 0x0500_0100_0102_0304 | number << 32);
    bench.registers().write64(CONTROL, ON | EVENT_INT_EN | INT_CAP_XT_EN);
    assert!(send(&bench, RANGE, 0).is_err());
    assert_eq!(arrived(&bench, &by_register), (0x0501_0200_fee0_3004, 0x100 | number as u32));
    assert!(!by_msi.wait(A_WHILE));
    // Reserved bits read as zeros.
    bench.registers().write64(0x180, u64::MAX);
    assert_eq!(bench.registers().read64(0x180), 0xff00_01ff_ffff_ff04);
}

#[test]
fn io_apic_and_hpet_send_under_their_names() {
    let bench = bench(0);
    let name = RequesterId::from_parts(0, 20, 0);
    let io_apic = IoApic::new(9, name, Arc::clone(&bench.pci));
    let hpet = Hpet::new(name, Arc::clone(&bench.pci));
    let register = |index, value| {
        io_apic.write32(0, index);
        io_apic.write32(0x10, value);
    };
    let read = |index| {
        io_apic.write32(0, index);
        io_apic.read32(0x10)
    };
    assert_eq!((read(0), read(1) >> 16), (9 << 24, 23));
    assert_eq!((read(0x10 + 2 * 23), read(0x40)), (1 << 16, 0), "masked, and beyond the last");
    let vectors = [(); 2].map(|()| bench.interrupts.allocate().unwrap());
    let numbers = [0, 1].map(|index: usize| u32::from(vectors[index].number()));
    // Without a table it passes as it is: fixed, APIC 2.
    register(0x10 + 2 * 5, numbers[0]);
    register(0x11 + 2 * 5, 2 << 24);
    assert_eq!(io_apic.raise(5), Ok(()));
    assert_eq!(arrived(&bench, &vectors[0]), (0xfee0_2000, numbers[0]));
    // With one, by its index: bits 7:0 are the vector's, 10:8 the delivery mode's.
    let table = bench.table();
    remap(&bench, name, table, 9, 0);
    bench.invalidate_device(name);
    put_32(&bench, table, 5, u64::from(numbers[1]) << 16 | 1);
    put_32(&bench, table, 0x122, u64::from(numbers[1]) << 16 | 1);
    register(0x10 + 2 * 5, 5);
    assert_eq!(io_apic.raise(5), Ok(()));
    assert!(vectors[1].wait(SOON));
    register(0x10 + 2 * 6, 0x122);
    assert_eq!(io_apic.raise(6), Ok(()));
    assert!(vectors[1].wait(SOON));
    register(0x10 + 2 * 6, 0x123);
    assert_eq!(io_apic.raise(6), Err(BusError::TargetAbort));
    register(0x10 + 2 * 6, 0x1_0122);
    assert_eq!(io_apic.raise(6), Ok(()), "masked");
    // The timer.
    hpet.write64(0x110, 0xfee0_0000_0000_0005);
    assert_eq!(hpet.expire(), Ok(()), "off");
    assert!(!vectors[1].wait(A_WHILE));
    hpet.write32(0x100, 1 << 2 | 1 << 14);
    assert_eq!(hpet.read64(0x100), 1 << 2 | 1 << 14 | 1 << 15);
    assert_eq!(hpet.expire(), Ok(()));
    assert!(vectors[1].wait(SOON));
    assert_eq!(bench.events(), [(0x2008_0077_0000_00a0, RANGE)]);
}
