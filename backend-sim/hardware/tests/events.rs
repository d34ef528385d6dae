//! The event log: suppression, its ring, overflow, and its interrupt. The fields of each event are in the tests of what
//! causes it.

mod common;

use common::*;
use sim_hardware::iommu::Config;

const SE: u64 = 1 << 33;
const SA: u64 = 1 << 34;

#[test]
fn every_field_of_a_page_fault() {
    let bench = Bench::default();
    let root = bench.table();
    bench.attach(B, 0xabcd, 3, root);
    assert!(bench.b.read(0x12_3456_7ab8).is_err());
    assert!(bench.b.write(0x12_3456_7abc, 1).is_err());
    bench.map(root, 3, 0x5000, 1, DATA | WRITE_ONLY);
    assert!(bench.b.read(0x5ff0).is_err());
    bench.map(root, 3, 0x6000, 1, DATA | READ_ONLY);
    assert!(bench.b.write(0x6ff0, 1).is_err());
    bench.map(root, 3, 0x7000, 1, DATA | READ_WRITE | 1 << 52);
    assert!(bench.b.read(0x7000).is_err());
    bench.map(root, 3, 0x8000, 1, DATA | READ_WRITE | 3 << 9);
    assert!(bench.b.write(0x8000, 1).is_err());

    let fields = |(first, second): (u64, u64)| {
        assert_eq!((first >> 60, first & 0xffff), (2, 0x0020), "IO_PAGE_FAULT of 00:04.0");
        assert_eq!(first >> 32 & 0xffff, 0xabcd, "the domain");
        assert_eq!(first & 0x0f0f_0000_ffff_0000, 0, "GN, NX, US, I, PASID, TR are 0");
        let bit = |number: u64| first >> number & 1;
        // PR, RW, PE, RZ.
        ([bit(52), bit(53), bit(54), bit(55)], second)
    };
    let seen: Vec<_> = bench.events().into_iter().map(fields).collect();
    let expected = [
        ([0, 0, 0, 0], 0x12_3456_7ab8),
        ([0, 1, 0, 0], 0x12_3456_7abc),
        ([1, 0, 1, 0], 0x5ff0),
        ([1, 1, 1, 0], 0x6ff0),
        ([1, 0, 0, 1], 0x7000),
        ([1, 1, 0, 0], 0x8000),
    ];
    assert_eq!(seen, expected);
    assert_eq!(bench.unit.stats().events, 6);
}

/// The four ways to a page fault: no entry in the table, no translation at all, a permission that is cached, mode 0.
fn faults(bench: &Bench, flags: u64, mut fault: impl FnMut(&str)) {
    let root = bench.table();
    for kind in ["absent", "cached", "blocked", "mode 0"] {
        let mut words = dte(1, 3, root);
        match kind {
            "absent" => bench.map(root, 3, 0, 1, 0),
            "cached" => bench.map(root, 3, 0, 1, DATA | READ_ONLY),
            "blocked" => words = [1, 1, 0, 0],
            _ => words = [3, 1, 0, 0],
        }
        words[1] |= flags;
        bench.set_dte(A, words);
        bench.invalidate_device(A);
        bench.invalidate_pages(1, 0x7fff_ffff_ffff_f003);
        if kind == "cached" {
            assert!(bench.a.read(0).is_ok());
        }
        fault(kind);
    }
}

#[test]
fn se_logs_the_first_fault_of_a_device() {
    let bench = Bench::default();
    faults(&bench, SE, |kind| {
        for _ in 0..3 {
            assert!(bench.a.write(0, 1).is_err());
        }
        assert_eq!(bench.events().len(), 1, "{kind}");
        bench.invalidate_device(A);
        assert!(bench.a.write(0, 1).is_err());
        assert_eq!(bench.events().len(), 1, "{kind}: the command arms it again");
    });
}

#[test]
fn sa_logs_no_fault() {
    let bench = Bench::default();
    faults(&bench, SA, |kind| {
        assert!(bench.a.write(0, 1).is_err());
        assert_eq!(bench.events(), [], "{kind}");
    });
}

#[test]
fn without_either_every_fault_is_logged() {
    let bench = Bench::default();
    faults(&bench, 0, |kind| {
        for _ in 0..3 {
            assert!(bench.a.write(0, 1).is_err());
        }
        assert_eq!(bench.events().len(), 3, "{kind}");
    });
}

#[test]
fn suppression_is_for_page_faults_alone() {
    let bench = Bench::default();
    let root = bench.table();
    bench.poke(slot(root, 0, 3), pointer(0x7_0000_0000, 2));
    let [first, second, ..] = dte(1, 3, root);
    bench.set_dte(A, [first, second | SA | SE, 0, 0]);
    // PAGE_TAB_HARDWARE_ERROR, each time.
    for _ in 0..2 {
        assert!(bench.a.read(0).is_err());
    }
    assert_eq!(bench.events(), [(0x4200_0001_0000_0018, 0x7_0000_0000); 2]);
    // ILLEGAL_DEV_TABLE_ENTRY.
    bench.set_dte(A, [first | 4, second | SA, 0, 0]);
    bench.invalidate_device(A);
    assert!(bench.a.read(0).is_err());
    assert_eq!(bench.events(), [(0x1080_0000_0000_0018, 0)]);
}

#[test]
fn the_log_is_a_ring() {
    let bench = Bench::default();
    bench.attach(A, 1, 3, bench.table());
    for round in 0..3 {
        for number in 0..200 {
            assert!(bench.a.read(0x1000 * number).is_err());
        }
        let events = bench.events();
        let addresses: Vec<_> = events.iter().map(|event| event.1).collect();
        assert_eq!(addresses, (0..200).map(|number| 0x1000 * number).collect::<Vec<_>>(), "round {round}");
    }
    // 600 events of 16 bytes in 4 KiB.
    assert_eq!(bench.registers().read64(EVENT_TAIL), 600 * 16 % 4096);
    assert_eq!(bench.status() & (EVENT_OVERFLOW | EVENT_RUN), EVENT_RUN);
}

#[test]
fn an_event_sets_the_status_and_raises_the_interrupt_when_enabled() {
    let bench = Bench::default();
    let vector = bench.msi();
    bench.attach(A, 1, 3, bench.table());
    assert_eq!(bench.status() & EVENT_INT, 0);
    assert!(bench.a.read(0).is_err());
    assert_eq!(bench.status() & EVENT_INT, EVENT_INT);
    assert!(!vector.wait(A_WHILE), "EventIntEn is 0");
    // Zeros clear nothing, ones do.
    bench.registers().write64(STATUS, 0);
    assert_eq!(bench.status() & EVENT_INT, EVENT_INT);
    bench.registers().write64(STATUS, EVENT_INT);
    assert_eq!(bench.status() & EVENT_INT, 0);

    bench.registers().write64(CONTROL, ON | EVENT_INT_EN);
    assert!(bench.a.read(0).is_err());
    assert!(vector.wait(SOON));
    assert!(!vector.wait(A_WHILE), "once");
    // The unit's own message needs its MSI switched on.
    config_write(&bench.pci, IOMMU, 0xa0, 0);
    assert!(bench.a.read(0).is_err());
    assert!(!vector.wait(A_WHILE));
}

#[test]
fn a_full_log_stops_until_software_starts_it_again() {
    let bench = Bench::default();
    let vector = bench.msi();
    bench.attach(A, 1, 3, bench.table());
    for number in 0..255 {
        assert!(bench.a.read(0x1000 * number).is_err());
    }
    assert_eq!(bench.status() & (EVENT_OVERFLOW | EVENT_RUN), EVENT_RUN, "one less than there is room for");
    bench.registers().write64(CONTROL, ON | EVENT_INT_EN);
    assert!(bench.a.read(0xaaa000).is_err());
    assert_eq!(bench.status() & (EVENT_OVERFLOW | EVENT_RUN), EVENT_OVERFLOW);
    assert!(vector.wait(SOON), "the overflow itself");
    assert!(bench.a.read(0xbbb000).is_err());
    assert!(!vector.wait(A_WHILE), "what is dropped afterwards says nothing");
    assert_eq!(bench.unit.stats().dropped_events, 2);

    // Room alone does not start it.
    assert_eq!(bench.events().len(), 255);
    assert!(bench.a.read(0xccc000).is_err());
    assert_eq!(bench.events(), []);
    // Off, overflow cleared, on.
    bench.registers().write64(CONTROL, ON & !(1 << 2));
    bench.registers().write64(STATUS, EVENT_OVERFLOW);
    bench.registers().write64(CONTROL, ON);
    assert_eq!(bench.status() & (EVENT_OVERFLOW | EVENT_RUN), EVENT_RUN);
    assert!(bench.a.read(0xddd000).is_err());
    assert_eq!(bench.events(), [(0x2000_0001_0000_0018, 0xddd000)]);
}

#[test]
fn a_log_that_is_off_says_nothing() {
    let bench = Bench::default();
    let vector = bench.msi();
    bench.attach(A, 1, 3, bench.table());
    bench.registers().write64(CONTROL, ON & !(1 << 2) | EVENT_INT_EN);
    assert!(bench.a.read(0).is_err());
    assert!(!vector.wait(A_WHILE));
    assert_eq!(bench.status() & (EVENT_INT | EVENT_OVERFLOW | EVENT_RUN), 0);
}

#[test]
fn log_registers_are_guarded_while_it_runs() {
    let bench = Bench::default();
    bench.attach(A, 1, 3, bench.table());
    assert!(bench.a.read(0).is_err());
    bench.registers().write64(EVENT_BASE, 0x50_0000 | 9 << 56);
    bench.registers().write64(EVENT_TAIL, 0x80);
    assert_eq!(bench.registers().read64(EVENT_BASE), EVENTS | 8 << 56);
    assert_eq!(bench.registers().read64(EVENT_TAIL), 16);
    // When it is off: the base takes head and tail back to 0.
    bench.registers().write64(CONTROL, ON & !(1 << 2));
    bench.registers().write64(EVENT_HEAD, 16);
    bench.registers().write64(EVENT_BASE, 0x50_0000 | 9 << 56);
    let pointers = (bench.registers().read64(EVENT_HEAD), bench.registers().read64(EVENT_TAIL));
    assert_eq!((pointers, bench.registers().read64(EVENT_BASE)), ((0, 0), 0x50_0000 | 9 << 56));
    // A size code below 8 is reserved: the log does not run.
    bench.registers().write64(EVENT_BASE, EVENTS | 7 << 56);
    bench.registers().write64(CONTROL, ON);
    assert_eq!(bench.status() & EVENT_RUN, 0);
}

#[test]
fn negative_results_are_kept_only_with_np_cache() {
    for np_cache in [false, true] {
        let bench = Bench::new(Config { np_cache, ..Config::default() });
        let root = bench.table();
        bench.attach(A, 1, 3, root);
        for page in [0x5000, 0x6000] {
            assert!(bench.a.read(page).is_err());
            bench.map(root, 3, page, 1, DATA | READ_WRITE);
            assert_eq!(bench.a.read(page).is_ok(), !np_cache);
        }
        // The capability says it, bit 26.
        assert_eq!(config_read(&bench.pci, IOMMU, 0x80) >> 26 & 1 != 0, np_cache);
        bench.invalidate_pages(1, 0x5000);
        assert!(bench.a.read(0x5000).is_ok());
        assert_eq!(bench.a.read(0x6000).is_ok(), !np_cache, "the neighbour");
    }
}
