//! Page requests of the hardware alone: what is written to their log, what stops it, and which answers arrive.

mod common;

use common::*;
use sim_hardware::bus::BusError;
use sim_hardware::iommu::Config;

const PPR_BASE: usize = 0x38;
const PPR_HEAD: usize = 0x2030;
const PPR_TAIL: usize = 0x2038;
const AUTO_RESPONSE: usize = 0x2080;
/// 4 KiB for 256 requests.
const LOG: u64 = 0x30_4000;
/// PPRLogEn, PPREn.
const LOG_ON: u64 = 1 << 13 | 1 << 15;
const AUTO_RSP_EN: u64 = 1 << 39;
const OVERFLOW: u64 = 1 << 5;
const INT: u64 = 1 << 6;
const RUN: u64 = 1 << 7;
const PASID: u32 = 0xa_bcde;

/// Device A may ask; the log is on, and `control` with it.
fn bench(control: u64) -> Bench {
    let config = Config::default();
    let bench = Bench::new(Config { efr: config.efr | Config::GUEST | Config::PAGE_REQUESTS, ..config });
    bench.registers().write64(PPR_BASE, LOG | 8 << 56);
    bench.registers().write64(CONTROL, ON | LOG_ON | control);
    // V, TV, PPR, IR, IW.
    bench.set_dte(A, [3 | 1 << 52 | 3 << 61, 1, 0, 0]);
    // PASIDs and page requests on.
    config_write(&bench.pci, A, 0x114, 1 << 16);
    config_write(&bench.pci, A, 0x124, 1);
    bench
}

/// Has A ask, and gives the unit a command once the last request is in the log; the code of the answer.
fn ask(bench: &Bench, pasid: Option<u32>, pages: &[(u64, bool)], answer: (u64, u64)) -> Option<u8> {
    let tail = bench.registers().read64(PPR_TAIL);
    std::thread::scope(|scope| {
        let a = &*bench.a;
        let asking = scope.spawn(move || a.ask_for_pages(pasid, pages));
        let expected = (tail + 16 * pages.len() as u64) & 0xfff;
        eventually("the requests", || bench.registers().read64(PPR_TAIL) == expected);
        bench.command(answer.0, answer.1);
        asking.join().unwrap().unwrap()
    })
}

/// COMPLETE_PPR_REQUEST for A.
fn answer(pasid: u32, group: u64, code: u64) -> (u64, u64) {
    (7 << 60 | u64::from(pasid) << 32 | u64::from(A.get()), (code << 12 | group) << 32 | 4)
}

#[test]
fn requests_are_logged_and_answered_by_group() {
    let bench = bench(0);
    assert_eq!(bench.status() & (RUN | INT), RUN);
    let code = ask(&bench, Some(PASID), &[(0x1234_5678, false), (0x5000, true)], answer(PASID, 0, 0));
    assert_eq!(code, Some(0));
    // Code 1, GN, US, read; bits 15:0 and 19:16 of the PASID; group 0. The second also writes, and is the last.
    let first = 1 << 60 | 1 << 56 | 1 << 54 | 1 << 50 | 0xa << 42 | 0xbcde << 16 | u64::from(A.get());
    assert_eq!((bench.peek(LOG), bench.peek(LOG + 8)), (first, 0x1234_5000));
    assert_eq!((bench.peek(LOG + 16), bench.peek(LOG + 24)), (first | 1 << 53 | 1 << 41, 0x5000));
    assert_eq!(bench.status() & INT, INT);
    // The next group has the next number; an answer to another one, or without the PASID, is none.
    std::thread::scope(|scope| {
        let a = &*bench.a;
        let asking = scope.spawn(move || a.ask_for_pages(Some(PASID), &[(0, false)]));
        eventually("the request", || bench.registers().read64(PPR_TAIL) == 48);
        assert_eq!(bench.peek(LOG + 32) >> 32 & 0x1ff, 1);
        let (q0, q1) = answer(PASID, 1, 1);
        for (q0, q1) in [answer(PASID, 2, 0), (q0, q1 & !4), (q0 ^ 1 << 32, q1)] {
            bench.command(q0, q1);
        }
        bench.wait();
        assert_eq!(bench.pci.pri(A).unwrap().unexpected(), 3);
        bench.command(q0, q1);
        assert_eq!(asking.join().unwrap(), Ok(Some(1)));
    });
    // After a failure the function asks no more.
    assert_eq!(ask(&bench, Some(PASID), &[(0, false)], answer(PASID, 2, 15)), Some(15));
    assert_eq!(bench.a.ask_for_pages(Some(PASID), &[(0, false)]), Err(BusError::MasterAbort));
}

#[test]
fn who_may_not_ask_is_refused_and_logged() {
    let bench = bench(0);
    // Without PPR in the entry; and while the unit takes none.
    bench.set_dte(A, [3 | 3 << 61, 1, 0, 0]);
    assert_eq!(bench.a.ask_for_pages(Some(PASID), &[(0x7000, false)]), Ok(Some(15)));
    // INVALID_PPR_REQUEST with GN and the PASID.
    assert_eq!(bench.events(), [(9 << 60 | 1 << 48 | 0xbcde << 32 | 0xa << 16 | u64::from(A.get()), 0x7000)]);
    assert_eq!(bench.registers().read64(PPR_TAIL), 0);
    // PPR in an entry is illegal where there are none.
    let plain = Bench::default();
    plain.set_dte(A, [3 | 1 << 52 | 3 << 61, 1, 0, 0]);
    assert!(plain.a.read(DATA).is_err());
    assert_eq!(plain.peek(EVENTS) >> 60, 1);
    plain.command(7 << 60, 0);
    eventually("the halt", || plain.status() & COMMAND_RUN == 0);
}

#[test]
fn a_full_log_stops_until_it_is_restarted() {
    let bench = bench(AUTO_RSP_EN);
    bench.registers().write64(AUTO_RESPONSE, 1);
    // One entry stays free.
    let pages = vec![(0, false); 256];
    assert_eq!(
        bench.a.ask_for_pages(Some(PASID), &pages),
        Ok(Some(1)),
        "the unit has answered the one that is lost"
    );
    assert_eq!(bench.status() & (OVERFLOW | RUN), OVERFLOW);
    assert_eq!(bench.registers().read64(PPR_TAIL), 255 * 16);
    // Room alone does not start it.
    bench.registers().write64(PPR_HEAD, 255 * 16);
    assert_eq!(bench.a.ask_for_pages(Some(PASID), &[(0, false)]), Ok(Some(1)));
    bench.registers().write64(CONTROL, ON | AUTO_RSP_EN | 1 << 15);
    bench.registers().write64(STATUS, OVERFLOW | INT);
    bench.registers().write64(PPR_HEAD, 0);
    bench.registers().write64(PPR_TAIL, 0);
    bench.registers().write64(CONTROL, ON | AUTO_RSP_EN | LOG_ON);
    assert_eq!(bench.status() & (OVERFLOW | INT | RUN), RUN);
    assert_eq!(ask(&bench, Some(PASID), &[(0, true)], answer(PASID, 2, 0)), Some(0));
}
