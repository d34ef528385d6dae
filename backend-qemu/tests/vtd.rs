//! Page tables as QEMU's Intel IOMMU reads them in VT-d's scalable mode: x86-64's as the first stage, VT-d's own as the second. The
//! unit is brought up here with as little as it takes; registers and structures are the specification's (Intel Virtualization
//! Technology for Directed I/O, chapters 9 to 11).

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backend_qemu::{Config, Edu, QemuMachine};
use common::tables::{Tables, every_page};
use common::{EDU, PAGE, RW, start};
use io_pgtable::{Format, IoPageTable, IoPgtableCfg, PageTable, VtdSs, X86_64};
use platform::time::poll_until;
use platform::{DmaAddr, FrameRequest, Frames, IotlbGather, LeakCounter, Mmio, PhysAddr, Platform, Prot};

const BASE: PhysAddr = PhysAddr::new(0xfed9_0000);
const GLOBAL_COMMAND: usize = 0x18;
const GLOBAL_STATUS: usize = 0x1c;
const ROOT_TABLE: usize = 0x20;
const QUEUE_TAIL: usize = 0x88;
const QUEUE_ADDRESS: usize = 0x90;
const TRANSLATION: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const QUEUED_INVALIDATION: u32 = 1 << 26;

const PRESENT: u64 = 1;
const DOMAIN: u64 = 5;
const GIB: u64 = 1 << 30;
const SOON: Duration = Duration::from_secs(10);

/// The unit, with edu behind it in a table.
struct Unit<F: Format> {
    machine: QemuMachine,
    edu: Edu,
    registers: Arc<dyn Mmio>,
    queue: PhysAddr,
    tail: u64,
    done: PhysAddr,
    table: PageTable<F>,
    prots: &'static [Prot],
    leaks: LeakCounter,
}

/// First stage, four levels: PGTT 1, FSPTPTR in the third word; AW 2, which QEMU looks at here too.
fn first_stage(root: u64) -> [u64; 3] {
    [PRESENT | 2 << 2 | 1 << 6, DOMAIN, root]
}

/// Second stage: PGTT 2, AW (levels less two), SSPTPTR in the first word.
fn second_stage(levels: u64) -> impl Fn(u64) -> [u64; 3] {
    move |root| [root | PRESENT | (levels - 2) << 2 | 2 << 6, DOMAIN, 0]
}

impl<F: Format + 'static> Unit<F> {
    /// With I/O addresses of so many bits, and what a PASID entry says for a table's root.
    fn start(
        config: Config,
        bits: u32,
        entry: impl Fn(u64) -> [u64; 3],
        prots: &'static [Prot],
    ) -> Option<Self> {
        let machine = start(config.memory(2 * GIB).edu(EDU.id.device()))?;
        let platform: Arc<dyn Platform> = machine.platform().clone();
        let frame = || platform.alloc(FrameRequest::ONE).unwrap();
        let word = |at: PhysAddr, index: u64, value: u64| {
            // SAFETY: the frames are this test's; the unit reads whole words.
            unsafe { platform.window().word(at.wrapping_add(8 * index)) }.store(value, Ordering::Relaxed);
        };
        let table = PageTable::<F>::new(platform.clone(), &IoPgtableCfg::new(bits)).unwrap();
        // Root entry of bus 0, context entry of devices 0 to 15 (32 bytes each), PASID directory, PASID entry 0 (64 bytes).
        let (root, context, directory, pasids) = (frame(), frame(), frame(), frame());
        word(root, 0, context.get() | PRESENT);
        word(context, 4 * u64::from(EDU.id.devfn()), directory.get() | PRESENT);
        word(directory, 0, pasids.get() | PRESENT);
        for (index, value) in entry(table.root().phys.get()).into_iter().enumerate() {
            word(pasids, index as u64, value);
        }
        let registers = machine.registers(BASE, 0x1000);
        let (queue, done) = (frame(), frame());
        // TTM 1: scalable mode. The queue: one page of descriptors of 256 bits.
        registers.write64(ROOT_TABLE, root.get() | 1 << 10);
        registers.write64(QUEUE_ADDRESS, queue.get() | 1 << 11);
        let edu = Edu::new(machine.function(EDU).unwrap()).unwrap();
        let leaks = LeakCounter::default();
        let mut unit = Self { machine, edu, registers, queue, tail: 0, done, table, prots, leaks };
        unit.command(SET_ROOT, SET_ROOT);
        unit.command(QUEUED_INVALIDATION, QUEUED_INVALIDATION);
        unit.invalidate();
        // What is not one-shot is written each time.
        unit.command(QUEUED_INVALIDATION | TRANSLATION, TRANSLATION);
        Some(unit)
    }

    fn command(&self, command: u32, status: u32) {
        self.registers.write32(GLOBAL_COMMAND, command);
        let clock = &**self.machine.platform();
        poll_until(clock, SOON, || self.registers.read32(GLOBAL_STATUS) & status != 0).unwrap();
    }

    /// Drops everything that the unit remembers, and waits.
    fn invalidate(&mut self) {
        const GLOBAL: u64 = 1 << 4;
        const STORE: u64 = 1 << 5;
        self.put(self.done, 0);
        // Context cache; PASID cache, all of it; IOTLB; a wait that stores 1.
        let done = self.done.get();
        let descriptors = [[1 | GLOBAL, 0], [7 | 3 << 4, 0], [2 | GLOBAL, 0], [5 | STORE | 1 << 32, done]];
        for descriptor in descriptors {
            for (index, value) in descriptor.into_iter().enumerate() {
                self.put(self.queue.wrapping_add(self.tail + 8 * index as u64), value);
            }
            self.tail = (self.tail + 32) % PAGE as u64;
        }
        self.registers.write64(QUEUE_TAIL, self.tail);
        poll_until(&**self.machine.platform(), SOON, || self.word(self.done) as u32 == 1).unwrap();
    }

    fn put(&self, at: PhysAddr, value: u64) {
        // SAFETY: every frame of this test is its own as long as it runs; devices access whole words.
        unsafe { self.machine.platform().window().word(at) }.store(value, Ordering::Relaxed);
    }

    fn word(&self, at: PhysAddr) -> u64 {
        // SAFETY: as in `put`.
        unsafe { self.machine.platform().window().word(at) }.load(Ordering::Relaxed)
    }
}

impl<F: Format + 'static> Tables for Unit<F> {
    fn machine(&self) -> &QemuMachine {
        &self.machine
    }

    fn edu(&self) -> &Edu {
        &self.edu
    }

    fn prots(&self) -> &[Prot] {
        self.prots
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

const PAGES: [(u64, u64); 3] = [(PAGE as u64, 256 << 20), (2 << 20, 512 << 20), (GIB, GIB)];

#[test]
fn every_page_size_and_permission_of_the_first_stage() {
    let config = Config::q35().vtd_first_stage();
    let unit = Unit::<X86_64>::start(config, 48, first_stage, &[RW, Prot::READ]);
    let Some(mut unit) = unit else { return };
    every_page(&mut unit, 0x7f00_0000_0000, &PAGES);
}

fn check_second_stage(bits: u32, levels: u64, iova: u64) {
    let config = Config::q35().vtd_second_stage();
    let unit = Unit::<VtdSs>::start(config, bits, second_stage(levels), &[RW, Prot::READ, Prot::WRITE]);
    let Some(mut unit) = unit else { return };
    every_page(&mut unit, iova, &PAGES);
}

#[test]
fn every_page_size_and_permission_of_the_second_stage_in_39_bits() {
    check_second_stage(39, 3, 0x70_0000_0000);
}

#[test]
fn every_page_size_and_permission_of_the_second_stage_in_48_bits() {
    check_second_stage(48, 4, 0xff00_0000_0000);
}
