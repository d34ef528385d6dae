//! ARM's long descriptors, stage 1, as QEMU's SMMUv3 reads them. The unit is brought up here with as little as it takes; registers
//! and structures are the specification's (Arm System Memory Management Unit Architecture Specification version 3, chapters 3 to 6).

mod common;

use std::sync::Arc;
use std::time::Duration;

use backend_qemu::{Config, Edu, QemuMachine};
use common::tables::{Tables, every_page, put};
use common::{EDU, start};
use io_pgtable::{ArmLpaeS1, IoPageTable, IoPgtableCfg, PageTable};
use platform::time::poll_until;
use platform::{DmaAddr, FrameRequest, IotlbGather, LeakCounter, Mmio, PageSizes, PhysAddr, Platform, Prot};

const BASE: PhysAddr = PhysAddr::new(0x0905_0000);
const CR0: usize = 0x20;
const CR0_ACK: usize = 0x24;
const STREAM_TABLE: usize = 0x80;
const STREAM_TABLE_CONFIG: usize = 0x88;
const QUEUE_BASE: usize = 0x90;
const QUEUE_PROD: usize = 0x98;
const QUEUE_CONS: usize = 0x9c;
const GLOBAL_ERROR: usize = 0x60;

const RAM: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SOON: Duration = Duration::from_secs(10);

/// Logarithm of the number of streams: those of bus 0.
const LOG2_STREAMS: u32 = 8;
/// Logarithm of the number of commands, of 16 bytes each: a page.
const LOG2_COMMANDS: u32 = 8;

/// The unit, with edu behind it in a table.
struct Unit<const GRANULE_SHIFT: u32> {
    machine: QemuMachine,
    edu: Edu,
    registers: Arc<dyn Mmio>,
    queue: PhysAddr,
    tail: u32,
    table: PageTable<ArmLpaeS1<GRANULE_SHIFT>>,
    leaks: LeakCounter,
}

impl<const GRANULE_SHIFT: u32> Unit<GRANULE_SHIFT> {
    /// With I/O addresses of so many bits, and the code of the granule in a context descriptor.
    fn start(bits: u32, granule: u64) -> Option<Self> {
        let machine = start(Config::arm_virt().memory(2 * GIB).edu(EDU.id.device()))?;
        let platform: Arc<dyn Platform> = machine.platform().clone();
        // 44 bits of physical address, as IDR5.OAS says.
        let cfg = IoPgtableCfg { oas: 44, ..IoPgtableCfg::new(bits) };
        let table = PageTable::<ArmLpaeS1<GRANULE_SHIFT>>::new(platform.clone(), &cfg).unwrap();
        let streams = 64 << LOG2_STREAMS;
        let streams = FrameRequest { align: streams, ..FrameRequest::anywhere(streams) };
        let streams = platform.alloc(streams).unwrap();
        let (context, queue) =
            (platform.alloc(FrameRequest::ONE).unwrap(), platform.alloc(FrameRequest::ONE).unwrap());
        // Stream table entry: valid, Config 101b (stage 1, no stage 2), one context descriptor.
        let stream = streams.wrapping_add(64 * u64::from(EDU.id.get()));
        put(&machine, stream.wrapping_add(8), 0);
        put(&machine, stream, 1 | 0b101 << 1 | context.get());
        // Context descriptor: T0SZ, TG0, no second table (EPD1), valid, 44 bits, AA64, faults recorded and aborted.
        const IPS_44: u64 = 4 << 32;
        const EPD1: u64 = 1 << 30;
        const VALID: u64 = 1 << 31;
        const AA64: u64 = 1 << 41;
        const RECORD_AND_ABORT: u64 = 1 << 45 | 1 << 46;
        const ASID: u64 = 7 << 48;
        put(&machine, context.wrapping_add(8), table.root().phys.get());
        // Write-back at index 1.
        put(&machine, context.wrapping_add(24), 0xff00);
        let first =
            u64::from(64 - bits) | granule << 6 | EPD1 | VALID | IPS_44 | AA64 | RECORD_AND_ABORT | ASID;
        put(&machine, context, first);
        let registers = machine.registers(BASE, 0x2_0000);
        registers.write64(STREAM_TABLE, streams.get());
        registers.write32(STREAM_TABLE_CONFIG, LOG2_STREAMS);
        registers.write64(QUEUE_BASE, queue.get() | u64::from(LOG2_COMMANDS));
        let edu = Edu::new(machine.function(EDU).unwrap()).unwrap();
        let leaks = LeakCounter::default();
        let mut unit = Self { machine, edu, registers, queue, tail: 0, table, leaks };
        const QUEUE_ON: u32 = 1 << 3;
        const UNIT_ON: u32 = 1;
        unit.turn_on(QUEUE_ON);
        // CFGI_ALL: what it remembers of stream table and context descriptors.
        unit.run([0x04, 31]);
        unit.invalidate();
        unit.turn_on(QUEUE_ON | UNIT_ON);
        Some(unit)
    }

    fn turn_on(&self, what: u32) {
        self.registers.write32(CR0, what);
        let clock = &**self.machine.platform();
        poll_until(clock, SOON, || self.registers.read32(CR0_ACK) == what).unwrap();
    }

    /// Executes one command, and waits.
    fn run(&mut self, command: [u64; 2]) {
        const SYNC: [u64; 2] = [0x46, 0];
        for command in [command, SYNC] {
            let slot = u64::from(self.tail & ((1 << LOG2_COMMANDS) - 1));
            for (index, value) in command.into_iter().enumerate() {
                put(&self.machine, self.queue.wrapping_add(16 * slot + 8 * index as u64), value);
            }
            // One bit more than there are slots.
            self.tail = (self.tail + 1) & ((2 << LOG2_COMMANDS) - 1);
        }
        self.registers.write32(QUEUE_PROD, self.tail);
        let clock = &**self.machine.platform();
        let done = poll_until(clock, SOON, || self.registers.read32(QUEUE_CONS) == self.tail);
        assert_eq!((done, self.registers.read32(GLOBAL_ERROR)), (Ok(()), 0));
    }

    /// Every page, of every size that there is.
    fn check(&mut self, iova: u64, pages: &[(u64, u64)]) {
        let sizes = pages.iter().fold(0, |sizes, &(size, _)| sizes | size);
        assert_eq!(self.table.page_sizes(), PageSizes::from_bits(sizes));
        every_page(self, iova, pages);
    }

    /// TLBI_NSNH_ALL.
    fn invalidate(&mut self) {
        self.run([0x30, 0]);
    }
}

impl<const GRANULE_SHIFT: u32> Tables for Unit<GRANULE_SHIFT> {
    fn machine(&self) -> &QemuMachine {
        &self.machine
    }

    fn edu(&self) -> &Edu {
        &self.edu
    }

    fn granule(&self) -> u64 {
        1 << GRANULE_SHIFT
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

/// Every page of granules of 4 KiB: one entry, sixteen (the contiguous hint), the next levels' own.
#[test]
fn every_page_size_and_permission_of_granules_of_4_kib() {
    let pages = [
        (4 << 10, RAM + 256 * MIB),
        (64 << 10, RAM + 768 * MIB),
        (2 * MIB, RAM + 512 * MIB),
        (32 * MIB, RAM + 640 * MIB),
        (GIB, RAM + GIB),
    ];
    for (bits, iova) in [(39, 0x44_0000_0000), (48, 0xf044_0000_0000)] {
        let Some(mut unit) = Unit::<12>::start(bits, 0) else { return };
        unit.check(iova, &pages);
    }
}

#[test]
fn every_page_size_and_permission_of_granules_of_16_kib() {
    let pages = [
        (16 << 10, RAM + 256 * MIB),
        (2 * MIB, RAM + 768 * MIB),
        (32 * MIB, RAM + 512 * MIB),
        (GIB, RAM + GIB),
    ];
    let Some(mut unit) = Unit::<14>::start(47, 2) else { return };
    unit.check(0x7044_0000_0000, &pages);
}

#[test]
fn every_page_size_and_permission_of_granules_of_64_kib() {
    let pages =
        [(64 << 10, RAM + 256 * MIB), (2 * MIB, RAM + 768 * MIB), (512 * MIB, RAM + GIB), (16 * GIB, 0)];
    let Some(mut unit) = Unit::<16>::start(48, 1) else { return };
    unit.check(0xf044_0000_0000, &pages);
}
