//! Block requests: where the data goes, and what fails.

mod common;

use common::pattern;
use common::virtio::*;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const SECTORS: usize = 1024;

fn host(writable: bool) -> Host {
    Host::up(&pattern(SECTORS * 512), writable)
}

fn disk(sector: usize, sectors: usize) -> Vec<u8> {
    pattern(SECTORS * 512)[sector * 512..][..sectors * 512].to_vec()
}

#[test]
fn data_is_read_into_parts_of_any_size() {
    let mut host = host(false);
    host.fill(DATA, &[0xee; 0x4000]);
    assert_eq!(host.run(IN, 7, &[(DATA + 3, 512)]), (OK, 513));
    assert_eq!(host.bytes(DATA + 3, 512), disk(7, 1));
    assert_eq!((host.bytes(DATA, 3), host.bytes(DATA + 515, 3)), (vec![0xee; 3], vec![0xee; 3]));
    let parts = [(DATA + 0x1000, 1), (DATA + 0x3000, 1000), (DATA + 0x2001, 535)];
    assert_eq!(host.run(IN, 1020, &parts), (OK, 1537));
    let seen: Vec<u8> = parts.iter().flat_map(|&(at, len)| host.bytes(at, len as usize)).collect();
    assert_eq!(seen, disk(1020, 3));
}

#[test]
fn long_requests_go_in_one() {
    let mut host = host(true);
    // More than the device moves at once, and no multiple of it.
    let sectors = 300;
    assert_eq!(host.run(IN, 5, &[(DATA, sectors * 512)]), (OK, sectors * 512 + 1));
    assert_eq!(host.bytes(DATA, 300 * 512), disk(5, 300));
    assert_eq!(host.run(OUT, 600, &[(DATA, 512), (DATA + 512, (sectors - 1) * 512)]), (OK, 1));
    let file = std::fs::read(host.disk.path()).unwrap();
    assert_eq!(file[600 * 512..900 * 512], disk(5, 300));
}

#[test]
fn what_is_written_reaches_the_file_and_nothing_beside() {
    let mut host = host(true);
    let data: Vec<u8> = pattern(3 * 512).into_iter().map(|byte| !byte).collect();
    host.fill(DATA, &data);
    assert_eq!(host.run(OUT, 10, &[(DATA, 700), (DATA + 700, 836)]), (OK, 1));
    assert_eq!(host.run(FLUSH, 0, &[]), (OK, 1));
    let mut expected = pattern(SECTORS * 512);
    expected[10 * 512..][..data.len()].copy_from_slice(&data);
    assert!(std::fs::read(host.disk.path()).unwrap() == expected);
}

#[test]
fn header_and_status_may_be_anywhere_in_the_chain() {
    let mut host = host(true);
    // The header in three parts, the last with the data; the status behind a read's data in one descriptor.
    host.header(OUT, 3);
    host.fill(DATA, &[0x77; 512]);
    let tail = host.bytes(HEADER + 9, 7);
    host.fill(DATA - 7, &tail);
    host.describe(4, HEADER, 4, NEXT, 2);
    host.describe(2, HEADER + 4, 5, NEXT, 7);
    host.describe(7, DATA - 7, 7 + 512, NEXT, 1);
    host.describe(1, STATUS_BYTE, 1, WRITE, 0);
    host.offer(4);
    host.notify();
    assert_eq!((host.take(), host.bytes(STATUS_BYTE, 1)), ((4, 1), vec![OK]));
    host.header(IN, 3);
    host.describe(0, HEADER, 16, NEXT, 3);
    host.describe(3, DATA + 0x1000, 513, WRITE, 0);
    host.fill(DATA + 0x1200, &[0xee]);
    host.offer(0);
    host.notify();
    assert_eq!(host.take(), (0, 513));
    assert_eq!(host.bytes(DATA + 0x1000, 513), [vec![0x77; 512], vec![OK]].concat());
}

#[test]
fn the_identity_fits_its_place() {
    let mut host = host(false);
    assert_eq!(host.run(GET_ID, 0, &[(DATA, 20)]), (OK, 21));
    assert_eq!(host.bytes(DATA, 20), b"simulated-virtio-blk");
    host.fill(DATA, &[0xee; 32]);
    assert_eq!(host.run(GET_ID, 0, &[(DATA, 3), (DATA + 16, 4)]), (OK, 8));
    assert_eq!((host.bytes(DATA, 4), host.bytes(DATA + 16, 5)), (b"sim\xee".to_vec(), b"ulat\xee".to_vec()));
    // What is left of a longer place is not written, so the count ends before it.
    assert_eq!(host.run(GET_ID, 0, &[(DATA, 32)]), (OK, 20));
    assert_eq!(host.bytes(DATA + 20, 12), [0xee; 12]);
}

#[test]
fn ranges_that_are_not_on_the_disk_fail() {
    let mut host = host(true);
    let end = SECTORS as u64;
    for kind in [IN, OUT] {
        assert_eq!(host.run(kind, end - 1, &[(DATA, 512)]).0, OK, "the last one");
        assert_eq!(host.run(kind, end, &[]).0, OK, "nothing at all");
        // The status alone is written, which of a read is not at the start.
        let written = if kind == IN { 0 } else { 1 };
        for (sector, len) in [(end, 512), (end - 1, 1024), (u64::MAX, 512), (u64::MAX, 1024), (1 << 55, 512)]
        {
            assert_eq!(host.run(kind, sector, &[(DATA, len)]), (IO_ERROR, written), "{sector:#x}");
        }
        for len in [1, 511, 513] {
            assert_eq!(host.run(kind, 0, &[(DATA, len)]).0, IO_ERROR, "{len} bytes are no sectors");
        }
        // As long as can be said.
        assert_eq!(host.run(kind, 0, &[(DATA, u32::MAX), (DATA, u32::MAX), (DATA, 2)]).0, IO_ERROR);
    }
}

#[test]
fn data_where_nobody_answers_fails_and_the_device_goes_on() {
    let mut host = host(true);
    let nowhere = 0x7_0000_0000;
    for kind in [IN, OUT] {
        assert_eq!(host.run(kind, 0, &[(nowhere, 512)]).0, IO_ERROR);
        assert_eq!(host.run(kind, 0, &[(u64::MAX - 100, 512)]).0, IO_ERROR);
    }
    // As far as it came is counted.
    assert_eq!(host.run(IN, 0, &[(DATA, 512), (nowhere, 512)]), (IO_ERROR, 512));
    // A header there.
    host.request(IN, 0, &[(DATA, 512)]);
    host.describe(0, nowhere, 16, NEXT, 1);
    host.offer(0);
    host.notify();
    assert_eq!((host.take(), host.bytes(STATUS_BYTE, 1)), ((0, 0), vec![IO_ERROR]));
    assert_eq!(host.run(IN, 0, &[(DATA, 512)]), (OK, 513));
    assert!(std::fs::read(host.disk.path()).unwrap() == pattern(SECTORS * 512));
}

#[test]
fn other_requests_are_not_supported() {
    let mut host = host(true);
    for kind in [2, 3, 5, 11, 13, 14, u32::MAX] {
        assert_eq!(host.run(kind, 0, &[(DATA, 512)]), (UNSUPPORTED, 0), "{kind}");
    }
}

#[test]
fn a_disk_that_may_not_be_written_stays() {
    let mut host = host(false);
    assert_eq!(host.run(OUT, 0, &[(DATA, 512)]), (IO_ERROR, 1));
    assert_eq!(host.run(FLUSH, 0, &[]), (OK, 1));
    assert!(std::fs::read(host.disk.path()).unwrap() == pattern(SECTORS * 512));
}

#[test]
fn a_file_that_does_not_fill_its_last_sector() {
    let mut host = Host::up(&pattern(1000), true);
    host.fill(DATA, &[0xee; 1024]);
    assert_eq!(host.run(IN, 0, &[(DATA, 1024)]), (OK, 1025));
    assert_eq!(host.bytes(DATA, 1024), [pattern(1000), vec![0; 24]].concat());
    host.fill(DATA, &[0x77; 512]);
    assert_eq!(host.run(OUT, 1, &[(DATA, 512)]), (OK, 1));
    assert!(std::fs::read(host.disk.path()).unwrap() == [pattern(512), vec![0x77; 488]].concat());
}

#[test]
fn several_requests_at_once_round_the_ring() {
    let mut host = host(false);
    // Two requests of three descriptors each; the ring has 8 places, so they meet its end.
    for round in 0..20u64 {
        for (head, place) in [(0, 0), (3, 0x100)] {
            host.header(IN, 2 * round + u64::from(head == 3));
            let header = host.bytes(HEADER, 16);
            host.fill(HEADER + place + 0x40, &header);
            host.describe(head, HEADER + place + 0x40, 16, NEXT, head + 1);
            host.describe(head + 1, DATA + 2 * place, 512, WRITE | NEXT, head + 2);
            host.describe(head + 2, STATUS_BYTE + place, 1, WRITE, 0);
            host.offer(head);
        }
        host.notify();
        assert_eq!([host.take(), host.take()], [(0, 513), (3, 513)]);
        assert_eq!(host.bytes(DATA, 1024), disk(2 * round as usize, 2), "round {round}");
    }
}
