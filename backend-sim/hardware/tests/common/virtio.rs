//! A host that drives the virtio block device by hand.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use platform::Mmio;
use platform::pci::RequesterId;
use sim_hardware::interrupts::InterruptController;
use sim_hardware::pci::{Acs, Builder, PciTree};
use sim_hardware::ram::Ram;
use sim_hardware::virtio::{Config, VirtioBlk};
use tempfile::NamedTempFile;

use super::{bus_master_on, config_read, eventually};

/// Fields of the common configuration structure.
pub const DEVICE_FEATURE_SELECT: usize = 0x00;
pub const DEVICE_FEATURE: usize = 0x04;
pub const DRIVER_FEATURE_SELECT: usize = 0x08;
pub const DRIVER_FEATURE: usize = 0x0c;
pub const CONFIG_MSIX_VECTOR: usize = 0x10;
pub const NUM_QUEUES: usize = 0x12;
pub const STATUS: usize = 0x14;
pub const QUEUE_SELECT: usize = 0x16;
pub const QUEUE_SIZE: usize = 0x18;
pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
pub const QUEUE_ENABLE: usize = 0x1c;
pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
pub const QUEUE_DESC: usize = 0x20;
pub const QUEUE_DRIVER: usize = 0x28;
pub const QUEUE_DEVICE: usize = 0x30;

/// Status bits.
pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 0x40;

/// Feature bits.
pub const BLK_RO: u64 = 1 << 5;
pub const BLK_FLUSH: u64 = 1 << 9;
pub const VERSION_1: u64 = 1 << 32;
pub const ACCESS_PLATFORM: u64 = 1 << 33;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Request types.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;

/// Where the queue is; its size.
pub const DESCRIPTORS: u64 = 0x10_0000;
pub const AVAILABLE: u64 = 0x10_1000;
pub const USED: u64 = 0x10_2000;
pub const SIZE: u16 = 8;
/// A request's header, and its status.
pub const HEADER: u64 = 0x11_0000;
pub const STATUS_BYTE: u64 = 0x11_1000;
/// Free for data.
pub const DATA: u64 = 0x20_0000;

/// What a capability says: BAR 0, offset, length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub offset: usize,
    pub len: usize,
}

/// The device.
pub const VIRTIO: RequesterId = RequesterId::from_parts(1, 0, 0);

/// A machine without an IOMMU that has the device behind a root port, and the device's disk.
pub struct Host {
    pub ram: Arc<Ram>,
    pub pci: Arc<PciTree>,
    pub interrupts: Arc<InterruptController>,
    pub registers: Arc<dyn Mmio>,
    pub disk: NamedTempFile,
    pub common: usize,
    available: u16,
    used: u16,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.pci.shutdown();
    }
}

impl Host {
    /// With the device as it is after reset.
    pub fn new(disk: &[u8], writable: bool) -> Self {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(disk).expect("space");
        let device = VirtioBlk::new(&Config { disk: file.path().into(), writable }).expect("a disk");
        let ram = Ram::new(&[(0, 64 << 20)]).expect("memory");
        let interrupts = InterruptController::new();
        let pci = Builder::new()
            .root_port(RequesterId::from_parts(0, 1, 0), 1, 1, Acs::ISOLATED)
            .endpoint(VIRTIO, device as _, false, Acs::Absent)
            .build(Arc::clone(&ram), None, Arc::clone(&interrupts) as _);
        bus_master_on(&pci, VIRTIO);
        let registers = pci.mmio(VIRTIO, 0).expect("BAR 0");
        let mut host = Self { ram, pci, interrupts, registers, disk: file, common: 0, available: 0, used: 0 };
        host.common = host.place(1).offset;
        host
    }

    /// Up, with a queue of [`SIZE`] descriptors.
    pub fn up(disk: &[u8], writable: bool) -> Self {
        let mut host = Self::new(disk, writable);
        host.start();
        host
    }

    /// Goes through the steps of section 3.1.1.
    #[track_caller]
    pub fn start(&mut self) {
        self.set8(STATUS, ACKNOWLEDGE);
        self.set8(STATUS, ACKNOWLEDGE | DRIVER);
        let offered = self.features();
        self.accept(offered);
        self.set8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.get8(STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for area in [DESCRIPTORS, AVAILABLE, USED] {
            self.fill(area, &[0; 4096]);
        }
        (self.available, self.used) = (0, 0);
        self.set16(QUEUE_SELECT, 0);
        self.set16(QUEUE_SIZE, SIZE);
        for (field, area) in [(QUEUE_DESC, DESCRIPTORS), (QUEUE_DRIVER, AVAILABLE), (QUEUE_DEVICE, USED)] {
            self.set32(field, area as u32);
            self.set32(field + 4, (area >> 32) as u32);
        }
        self.set16(QUEUE_ENABLE, 1);
        self.set8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Writes 0 to the status and waits until it is read.
    #[track_caller]
    pub fn reset(&self) {
        self.set8(STATUS, 0);
        eventually("the reset", || self.get8(STATUS) == 0);
    }

    /// The place that the capability of a type says, which is in BAR 0.
    #[track_caller]
    pub fn place(&self, kind: u32) -> Place {
        let at = self.capability(kind);
        let word = |offset| config_read(&self.pci, VIRTIO, at + offset);
        assert_eq!(word(4) & 0xff, 0, "BAR 0");
        Place { offset: word(8) as usize, len: word(12) as usize }
    }

    /// Where in configuration space that capability is.
    #[track_caller]
    pub fn capability(&self, kind: u32) -> u16 {
        let word = |at| config_read(&self.pci, VIRTIO, at);
        let mut at = word(0x34) as u16 & 0xff;
        while word(at) & 0xff != 0x09 || word(at) >> 24 != kind {
            at = (word(at) >> 8) as u16 & 0xff;
            assert_ne!(at, 0, "no capability {kind}");
        }
        at
    }

    pub fn get8(&self, field: usize) -> u8 {
        self.registers.read8(self.common + field)
    }

    pub fn set8(&self, field: usize, value: u8) {
        self.registers.write8(self.common + field, value);
    }

    pub fn get16(&self, field: usize) -> u16 {
        self.registers.read16(self.common + field)
    }

    pub fn set16(&self, field: usize, value: u16) {
        self.registers.write16(self.common + field, value);
    }

    pub fn get32(&self, field: usize) -> u32 {
        self.registers.read32(self.common + field)
    }

    pub fn set32(&self, field: usize, value: u32) {
        self.registers.write32(self.common + field, value);
    }

    pub fn isr(&self) -> u8 {
        self.registers.read8(self.place(3).offset)
    }

    /// The features that the device offers.
    pub fn features(&self) -> u64 {
        let half = |select| {
            self.set32(DEVICE_FEATURE_SELECT, select);
            u64::from(self.get32(DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Writes the features that the driver takes.
    pub fn accept(&self, features: u64) {
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set32(DRIVER_FEATURE_SELECT, select);
            self.set32(DRIVER_FEATURE, half);
        }
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.fill(DESCRIPTORS + 16 * u64::from(index), &bytes);
    }

    /// Writes a request's header.
    pub fn header(&self, kind: u32, sector: u64) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.fill(HEADER, &bytes);
        self.fill(STATUS_BYTE, &[0xee]);
    }

    /// Describes a request from descriptor 0 on: the header, the parts of the data in order, the status.
    pub fn request(&self, kind: u32, sector: u64, data: &[(u64, u32)]) {
        self.header(kind, sector);
        self.describe(0, HEADER, 16, NEXT, 1);
        let direction = if kind == OUT { 0 } else { WRITE };
        let mut index = 1;
        for &(address, len) in data {
            self.describe(index, address, len, direction | NEXT, index + 1);
            index += 1;
        }
        self.describe(index, STATUS_BYTE, 1, WRITE, 0);
    }

    /// Makes the chain at `head` available, without a notification.
    pub fn offer(&mut self, head: u16) {
        self.fill(AVAILABLE + 4 + 2 * u64::from(self.available % SIZE), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        fence(Ordering::Release);
        self.fill(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    pub fn notify(&self) {
        self.registers.write16(self.place(2).offset, 0);
    }

    /// The next chain that the device has used, if there is one: its head, and the bytes written.
    pub fn poll(&mut self) -> Option<(u32, u32)> {
        let index = self.bytes(USED + 2, 2);
        fence(Ordering::Acquire);
        if index == self.used.to_le_bytes() {
            return None;
        }
        let element = self.bytes(USED + 4 + 8 * u64::from(self.used % SIZE), 8);
        self.used = self.used.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().expect("4 bytes"));
        Some((word(0), word(4)))
    }

    /// Waits for the next chain that the device has used.
    #[track_caller]
    pub fn take(&mut self) -> (u32, u32) {
        let (index, before) = (self.used, USED + 2);
        eventually("the request", || self.bytes(before, 2) != index.to_le_bytes());
        self.poll().expect("seen")
    }

    /// A request by [`Host::request`]: its status, and the bytes written.
    #[track_caller]
    pub fn run(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
        self.request(kind, sector, data);
        self.offer(0);
        self.notify();
        let (head, written) = self.take();
        assert_eq!(head, 0);
        (self.bytes(STATUS_BYTE, 1)[0], written)
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(at, &mut bytes).expect("memory");
        bytes
    }

    pub fn fill(&self, at: u64, bytes: &[u8]) {
        self.ram.write(at, bytes).expect("memory");
    }
}
