//! An NVMe controller (NVM Express 1.4) whose namespace is a file on the host.

mod admin;
mod io;
mod prp;
mod queue;
mod status;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::queue::Queues;
use crate::bus::{DeviceModel, Identity, Interrupts, Port};
use crate::disk::{Disk, DiskError};

const BAR_SIZE: u64 = 0x4000;
const DOORBELLS: u64 = 0x1000;
/// Entries that a queue may have at most.
const MAX_ENTRIES: u32 = 1024;
/// CAP.TO: 5 seconds, in units of 500 ms.
const TIMEOUT: u64 = 10;
/// The longest transfer: 2^8 pages of 4 KiB (MDTS).
const MAX_TRANSFER_SHIFT: u8 = 8;

const CC_ENABLE: u32 = 1 << 0;
const CSTS_READY: u32 = 1 << 0;
const CSTS_FATAL: u32 = 1 << 1;
const CSTS_SHUTDOWN_COMPLETE: u32 = 2 << 2;

/// What the controller is like.
#[derive(Clone, Debug)]
pub struct Config {
    /// I/O queue pairs at most, each with a vector of its own beside the admin queues'.
    pub io_queues: u16,
    /// Threads that work for the controller.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { io_queues: 8, workers: 1 }
    }
}

/// What the controller has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// The controller.
pub struct NvmeController {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// What the registers and the workers share.
struct Shared {
    config: Config,
    namespace: Disk,
    bus: OnceLock<Bus>,
    registers: Mutex<Registers>,
    status: AtomicU32,
    queues: Queues,
    doorbells: Vec<AtomicU32>,
    rung: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    bytes: AtomicU64,
}

struct Bus {
    port: Port,
    interrupts: Arc<dyn Interrupts>,
}

#[derive(Default)]
struct Registers {
    interrupt_mask: u32,
    configuration: u32,
    admin_sizes: u32,
    admin_submission: u64,
    admin_completion: u64,
}

impl NvmeController {
    /// A controller whose namespace is the file at `path`, which it may write to when `writable`. A last block that the file
    /// does not fill reads as if zeros followed, and a write to it cuts what is beyond the file's end off.
    ///
    /// # Errors
    /// [`DiskError`] when the file cannot be opened, or is empty.
    pub fn new(config: Config, path: &Path, writable: bool) -> Result<Arc<Self>, DiskError> {
        let namespace = Disk::open(path, writable)?;
        let queues = usize::from(config.io_queues) + 1;
        let shared = Arc::new(Shared {
            namespace,
            bus: OnceLock::new(),
            registers: Mutex::default(),
            status: AtomicU32::new(0),
            queues: Queues::new(queues),
            doorbells: (0..2 * queues).map(|_| AtomicU32::new(0)).collect(),
            rung: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            config,
        });
        Ok(Arc::new(Self { shared, workers: Mutex::default() }))
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            reads: load(&self.shared.reads),
            writes: load(&self.shared.writes),
            bytes: load(&self.shared.bytes),
        }
    }
}

impl Shared {
    fn capabilities(&self) -> u64 {
        const CONTIGUOUS_QUEUES: u64 = 1 << 16;
        const NVM_COMMANDS: u64 = 1 << 37;
        u64::from(MAX_ENTRIES - 1) | CONTIGUOUS_QUEUES | TIMEOUT << 24 | NVM_COMMANDS
    }

    fn read(&self, offset: u64) -> u32 {
        let registers = self.registers.lock();
        match offset {
            0x00 => self.capabilities() as u32,
            0x04 => (self.capabilities() >> 32) as u32,
            // Version 1.4.
            0x08 => 0x0001_0400,
            0x0c | 0x10 => registers.interrupt_mask,
            0x14 => registers.configuration,
            0x1c => self.status.load(Ordering::Acquire),
            0x24 => registers.admin_sizes,
            0x28 => registers.admin_submission as u32,
            0x2c => (registers.admin_submission >> 32) as u32,
            0x30 => registers.admin_completion as u32,
            0x34 => (registers.admin_completion >> 32) as u32,
            _ => 0,
        }
    }

    fn write(&self, offset: u64, value: u32) {
        if offset >= DOORBELLS {
            self.ring(((offset - DOORBELLS) / 4) as usize, value);
            return;
        }
        let mut registers = self.registers.lock();
        let low = |word: u64| word & !0xffff_ffff | u64::from(value & !0xfff);
        let high = |word: u64| word & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            0x0c => registers.interrupt_mask |= value,
            0x10 => registers.interrupt_mask &= !value,
            0x14 => {
                let before = std::mem::replace(&mut registers.configuration, value);
                self.configured(&registers, before, value);
            }
            0x24 => registers.admin_sizes = value & 0x0fff_0fff,
            0x28 => registers.admin_submission = low(registers.admin_submission),
            0x2c => registers.admin_submission = high(registers.admin_submission),
            0x30 => registers.admin_completion = low(registers.admin_completion),
            0x34 => registers.admin_completion = high(registers.admin_completion),
            _ => {}
        }
    }

    fn configured(&self, registers: &Registers, before: u32, now: u32) {
        // Pages of 4 KiB and entries of 64 and 16 bytes are all that there is; entry sizes count once queues are made.
        const PAGE_SIZE: u32 = 0xf << 7;
        const COMMAND_SET: u32 = 7 << 4;
        let enabled = now & CC_ENABLE != 0;
        if enabled && before & CC_ENABLE == 0 {
            let sizes = (registers.admin_sizes & 0xfff, registers.admin_sizes >> 16 & 0xfff);
            let usable = now & (PAGE_SIZE | COMMAND_SET) == 0 && sizes.0 != 0 && sizes.1 != 0;
            self.doorbells.iter().for_each(|doorbell| doorbell.store(0, Ordering::Relaxed));
            self.queues.create_admin(
                (registers.admin_submission, sizes.0 + 1),
                (registers.admin_completion, sizes.1 + 1),
            );
            self.status.store(if usable { CSTS_READY } else { CSTS_FATAL }, Ordering::Release);
        } else if !enabled && before & CC_ENABLE != 0 {
            self.status.store(0, Ordering::Release);
            // Whoever works on a command holds its queue; this waits for all of them.
            self.queues.reset();
            self.status.store(0, Ordering::Release);
        }
        if now >> 14 & 3 != 0 && before >> 14 & 3 == 0 {
            // Nothing is kept back that a shutdown would have to write.
            self.status.fetch_or(CSTS_SHUTDOWN_COMPLETE, Ordering::AcqRel);
        }
    }

    fn ring(&self, doorbell: usize, value: u32) {
        let Some(place) = self.doorbells.get(doorbell) else { return };
        place.store(value, Ordering::SeqCst);
        // A completion queue's head frees entries that a full queue may be waiting for.
        self.rung.store(true, Ordering::SeqCst);
        if *self.sleepers.lock() > 0 {
            self.wake.notify_one();
        }
    }

    fn ready(&self) -> bool {
        self.status.load(Ordering::Acquire) & (CSTS_READY | CSTS_FATAL) == CSTS_READY
    }

    /// A queue or its memory is not as it must be: the controller stops.
    fn fatal(&self) {
        self.status.fetch_or(CSTS_FATAL, Ordering::AcqRel);
    }

    /// A worker's thread.
    fn work(&self) {
        let mut buffer = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            self.rung.store(false, Ordering::SeqCst);
            while self.ready() && self.serve_all(&mut buffer) {}
            self.await_doorbell();
        }
    }

    fn await_doorbell(&self) {
        /// Waking a sleeper takes longer than the next command mostly does.
        const IDLE: Duration = Duration::from_micros(50);
        let start = Instant::now();
        while start.elapsed() < IDLE {
            if self.rung.load(Ordering::SeqCst) {
                return;
            }
            std::thread::yield_now();
        }
        let mut sleepers = self.sleepers.lock();
        *sleepers += 1;
        while !self.rung.load(Ordering::SeqCst) {
            self.wake.wait(&mut sleepers);
        }
        *sleepers -= 1;
    }
}

impl DeviceModel for NvmeController {
    fn identity(&self) -> Identity {
        const NVM_EXPRESS: u32 = 0x01_0802;
        Identity {
            vendor: 0x1b36,
            device: 0x0010,
            class: NVM_EXPRESS,
            bars: vec![(0, BAR_SIZE)],
            msix_vectors: self.shared.config.io_queues + 1,
            capabilities: Vec::new(),
        }
    }

    fn connect(&self, port: Port, interrupts: Arc<dyn Interrupts>) {
        if self.shared.bus.set(Bus { port, interrupts }).is_err() {
            return;
        }
        let mut workers = self.workers.lock();
        for number in 0..self.shared.config.workers.max(1) {
            let shared = Arc::clone(&self.shared);
            let worker =
                std::thread::Builder::new().name(format!("nvme-{number}")).spawn(move || shared.work());
            workers.extend(worker);
        }
    }

    fn mmio_read(&self, _bar: u8, offset: u64, width: u8) -> u64 {
        let low = u64::from(self.shared.read(offset & !3));
        if width == 8 {
            low | u64::from(self.shared.read(offset + 4)) << 32
        } else {
            low >> (8 * (offset & 3)) & (u64::MAX >> (64 - 8 * u32::from(width)))
        }
    }

    fn mmio_write(&self, _bar: u8, offset: u64, width: u8, value: u64) {
        // Registers and doorbells are written 4 or 8 bytes at a time.
        if width >= 4 {
            self.shared.write(offset, value as u32);
        }
        if width == 8 {
            self.shared.write(offset + 4, (value >> 32) as u32);
        }
    }

    fn shutdown(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.rung.store(true, Ordering::SeqCst);
        let sleepers = self.shared.sleepers.lock();
        self.shared.wake.notify_all();
        drop(sleepers);
        for worker in self.workers.lock().drain(..) {
            // A worker that has panicked has said so.
            let _ = worker.join();
        }
    }
}

impl Drop for NvmeController {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for NvmeController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeController").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
