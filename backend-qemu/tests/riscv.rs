//! RISC-V page tables as QEMU's RISC-V IOMMU reads them. The unit is brought up here with as little as it takes; registers and
//! structures are the specification's (RISC-V IOMMU Architecture, chapters 2, 3 and 6).

mod common;

use std::sync::Arc;
use std::time::Duration;

use backend_qemu::{Config, Defect, Edu, QemuMachine};
use common::tables::{Tables, every_page, put, word};
use common::{EDU, PAGE, start};
use io_pgtable::{IoPageTable, IoPgtableCfg, PageTable, RiscV};
use platform::time::poll_until;
use platform::{DmaAddr, FrameRequest, IotlbGather, LeakCounter, Mmio, PhysAddr, Platform, Prot};

const BASE: PhysAddr = PhysAddr::new(0x0301_0000);
const CAPABILITIES: usize = 0x00;
const DEVICE_DIRECTORY: usize = 0x10;
const QUEUE_BASE: usize = 0x18;
const QUEUE_TAIL: usize = 0x24;
const QUEUE_CONTROL: usize = 0x48;

const RAM: u64 = 0x8000_0000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SOON: Duration = Duration::from_secs(10);

/// The unit, with edu behind it in one table.
struct Unit {
    machine: QemuMachine,
    edu: Edu,
    registers: Arc<dyn Mmio>,
    queue: PhysAddr,
    tail: u64,
    done: PhysAddr,
    table: PageTable<RiscV>,
    leaks: LeakCounter,
}

impl Unit {
    /// With I/O addresses of so many bits, which a MODE of `iosatp` stands for.
    fn start(bits: u32, mode: u64) -> Option<Self> {
        let machine = start(Config::riscv_virt().memory(2 * GIB).edu(EDU.id.device()))?;
        let platform: Arc<dyn Platform> = machine.platform().clone();
        let frame = || platform.alloc(FrameRequest::ONE).unwrap();
        let registers = machine.registers(BASE, 0x1000);
        // MSI_FLAT: a device context is 64 bytes.
        assert_eq!(registers.read64(CAPABILITIES) >> 22 & 1, 1);
        let table = PageTable::<RiscV>::new(platform.clone(), &IoPgtableCfg::new(bits)).unwrap();
        let (directory, queue, done) = (frame(), frame(), frame());
        let context = directory.wrapping_add(64 * u64::from(EDU.id.get()));
        // tc.V; no second stage; fsc: the first stage's mode and root.
        put(&machine, context.wrapping_add(24), mode << 60 | table.root().phys.get() >> 12);
        put(&machine, context, 1);
        // 256 commands of 16 bytes: the logarithm less one.
        registers.write64(QUEUE_BASE, queue.get() >> 12 << 10 | 7);
        registers.write32(QUEUE_CONTROL, 1);
        const ON: u32 = 1 << 16;
        let clock = &**machine.platform();
        poll_until(clock, SOON, || registers.read32(QUEUE_CONTROL) & ON != 0).unwrap();
        // A directory of one level.
        registers.write64(DEVICE_DIRECTORY, directory.get() >> 12 << 10 | 2);
        const BUSY: u64 = 1 << 4;
        poll_until(clock, SOON, || registers.read64(DEVICE_DIRECTORY) & BUSY == 0).unwrap();
        let edu = Edu::new(machine.function(EDU).unwrap()).unwrap();
        let leaks = LeakCounter::default();
        let mut unit = Self { machine, edu, registers, queue, tail: 0, done, table, leaks };
        // IODIR.INVAL_DDT, all devices.
        unit.run([3, 0]);
        Some(unit)
    }

    /// Executes one command, and waits.
    fn run(&mut self, command: [u64; 2]) {
        put(&self.machine, self.done, 0);
        // IOFENCE.C that stores 1.
        let fence = [2 | 1 << 10 | 1 << 32, self.done.get() >> 2];
        for descriptor in [command, fence] {
            for (index, value) in descriptor.into_iter().enumerate() {
                put(&self.machine, self.queue.wrapping_add(16 * self.tail + 8 * index as u64), value);
            }
            self.tail = (self.tail + 1) % (PAGE as u64 / 16);
        }
        self.registers.write32(QUEUE_TAIL, self.tail as u32);
        let clock = &**self.machine.platform();
        poll_until(clock, SOON, || word(&self.machine, self.done) as u32 == 1).unwrap();
    }

    /// IOTINVAL.VMA, all addresses.
    fn invalidate(&mut self) {
        self.run([1, 0]);
    }
}

impl Tables for Unit {
    fn machine(&self) -> &QemuMachine {
        &self.machine
    }

    fn edu(&self) -> &Edu {
        &self.edu
    }

    fn map(&mut self, at: u64, phys: u64, size: u64, prot: Prot) {
        // SAFETY: the memory is this test's as long as it runs.
        let mapped = unsafe { self.table.map_pages(DmaAddr::new(at), PhysAddr::new(phys), size, 1, prot) };
        assert_eq!(mapped, (size, Ok(())));
        self.invalidate();
    }

    fn unmap(&mut self, at: u64, size: u64) {
        let mut gather = IotlbGather::new(&self.leaks);
        // SAFETY: one thread.
        assert_eq!(unsafe { self.table.unmap_range(DmaAddr::new(at), size, &mut gather) }, size);
        // The tables that it holds stay: nobody counts them here.
        drop(gather);
        self.invalidate();
    }
}

/// Sizes and places of pages: one entry, sixteen (Svnapot), the next levels' own.
const SMALL: [(u64, u64); 4] = [
    (PAGE as u64, RAM + 256 * MIB),
    (64 << 10, RAM + 768 * MIB),
    (2 * MIB, RAM + 512 * MIB),
    (GIB, RAM + GIB),
];

/// Every page, the first of which is the smallest, as far as this QEMU can.
fn check(unit: &mut Unit, iova: u64, pages: &[(u64, u64)]) {
    if !unit.machine.version().has(Defect::RiscvLargePages) {
        return every_page(unit, iova, pages);
    }
    every_page(unit, iova, &pages[..1]);
    // A page of 2 MiB that is not where it should be: the defect is still there.
    unit.map(iova, RAM + 512 * MIB, 2 * MIB, Prot::READ | Prot::WRITE);
    assert!(!reaches(unit, iova, PhysAddr::new(RAM + 512 * MIB)));
}

/// Whether edu finds at an I/O address what there is in memory.
fn reaches(unit: &Unit, at: u64, phys: PhysAddr) -> bool {
    const MARK: u64 = 0x1122_3344_5566_7788;
    const HOME: u64 = 0x10_0000;
    let clock = &**unit.machine.platform();
    let old = word(&unit.machine, phys);
    put(&unit.machine, phys, MARK);
    unit.edu.read(clock, DmaAddr::new(at), 0, 8).unwrap();
    put(&unit.machine, phys, old);
    unit.edu.write(clock, DmaAddr::new(HOME), 0, 8).unwrap();
    let home = unit.table.iova_to_phys(DmaAddr::new(HOME)).unwrap().phys;
    word(&unit.machine, home) == MARK
}

#[test]
fn every_page_size_and_permission_of_39_bits() {
    let Some(mut unit) = Unit::start(39, 8) else { return };
    check(&mut unit, 0x30_0000_0000, &SMALL);
}

#[test]
fn every_page_size_and_permission_of_48_bits() {
    let Some(mut unit) = Unit::start(48, 9) else { return };
    check(&mut unit, 0x6000_0000_0000, &[SMALL.as_slice(), &[(512 * GIB, 0)]].concat());
}

#[test]
fn every_page_size_and_permission_of_57_bits() {
    let Some(mut unit) = Unit::start(57, 10) else { return };
    check(&mut unit, 0xc0_0000_0000_0000, &[SMALL.as_slice(), &[(512 * GIB, 0), (1 << 48, 0)]].concat());
}
