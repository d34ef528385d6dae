//! AMD v1 tables of 1 to 6 levels as QEMU's IOMMU reads them, without the driver, which makes none of fewer than 3. The unit is brought
//! up here with as little as it takes; registers and structures are the specification's (AMD I/O Virtualization Technology,
//! sections 2.2, 2.4 and 3.4).

mod common;

use std::sync::Arc;
use std::time::Duration;

use backend_qemu::{Config, Defect, Edu, QemuMachine};
use common::tables::{Tables, every_page, put, word};
use common::{EDU, PAGE, RW, start};
use io_pgtable::{AmdV1, IoPageTable, IoPgtableCfg, PageTable};
use platform::time::poll_until;
use platform::{DmaAddr, FrameRequest, Frames, IotlbGather, LeakCounter, Mmio, PhysAddr, Platform, Prot};

const BASE: PhysAddr = PhysAddr::new(0xfed8_0000);
const DEVICE_TABLE: usize = 0x00;
const COMMAND_BUFFER: usize = 0x08;
const CONTROL: usize = 0x18;
const COMMAND_TAIL: usize = 0x2008;

const DOMAIN: u64 = 5;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SOON: Duration = Duration::from_secs(10);

/// The unit, with edu behind it in a table.
struct Unit {
    machine: QemuMachine,
    edu: Edu,
    registers: Arc<dyn Mmio>,
    commands: PhysAddr,
    tail: u64,
    done: PhysAddr,
    table: PageTable<AmdV1>,
    leaks: LeakCounter,
}

impl Unit {
    fn start(levels: u32) -> Option<Self> {
        let machine = start(Config::q35().memory(2 * GIB).without_driver().edu(EDU.id.device()))?;
        let platform: Arc<dyn Platform> = machine.platform().clone();
        let frame = || platform.alloc(FrameRequest::ONE).unwrap();
        let bits = (12 + 9 * levels).min(64);
        let table = PageTable::<AmdV1>::new(platform.clone(), &IoPgtableCfg::new(bits)).unwrap();
        assert_eq!(table.root().level, levels);
        // A device table of 128 entries: a page.
        let (devices, commands, done) = (frame(), frame(), frame());
        let entry = devices.wrapping_add(32 * u64::from(EDU.id.get()));
        // V, TV, Mode, the root, IR, IW.
        let first = 0b11 | u64::from(levels) << 9 | table.root().phys.get() | 0b11 << 61;
        put(&machine, entry.wrapping_add(8), DOMAIN);
        put(&machine, entry, first);
        let registers = machine.registers(BASE, 0x4000);
        registers.write64(DEVICE_TABLE, devices.get());
        // 256 commands of 16 bytes.
        registers.write64(COMMAND_BUFFER, commands.get() | 8 << 56);
        // IommuEn, CmdBufEn.
        registers.write64(CONTROL, 1 | 1 << 12);
        let edu = Edu::new(machine.function(EDU).unwrap()).unwrap();
        let leaks = LeakCounter::default();
        let mut unit = Self { machine, edu, registers, commands, tail: 0, done, table, leaks };
        // INVALIDATE_DEVTAB_ENTRY.
        unit.run([u64::from(EDU.id.get()) | 2 << 60, 0]);
        Some(unit)
    }

    /// Executes one command, and waits.
    fn run(&mut self, command: [u64; 2]) {
        put(&self.machine, self.done, 0);
        // COMPLETION_WAIT that stores 1.
        let wait = [self.done.get() | 1 | 1 << 60, 1];
        for command in [command, wait] {
            for (index, value) in command.into_iter().enumerate() {
                put(&self.machine, self.commands.wrapping_add(self.tail + 8 * index as u64), value);
            }
            self.tail = (self.tail + 16) % PAGE as u64;
        }
        self.registers.write64(COMMAND_TAIL, self.tail);
        let clock = &**self.machine.platform();
        poll_until(clock, SOON, || word(&self.machine, self.done) == 1).unwrap();
    }

    /// INVALIDATE_IOMMU_PAGES of the domain: all addresses, and pointers too.
    fn invalidate(&mut self) {
        self.run([DOMAIN << 32 | 3 << 60, 0x7fff_ffff_ffff_f003]);
    }

    /// What edu finds at an I/O address, by way of one where it may write.
    fn read(&self, at: u64, home: (u64, PhysAddr)) -> u64 {
        let clock = &**self.machine.platform();
        self.edu.read(clock, DmaAddr::new(at), 0, 8).unwrap();
        self.edu.write(clock, DmaAddr::new(home.0), 0, 8).unwrap();
        word(&self.machine, home.1)
    }
}

impl Tables for Unit {
    fn machine(&self) -> &QemuMachine {
        &self.machine
    }

    fn edu(&self) -> &Edu {
        &self.edu
    }

    fn prots(&self) -> &[Prot] {
        &[RW, Prot::READ, Prot::WRITE]
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

/// Pages of the levels' own sizes and of those between, with the level that each needs.
const PAGES: [(u32, (u64, u64)); 7] = [
    (1, (4 << 10, 256 * MIB)),
    (1, (8 << 10, 300 * MIB)),
    (1, (512 << 10, 320 * MIB)),
    (2, (2 * MIB, 512 * MIB)),
    (2, (64 * MIB, 640 * MIB)),
    (3, (GIB, GIB)),
    (3, (4 * GIB, 0)),
];

fn check(levels: u32) {
    let Some(mut unit) = Unit::start(levels) else { return };
    let pages: Vec<_> = PAGES.iter().filter(|(level, _)| *level <= levels).map(|(_, page)| *page).collect();
    // The last quarter of what the table reaches, the highest level of which has but two bits.
    let quarter = 1_u64 << (12 + 9 * levels).min(64).saturating_sub(2);
    every_page(&mut unit, 3 * quarter, &pages);
    if levels < 6 {
        nothing_is_beyond(&mut unit, 4 * quarter);
    }
}

fn nothing_is_beyond(unit: &mut Unit, reach: u64) {
    const MARK: u64 = 0x1122_3344_5566_7788;
    const AT: u64 = 0x4_0000;
    let frame = || unit.machine.platform().alloc(FrameRequest::ONE).unwrap();
    let (there, home) = (frame(), frame());
    unit.map(AT, there.get(), PAGE as u64, RW);
    unit.map(2 * AT, home.get(), PAGE as u64, RW);
    put(&unit.machine, there, MARK);
    let home = (2 * AT, home);
    assert_eq!(unit.read(AT, home), MARK);
    put(&unit.machine, home.1, 0);
    let aliases = unit.machine.version().has(Defect::AddressAliases);
    put(&unit.machine, there, MARK + 1);
    assert_eq!(unit.read(AT + reach, home) == MARK + 1, aliases, "{:#x}", AT + reach);
}

#[test]
fn tables_of_1_level() {
    check(1);
}

#[test]
fn tables_of_2_levels() {
    check(2);
}

#[test]
fn tables_of_3_levels() {
    check(3);
}

#[test]
fn tables_of_4_levels() {
    check(4);
}

#[test]
fn tables_of_5_levels() {
    check(5);
}

#[test]
fn tables_of_6_levels() {
    check(6);
}
