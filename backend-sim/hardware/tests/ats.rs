//! Devices that translate themselves: what they keep they use until they are told, and what they say they may say only
//! while their entry allows it.

mod common;

use std::time::{Duration, Instant};

use common::*;
use sim_hardware::ats::Translation;
use sim_hardware::bus::BusError;
use sim_hardware::iommu::Config;

/// I of a device table entry, bit 32 of its second word.
const I: u64 = 1 << 32;
/// InvTimeout of 10 milliseconds.
const TIMEOUT_10_MS: u64 = 2 << 5;
const OLD: u64 = 0x01d;
const NEW: u64 = 0x2e3;
const IOVA: u64 = 0x5000;
const EVERYTHING: u64 = 0x7fff_ffff_ffff_f001;

/// INVALIDATE_IOTLB_PAGES for device A, with room for two in its queue.
fn invalidate(bench: &Bench, second: u64) {
    let device = u64::from(A.get());
    bench.command(4 << 60 | device << 32 | 2 << 24 | device, second);
}

/// A bench whose device A has ATS on and a page of OLD at [`IOVA`]; the root of its table.
fn with_ats() -> (Bench, u64) {
    let bench = Bench::default();
    bench.poke(DATA, OLD);
    bench.poke(DATA + 0x1000, NEW);
    let root = bench.table();
    bench.map(root, 3, IOVA, 1, DATA | READ_WRITE);
    let [w0, w1, w2, w3] = dte(1, 3, root);
    bench.set_dte(A, [w0, w1 | I, w2, w3]);
    set_ats(&bench.pci, A, true);
    (bench, root)
}

/// Maps NEW at [`IOVA`], and tells the IOMMU.
fn remap(bench: &Bench, root: u64) {
    bench.map(root, 3, IOVA, 1, (DATA + 0x1000) | READ_WRITE);
    bench.command(3 << 60 | 1 << 32, 0x7fff_ffff_ffff_f003);
    bench.wait();
}

#[test]
fn a_translation_stays_in_the_device_until_the_command_that_names_it() {
    let (bench, root) = with_ats();
    assert_eq!(bench.a.read(IOVA), Ok(OLD));
    remap(&bench, root);
    assert_eq!(bench.a.read(IOVA), Ok(OLD), "the IOMMU has forgotten, the device has not");
    // Another page is another page.
    invalidate(&bench, IOVA + 0x1000);
    bench.wait();
    assert_eq!(bench.a.read(IOVA), Ok(OLD));
    invalidate(&bench, IOVA);
    bench.wait();
    assert_eq!(bench.a.read(IOVA), Ok(NEW));
    assert_eq!(bench.unit.stats().events, 0);
}

#[test]
fn a_range_and_everything_are_named_as_for_the_iommu() {
    for second in [0x7001, EVERYTHING] {
        let (bench, root) = with_ats();
        assert_eq!(bench.a.read(IOVA), Ok(OLD));
        remap(&bench, root);
        invalidate(&bench, second);
        bench.wait();
        assert_eq!(bench.a.read(IOVA), Ok(NEW), "{second:#x}");
    }
}

#[test]
fn a_device_forgets_everything_when_its_ats_is_switched_off() {
    let (bench, root) = with_ats();
    assert_eq!(bench.a.read(IOVA), Ok(OLD));
    assert_eq!(bench.pci.atc(A).unwrap().len(), 1);
    remap(&bench, root);
    set_ats(&bench.pci, A, false);
    assert_eq!(bench.a.read(IOVA), Ok(NEW));
    set_ats(&bench.pci, A, true);
    assert_eq!(bench.a.read(IOVA), Ok(NEW));
}

#[test]
fn a_translation_says_what_is_allowed_and_where() {
    let (bench, root) = with_ats();
    bench.map(root, 3, 0x20_0000, 2, 0x100_0000 | READ_ONLY);
    bench.map(root, 3, 0x6000, 1, DATA | WRITE_ONLY);
    let at = |phys, shift, read, write| Ok(Translation { phys, shift, read, write });
    assert_eq!(bench.a.translate(IOVA + 0x123), at(DATA, 12, true, true));
    assert_eq!(bench.a.translate(0x21_0000), at(0x100_0000, 21, true, false));
    assert_eq!(bench.a.translate(0x6000), at(DATA, 12, false, true));
    assert_eq!(bench.a.translate(0x7000), Ok(Translation::NONE));
    // What is not there is no fault for the log; and the device does not keep it.
    assert!(bench.a.read(0x7000).is_err());
    assert!(bench.a.write(0x20_0000, 1).is_err());
    assert_eq!(bench.unit.stats().events, 0);
    bench.map(root, 3, 0x7000, 1, DATA | READ_WRITE);
    assert_eq!(bench.a.read(0x7000), Ok(OLD));
}

#[test]
fn translated_addresses_pass_only_where_the_entry_says_so() {
    let (bench, root) = with_ats();
    assert_eq!(bench.a.read_translated(DATA), Ok(OLD));
    bench.attach(B, 1, 3, root);
    assert_eq!(bench.b.read_translated(DATA), Err(BusError::TargetAbort));
    assert_eq!(bench.b.translate(IOVA), Err(BusError::TargetAbort));
    // INVALID_DEVICE_REQUEST, of type 1 with TR = 0, and of type 0 with TR = 1.
    let device = u64::from(B.get());
    assert_eq!((bench.peek(EVENTS), bench.peek(EVENTS + 8)), (8 << 60 | 1 << 57 | device, DATA));
    assert_eq!((bench.peek(EVENTS + 16), bench.peek(EVENTS + 24)), (8 << 60 | 1 << 56 | device, IOVA));
    // Interrupts are not translated: type 1 with TR = 1.
    assert_eq!(bench.a.translate(0xfee0_0000), Err(BusError::TargetAbort));
    assert_eq!(bench.peek(EVENTS + 32), 8 << 60 | 1 << 57 | 1 << 56 | u64::from(A.get()));
}

#[test]
fn an_entry_with_i_is_illegal_where_there_are_no_device_caches() {
    let bench = Bench::new(Config { iotlb_sup: false, ..Config::default() });
    let root = bench.table();
    bench.map(root, 3, IOVA, 1, DATA | READ_WRITE);
    let [w0, w1, w2, w3] = dte(1, 3, root);
    bench.set_dte(A, [w0, w1 | I, w2, w3]);
    assert!(bench.a.read(IOVA).is_err());
    assert_eq!(bench.peek(EVENTS), 1 << 60 | 1 << 55 | u64::from(A.get()));
    // And so is the command: the unit halts.
    invalidate(&bench, EVERYTHING);
    eventually("the halt", || bench.status() & COMMAND_RUN == 0);
}

#[test]
fn a_completion_waits_for_the_devices_answer() {
    let (bench, root) = with_ats();
    bench.registers().write64(CONTROL, ON | 6 << 5);
    let atc = bench.pci.atc(A).unwrap();
    assert_eq!(bench.a.read(IOVA), Ok(OLD));
    remap(&bench, root);
    atc.hold_invalidations(true);
    invalidate(&bench, IOVA);
    bench.command(1 << 60 | COMPLETION | 1, 77);
    std::thread::sleep(A_WHILE);
    assert_ne!(bench.peek(COMPLETION), 77);
    assert_eq!(bench.a.read(IOVA), Ok(OLD));
    atc.hold_invalidations(false);
    eventually("the completion", || bench.peek(COMPLETION) == 77);
    assert_eq!(bench.a.read(IOVA), Ok(NEW));
    assert_eq!(bench.unit.stats().events, 0);
}

#[test]
fn a_device_that_does_not_answer_is_logged_and_the_completion_comes() {
    let (bench, _) = with_ats();
    bench.registers().write64(CONTROL, ON | TIMEOUT_10_MS);
    bench.pci.atc(A).unwrap().hold_invalidations(true);
    let tail = u64::from(bench.registers().read32(COMMAND_TAIL));
    let start = Instant::now();
    invalidate(&bench, IOVA);
    bench.wait();
    assert!(start.elapsed() >= Duration::from_millis(10));
    // IOTLB_INV_TIMEOUT with the device and where the command was.
    assert_eq!((bench.peek(EVENTS), bench.peek(EVENTS + 8)), (7 << 60 | u64::from(A.get()), COMMANDS + tail));
}

#[test]
fn invalidations_beyond_what_the_device_can_hold_are_lost() {
    for (most, lost) in [(2, 0), (3, 1)] {
        let (bench, _) = with_ats();
        bench.registers().write64(CONTROL, ON | 3 << 5);
        let atc = bench.pci.atc(A).unwrap();
        atc.hold_invalidations(true);
        let device = u64::from(A.get());
        for page in 0..3 {
            bench.command(4 << 60 | device << 32 | most << 24 | device, page << 12);
        }
        bench.command(1 << 60 | COMPLETION | 1, 77);
        std::thread::sleep(A_WHILE);
        atc.hold_invalidations(false);
        eventually("the completion", || bench.peek(COMPLETION) == 77);
        assert_eq!(bench.unit.stats().events, lost, "software says {most}, and the device has room for 2");
    }
}
