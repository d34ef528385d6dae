//! The NVMe controller's registers and admin commands (NVM Express 1.4).

mod common;

use common::nvme::*;
use common::{A_WHILE, SOON, config_write, eventually, pattern};
use sim_hardware::{DiskError, Machine, nvme};

const INVALID_OPCODE: u16 = 0x001;
const INVALID_FIELD: u16 = 0x002;
const INVALID_NAMESPACE: u16 = 0x00b;
const INVALID_PRP_OFFSET: u16 = 0x013;
const COMPLETION_QUEUE_INVALID: u16 = 0x100;
const INVALID_QUEUE_ID: u16 = 0x101;
const INVALID_QUEUE_SIZE: u16 = 0x102;
const INVALID_VECTOR: u16 = 0x108;
const INVALID_QUEUE_DELETION: u16 = 0x10c;

#[test]
fn the_capabilities() {
    let host = Host::new(&[0; 512], false, nvme::Config::default());
    let cap = host.registers.read64(CAP);
    assert_eq!(cap & 0xffff, 1023, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!(cap >> 24 & 0xff, 10, "TO: 5 seconds");
    assert_eq!(cap >> 32 & 0xf, 0, "DSTRD");
    assert_eq!(cap >> 37 & 0xff, 1, "CSS: the NVM command set");
    assert_eq!(cap >> 48 & 0xff, 0, "MPSMIN and MPSMAX: 4 KiB");
    assert_eq!(host.registers.read32(0x08), 0x0001_0400, "VS");
    // Class code: NVM Express I/O controller.
    assert_eq!(common::config_read(&host.machine.pci, Machine::NVME, 0x08) >> 8, 0x01_0802);
}

#[test]
fn it_comes_up_and_goes_down() {
    let host = Host::new(&[0; 512], false, nvme::Config::default());
    assert_eq!(host.registers.read32(CSTS), 0);
    let mut admin = host.enable();
    assert_eq!(host.registers.read32(CSTS), READY);
    let mut io = host.io_pair(&mut admin, 1, 4);
    host.registers.write32(CC, ENABLED & !1);
    eventually("not ready", || host.registers.read32(CSTS) == 0);

    // The queues are forgotten: a doorbell does nothing, and the same queue can be made again.
    host.put(&mut io, Command { opcode: 0, namespace: 1, ..Command::default() });
    host.ring(&io);
    std::thread::sleep(A_WHILE);
    assert_eq!(host.poll(&io), None);
    let mut admin = host.enable();
    let mut io = host.io_pair(&mut admin, 1, 4);
    assert_eq!(host.run(&mut io, Command { namespace: 1, ..Command::default() }).status, 0);

    // CC.SHN: CSTS.SHST says that it is complete.
    host.registers.write32(CC, ENABLED | 1 << 14);
    eventually("shutdown", || host.registers.read32(CSTS) >> 2 & 3 == 2);
}

#[test]
fn what_it_cannot_be_is_fatal() {
    for (sizes, cc) in [
        // Pages of 8 KiB; another command set; an admin queue of one entry.
        (15 << 16 | 15, ENABLED | 1 << 7),
        (15 << 16 | 15, ENABLED | 1 << 4),
        (15, ENABLED),
        (15 << 16, ENABLED),
    ] {
        let host = Host::new(&[0; 512], false, nvme::Config::default());
        host.registers.write32(AQA, sizes);
        host.registers.write32(CC, cc);
        eventually("fatal", || host.registers.read32(CSTS) & (READY | FATAL) == FATAL);
        // Off and on again, properly.
        host.registers.write32(CC, 0);
        host.enable();
    }
}

#[test]
fn a_doorbell_beyond_the_queue_is_fatal() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    admin.tail = 16;
    host.ring(&admin);
    eventually("fatal", || host.registers.read32(CSTS) & FATAL != 0);
}

#[test]
fn a_queue_that_is_no_memory_is_fatal() {
    let host = Host::new(&[0; 512], false, nvme::Config::default());
    host.registers.write32(AQA, 15 << 16 | 15);
    host.registers.write64(ASQ, 0x7_0000_0000);
    host.registers.write64(ACQ, 0x7_0001_0000);
    host.registers.write32(CC, ENABLED);
    eventually("ready", || host.registers.read32(CSTS) & READY != 0);
    host.registers.write32(0x1000, 1);
    eventually("fatal", || host.registers.read32(CSTS) & FATAL != 0);
}

fn identify(host: &Host, admin: &mut Pair, namespace: u32, kind: u32) -> Result<Vec<u8>, u16> {
    host.fill(DATA, &[0xee; 4096]);
    let command = Command { opcode: 6, namespace, prp1: DATA, dwords: [kind, 0, 0], ..Command::default() };
    match host.run(admin, command).status {
        0 => Ok(host.bytes(DATA, 4096)),
        status => Err(status),
    }
}

#[test]
fn it_says_what_it_is() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    let data = identify(&host, &mut admin, 0, 1).unwrap();
    assert_eq!(data[0..2], [0x36, 0x1b], "VID");
    assert_eq!(&data[4..24], b"SIM0001             ");
    assert_eq!(data[24..64].trim_ascii_end(), b"Simulated NVMe disk");
    assert_eq!(data[77], 8, "MDTS: 2^8 pages of 4 KiB");
    assert_eq!(data[80..84], [0, 4, 1, 0], "VER");
    assert_eq!(data[512..514], [0x66, 0x44], "SQES, CQES");
    assert_eq!(data[516..520], [1, 0, 0, 0], "NN");
    assert_eq!(data[525] & 1, 1, "VWC");
    // The list of active namespaces, above 0 and above 1.
    let list = identify(&host, &mut admin, 0, 2).unwrap();
    assert_eq!((&list[..4], list[4..].iter().all(|&byte| byte == 0)), (&[1, 0, 0, 0][..], true));
    assert!(identify(&host, &mut admin, 1, 2).unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(identify(&host, &mut admin, 0, 0x7f), Err(INVALID_FIELD));
}

#[test]
fn it_says_how_large_its_namespace_is() {
    for (len, blocks, writable) in [(512, 1, false), (1024, 2, true), (1025, 3, true), (1, 1, false)] {
        let (host, mut admin) = Host::up(&pattern(len), writable);
        let data = identify(&host, &mut admin, 1, 0).unwrap();
        for at in [0, 8, 16] {
            assert_eq!(data[at..at + 8], u64::to_le_bytes(blocks), "NSZE, NCAP, NUSE");
        }
        assert_eq!((data[25], data[26]), (0, 0), "one format, in use");
        assert_eq!(data[128..132], [0, 0, 9, 0], "no metadata, blocks of 2^9 bytes");
        assert_eq!(data[99] & 1 != 0, !writable, "NSATTR: write protected");
        assert_eq!(identify(&host, &mut admin, 2, 0), Err(INVALID_NAMESPACE));
    }
}

#[test]
fn an_empty_or_absent_file_is_no_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = |path: &std::path::Path| nvme::NvmeController::new(nvme::Config::default(), path, false);
    assert!(matches!(open(file.path()), Err(DiskError::Empty)));
    assert!(matches!(open("/nowhere/at/all".as_ref()), Err(DiskError::Io(_))));
}

/// The status of a queue's creation: opcode, number, entries, address, dword 11.
fn create(
    host: &Host,
    admin: &mut Pair,
    opcode: u32,
    id: u32,
    entries: u32,
    prp1: u64,
    dword_11: u32,
) -> u16 {
    let dwords = [(entries - 1) << 16 | id, dword_11, 0];
    host.run(admin, Command { opcode, prp1, dwords, ..Command::default() }).status
}

const SUBMISSION: u32 = 1;
const COMPLETION: u32 = 5;

#[test]
fn queues_have_their_limits() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    let mut make =
        |opcode, id, entries, at, dword_11| create(&host, &mut admin, opcode, id, entries, at, dword_11);
    for kind in [COMPLETION, SUBMISSION] {
        assert_eq!(make(kind, 0, 4, DATA, 1 << 16 | 1), INVALID_QUEUE_ID);
        assert_eq!(make(kind, 9, 4, DATA, 1 << 16 | 1), INVALID_QUEUE_ID, "eight at most");
        assert_eq!(make(kind, 1, 1, DATA, 1 << 16 | 1), INVALID_QUEUE_SIZE);
        assert_eq!(make(kind, 1, 1025, DATA, 1 << 16 | 1), INVALID_QUEUE_SIZE);
        assert_eq!(make(kind, 1, 4, DATA, 1 << 16), INVALID_FIELD, "not contiguous");
        assert_eq!(make(kind, 1, 4, DATA + 64, 1 << 16 | 1), INVALID_PRP_OFFSET);
    }
    assert_eq!(make(COMPLETION, 1, 4, DATA, 9 << 16 | 3), INVALID_VECTOR);
    assert_eq!(make(SUBMISSION, 1, 4, DATA, 1 << 16 | 1), COMPLETION_QUEUE_INVALID);
    assert_eq!(make(COMPLETION, 1, 1024, DATA, 8 << 16 | 3), 0);
    assert_eq!(make(COMPLETION, 1, 4, DATA, 8 << 16 | 3), INVALID_QUEUE_ID, "it is there");
    assert_eq!(make(SUBMISSION, 1, 4, DATA, 1), INVALID_QUEUE_ID, "the admin completion queue");
    assert_eq!(make(SUBMISSION, 1, 1024, DATA + 0x1_0000, 1 << 16 | 1), 0);
    assert_eq!(make(SUBMISSION, 1, 4, DATA, 1 << 16 | 1), INVALID_QUEUE_ID);
    // Any queue's submissions may complete in one.
    assert_eq!(make(SUBMISSION, 8, 2, DATA + 0x3_0000, 1 << 16 | 1), 0);
}

#[test]
fn queues_are_deleted_submissions_first() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    let mut io = host.io_pair(&mut admin, 3, 4);
    let mut delete = |opcode, id: u32| {
        host.run(&mut admin, Command { opcode, dwords: [id, 0, 0], ..Command::default() }).status
    };
    assert_eq!(delete(4, 3), INVALID_QUEUE_DELETION);
    assert_eq!(
        (delete(0, 2), delete(0, 0), delete(0, 9)),
        (INVALID_QUEUE_ID, INVALID_QUEUE_ID, INVALID_QUEUE_ID)
    );
    assert_eq!(delete(0, 3), 0);
    assert_eq!(delete(0, 3), INVALID_QUEUE_ID);
    host.put(&mut io, Command { namespace: 1, ..Command::default() });
    host.ring(&io);
    std::thread::sleep(A_WHILE);
    assert_eq!(host.poll(&io), None, "nobody serves it");
    assert_eq!(delete(4, 3), 0);
    assert_eq!((delete(4, 3), delete(4, 0)), (INVALID_QUEUE_ID, INVALID_QUEUE_ID));
}

#[test]
fn features_logs_and_the_rest() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    let mut run = |opcode, dwords| {
        let completion = host.run(&mut admin, Command { opcode, prp1: DATA, dwords, ..Command::default() });
        (completion.status, completion.result)
    };
    // Number of queues, 0's based: what is asked for does not matter, all are given.
    assert_eq!(run(9, [7, 0x0003_0003, 0]), (0, 0x0007_0007));
    assert_eq!(run(10, [7, 0, 0]), (0, 0x0007_0007));
    assert_eq!(run(9, [7, 0xffff_0000, 0]).0, INVALID_FIELD);
    assert_eq!(run(10, [6, 0, 0]), (0, 1), "the write cache");
    assert_eq!(run(9, [0x7f, 0, 0]).0, INVALID_FIELD);
    // Log pages are zeros: 4 dwords of the error log.
    host.fill(DATA, &[0xee; 32]);
    assert_eq!(run(2, [3 << 16 | 1, 0, 0]).0, 0);
    assert_eq!(host.bytes(DATA, 32), [[0; 16], [0xee; 16]].concat());
    assert_eq!(run(2, [0x7f, 0, 0]).0, INVALID_FIELD);
    assert_eq!(run(8, [0, 0, 0]), (0, 1), "nothing to abort");
    assert_eq!(run(0x7f, [0, 0, 0]).0, INVALID_OPCODE);
    // Fused, or with an SGL.
    assert_eq!(run(6 | 1 << 8, [1, 0, 0]).0, INVALID_FIELD);
    assert_eq!(run(6 | 1 << 14, [1, 0, 0]).0, INVALID_FIELD);
}

#[test]
fn an_event_request_waits_and_others_do_not() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    host.put(&mut admin, Command { opcode: 0xc, ..Command::default() });
    host.ring(&admin);
    let other = host.run(&mut admin, Command { opcode: 8, ..Command::default() });
    assert_eq!(other.status, 0);
    std::thread::sleep(A_WHILE);
    assert_eq!(host.poll(&admin), None);
}

#[test]
fn the_admin_ring_goes_round() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    for _ in 0..100 {
        assert_eq!(
            host.run(&mut admin, Command { opcode: 10, dwords: [7, 0, 0], ..Command::default() }).status,
            0
        );
    }
}

#[test]
fn each_queue_has_its_vector_or_none() {
    let (host, mut admin) = Host::up(&[0; 512], false);
    let pci = &host.machine.pci;
    let table = pci.mmio(Machine::NVME, 4).unwrap();
    let vectors: Vec<_> = (0..9)
        .map(|entry| {
            let vector = host.machine.interrupts.allocate().unwrap();
            let (address, data) = vector.message();
            table.write64(16 * entry, address);
            table.write32(16 * entry + 8, data);
            table.write32(16 * entry + 12, 0);
            vector
        })
        .collect();
    let at = common::config_read(pci, Machine::NVME, 0x40) >> 8 & 0xff;
    assert_eq!(common::config_read(pci, Machine::NVME, at as u16) & 0x7ff_00ff, 8 << 16 | 0x11);
    config_write(pci, Machine::NVME, at as u16, 1 << 31);

    let flush = Command { namespace: 1, ..Command::default() };
    let mut io = host.io_pair(&mut admin, 5, 4);
    assert!(vectors[0].wait(SOON), "the admin queues' is 0");
    assert_eq!(host.run(&mut io, flush).status, 0);
    assert!(vectors[5].wait(SOON));
    assert!(!vectors[4].wait(A_WHILE));
    // IEN = 0: no interrupt, whatever the vector.
    let mut quiet = Pair::new(6, 4);
    assert_eq!(create(&host, &mut admin, COMPLETION, 6, 4, quiet.completion(), 6 << 16 | 1), 0);
    assert_eq!(create(&host, &mut admin, SUBMISSION, 6, 4, quiet.submission(), 6 << 16 | 1), 0);
    assert_eq!(host.run(&mut quiet, flush).status, 0);
    assert!(!vectors[6].wait(A_WHILE));
}
