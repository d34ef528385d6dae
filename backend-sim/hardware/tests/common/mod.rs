//! What a programmer has who knows the specification and nothing else: memory, registers, and devices that he tells where
//! to read and write. All layouts are literal bits here.
#![allow(dead_code, unreachable_pub)]

use std::cell::Cell;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use platform::Mmio;
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use sim_hardware::ats::{Downstream, Translation};
use sim_hardware::bus::{BusError, DeviceModel, Identity, Interrupts, Port};
use sim_hardware::interrupts::{InterruptController, Vector};
use sim_hardware::iommu::{AmdIommu, Config};
use sim_hardware::pci::{Acs, Builder, IommuFunction, PciTree};
use sim_hardware::ram::Ram;

pub mod nvme;
pub mod virtio;

/// 2 MiB: an entry for every device.
pub const DEVICE_TABLE: u64 = 0x10_0000;
/// 4 KiB: 256 commands.
pub const COMMANDS: u64 = 0x30_0000;
/// 4 KiB: 256 events.
pub const EVENTS: u64 = 0x30_1000;
/// The word that completion waits write.
pub const COMPLETION: u64 = 0x30_2000;
/// Where tables are taken from.
const TABLES: u64 = 0x40_0000;
/// Free for data.
pub const DATA: u64 = 0x100_0000;
const MEMORY: u64 = 64 << 20;

/// Registers.
pub const CONTROL: usize = 0x18;
pub const COMMAND_BASE: usize = 0x08;
pub const EVENT_BASE: usize = 0x10;
pub const COMMAND_HEAD: usize = 0x2000;
pub const COMMAND_TAIL: usize = 0x2008;
pub const EVENT_HEAD: usize = 0x2010;
pub const EVENT_TAIL: usize = 0x2018;
pub const STATUS: usize = 0x2020;

/// IommuEn, EventLogEn, CmdBufEn.
pub const ON: u64 = 1 << 0 | 1 << 2 | 1 << 12;
pub const EVENT_INT_EN: u64 = 1 << 3;
pub const COM_WAIT_INT_EN: u64 = 1 << 4;

/// Status bits.
pub const EVENT_OVERFLOW: u64 = 1 << 0;
pub const EVENT_INT: u64 = 1 << 1;
pub const COM_WAIT_INT: u64 = 1 << 2;
pub const EVENT_RUN: u64 = 1 << 3;
pub const COMMAND_RUN: u64 = 1 << 4;

/// PR and IR and IW: an entry that is there for reads and writes.
pub const READ_WRITE: u64 = 1 | 1 << 61 | 1 << 62;
pub const READ_ONLY: u64 = 1 | 1 << 61;
pub const WRITE_ONLY: u64 = 1 | 1 << 62;

/// How long something that must happen may take.
pub const SOON: Duration = Duration::from_secs(10);
/// How long is waited for what must not happen.
pub const A_WHILE: Duration = Duration::from_millis(30);

/// Waits until `holds` does.
#[track_caller]
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "{what} does not happen");
        std::thread::yield_now();
    }
}

/// Bytes that tell every place of a disk from every other.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A device that does at once what it is told, and remembers what others write to its registers.
#[derive(Default)]
pub struct Probe {
    bus: OnceLock<(Port, Arc<dyn Interrupts>)>,
    written: Mutex<Vec<(u64, u8, u64)>>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probe")
    }
}

impl Probe {
    fn port(&self) -> &Port {
        &self.bus.get().expect("connected").0
    }

    pub fn read(&self, address: u64) -> Result<u64, BusError> {
        let mut bytes = [0; 8];
        self.port().read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn read_bytes(&self, address: u64, len: usize) -> Result<Vec<u8>, BusError> {
        let mut bytes = vec![0; len];
        self.port().read(address, &mut bytes)?;
        Ok(bytes)
    }

    pub fn write(&self, address: u64, value: u64) -> Result<(), BusError> {
        self.write_bytes(address, &value.to_le_bytes())
    }

    pub fn write_bytes(&self, address: u64, bytes: &[u8]) -> Result<(), BusError> {
        self.port().write(address, bytes)
    }

    pub fn read_as(&self, pasid: Option<u32>, address: u64) -> Result<u64, BusError> {
        let mut bytes = [0; 8];
        self.port().read_as(pasid, address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn write_as(&self, pasid: Option<u32>, address: u64, value: u64) -> Result<(), BusError> {
        self.port().write_as(pasid, address, &value.to_le_bytes())
    }

    /// Asks for pages as one group, and waits for the answer.
    pub fn ask_for_pages(&self, pasid: Option<u32>, pages: &[(u64, bool)]) -> Result<Option<u8>, BusError> {
        self.port().ask_for_pages(pasid, pages)
    }

    /// Asks for a translation, whatever it keeps.
    pub fn translate(&self, address: u64) -> Result<Translation, BusError> {
        self.port().translate(address)
    }

    /// Reads at an address that it says it has translated.
    pub fn read_translated(&self, address: u64) -> Result<u64, BusError> {
        let mut bytes = [0; 8];
        self.port().read_translated(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn raise(&self, vector: u16) {
        self.bus.get().expect("connected").1.raise(vector);
    }

    /// What has been written to the registers since the last call: offset, width, value.
    pub fn take_written(&self) -> Vec<(u64, u8, u64)> {
        std::mem::take(&mut self.written.lock())
    }
}

/// What every register of a probe reads as.
pub const PROBE_REGISTER: u64 = 0x5a5a_5a5a;

impl DeviceModel for Probe {
    fn identity(&self) -> Identity {
        Identity {
            vendor: 0x1234,
            device: 0x0001,
            class: 0xff_0000,
            bars: vec![(0, 4096)],
            msix_vectors: 3,
            capabilities: Vec::new(),
        }
    }

    fn extended_capabilities(&self) -> Vec<Vec<u32>> {
        // ATS, with room for two invalidations; PASIDs of 20 bits; page requests whose answers carry the PASID. All are off until
        // configuration space says otherwise.
        vec![vec![0x0001_000f, 2], vec![0x0001_001b, 20 << 8], vec![0x0001_0013, 1 << 31, 64, 0]]
    }

    fn connect(&self, port: Port, interrupts: Arc<dyn Interrupts>) {
        assert!(self.bus.set((port, interrupts)).is_ok(), "connected once");
    }

    fn mmio_read(&self, _bar: u8, _offset: u64, _width: u8) -> u64 {
        PROBE_REGISTER
    }

    fn mmio_write(&self, _bar: u8, offset: u64, width: u8, value: u64) {
        self.written.lock().push((offset, width, value));
    }
}

/// Writes a function's configuration space.
pub fn config_write(pci: &PciTree, id: RequesterId, offset: u16, value: u32) {
    pci.write32(PciAddress { segment: 0, id }, offset, value);
}

/// Switches a probe's ATS on or off: Enable is bit 15 of the control register.
pub fn set_ats(pci: &PciTree, id: RequesterId, on: bool) {
    config_write(pci, id, 0x104, if on { 1 << 31 } else { 0 });
}

/// Reads a function's configuration space.
pub fn config_read(pci: &PciTree, id: RequesterId, offset: u16) -> u32 {
    pci.read32(PciAddress { segment: 0, id }, offset)
}

/// Memory space and bus master on.
pub fn bus_master_on(pci: &PciTree, id: RequesterId) {
    config_write(pci, id, 0x04, 0x6);
}

/// The address in a BAR of 64 bits.
pub fn bar(pci: &PciTree, id: RequesterId, index: u16) -> u64 {
    let low = config_read(pci, id, 0x10 + 4 * index);
    let high = config_read(pci, id, 0x14 + 4 * index);
    u64::from(low & !0xf) | u64::from(high) << 32
}

/// The three devices of a bench.
pub const A: RequesterId = RequesterId::from_parts(0, 3, 0);
pub const B: RequesterId = RequesterId::from_parts(0, 4, 0);
pub const C: RequesterId = RequesterId::from_parts(0, 5, 0);
/// The IOMMU's function.
pub const IOMMU: RequesterId = RequesterId::from_parts(0, 0, 2);

/// An IOMMU, memory, and three devices at the root complex.
pub struct Bench {
    pub ram: Arc<Ram>,
    pub unit: Arc<AmdIommu>,
    pub interrupts: Arc<InterruptController>,
    pub pci: Arc<PciTree>,
    pub a: Arc<Probe>,
    pub b: Arc<Probe>,
    pub c: Arc<Probe>,
    next_table: Cell<u64>,
    waits: Cell<u64>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.pci.shutdown();
        self.unit.shutdown();
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl Bench {
    /// Switched on, with device table, command ring and event log; no device has a table.
    pub fn new(config: Config) -> Self {
        let bench = Self::off(config);
        bench.registers().write64(0x00, DEVICE_TABLE | 0x1ff);
        bench.registers().write64(COMMAND_BASE, COMMANDS | 8 << 56);
        bench.registers().write64(EVENT_BASE, EVENTS | 8 << 56);
        bench.registers().write64(CONTROL, ON);
        bench
    }

    /// After reset.
    pub fn off(config: Config) -> Self {
        let ram = Ram::new(&[(0, MEMORY)]).expect("memory");
        let interrupts = InterruptController::new();
        let (np_cache, iotlb_sup) = (config.np_cache, config.iotlb_sup);
        let unit = AmdIommu::new(config, Arc::clone(&ram), Arc::clone(&interrupts) as _);
        let probes: [Arc<Probe>; 3] = Default::default();
        let msi = Arc::clone(&unit);
        let mut builder = Builder::new().iommu(
            IommuFunction { id: IOMMU, capability: 0x80, base: 0xfeb8_0000, np_cache, iotlb_sup },
            Box::new(move |address, data, on| msi.set_msi(address, data, on)),
        );
        for (id, probe) in [A, B, C].into_iter().zip(&probes) {
            builder = builder.endpoint(id, Arc::clone(probe) as _, false, Acs::Absent);
        }
        let remapper = Arc::clone(&unit);
        let pci = builder.build(Arc::clone(&ram), Some(remapper as _), Arc::clone(&interrupts) as _);
        let devices: Arc<dyn Downstream> = pci.clone();
        unit.connect(Arc::downgrade(&devices));
        for id in [A, B, C] {
            bus_master_on(&pci, id);
        }
        let [a, b, c] = probes;
        let (next_table, waits) = (Cell::new(TABLES), Cell::new(0));
        Self { ram, unit, interrupts, pci, a, b, c, next_table, waits }
    }

    pub fn registers(&self) -> &dyn Mmio {
        &*self.unit
    }

    pub fn status(&self) -> u64 {
        self.registers().read64(STATUS)
    }

    /// Points the unit's MSI to a vector.
    pub fn msi(&self) -> Vector {
        let vector = self.interrupts.allocate().expect("a vector");
        let (address, data) = vector.message();
        config_write(&self.pci, IOMMU, 0xa4, address as u32);
        config_write(&self.pci, IOMMU, 0xa8, (address >> 32) as u32);
        config_write(&self.pci, IOMMU, 0xac, data);
        config_write(&self.pci, IOMMU, 0xa0, 1 << 16);
        vector
    }

    pub fn peek(&self, at: u64) -> u64 {
        self.ram.read64(at).expect("memory")
    }

    pub fn poke(&self, at: u64, value: u64) {
        self.ram.write64(at, value).expect("memory");
    }

    /// An empty table.
    pub fn table(&self) -> u64 {
        let at = self.next_table.replace(self.next_table.get() + 0x1000);
        assert!(at < DATA, "too many tables");
        at
    }

    /// Writes a device's entry.
    pub fn set_dte(&self, device: RequesterId, words: [u64; 4]) {
        for (word, value) in (0..).zip(words) {
            self.poke(DEVICE_TABLE + 32 * u64::from(device.get()) + 8 * word, value);
        }
    }

    /// Gives a device a table of `levels` levels at `root`, all accesses allowed.
    pub fn attach(&self, device: RequesterId, domain: u16, levels: u64, root: u64) {
        self.set_dte(device, dte(domain, levels, root));
    }

    /// Writes the entries on the way to an address and the leaf at `level`.
    pub fn map(&self, root: u64, levels: u32, iova: u64, level: u32, leaf: u64) {
        let place = self.place(root, levels, iova, level);
        self.poke(place, leaf);
    }

    /// Where the entry of `level` for an address is; tables that are not there are made.
    pub fn place(&self, root: u64, levels: u32, iova: u64, level: u32) -> u64 {
        let mut table = root;
        for above in (level + 1..=levels).rev() {
            let place = slot(table, iova, above);
            let mut entry = self.peek(place);
            if entry & 1 == 0 {
                entry = pointer(self.table(), above - 1);
                self.poke(place, entry);
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        slot(table, iova, level)
    }

    /// Gives a command to the unit.
    pub fn command(&self, first: u64, second: u64) {
        let tail = u64::from(self.registers().read32(COMMAND_TAIL));
        self.poke(COMMANDS + tail, first);
        self.poke(COMMANDS + tail + 8, second);
        self.registers().write32(COMMAND_TAIL, ((tail + 16) & 0xfff) as u32);
    }

    /// COMPLETION_WAIT with a store, and the waiting.
    #[track_caller]
    pub fn wait(&self) {
        let number = self.waits.get() + 1;
        self.waits.set(number);
        self.command(1 << 60 | COMPLETION | 1, number);
        eventually("the completion", || self.peek(COMPLETION) == number);
    }

    /// A command and its completion.
    #[track_caller]
    pub fn run(&self, first: u64, second: u64) {
        self.command(first, second);
        self.wait();
    }

    /// INVALIDATE_DEVTAB_ENTRY.
    #[track_caller]
    pub fn invalidate_device(&self, device: RequesterId) {
        self.run(2 << 60 | u64::from(device.get()), 0);
    }

    /// INVALIDATE_IOMMU_PAGES, with the second word as it is.
    #[track_caller]
    pub fn invalidate_pages(&self, domain: u16, second: u64) {
        self.run(3 << 60 | u64::from(domain) << 32, second);
    }

    /// The events that are in the log; they are taken out.
    pub fn events(&self) -> Vec<(u64, u64)> {
        let tail = self.registers().read64(EVENT_TAIL);
        let mut head = self.registers().read64(EVENT_HEAD);
        let mut events = Vec::new();
        while head != tail {
            events.push((self.peek(EVENTS + head), self.peek(EVENTS + head + 8)));
            head = (head + 16) & 0xfff;
        }
        self.registers().write64(EVENT_HEAD, head);
        events
    }
}

/// A device table entry with V, TV, IR and IW.
pub fn dte(domain: u16, levels: u64, root: u64) -> [u64; 4] {
    [1 | 1 << 1 | levels << 9 | root | 1 << 61 | 1 << 62, u64::from(domain), 0, 0]
}

/// Where a table of `level` has its entry for an address.
pub fn slot(table: u64, iova: u64, level: u32) -> u64 {
    table + 8 * (iova >> (12 + 9 * (level - 1)) & 0x1ff)
}

/// An entry that points to a table of `level`.
pub fn pointer(table: u64, level: u32) -> u64 {
    table | u64::from(level) << 9 | READ_WRITE
}
