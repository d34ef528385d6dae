//! A virtio block device (VIRTIO 1.2) on PCI, without the legacy interface, whose sectors are a file on the host.

mod block;
mod queue;
mod registers;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use self::queue::{NeedsReset, Virtqueue};
use self::registers::{NO_VECTOR, Registers};
use crate::bus::{DeviceModel, Identity, Interrupts, Port};
use crate::disk::{Disk, DiskError};

/// BAR 0, and where the structures are in it.
const BAR_SIZE: u64 = 0x4000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;

/// What an interrupt is for, as the ISR status says it.
const QUEUE_INTERRUPT: u8 = 1 << 0;
const CONFIGURATION_INTERRUPT: u8 = 1 << 1;

/// What the device is like.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that its sectors are in.
    pub disk: PathBuf,
    /// Whether they may be written.
    pub writable: bool,
}

/// The device.
pub struct VirtioBlk {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// What the registers and the worker share. No lock is held while the device does DMA, which may have to wait for others.
struct Shared {
    disk: Disk,
    bus: OnceLock<Bus>,
    registers: Mutex<Registers>,
    changed: Condvar,
    isr: AtomicU8,
}

struct Bus {
    port: Port,
    interrupts: Arc<dyn Interrupts>,
}

/// What the worker is woken for.
enum Work {
    Reset,
    Serve(Virtqueue),
    Stop,
}

impl VirtioBlk {
    /// A device whose sectors are the file. What is behind its end in the last sector reads as zeros and is not written.
    ///
    /// # Errors
    /// [`DiskError`] when the file cannot be opened, or is empty.
    pub fn new(config: &Config) -> Result<Arc<Self>, DiskError> {
        let disk = Disk::open(&config.disk, config.writable)?;
        let shared = Arc::new(Shared {
            registers: Mutex::new(Registers::new(block::features(&disk))),
            disk,
            bus: OnceLock::new(),
            changed: Condvar::new(),
            isr: AtomicU8::new(0),
        });
        Ok(Arc::new(Self { shared, worker: Mutex::default() }))
    }
}

impl Shared {
    /// The worker's thread.
    fn work(&self, bus: &Bus) {
        let mut queue = None;
        loop {
            match self.await_work() {
                Work::Stop => return,
                Work::Reset => {
                    queue = None;
                    self.isr.store(0, Ordering::Release);
                    self.registers.lock().reset();
                }
                Work::Serve(new) => {
                    if self.serve(bus, queue.get_or_insert(new)).is_err() {
                        let vector = self.registers.lock().needs_reset();
                        self.interrupt(bus, CONFIGURATION_INTERRUPT, vector);
                    }
                }
            }
        }
    }

    fn await_work(&self) -> Work {
        let mut registers = self.registers.lock();
        loop {
            if registers.stopping {
                return Work::Stop;
            }
            if registers.resetting {
                return Work::Reset;
            }
            if registers.notified && registers.is_running() {
                registers.notified = false;
                return Work::Serve(registers.queue());
            }
            self.changed.wait(&mut registers);
        }
    }

    /// Serves what is available, until a reset.
    fn serve(&self, bus: &Bus, queue: &mut Virtqueue) -> Result<(), NeedsReset> {
        while let Some(chain) = queue.take(&bus.port)? {
            let written = self.execute(&bus.port, &chain)?;
            queue.give_back(&bus.port, &chain, written)?;
            if queue.wants_interrupt(&bus.port)? {
                let vector = self.registers.lock().queue_vector();
                self.interrupt(bus, QUEUE_INTERRUPT, vector);
            }
            if !self.registers.lock().is_running() {
                break;
            }
        }
        Ok(())
    }

    /// A message, or without a vector the bit that a driver polls.
    fn interrupt(&self, bus: &Bus, reason: u8, vector: u16) {
        if vector == NO_VECTOR {
            self.isr.fetch_or(reason, Ordering::AcqRel);
        } else {
            bus.interrupts.raise(vector);
        }
    }
}

/// A structure's place as a capability says it: vendor-specific (09h) of this type, in BAR 0.
fn capability(kind: u32, offset: u64, len: u64, more: &[u32]) -> Vec<u32> {
    const VENDOR_SPECIFIC: u32 = 0x09;
    let bytes = 16 + 4 * more.len() as u32;
    let mut words = vec![VENDOR_SPECIFIC | bytes << 16 | kind << 24, 0, offset as u32, len as u32];
    words.extend(more);
    words
}

impl DeviceModel for VirtioBlk {
    fn identity(&self) -> Identity {
        const SCSI_STORAGE: u32 = 0x01_0000;
        /// Bytes from one queue's place to the next one's.
        const NOTIFY_OFF_MULTIPLIER: u32 = 4;
        Identity {
            vendor: 0x1af4,
            device: 0x1040 + 2,
            class: SCSI_STORAGE,
            bars: vec![(0, BAR_SIZE)],
            msix_vectors: registers::VECTORS,
            capabilities: vec![
                capability(1, COMMON, registers::LEN as u64, &[]),
                capability(2, NOTIFY, 4, &[NOTIFY_OFF_MULTIPLIER]),
                capability(3, ISR, 1, &[]),
                capability(4, DEVICE, 8, &[]),
            ],
        }
    }

    fn connect(&self, port: Port, interrupts: Arc<dyn Interrupts>) {
        if self.shared.bus.set(Bus { port, interrupts }).is_err() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let work = move || {
            if let Some(bus) = shared.bus.get() {
                shared.work(bus);
            }
        };
        *self.worker.lock() = std::thread::Builder::new().name("virtio-blk".into()).spawn(work).ok();
    }

    fn mmio_read(&self, _bar: u8, offset: u64, width: u8) -> u64 {
        let part = |bytes: &[u8], at: u64| {
            let bytes = bytes.iter().skip(at as usize).take(width.into());
            bytes.rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        match offset {
            COMMON..ISR => part(&self.shared.registers.lock().image(), offset),
            // Reading it is to have seen it.
            ISR => self.shared.isr.swap(0, Ordering::AcqRel).into(),
            DEVICE..NOTIFY => part(&self.shared.disk.blocks().to_le_bytes(), offset - DEVICE),
            _ => 0,
        }
    }

    fn mmio_write(&self, _bar: u8, offset: u64, width: u8, value: u64) {
        match (offset, width) {
            // The number of the queue; there is one.
            (NOTIFY, 2) if value == 0 => self.shared.registers.lock().notified = true,
            (COMMON..ISR, _) => self.shared.registers.lock().write(offset, width, value),
            _ => return,
        }
        self.shared.changed.notify_all();
    }

    fn shutdown(&self) {
        self.shared.registers.lock().stopping = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.lock().take() {
            // A worker that has panicked has said so.
            let _ = worker.join();
        }
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for VirtioBlk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioBlk").field("sectors", &self.shared.disk.blocks()).finish_non_exhaustive()
    }
}
