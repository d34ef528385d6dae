//! A machine for models: the whole driver on frames of a few words, with one device and one unit whose registers are loom's
//! atomics. Whoever waits drives the unit: it takes commands on the thread that gives way, also those of others. So nobody spins
//! while nothing happens, which loom could not follow, and who finds his commands done by another has only what he read to
//! tell him so.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use amd_vi::{AmdVi, Config, Hardware, MsiMessage};
use loom::sync::Mutex;
use platform::frames::ModelFrames;
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use platform::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, Mmio, OutOfFrames, PhysAddr, Window,
};

use crate::common::{BASE, FEATURES, FakeConfig, IOMMU, ivhd, ivrs};

/// The only device: a device table of one entry is as much as a model's frame holds.
pub const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0) };
const SELECT_DEV: &[u8] = &[0x02, 0x00, 0x00, 0x00];

/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// IommuEn and CmdBufEn.
const RUNS: u64 = 1 | 1 << 12;
/// Kept beside the control register's bits, of which this is none: the unit has stopped at an illegal command.
const HALTED: u64 = 1 << 63;

#[derive(Debug)]
struct Host {
    frames: ModelFrames,
    unit: Arc<ModelUnit>,
}

// SAFETY: handed to the model's frames.
unsafe impl Frames for Host {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        self.frames.alloc(request)
    }
    unsafe fn free(&self, at: PhysAddr, size: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.frames.free(at, size) }
    }
    fn window(&self) -> Window {
        self.frames.window()
    }
    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl CacheMaintenance for Host {}

impl Clock for Host {
    /// Time stands still: nothing is late in a model.
    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
    fn relax(&self) {
        if !self.unit.work() {
            loom::thread::yield_now();
        }
    }
}

/// The unit.
#[derive(Debug)]
pub struct ModelUnit {
    window: Window,
    device_table: AtomicU64,
    commands: AtomicU64,
    head: AtomicU64,
    tail: AtomicU64,
    control: AtomicU64,
    events: AtomicU64,
    event_head: AtomicU64,
    event_tail: AtomicU64,
    /// EventOverflow and EventLogInt: the bits of the status register that are kept.
    status: AtomicU64,
    /// One thread drives it. A walk and what is remembered of it are one for whoever invalidates.
    busy: Mutex<()>,
    /// For each domain, of which there are few, whether its page is mapped, for models without a table, and whether the unit
    /// has it in its cache. An invalidation copies the first to the second.
    pub present: [AtomicBool; 2],
    pub cached: [AtomicBool; 2],
}

impl ModelUnit {
    fn new(window: Window) -> Self {
        let register = || AtomicU64::new(0);
        Self {
            window,
            device_table: register(),
            commands: register(),
            head: register(),
            tail: register(),
            control: register(),
            events: register(),
            event_head: register(),
            event_tail: register(),
            status: register(),
            busy: Mutex::new(()),
            present: [AtomicBool::new(false), AtomicBool::new(false)],
            cached: [AtomicBool::new(false), AtomicBool::new(false)],
        }
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        // SAFETY: the driver tells of live frames only, and every word is an atomic.
        unsafe { self.window.word(PhysAddr::new(at)) }
    }

    fn runs(&self) -> bool {
        self.control.load(Ordering::Acquire) & (RUNS | HALTED) == RUNS
    }

    /// Takes the next command out of the ring and executes it. Returns whether there was one.
    fn step(&self) -> bool {
        if !self.runs() {
            return false;
        }
        let (tail, head) = (self.tail.load(Ordering::Acquire), self.head.load(Ordering::Relaxed));
        if head == tail {
            return false;
        }
        let base = self.commands.load(Ordering::Relaxed);
        let at = (base & ADDRESS) + head;
        // Without an order of their own: the tail has said that they are there.
        let (q0, q1) = (self.word(at).load(Ordering::Relaxed), self.word(at + 8).load(Ordering::Relaxed));
        match q0 >> 60 {
            1 => self.word(q0 & 0x000f_ffff_ffff_fff8).store(q1, Ordering::Release),
            3 => {
                // Emptied, and filled again with what is still mapped.
                let page = (q0 >> 32 & 1) as usize;
                let present = self.present[page].load(Ordering::Relaxed);
                self.cached[page].store(present, Ordering::Relaxed);
            }
            2 | 5 | 8 => {}
            _ => {
                self.control.fetch_or(HALTED, Ordering::AcqRel);
                return false;
            }
        }
        let entries = 1 << (base >> 56 & 15);
        self.head.store((head + 16) % (16 * entries), Ordering::Release);
        true
    }

    /// Takes what is in the ring. Returns whether anything was.
    pub fn work(&self) -> bool {
        let _busy = self.busy.lock().unwrap();
        let mut worked = false;
        while self.step() {
            worked = true;
        }
        worked
    }

    /// Logs an event as the unit does. Returns whether there was room; the first that finds none stops the log.
    pub fn log(&self, q0: u64, q1: u64) -> bool {
        const LOGS: u64 = 1 | 1 << 2;
        let on = self.control.load(Ordering::Acquire) & LOGS == LOGS;
        if !on || self.status.load(Ordering::Acquire) & 1 != 0 {
            return false;
        }
        let base = self.events.load(Ordering::Acquire);
        let size = 16u64 << (base >> 56 & 15);
        let tail = self.event_tail.load(Ordering::Relaxed);
        let next = (tail + 16) % size;
        if next == self.event_head.load(Ordering::Acquire) {
            self.status.fetch_or(3, Ordering::AcqRel);
            return false;
        }
        let at = (base & ADDRESS) + tail;
        // The entry may come after the tail (erratum 732).
        self.event_tail.store(next, Ordering::Release);
        self.word(at + 8).store(q1, Ordering::Relaxed);
        self.word(at).store(q0, Ordering::Release);
        self.status.fetch_or(2, Ordering::AcqRel);
        true
    }

    /// Whether an interrupt of the log is pending.
    pub fn asks_for_attention(&self) -> bool {
        self.status.load(Ordering::Acquire) & 2 != 0
    }

    /// Fetches the device's table entry, in pieces and in the given order; invalidations wait for a fetch that has begun.
    pub fn fetch(&self, order: [u64; 4]) -> [u64; 4] {
        let _busy = self.busy.lock().unwrap();
        self.entry(order)
    }

    /// The entry without that, for whoever is alone.
    pub fn entry(&self, order: [u64; 4]) -> [u64; 4] {
        let base = self.device_table.load(Ordering::Acquire) & ADDRESS;
        let mut words = [0; 4];
        for index in order {
            words[index as usize] = self.word(base + 8 * index).load(Ordering::Acquire);
        }
        words
    }

    /// The device reads at `iova`, what translates is remembered.
    pub fn access(&self, iova: u64) {
        let _busy = self.busy.lock().unwrap();
        let entry = self.device_table.load(Ordering::Acquire) & ADDRESS;
        let first = self.word(entry).load(Ordering::Acquire);
        // V, TV; then the domain.
        if first & 3 != 3 {
            return;
        }
        let domain = self.word(entry + 8).load(Ordering::Relaxed);
        let mut table = first & ADDRESS;
        for level in (0..first >> 9 & 7).rev() {
            let index = iova >> (12 + 9 * level) & 0x1ff;
            let next = self.word(table + 8 * index).load(Ordering::Acquire);
            // PR.
            if next & 1 == 0 {
                return;
            }
            table = next & ADDRESS;
        }
        self.cached[(domain & 1) as usize].store(true, Ordering::Relaxed);
    }
}

// SAFETY: the registers are an object of this process that lives as long as the implementation.
unsafe impl Mmio for ModelUnit {
    fn len(&self) -> usize {
        0x4000
    }

    fn read32(&self, _offset: usize) -> u32 {
        panic!("the driver reads 64-bit registers whole");
    }

    fn write32(&self, _offset: usize, _value: u32) {
        panic!("the driver writes 64-bit registers whole");
    }

    fn read64(&self, offset: usize) -> u64 {
        match offset {
            0x18 => self.control.load(Ordering::Relaxed) & !HALTED,
            0x30 => FEATURES,
            0x2000 => self.head.load(Ordering::Relaxed),
            0x2010 => self.event_head.load(Ordering::Relaxed),
            0x2018 => self.event_tail.load(Ordering::Acquire),
            0x2020 => {
                let control = self.control.load(Ordering::Relaxed);
                let status = self.status.load(Ordering::Acquire);
                let logs = control & 1 & control >> 2 & !status;
                let fetches = control & (RUNS | HALTED) == RUNS;
                status | logs << 3 | u64::from(fetches) << 4
            }
            _ => 0,
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        match offset {
            0 => self.device_table.store(value, Ordering::Release),
            0x08 => self.commands.store(value, Ordering::Release),
            // Turning the engine off is what ends a halt; it is never turned on before.
            0x18 => self.control.store(value, Ordering::Release),
            0x10 => self.events.store(value, Ordering::Release),
            0x2000 => self.head.store(value, Ordering::Release),
            0x2010 => self.event_head.store(value, Ordering::Release),
            0x2018 => self.event_tail.store(value, Ordering::Release),
            // A write of ones clears.
            0x2020 => {
                self.status.fetch_and(!value, Ordering::AcqRel);
            }
            0x2008 => self.tail.store(value, Ordering::Release),
            _ => {}
        }
    }
}

#[derive(Debug)]
struct OneUnit {
    unit: Arc<ModelUnit>,
    config: FakeConfig,
}

impl Hardware for OneUnit {
    fn map_mmio(&self, base: PhysAddr, _len: u64) -> Option<Arc<dyn Mmio>> {
        (base.get() == BASE).then(|| self.unit.clone() as Arc<dyn Mmio>)
    }
    fn config_space(&self) -> &dyn ConfigSpace {
        &self.config
    }
    fn msi_message(&self, _unit: PciAddress) -> Option<MsiMessage> {
        None
    }
}

/// The machine, brought up.
pub struct Machine {
    hardware: OneUnit,
    host: Arc<Host>,
    pub driver: Arc<AmdVi>,
}

impl Machine {
    pub fn boot() -> Arc<Self> {
        let frames = ModelFrames::new();
        let unit = Arc::new(ModelUnit::new(frames.window()));
        let hardware = OneUnit { unit: unit.clone(), config: FakeConfig::default() };
        let host = Arc::new(Host { frames, unit });
        hardware.config.add_iommu(IOMMU, BASE, false);
        let table = ivrs(0x0020_3040, &[ivhd(0x10, 2, BASE, SELECT_DEV)]);
        let config = Config {
            levels: 4,
            log2_commands: 2,
            log2_events: 2,
            command_timeout: Duration::from_secs(1),
            ..Config::default()
        };
        let driver = AmdVi::init(host.clone(), &table, &hardware, config).unwrap();
        Arc::new(Self { hardware, host, driver })
    }

    pub fn unit(&self) -> &ModelUnit {
        &self.hardware.unit
    }

    pub fn frames(&self) -> &ModelFrames {
        &self.host.frames
    }

    /// Turns everything off; all memory has come back.
    pub fn finish(self: Arc<Self>) {
        let Self { hardware, host, driver } = Arc::into_inner(self).unwrap();
        // SAFETY: the device does nothing any more.
        unsafe { driver.shutdown(&hardware.config) }.unwrap();
        drop(driver);
        assert_eq!(host.frames.live(), 0);
    }
}
