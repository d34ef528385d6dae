//! A DMA engine: it reads, writes and copies wherever it is told.
//!
//! Registers in BAR 0, 64 bits each:
//!
//! | offset | register |
//! |---|---|
//! | 00h | source bus address |
//! | 08h | destination bus address |
//! | 10h | length in bytes: for a copy up to 1 MiB, for the others 1 to 8 |
//! | 18h | data of a write, or what a read found |
//! | 20h | command: 1 copy, 2 write data to the destination, 3 read data from the source |
//! | 28h | status: 0 idle, 1 busy, 2 done, 3 refused, 4 bad command |
//! | 30h | PASID of the requests in bits 19:0, where bit 31 is set |
//!
//! Writing the command starts it; when it has ended vector 0 is raised.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::bus::{DeviceModel, Identity, Interrupts, Port};

const SOURCE: u64 = 0x00;
const DESTINATION: u64 = 0x08;
const LENGTH: u64 = 0x10;
const DATA: u64 = 0x18;
const COMMAND: u64 = 0x20;
const STATUS: u64 = 0x28;
const PASID: u64 = 0x30;

const COPY: u64 = 1;
const WRITE: u64 = 2;
const READ: u64 = 3;

const BUSY: u64 = 1;
const DONE: u64 = 2;
const REFUSED: u64 = 3;
const BAD_COMMAND: u64 = 4;

/// The longest copy.
const MAX_LENGTH: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    source: u64,
    destination: u64,
    length: u64,
    data: u64,
    status: u64,
    pasid: u64,
}

/// What an engine can do beyond plain requests. By default nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// It can keep translations (ATS), and hold so many invalidations: 1 to 32.
    pub ats: Option<u8>,
    /// Its requests can carry a PASID of so many bits: 1 to 20.
    pub pasid_bits: Option<u8>,
    /// It can ask for pages that are not there (PRI). The answers must carry the PASID of the requests.
    pub page_requests: bool,
}

/// The engine.
pub struct DmaEngine {
    numbers: (u16, u16),
    registers: Arc<Mutex<Registers>>,
    orders: Mutex<Option<Sender<u64>>>,
    worker: Mutex<Option<JoinHandle<()>>>,
    connected: OnceLock<()>,
    config: Config,
}

impl DmaEngine {
    /// An idle engine.
    pub fn new(config: Config) -> Arc<Self> {
        Self::with_numbers(0x1234, 0x0d4a, config)
    }

    /// An idle engine that says that it is another maker's device.
    pub fn with_numbers(vendor: u16, device: u16, config: Config) -> Arc<Self> {
        Arc::new(Self {
            numbers: (vendor, device),
            registers: Arc::default(),
            orders: Mutex::new(None),
            worker: Mutex::new(None),
            connected: OnceLock::new(),
            config,
        })
    }
}

fn work(registers: &Mutex<Registers>, port: &Port, interrupts: &dyn Interrupts, orders: &Receiver<u64>) {
    while let Ok(command) = orders.recv() {
        let now = *registers.lock();
        let (status, data) = execute(port, now, command);
        {
            let mut registers = registers.lock();
            registers.status = status;
            registers.data = data;
        }
        interrupts.raise(0);
    }
}

fn execute(port: &Port, registers: Registers, command: u64) -> (u64, u64) {
    let Registers { source, destination, length, data, .. } = registers;
    let pasid = (registers.pasid >> 31 & 1 != 0).then_some(registers.pasid as u32 & 0xf_ffff);
    let short = (1..=8).contains(&length);
    let mut bytes = [0; 8];
    let moved = match command {
        COPY if (1..=MAX_LENGTH).contains(&length) => {
            let mut buffer = vec![0; length as usize];
            port.read_as(pasid, source, &mut buffer).and_then(|()| port.write_as(pasid, destination, &buffer))
        }
        WRITE if short => port.write_as(pasid, destination, &data.to_le_bytes()[..length as usize]),
        READ if short => port.read_as(pasid, source, &mut bytes[..length as usize]),
        _ => return (BAD_COMMAND, data),
    };
    match moved {
        Ok(()) if command == READ => (DONE, u64::from_le_bytes(bytes)),
        Ok(()) => (DONE, data),
        Err(_) => (REFUSED, data),
    }
}

impl DeviceModel for DmaEngine {
    fn identity(&self) -> Identity {
        const SYSTEM_DMA_CONTROLLER: u32 = 0x08_0100;
        Identity {
            vendor: self.numbers.0,
            device: self.numbers.1,
            class: SYSTEM_DMA_CONTROLLER,
            bars: vec![(0, 4096)],
            msix_vectors: 1,
            capabilities: Vec::new(),
        }
    }

    fn extended_capabilities(&self) -> Vec<Vec<u32>> {
        // ATS: the depth of the invalidate queue in bits 4:0, where 0 stands for 32.
        let ats = self.config.ats.map(|depth| vec![0x0001_000f, u32::from(depth & 0x1f)]);
        // PASID: the width in bits 12:8.
        let pasid = self.config.pasid_bits.map(|bits| vec![0x0001_001b, u32::from(bits & 0x1f) << 8]);
        // PRI: an answer needs the PASID, bit 15 of the status; at most 64 requests.
        let pri = self.config.page_requests.then(|| vec![0x0001_0013, 1 << 31, 64, 0]);
        ats.into_iter().chain(pasid).chain(pri).collect()
    }

    fn connect(&self, port: Port, interrupts: Arc<dyn Interrupts>) {
        if self.connected.set(()).is_err() {
            return;
        }
        let (sender, receiver) = channel();
        let registers = Arc::clone(&self.registers);
        let worker = std::thread::Builder::new()
            .name("dma-engine".into())
            .spawn(move || work(&registers, &port, &*interrupts, &receiver));
        *self.orders.lock() = Some(sender);
        *self.worker.lock() = worker.ok();
    }

    fn mmio_read(&self, _bar: u8, offset: u64, width: u8) -> u64 {
        let registers = *self.registers.lock();
        let value = match offset & !7 {
            SOURCE => registers.source,
            DESTINATION => registers.destination,
            LENGTH => registers.length,
            DATA => registers.data,
            STATUS => registers.status,
            PASID => registers.pasid,
            _ => 0,
        };
        value >> (8 * (offset & 7)) & (u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8))))
    }

    fn mmio_write(&self, _bar: u8, offset: u64, width: u8, value: u64) {
        // Registers are written whole.
        if width != 8 {
            return;
        }
        let mut registers = self.registers.lock();
        if registers.status == BUSY {
            return;
        }
        match offset {
            SOURCE => registers.source = value,
            DESTINATION => registers.destination = value,
            LENGTH => registers.length = value,
            DATA => registers.data = value,
            PASID => registers.pasid = value,
            COMMAND => {
                registers.status = BUSY;
                drop(registers);
                if let Some(orders) = &*self.orders.lock() {
                    // Its worker ends only with the sender.
                    let _ = orders.send(value);
                }
            }
            _ => {}
        }
    }

    fn shutdown(&self) {
        *self.orders.lock() = None;
        if let Some(worker) = self.worker.lock().take() {
            // A worker that has panicked has said so.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for DmaEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaEngine({:?})", self.registers.lock())
    }
}
