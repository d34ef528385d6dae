//! A machine for tests: heap memory as frames, and an IOMMU that executes commands from memory. The IOMMU is written from the
//! specification's tables with bare numbers, without the driver's types, so that it does not share the driver's mistakes.
#![allow(dead_code, unreachable_pub)]

pub mod real;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amd_vi::{AmdVi, Config, Hardware, InitError, MsiMessage};
use iommu_core::{AttachError, DomainOps};
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, Mmio, OutOfFrames, PhysAddr, Window,
};

/// Attaches a device, as the core does.
pub fn attach(to: &dyn DomainOps, dev: PciAddress, from: Option<&dyn DomainOps>) -> Result<(), AttachError> {
    // SAFETY: there is no core that has the device, and the devices of these machines touch no memory.
    unsafe { to.attach_dev(dev, from) }
}

/// Heap memory whose physical addresses are its own.
#[derive(Debug)]
pub struct Machine {
    clock: StdClock,
    /// Bytes handed out.
    pub live: AtomicUsize,
}

impl Machine {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { clock: StdClock::new(), live: AtomicUsize::new(0) })
    }

    fn layout(request: FrameRequest) -> Layout {
        Layout::from_size_align(request.size.next_multiple_of(4096), request.align.max(4096)).unwrap()
    }
}

// SAFETY: every allocation is zeroed heap memory of its own with exposed provenance; physical addresses are its addresses.
unsafe impl Frames for Machine {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let layout = Self::layout(request);
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        self.live.fetch_add(layout.size(), Ordering::Relaxed);
        Ok(PhysAddr::new(memory.expose_provenance() as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let layout = Self::layout(FrameRequest::anywhere(size));
        self.live.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller gives back what `alloc` made with this layout.
        unsafe { dealloc(self.window().ptr(at), layout) };
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are pointers here.
        unsafe { Window::new(0) }
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl CacheMaintenance for Machine {}

impl Clock for Machine {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}

/// The word at a physical address.
pub fn word(at: u64) -> &'static AtomicU64 {
    // SAFETY: tests ask for words of live frames only, and access them by words only.
    unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(at as usize)) }
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Sets a flag when dropped, so that a thread that waits for it ends when a test fails, too.
pub struct Finish<'a>(pub &'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a test can make the unit do.
#[derive(Debug, Default)]
pub struct Switches {
    /// Commands are taken only by [`FakeUnit::step`].
    pub manual: AtomicBool,
    /// COMPLETION_WAIT stores nothing.
    pub lose_completions: AtomicBool,
    /// The run bits never come on.
    pub never_run: AtomicBool,
    /// The run bits never go off.
    pub never_stop: AtomicBool,
}

#[derive(Debug)]
struct State {
    registers: BTreeMap<usize, u64>,
    halted: bool,
    /// Every register write in order.
    writes: Vec<(usize, u64)>,
    /// Every command that was executed.
    commands: Vec<(u64, u64)>,
    /// For each INVALIDATE_DEVTAB_ENTRY the entry as it was in memory then.
    entries: Vec<(u16, [u64; 4])>,
}

/// An IOMMU.
#[derive(Debug)]
pub struct FakeUnit {
    state: Mutex<State>,
    pub switches: Switches,
}

impl FakeUnit {
    pub fn new(features: u64) -> Arc<Self> {
        let state = State {
            registers: BTreeMap::from([(0x30, features)]),
            halted: false,
            writes: Vec::new(),
            commands: Vec::new(),
            entries: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state), switches: Switches::default() })
    }

    /// Register writes since the last call.
    pub fn take_writes(&self) -> Vec<(usize, u64)> {
        std::mem::take(&mut self.state.lock().unwrap().writes)
    }

    /// Commands executed since the last call.
    pub fn take_commands(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.state.lock().unwrap().commands)
    }

    /// Commands that invalidate, executed since the last call.
    pub fn take_invalidations(&self) -> Vec<(u64, u64)> {
        self.take_commands().into_iter().filter(|(q0, _)| q0 >> 60 != 1).collect()
    }

    /// Entries seen at INVALIDATE_DEVTAB_ENTRY since the last call.
    pub fn take_entries(&self) -> Vec<(u16, [u64; 4])> {
        std::mem::take(&mut self.state.lock().unwrap().entries)
    }

    pub fn register(&self, offset: usize) -> u64 {
        self.state.lock().unwrap().register(offset, &self.switches)
    }

    pub fn set_register(&self, offset: usize, value: u64) {
        self.state.lock().unwrap().registers.insert(offset, value);
    }

    /// Takes what is in the ring.
    pub fn step(&self) {
        self.step_noting(|_| {});
    }

    /// Takes what is in the ring, and tells of each command before it is executed.
    pub fn step_noting(&self, mut note: impl FnMut(u64)) {
        self.state.lock().unwrap().process(&self.switches, &mut note);
    }

    /// The device table entry in memory.
    pub fn entry(&self, device: u16) -> [u64; 4] {
        self.state.lock().unwrap().entry(device)
    }

    /// Logs an event as the unit does.
    pub fn log(&self, q0: u64, q1: u64) {
        self.state.lock().unwrap().log(q0, q1, &self.switches);
    }

    /// Moves the event log's tail over an entry that is written only later; returns where.
    pub fn log_late(&self) -> u64 {
        let mut state = self.state.lock().unwrap();
        let tail = state.get(0x2018);
        let at = (state.get(0x10) & ADDRESS) + tail;
        let size = 16u64 << (state.get(0x10) >> 56 & 15);
        state.registers.insert(0x2018, (tail + 16) % size);
        at
    }
}

impl State {
    fn get(&self, offset: usize) -> u64 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    fn register(&self, offset: usize, switches: &Switches) -> u64 {
        if offset != 0x2020 {
            return self.get(offset);
        }
        let control = self.get(0x18);
        let never_stops = switches.never_stop.load(Ordering::Relaxed);
        let on = |bit: u64| {
            let runs =
                control & 1 != 0 && control >> bit & 1 != 0 && !switches.never_run.load(Ordering::Relaxed);
            runs || never_stops
        };
        let sticky = self.get(0x2020);
        let logs = on(2) && (sticky & 1 == 0 || never_stops);
        let page_requests = on(13) && (sticky >> 5 & 1 == 0 || never_stops);
        sticky | u64::from(page_requests) << 7 | u64::from(logs) << 3 | u64::from(on(12) && !self.halted) << 4
    }

    fn write(&mut self, offset: usize, value: u64, switches: &Switches) {
        self.writes.push((offset, value));
        match offset {
            0x2020 => {
                let cleared = self.get(0x2020) & !(value & 0x6_8e67);
                self.registers.insert(0x2020, cleared);
            }
            0x18 => {
                if value >> 12 & 1 == 0 {
                    self.halted = false;
                }
                self.registers.insert(0x18, value);
            }
            _ => {
                self.registers.insert(offset, value);
            }
        }
        if !switches.manual.load(Ordering::Relaxed) {
            self.process(switches, &mut |_| {});
        }
    }

    fn entry(&self, device: u16) -> [u64; 4] {
        // Beyond the end of the table is other memory: a unit does not look there.
        let entries = ((self.get(0) & 0x1ff) + 1) * 4096 / 32;
        if u64::from(device) >= entries {
            return [0; 4];
        }
        let base = (self.get(0) & ADDRESS) + 32 * u64::from(device);
        [0, 8, 16, 24].map(|at| word(base + at).load(Ordering::Acquire))
    }

    fn process(&mut self, switches: &Switches, note: &mut dyn FnMut(u64)) {
        while self.register(0x2020, switches) >> 4 & 1 != 0 {
            let (base, tail) = (self.get(0x08), self.get(0x2008));
            let size = 16u64 << (base >> 56 & 15);
            let head = self.get(0x2000);
            if head == tail {
                return;
            }
            let at = (base & ADDRESS) + head;
            let (q0, q1) = (word(at).load(Ordering::Acquire), word(at + 8).load(Ordering::Acquire));
            note(q0);
            match q0 >> 60 {
                1 => {
                    if q0 & 1 != 0 && !switches.lose_completions.load(Ordering::Relaxed) {
                        word(q0 & 0x000f_ffff_ffff_fff8).store(q1, Ordering::Release);
                    }
                }
                2 => self.entries.push((q0 as u16, self.entry(q0 as u16))),
                3..=5 => {}
                7 if self.get(0x30) >> 1 & 1 != 0 => {}
                8 if self.get(0x30) >> 6 & 1 != 0 => {}
                _ => {
                    // Stops with the head at the bad command.
                    self.halted = true;
                    self.log(5 << 60, at, switches);
                    return;
                }
            }
            self.commands.push((q0, q1));
            self.registers.insert(0x2000, (head + 16) % size);
        }
    }

    fn log(&mut self, q0: u64, q1: u64, switches: &Switches) {
        if self.register(0x2020, switches) >> 3 & 1 == 0 {
            return;
        }
        let (base, head, tail) = (self.get(0x10), self.get(0x2010), self.get(0x2018));
        let size = 16u64 << (base >> 56 & 15);
        let next = (tail + 16) % size;
        let status = self.get(0x2020);
        if next == head {
            self.registers.insert(0x2020, status | 1);
            return;
        }
        let at = (base & ADDRESS) + tail;
        word(at + 8).store(q1, Ordering::Relaxed);
        word(at).store(q0, Ordering::Release);
        self.registers.insert(0x2018, next);
        self.registers.insert(0x2020, status | 2);
    }
}

// SAFETY: the registers are an object of this process that lives as long as the implementation.
unsafe impl Mmio for FakeUnit {
    fn len(&self) -> usize {
        0x4000
    }

    fn read32(&self, offset: usize) -> u32 {
        (self.register(offset & !7) >> ((offset & 4) * 8)) as u32
    }

    fn write32(&self, _offset: usize, _value: u32) {
        panic!("the driver writes 64-bit registers whole");
    }

    fn read64(&self, offset: usize) -> u64 {
        self.register(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.state.lock().unwrap().write(offset, value, &self.switches);
    }
}

/// Configuration space of IOMMU functions, and nothing else.
#[derive(Clone, Debug, Default)]
pub struct FakeConfig(Arc<Mutex<BTreeMap<(PciAddress, u16), u32>>>);

impl FakeConfig {
    /// An IOMMU at `function` with its capability at 40h and MSI at 64h.
    pub fn add_iommu(&self, function: PciAddress, base: u64, np_cache: bool) {
        let mut words = self.0.lock().unwrap();
        let header = 0x0f | 0x64 << 8 | 3 << 16 | 1 << 27 | u32::from(np_cache) << 26;
        for (offset, value) in [
            (0x04, 0x10 << 16),
            (0x34, 0x40),
            (0x40, header),
            (0x44, base as u32 | 1),
            (0x48, (base >> 32) as u32),
            (0x64, 0x05 | 1 << 23),
        ] {
            words.insert((function, offset), value);
        }
    }

    pub fn word(&self, function: PciAddress, offset: u16) -> u32 {
        self.0.lock().unwrap().get(&(function, offset)).copied().unwrap_or(0)
    }

    pub fn remove(&self, function: PciAddress, offset: u16) {
        self.0.lock().unwrap().remove(&(function, offset));
    }
}

impl ConfigSpace for FakeConfig {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.word(function, offset)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.0.lock().unwrap().insert((function, offset), value);
    }
}

/// Units at their bases, with their configuration space.
#[derive(Debug, Default)]
pub struct FakeHardware {
    pub units: BTreeMap<u64, Arc<FakeUnit>>,
    pub config: FakeConfig,
}

impl Hardware for FakeHardware {
    fn map_mmio(&self, base: PhysAddr, _len: u64) -> Option<Arc<dyn Mmio>> {
        self.units.get(&base.get()).map(|unit| unit.clone() as Arc<dyn Mmio>)
    }

    fn config_space(&self) -> &dyn ConfigSpace {
        &self.config
    }

    fn msi_message(&self, _unit: PciAddress) -> Option<MsiMessage> {
        Some(MsiMessage { address: 0xfee0_1000, data: 0x41 })
    }
}

/// IASup, HATS = 4 levels.
pub const FEATURES: u64 = 1 << 6;
pub const BASE: u64 = 0xfeb8_0000;
pub const IOMMU: PciAddress = PciAddress { segment: 0, id: RequesterId::new(2) };

/// An IVHD block.
pub fn ivhd(kind: u8, device: u16, base: u64, entries: &[u8]) -> Vec<u8> {
    let header = if kind == 0x10 { 24 } else { 40 };
    let mut block = vec![0; header];
    block[0] = kind;
    block[1] = 0x01 | 0x04 | 0x08; // HtTun, ResPassPW, Isoc
    block[4..6].copy_from_slice(&device.to_le_bytes());
    block[6..8].copy_from_slice(&0x40u16.to_le_bytes());
    block[8..16].copy_from_slice(&base.to_le_bytes());
    block.extend_from_slice(entries);
    let length = block.len() as u16;
    block[2..4].copy_from_slice(&length.to_le_bytes());
    block
}

/// An IVMD block.
pub fn ivmd(kind: u8, flags: u8, device: u16, auxiliary: u16, start: u64, len: u64) -> Vec<u8> {
    let mut block = vec![0; 32];
    block[0] = kind;
    block[1] = flags;
    block[2] = 32;
    block[4..6].copy_from_slice(&device.to_le_bytes());
    block[6..8].copy_from_slice(&auxiliary.to_le_bytes());
    block[16..24].copy_from_slice(&start.to_le_bytes());
    block[24..32].copy_from_slice(&len.to_le_bytes());
    block
}

/// A table of blocks with a right header.
pub fn ivrs(info: u32, blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"IVRS");
    table[8] = 2;
    table[10..16].copy_from_slice(b"TEST  ");
    table[36..40].copy_from_slice(&info.to_le_bytes());
    blocks.iter().for_each(|block| table.extend_from_slice(block));
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    seal(&mut table);
    table
}

/// Makes the checksum right.
pub fn seal(table: &mut [u8]) {
    table[9] = 0;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
}

/// Devices 00:01.0 to 00:1f.7 and bus 1, with flags D7h on 00:14.0 and 01:00.1 using the name of 01:00.0.
pub const ENTRIES: &[u8] = &[
    0x03, 0x08, 0x00, 0x00, 0x04, 0xff, 0x01, 0x00, // range 0008-01ff
    0x02, 0xa0, 0x00, 0xd7, // select 00a0
    0x42, 0x01, 0x01, 0x00, 0x00, 0x00, 0x01, 0x00, // alias 0101 -> 0100
];

/// A machine with one unit that has been brought up.
#[derive(Debug)]
pub struct Setup {
    pub machine: Arc<Machine>,
    pub unit: Arc<FakeUnit>,
    pub hardware: FakeHardware,
    pub driver: Arc<AmdVi>,
}

pub fn config() -> Config {
    Config {
        log2_commands: 8,
        log2_events: 8,
        command_timeout: Duration::from_millis(50),
        ..Config::default()
    }
}

pub fn hardware(unit: &Arc<FakeUnit>, np_cache: bool) -> FakeHardware {
    let hardware =
        FakeHardware { units: BTreeMap::from([(BASE, unit.clone())]), config: FakeConfig::default() };
    hardware.config.add_iommu(IOMMU, BASE, np_cache);
    hardware
}

pub fn try_bring_up(
    machine: &Arc<Machine>,
    hardware: &FakeHardware,
    blocks: &[Vec<u8>],
) -> Result<Arc<AmdVi>, InitError> {
    AmdVi::init(machine.clone(), &ivrs(0x0020_3040, blocks), hardware, config())
}

pub fn bring_up_with(np_cache: bool, features: u64, blocks: &[Vec<u8>]) -> Setup {
    let machine = Machine::new();
    let unit = FakeUnit::new(features);
    let hardware = hardware(&unit, np_cache);
    let driver = try_bring_up(&machine, &hardware, blocks).unwrap();
    Setup { machine, unit, hardware, driver }
}

/// The usual unit with these features and a table's most levels.
pub fn bring_up_levels(features: u64, levels: u8) -> Setup {
    let machine = Machine::new();
    let unit = FakeUnit::new(features);
    let hardware = hardware(&unit, false);
    let table = ivrs(0x0020_3040, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    let driver = AmdVi::init(machine.clone(), &table, &hardware, Config { levels, ..config() }).unwrap();
    Setup { machine, unit, hardware, driver }
}

pub fn bring_up() -> Setup {
    bring_up_with(false, FEATURES, &[ivhd(0x10, 2, BASE, ENTRIES)])
}
