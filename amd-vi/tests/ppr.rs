//! The log of page requests: what its entries say, and who is answered what.

mod common;

use std::sync::Arc;

use amd_vi::command::Command;
use amd_vi::ppr::PprEntry;
use common::*;
use iommu_core::{Iommu, Settings};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, Prot};

/// GTSup, PPRSup, GIoSup, GATS for four levels, PASmax for 20 bits, PPRAutoRspSup, EPHSup.
const PAGE_REQUESTS: u64 = FEATURES | 1 << 1 | 1 << 4 | 19 << 32 | 1 << 41 | 1 << 48 | 1 << 50;

const GN: u64 = 1 << 56;
const LAST: u64 = 1 << 41;
/// Code 1, device 0100h, PASID 12345h in its two pieces, group 41h, last, read, write, user, GN.
const ENTRY: u64 =
    1 << 60 | GN | 1 << 54 | 1 << 53 | 1 << 50 | 1 << 42 | LAST | 0x41 << 32 | 0x2345 << 16 | 0x0100;

#[test]
fn an_entry_says_who_asks_for_what() {
    let entry = PprEntry::from_words(ENTRY, 0x7f00_1234_5fff);
    let request = entry.request(3).unwrap();
    assert_eq!(request.device, PciAddress { segment: 3, id: RequesterId::new(0x0100) });
    assert_eq!((request.pasid, request.group, request.last), (Some(0x1_2345), 0x41, true));
    assert_eq!((request.address, request.access), (DmaAddr::new(0x7f00_1234_5000), Prot::READ | Prot::WRITE));
    let first = PprEntry::from_words(ENTRY & !LAST & !(1 << 53), 0).request(3).unwrap();
    assert_eq!((first.last, first.access), (false, Prot::READ));
    assert_eq!(
        entry.to_string(),
        "PPR logged [device=01:00.0 pasid=0x12345 address=0x7f0012345000 flags=0x0164 tag=0x041 last]"
    );
}

#[test]
fn what_names_no_pasid_or_is_broken_is_no_request() {
    let refused = [
        ("GN = 0", ENTRY & !GN),
        ("PASID 0", ENTRY & !(0xf << 42 | 0xffff << 16)),
        ("a reserved bit", ENTRY | 1 << 55),
        ("another code", ENTRY & !(0xf << 60) | 2 << 60),
        ("nothing", 0),
    ];
    for (what, first) in refused {
        assert_eq!(PprEntry::from_words(first, 0x1000).request(0), None, "{what}");
    }
}

#[test]
fn answers_have_the_specifications_bits() {
    let words = Command::complete_ppr_request(0x0100, Some(5), 0x41, 0).words();
    assert_eq!(words, [0x7000_0005_0000_0100, 0x0000_0041_0000_0004]);
    let words = Command::complete_ppr_request(0x0100, None, 0x1ff, 0xf).words();
    assert_eq!(words, [0x7000_0000_0000_0100, 0x0000_f1ff_0000_0000]);
}

/// Logs an entry as the unit does.
fn log(unit: &FakeUnit, first: u64, second: u64) {
    let (base, tail) = (unit.register(0x38), unit.register(0x2038));
    let at = (base & 0x000f_ffff_ffff_f000) + tail;
    word(at + 8).store(second, std::sync::atomic::Ordering::Relaxed);
    word(at).store(first, std::sync::atomic::Ordering::Release);
    unit.set_register(0x2038, (tail + 16) % (16 << (base >> 56 & 15)));
    unit.set_register(0x2020, unit.register(0x2020) & 0x63 | 1 << 6);
}

fn bring_up() -> (Setup, Iommu) {
    let setup = bring_up_with(false, PAGE_REQUESTS, &[ivhd(0x11, 2, BASE, ENTRIES)]);
    let core = Iommu::new(setup.machine.clone(), Settings::default(), None);
    core.register(Arc::clone(&setup.driver) as _);
    (setup, core)
}

#[test]
fn the_log_is_switched_on_before_translation() {
    let (setup, _core) = bring_up();
    let control = setup.unit.register(0x18);
    // PPRLogEn, PPRIntEn, PPREn, GTEn, PPRAutoRspEn, EPHEn.
    for bit in [13, 14, 15, 16, 39, 45] {
        assert_eq!(control >> bit & 1, 1, "{bit}");
    }
    assert_eq!(setup.unit.register(0x38) >> 56 & 15, 9, "512 entries");
    let writes = setup.unit.take_writes();
    let place = |found: &dyn Fn(&(usize, u64)) -> bool| writes.iter().position(found).unwrap();
    let base = place(&|(at, _)| *at == 0x38);
    let log_on = place(&|(at, value)| *at == 0x18 && value >> 13 & 1 != 0);
    let unit_on = place(&|(at, value)| *at == 0x18 && value & 1 != 0);
    assert!(base < log_on && log_on < unit_on);
    // A unit without is left alone.
    let plain = common::bring_up();
    assert_eq!(plain.unit.register(0x18) & (7 << 13 | 1 << 16 | 1 << 39 | 1 << 45), 0);
    assert!(plain.driver.units()[0].page_requests().is_none());
}

#[test]
fn what_cannot_be_served_is_answered_once_a_group() {
    let (setup, core) = bring_up();
    setup.unit.take_commands();
    // Nobody has this device: failure, to the last one only.
    log(&setup.unit, ENTRY & !LAST, 0x1000);
    log(&setup.unit, ENTRY, 0x2000);
    // No PASID: invalid.
    log(&setup.unit, ENTRY & !GN, 0x3000);
    let handled = setup.driver.handle_page_requests(&core);
    assert_eq!((handled.page_requests, handled.failures), (3, 0));
    let answers = setup.unit.take_invalidations();
    assert_eq!(
        answers,
        [(7 << 60 | 0x1_2345 << 32 | 0x0100, 0xf041 << 32 | 4), (7 << 60 | 0x0100, 0x1041 << 32),]
    );
    // Each is taken once, and the entries are free again.
    assert_eq!(setup.driver.handle_page_requests(&core).page_requests, 0);
    assert_eq!(setup.unit.register(0x2030), 48);
    assert_eq!(
        word(setup.unit.register(0x38) & 0x000f_ffff_ffff_f000).load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[test]
fn after_an_overflow_the_log_is_read_and_starts_again() {
    let (setup, core) = bring_up();
    log(&setup.unit, ENTRY & !GN, 0x3000);
    // PPROverflow.
    setup.unit.set_register(0x2020, setup.unit.register(0x2020) & 0x63 | 1 << 5);
    setup.unit.take_writes();
    let handled = setup.driver.handle_page_requests(&core);
    assert_eq!((handled.page_requests, handled.overflows, handled.failures), (1, 1, 0));
    let controls: Vec<u64> = setup
        .unit
        .take_writes()
        .into_iter()
        .filter(|(at, _)| *at == 0x18)
        .map(|(_, value)| value >> 13 & 3)
        .collect();
    assert_eq!(controls, [0, 3], "log and interrupt off, then on");
    assert_eq!(setup.unit.register(0x2020) >> 5 & 1, 0);
    assert_eq!((setup.unit.register(0x2030), setup.unit.register(0x2038)), (0, 0));
}
