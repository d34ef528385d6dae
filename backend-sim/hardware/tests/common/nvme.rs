//! A host that drives the NVMe controller by hand.

use std::io::Write;
use std::sync::Arc;

use platform::Mmio;
use sim_hardware::{Machine, MachineConfig, nvme};
use tempfile::NamedTempFile;

use super::{bus_master_on, eventually};

pub const CAP: usize = 0x00;
pub const AQA: usize = 0x24;
pub const ASQ: usize = 0x28;
pub const ACQ: usize = 0x30;
pub const CC: usize = 0x14;
pub const CSTS: usize = 0x1c;

/// CC.EN, entries of 64 and 16 bytes.
pub const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
/// CSTS.RDY, CSTS.CFS.
pub const READY: u32 = 1;
pub const FATAL: u32 = 2;

/// Free for data.
pub const DATA: u64 = 0x100_0000;
const QUEUES: u64 = 0x10_0000;

/// A completion entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    pub result: u32,
    pub head: u16,
    pub queue: u16,
    pub command: u16,
    /// Status code type and code, without the phase.
    pub status: u16,
}

/// A pair of queues, as the host keeps it.
#[derive(Debug)]
pub struct Pair {
    pub id: u16,
    pub entries: u32,
    pub tail: u32,
    head: u32,
    phase: bool,
    next_command: u16,
}

impl Pair {
    pub fn new(id: u16, entries: u32) -> Self {
        Self { id, entries, tail: 0, head: 0, phase: true, next_command: 0x100 }
    }

    pub fn submission(&self) -> u64 {
        QUEUES + 0x2_0000 * u64::from(self.id)
    }

    pub fn completion(&self) -> u64 {
        self.submission() + 0x1_0000
    }
}

/// The machine, without an IOMMU, and its disk.
pub struct Host {
    pub machine: Machine,
    pub registers: Arc<dyn Mmio>,
    pub disk: NamedTempFile,
}

/// A command: opcode, namespace, PRP entries, dwords 10 to 12.
#[derive(Clone, Copy, Default)]
pub struct Command {
    pub opcode: u32,
    pub namespace: u32,
    pub prp1: u64,
    pub prp2: u64,
    pub dwords: [u32; 3],
}

impl Host {
    pub fn new(disk: &[u8], writable: bool, config: nvme::Config) -> Self {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(disk).expect("space");
        let machine = Machine::new(MachineConfig {
            memory: vec![(0, 64 << 20)],
            iommu: None,
            nvme: config,
            disk_writable: writable,
            ..MachineConfig::new(file.path())
        })
        .expect("a machine");
        bus_master_on(&machine.pci, Machine::NVME);
        let registers = machine.pci.mmio(Machine::NVME, 0).expect("BAR 0");
        Self { machine, registers, disk: file }
    }

    /// Brings the controller up, with admin queues of 16 entries.
    pub fn up(disk: &[u8], writable: bool) -> (Self, Pair) {
        let host = Self::new(disk, writable, nvme::Config::default());
        let admin = host.enable();
        (host, admin)
    }

    pub fn enable(&self) -> Pair {
        let admin = Pair::new(0, 16);
        self.registers.write32(AQA, 15 << 16 | 15);
        self.registers.write64(ASQ, admin.submission());
        self.registers.write64(ACQ, admin.completion());
        self.clear(&admin);
        self.registers.write32(CC, ENABLED);
        eventually("ready", || self.registers.read32(CSTS) & READY != 0);
        admin
    }

    fn clear(&self, pair: &Pair) {
        for at in 0..2 * u64::from(pair.entries) {
            self.machine.ram.write64(pair.completion() + 8 * at, 0).expect("memory");
        }
    }

    /// Makes a pair of I/O queues.
    pub fn io_pair(&self, admin: &mut Pair, id: u16, entries: u32) -> Pair {
        let pair = Pair::new(id, entries);
        self.clear(&pair);
        let size = (entries - 1) << 16 | u32::from(id);
        let create = |opcode, prp1, dword_11| Command {
            opcode,
            prp1,
            dwords: [size, dword_11, 0],
            ..Command::default()
        };
        assert_eq!(self.run(admin, create(5, pair.completion(), u32::from(id) << 16 | 3)).status, 0);
        assert_eq!(self.run(admin, create(1, pair.submission(), u32::from(id) << 16 | 1)).status, 0);
        pair
    }

    /// Puts a command into the queue; the doorbell is not rung.
    pub fn put(&self, pair: &mut Pair, command: Command) -> u16 {
        let identifier = pair.next_command;
        pair.next_command += 1;
        let mut words = [0_u64; 8];
        words[0] =
            u64::from(command.opcode) | u64::from(identifier) << 16 | u64::from(command.namespace) << 32;
        (words[3], words[4]) = (command.prp1, command.prp2);
        words[5] = u64::from(command.dwords[0]) | u64::from(command.dwords[1]) << 32;
        words[6] = u64::from(command.dwords[2]);
        for (number, word) in (0..).zip(words) {
            let at = pair.submission() + 64 * u64::from(pair.tail) + 8 * number;
            self.machine.ram.write64(at, word).expect("memory");
        }
        pair.tail = (pair.tail + 1) % pair.entries;
        identifier
    }

    pub fn ring(&self, pair: &Pair) {
        self.registers.write32(0x1000 + 8 * usize::from(pair.id), pair.tail);
    }

    /// The next completion, if it is there.
    pub fn poll(&self, pair: &Pair) -> Option<Completion> {
        let at = pair.completion() + 16 * u64::from(pair.head);
        let second = self.machine.ram.read64(at + 8).expect("memory");
        let first = self.machine.ram.read64(at).expect("memory");
        (second >> 48 & 1 == u64::from(pair.phase)).then_some(Completion {
            result: first as u32,
            head: second as u16,
            queue: (second >> 16) as u16,
            command: (second >> 32) as u16,
            status: (second >> 49) as u16,
        })
    }

    /// Waits for the next completion, and gives its place back.
    #[track_caller]
    pub fn take(&self, pair: &mut Pair) -> Completion {
        eventually("the completion", || self.poll(pair).is_some());
        let completion = self.poll(pair).expect("seen");
        pair.head += 1;
        if pair.head == pair.entries {
            (pair.head, pair.phase) = (0, !pair.phase);
        }
        self.registers.write32(0x1004 + 8 * usize::from(pair.id), pair.head);
        completion
    }

    /// A command and its completion.
    #[track_caller]
    pub fn run(&self, pair: &mut Pair, command: Command) -> Completion {
        let identifier = self.put(pair, command);
        self.ring(pair);
        let completion = self.take(pair);
        assert_eq!((completion.command, completion.queue), (identifier, pair.id));
        assert_eq!(u32::from(completion.head), pair.tail);
        completion
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.machine.ram.read(at, &mut bytes).expect("memory");
        bytes
    }

    pub fn fill(&self, at: u64, bytes: &[u8]) {
        self.machine.ram.write(at, bytes).expect("memory");
    }
}
