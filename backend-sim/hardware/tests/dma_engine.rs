//! The DMA engine's registers, and the machine's tree as its engines see it.

mod common;

use std::sync::Arc;

use common::*;
use platform::Mmio;
use platform::pci::RequesterId;
use sim_hardware::{Machine, MachineConfig};
use tempfile::NamedTempFile;

const SOURCE: usize = 0x00;
const DESTINATION: usize = 0x08;
const LENGTH: usize = 0x10;
const DATA_REGISTER: usize = 0x18;
const COMMAND: usize = 0x20;
const STATUS_REGISTER: usize = 0x28;

const COPY: u64 = 1;
const WRITE: u64 = 2;
const READ: u64 = 3;

const DONE: u64 = 2;
const REFUSED: u64 = 3;
const BAD_COMMAND: u64 = 4;

fn machine() -> (Machine, NamedTempFile) {
    let disk = NamedTempFile::new().unwrap();
    std::fs::write(disk.path(), [0; 512]).unwrap();
    (Machine::new(MachineConfig::new(disk.path())).unwrap(), disk)
}

struct Engine(Arc<dyn Mmio>);

impl Engine {
    fn of(machine: &Machine, id: RequesterId) -> Self {
        bus_master_on(&machine.pci, id);
        Self(machine.pci.mmio(id, 0).expect("BAR 0"))
    }

    /// Runs a command; its status and the data register.
    fn run(&self, command: u64, source: u64, destination: u64, length: u64, data: u64) -> (u64, u64) {
        for (register, value) in
            [(SOURCE, source), (DESTINATION, destination), (LENGTH, length), (DATA_REGISTER, data)]
        {
            self.0.write64(register, value);
            assert_eq!(self.0.read64(register), value);
        }
        self.0.write64(COMMAND, command);
        eventually("the end", || self.0.read64(STATUS_REGISTER) > 1);
        (self.0.read64(STATUS_REGISTER), self.0.read64(DATA_REGISTER))
    }
}

#[test]
fn it_copies_writes_and_reads() {
    let (machine, _disk) = machine();
    let engine = Engine::of(&machine, Machine::ENGINE);
    assert_eq!(engine.0.read64(STATUS_REGISTER), 0, "idle");
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 3) as u8 ^ at as u8).collect();
    machine.ram.write(DATA + 3, &bytes).unwrap();
    for length in [1, 7, 4096, 1 << 20] {
        let to = 0x1_0000_0000 + 5;
        machine.ram.write(to, &vec![0xee; length + 1]).unwrap();
        assert_eq!(engine.run(COPY, DATA + 3, to, length as u64, 0).0, DONE);
        let mut copied = vec![0; length + 1];
        machine.ram.read(to, &mut copied).unwrap();
        assert!(copied[..length] == bytes[..length] && copied[length] == 0xee, "{length} bytes");
    }
    for length in 1..=8_u64 {
        let mask = u64::MAX >> (64 - 8 * length);
        machine.ram.write64(DATA, 0).unwrap();
        assert_eq!(engine.run(WRITE, 0, DATA, length, 0x1122_3344_5566_7788).0, DONE);
        assert_eq!(machine.ram.read64(DATA), Ok(0x1122_3344_5566_7788 & mask));
        machine.ram.write64(DATA, 0x8877_6655_4433_2211).unwrap();
        assert_eq!(engine.run(READ, DATA, 0, length, 0), (DONE, 0x8877_6655_4433_2211 & mask));
    }
}

#[test]
fn it_says_what_it_cannot_do() {
    let (machine, _disk) = machine();
    let engine = Engine::of(&machine, Machine::ENGINE);
    let nowhere = 0x7_0000_0000;
    assert_eq!(engine.run(READ, nowhere, 0, 8, 5), (REFUSED, 5));
    assert_eq!(engine.run(WRITE, 0, nowhere, 8, 5).0, REFUSED);
    assert_eq!(engine.run(COPY, nowhere, DATA, 8, 5).0, REFUSED);
    assert_eq!(engine.run(COPY, DATA, nowhere, 8, 5).0, REFUSED);
    for (command, length) in [(0, 8), (4, 8), (COPY, 0), (COPY, (1 << 20) + 1), (READ, 0), (WRITE, 9)] {
        assert_eq!(engine.run(command, DATA, DATA, length, 0).0, BAD_COMMAND, "{command}, {length}");
    }
    // Registers are written whole, and read in halves too.
    engine.0.write64(SOURCE, 0x1122_3344_5566_7788);
    engine.0.write32(SOURCE, 0);
    assert_eq!((engine.0.read32(SOURCE), engine.0.read32(SOURCE + 4)), (0x5566_7788, 0x1122_3344));
    // The switch of the bus.
    config_write(&machine.pci, Machine::ENGINE, 0x04, 0x2);
    assert_eq!(engine.run(READ, DATA, 0, 8, 0).0, REFUSED);
}

#[test]
fn it_interrupts_when_it_has_ended() {
    let (machine, _disk) = machine();
    let engine = Engine::of(&machine, Machine::ENGINE);
    let vector = machine.interrupts.allocate().unwrap();
    let (address, data) = vector.message();
    let table = machine.pci.mmio(Machine::ENGINE, 4).unwrap();
    table.write64(0, address);
    table.write64(8, data.into());
    config_write(&machine.pci, Machine::ENGINE, 0x80, 1 << 31);
    for command in [COPY, WRITE, READ, 9] {
        assert!(!vector.wait(A_WHILE));
        engine.run(command, DATA, DATA + 8, 8, 0);
        assert!(vector.wait(SOON), "command {command}");
    }
}

/// A switched-on IOMMU that reaches for every entry of a table of zeros but those given: others pass.
fn block(machine: &Machine, blocked: &[RequesterId]) {
    for device in blocked {
        machine.ram.write64(0x20_0000 + 32 * u64::from(device.get()), 1).unwrap();
    }
    let unit = machine.registers_at(0xfeb8_0000).expect("where the IVRS says");
    unit.write64(0x00, 0x20_0000 | 0x1ff);
    unit.write64(CONTROL, 1);
}

#[test]
fn the_machines_ports_isolate_as_they_say() {
    let (machine, _disk) = machine();
    let slot = [RequesterId::from_parts(0, 3, 0), RequesterId::from_parts(0, 3, 1)];
    let all = [Machine::ENGINE, Machine::SHARING_ENGINE, slot[0], slot[1]];
    block(&machine, &all);
    let engines = all.map(|id| Engine::of(&machine, id));
    for engine in &engines {
        assert_eq!(engine.run(READ, DATA, 0, 8, 0).0, REFUSED, "memory is out of reach");
    }
    let reaches = |from: usize, to: RequesterId| {
        engines[from].run(READ, bar(&machine.pci, to, 0) + LENGTH as u64, 0, 8, 0) == (DONE, 8)
    };
    // The engine below the isolating port is sent up, to the IOMMU; the other reaches it on the short way.
    assert!(!reaches(0, Machine::SHARING_ENGINE));
    assert!(reaches(1, Machine::ENGINE));
    // Functions of a slot without ACS reach each other, and nobody across the root complex.
    assert!(reaches(2, slot[1]) && reaches(3, slot[0]));
    assert!(!reaches(2, Machine::ENGINE) && !reaches(1, slot[0]) && !reaches(0, Machine::NVME));
}

#[test]
fn a_machine_without_an_iommu_passes_all() {
    let disk = NamedTempFile::new().unwrap();
    std::fs::write(disk.path(), [0; 512]).unwrap();
    let machine = Machine::new(MachineConfig { iommu: None, ..MachineConfig::new(disk.path()) }).unwrap();
    assert!(machine.ivrs().is_empty() && machine.registers_at(0xfeb8_0000).is_none());
    assert_eq!(config_read(&machine.pci, IOMMU, 0), u32::MAX, "no function either");
    let engine = Engine::of(&machine, Machine::ENGINE);
    machine.ram.write64(DATA, 0x33).unwrap();
    assert_eq!(engine.run(READ, DATA, 0, 8, 0), (DONE, 0x33));
    let other = bar(&machine.pci, Machine::SHARING_ENGINE, 0);
    assert_eq!(engine.run(WRITE, 0, other, 8, 0x44).0, DONE);
    assert_eq!(machine.pci.mmio(Machine::SHARING_ENGINE, 0).unwrap().read64(SOURCE), 0x44);
}
