//! Reads, writes and flushes: where the data goes, and what is refused.

mod common;

use common::nvme::*;
use common::{A_WHILE, pattern};
use sim_hardware::nvme;

const WRITE: u32 = 1;
const READ: u32 = 2;

const INVALID_OPCODE: u16 = 0x001;
const INVALID_FIELD: u16 = 0x002;
const DATA_TRANSFER_ERROR: u16 = 0x004;
const INVALID_NAMESPACE: u16 = 0x00b;
const INVALID_PRP_OFFSET: u16 = 0x013;
const WRITE_PROTECTED: u16 = 0x020;
const LBA_OUT_OF_RANGE: u16 = 0x080;

/// Blocks of the disk: more than a command may move.
const BLOCKS: usize = 4096;

fn host(writable: bool) -> (Host, Pair) {
    let (host, mut admin) = Host::up(&pattern(BLOCKS * 512), writable);
    let io = host.io_pair(&mut admin, 1, 16);
    (host, io)
}

fn command(opcode: u32, block: u64, blocks: u32, prp1: u64, prp2: u64) -> Command {
    let dwords = [block as u32, (block >> 32) as u32, blocks - 1];
    Command { opcode, namespace: 1, prp1, prp2, dwords }
}

/// Writes a list of PRP entries.
fn list(host: &Host, at: u64, entries: &[u64]) {
    for (number, &entry) in (0..).zip(entries) {
        host.machine.ram.write64(at + 8 * number, entry).unwrap();
    }
}

/// The disk's bytes from a block on.
fn disk(block: usize, blocks: usize) -> Vec<u8> {
    pattern(BLOCKS * 512)[block * 512..][..blocks * 512].to_vec()
}

#[test]
fn one_block_within_a_page() {
    let (host, mut io) = host(false);
    host.fill(DATA, &[0xee; 8192]);
    // With an offset into the page, in dwords.
    assert_eq!(host.run(&mut io, command(READ, 7, 1, DATA + 0x204, 0)).status, 0);
    assert_eq!(host.bytes(DATA + 0x204, 512), disk(7, 1));
    assert_eq!((host.bytes(DATA + 0x200, 4), host.bytes(DATA + 0x404, 4)), (vec![0xee; 4], vec![0xee; 4]));
}

#[test]
fn two_pages_by_two_entries() {
    let (host, mut io) = host(false);
    host.fill(DATA, &[0xee; 0x8000]);
    // 8 blocks, of which two fit into the first page.
    let (first, second) = (DATA + 0xc00, DATA + 0x5000);
    assert_eq!(host.run(&mut io, command(READ, 100, 8, first, second)).status, 0);
    assert_eq!([host.bytes(first, 1024), host.bytes(second, 3072)].concat(), disk(100, 8));
    assert_eq!(host.bytes(second + 3072, 4), [0xee; 4]);
    assert_eq!(host.bytes(DATA + 0x1000, 4), [0xee; 4], "the page behind the first is another's");
    // A whole page and a whole page.
    assert_eq!(host.run(&mut io, command(READ, 0, 16, DATA, DATA + 0x3000)).status, 0);
    assert_eq!([host.bytes(DATA, 4096), host.bytes(DATA + 0x3000, 4096)].concat(), disk(0, 16));
}

#[test]
fn more_pages_by_a_list() {
    let (host, mut io) = host(false);
    // 5 pages, the first with an offset, in descending order.
    let pages: Vec<u64> = (0..6).map(|page| DATA + 0x10_0000 - 0x2000 * page).collect();
    list(&host, DATA, &pages[1..]);
    assert_eq!(host.run(&mut io, command(READ, 9, 40, pages[0] + 0x800, DATA)).status, 0);
    let mut seen = host.bytes(pages[0] + 0x800, 0x800);
    for &page in &pages[1..5] {
        seen.extend(host.bytes(page, 4096));
    }
    seen.extend(host.bytes(pages[5], 0x800));
    assert_eq!(seen, disk(9, 40));
}

#[test]
fn a_list_that_meets_the_end_of_its_page_leads_to_the_next() {
    // From one entry before the end of the page, where the first entry is the way on, to three.
    for room in 1..=3_u64 {
        let (host, mut io) = host(false);
        let pages: Vec<u64> = (0..8).map(|page| DATA + 0x10_0000 + 0x2000 * page).collect();
        let (first_list, second_list) = (DATA + 0x1000 - 8 * room, DATA + 0x4000);
        let (here, there) = pages[1..].split_at(room as usize - 1);
        list(&host, first_list, here);
        list(&host, DATA + 0xff8, &[second_list]);
        list(&host, second_list, there);
        assert_eq!(host.run(&mut io, command(READ, 1, 64, pages[0], first_list)).status, 0);
        let seen: Vec<u8> = pages.iter().flat_map(|&page| host.bytes(page, 4096)).collect();
        assert_eq!(seen, disk(1, 64), "room for {room}");
    }
}

#[test]
fn a_list_may_end_with_its_page() {
    let (host, mut io) = host(false);
    let pages: Vec<u64> = (0..3).map(|page| DATA + 0x10_0000 + 0x2000 * page).collect();
    // Two entries fill the page to its end, and both are data.
    list(&host, DATA + 0xff0, &pages[1..]);
    assert_eq!(host.run(&mut io, command(READ, 1, 24, pages[0], DATA + 0xff0)).status, 0);
    let seen: Vec<u8> = pages.iter().flat_map(|&page| host.bytes(page, 4096)).collect();
    assert_eq!(seen, disk(1, 24));
}

#[test]
fn the_longest_transfer_and_no_longer() {
    let (host, mut io) = host(false);
    let pages: Vec<u64> = (1..=256).map(|page| DATA + 0x10_0000 + 0x1000 * page).collect();
    list(&host, DATA, &pages[1..]);
    // MDTS: 1 MiB.
    assert_eq!(host.run(&mut io, command(READ, 3, 2048, pages[0], DATA)).status, 0);
    assert_eq!(host.bytes(pages[0], 1 << 20), disk(3, 2048));
    assert_eq!(host.run(&mut io, command(READ, 3, 2049, pages[0], DATA)).status, INVALID_FIELD);
}

#[test]
fn writes_reach_the_file_from_every_kind_of_entry() {
    let (host, mut io) = host(true);
    let data: Vec<u8> = pattern(64 * 512).into_iter().map(|byte| byte ^ 0xff).collect();
    host.fill(DATA, &data);
    assert_eq!(host.run(&mut io, command(WRITE, 10, 1, DATA, 0)).status, 0);
    assert_eq!(host.run(&mut io, command(WRITE, 20, 16, DATA, DATA + 0x1000)).status, 0);
    let pages: Vec<u64> = (1..8).map(|page| DATA + 0x1000 * page).collect();
    list(&host, DATA + 0x10_0000, &pages);
    assert_eq!(host.run(&mut io, command(WRITE, 100, 64, DATA, DATA + 0x10_0000)).status, 0);
    assert_eq!(host.run(&mut io, Command { namespace: 1, ..Command::default() }).status, 0);

    let mut expected = pattern(BLOCKS * 512);
    for (block, blocks) in [(10, 1), (20, 16), (100, 64)] {
        expected[block * 512..][..blocks * 512].copy_from_slice(&data[..blocks * 512]);
    }
    assert!(std::fs::read(host.disk.path()).unwrap() == expected);
    // Read back.
    assert_eq!(host.run(&mut io, command(READ, 20, 16, DATA + 0x20_0000, DATA + 0x20_1000)).status, 0);
    assert_eq!(host.bytes(DATA + 0x20_0000, 8192), data[..8192]);
    let stats = host.machine.nvme.stats();
    assert_eq!((stats.reads, stats.writes, stats.bytes), (1, 3, (16 + 1 + 16 + 64) * 512));
}

#[test]
fn misplaced_entries_are_refused() {
    let (host, mut io) = host(true);
    host.fill(DATA, &[0xee; 0x2000]);
    let bad_list = DATA + 0x10_0000;
    list(&host, bad_list, &[DATA + 0x1000, DATA + 0x2004]);
    let bad_chain = DATA + 0x11_0ff0;
    list(&host, bad_chain, &[DATA + 0x1000, DATA + 0x12_0008]);
    let cases = [
        ("the first in the middle of a dword", command(READ, 0, 1, DATA + 2, 0)),
        ("the second not at a page", command(READ, 0, 16, DATA, DATA + 0x1004)),
        ("a list in the middle of an entry", command(READ, 0, 24, DATA, bad_list + 4)),
        ("an entry of a list not at a page", command(READ, 0, 24, DATA, bad_list)),
        ("the way to the next list not at a page", command(READ, 0, 32, DATA, bad_chain)),
    ];
    for (case, command) in cases {
        assert_eq!(host.run(&mut io, command).status, INVALID_PRP_OFFSET, "{case}");
        let write = Command { opcode: WRITE, ..command };
        assert_eq!(host.run(&mut io, write).status, INVALID_PRP_OFFSET, "{case}");
    }
    assert_eq!(host.bytes(DATA, 0x2000), [0xee; 0x2000], "nothing is moved before");
    assert!(std::fs::read(host.disk.path()).unwrap() == pattern(BLOCKS * 512));
}

#[test]
fn data_where_nobody_answers_is_an_error() {
    let (host, mut io) = host(true);
    let nowhere = 0x7_0000_0000;
    for opcode in [READ, WRITE] {
        assert_eq!(host.run(&mut io, command(opcode, 0, 1, nowhere, 0)).status, DATA_TRANSFER_ERROR);
        assert_eq!(host.run(&mut io, command(opcode, 0, 16, DATA, nowhere)).status, DATA_TRANSFER_ERROR);
        assert_eq!(host.run(&mut io, command(opcode, 0, 24, DATA, nowhere)).status, DATA_TRANSFER_ERROR);
    }
    assert!(std::fs::read(host.disk.path()).unwrap() == pattern(BLOCKS * 512));
}

#[test]
fn blocks_beyond_the_end_are_refused() {
    let (host, mut io) = host(true);
    let end = BLOCKS as u64;
    for opcode in [READ, WRITE] {
        assert_eq!(host.run(&mut io, command(opcode, end - 1, 1, DATA, 0)).status, 0, "the last one");
        for (block, blocks) in [(end, 1), (end - 1, 2), (1 << 32, 1), (u64::MAX, 1), (u64::MAX - 1, 8)] {
            let status = host.run(&mut io, command(opcode, block, blocks, DATA, 0)).status;
            assert_eq!(status, LBA_OUT_OF_RANGE, "{block:#x}");
        }
    }
}

#[test]
fn other_commands_and_namespaces_are_refused() {
    let (host, mut io) = host(true);
    let read = command(READ, 0, 1, DATA, 0);
    for opcode in [0x03, 0x04, 0x08, 0x7f, 0xff] {
        assert_eq!(host.run(&mut io, Command { opcode, ..read }).status, INVALID_OPCODE, "{opcode:#x}");
    }
    for namespace in [0, 2, u32::MAX] {
        assert_eq!(host.run(&mut io, Command { namespace, ..read }).status, INVALID_NAMESPACE);
    }
    // A flush may name all namespaces.
    let flush = |namespace| Command { namespace, ..Command::default() };
    assert_eq!(host.run(&mut io, flush(1)).status, 0);
    assert_eq!(host.run(&mut io, flush(u32::MAX)).status, 0);
    assert_eq!(host.run(&mut io, flush(2)).status, INVALID_NAMESPACE);
    // Fused, or with an SGL.
    for flags in [1 << 8, 2 << 8, 1 << 14] {
        assert_eq!(host.run(&mut io, Command { opcode: READ | flags, ..read }).status, INVALID_FIELD);
    }
}

#[test]
fn a_disk_that_may_not_be_written_stays() {
    let (host, mut io) = host(false);
    assert_eq!(host.run(&mut io, command(WRITE, 0, 1, DATA, 0)).status, WRITE_PROTECTED);
    assert_eq!(host.run(&mut io, Command { namespace: 1, ..Command::default() }).status, 0);
    assert_eq!(host.run(&mut io, command(READ, 0, 1, DATA, 0)).status, 0);
    assert_eq!(host.bytes(DATA, 512), disk(0, 1));
    assert!(std::fs::read(host.disk.path()).unwrap() == pattern(BLOCKS * 512));
}

#[test]
fn a_file_that_does_not_fill_its_last_block() {
    let (host, mut admin) = Host::up(&pattern(1000), true);
    let mut io = host.io_pair(&mut admin, 1, 4);
    host.fill(DATA, &[0xee; 1024]);
    assert_eq!(host.run(&mut io, command(READ, 0, 2, DATA, 0)).status, 0);
    assert_eq!(host.bytes(DATA, 1024), [pattern(1000), vec![0; 24]].concat(), "zeros follow");
    // Nothing of an earlier command's data either.
    assert_eq!(host.run(&mut io, command(READ, 1, 1, DATA, 0)).status, 0);
    assert_eq!(host.bytes(DATA, 512), [&pattern(1000)[512..], &[0; 24]].concat());
    assert_eq!(host.run(&mut io, command(READ, 1, 2, DATA, 0)).status, LBA_OUT_OF_RANGE);
    // A write to it does not make the file longer.
    host.fill(DATA, &[0x77; 512]);
    assert_eq!(host.run(&mut io, command(WRITE, 1, 1, DATA, 0)).status, 0);
    assert!(std::fs::read(host.disk.path()).unwrap() == [pattern(512), vec![0x77; 488]].concat());
}

#[test]
fn many_commands_at_once_round_the_ring() {
    for workers in [1, 3] {
        let host =
            Host::new(&pattern(BLOCKS * 512), false, nvme::Config { workers, ..nvme::Config::default() });
        let mut admin = host.enable();
        let mut pairs = [host.io_pair(&mut admin, 1, 8), host.io_pair(&mut admin, 2, 8)];
        for round in 0..20_u64 {
            for io in &mut pairs {
                for slot in 0..7 {
                    host.put(io, command(READ, round * 7 + slot, 1, DATA + 512 * slot, 0));
                }
                host.ring(io);
            }
            for io in &mut pairs {
                for _ in 0..7 {
                    assert_eq!(host.take(io).status, 0);
                }
            }
            assert_eq!(host.bytes(DATA, 7 * 512), disk(round as usize * 7, 7), "{workers} workers");
        }
    }
}

#[test]
fn a_full_completion_queue_holds_the_rest_back() {
    let (host, mut admin) = Host::up(&pattern(512), false);
    // 4 completions for 16 submissions.
    let mut io = Pair::new(1, 4);
    let create = |opcode, prp1, entries: u32| Command {
        opcode,
        prp1,
        dwords: [(entries - 1) << 16 | 1, 1 << 16 | 1, 0],
        ..Command::default()
    };
    assert_eq!(host.run(&mut admin, create(5, io.completion(), 4)).status, 0);
    assert_eq!(host.run(&mut admin, create(1, io.submission(), 16)).status, 0);
    io.entries = 16;
    for _ in 0..10 {
        host.put(&mut io, Command { namespace: 1, ..Command::default() });
    }
    host.ring(&io);
    io.entries = 4;
    let fourth = io.completion() + 3 * 16 + 8;
    std::thread::sleep(A_WHILE);
    assert_eq!(host.machine.ram.read64(fourth), Ok(0), "three, and no fourth over the first");
    let order: Vec<u16> = (0..10).map(|_| host.take(&mut io).command).collect();
    assert_eq!(order, (0x100..0x10a).collect::<Vec<_>>());
}
