//! The interrupt controller: vectors, and waiting for them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::bus::MessageSink;

/// The first vector that is handed out: those below are the processor's own.
const FIRST: usize = 0x20;
const VECTORS: usize = 256;

/// Takes messages at FEEx_xxxxh: bits 7:0 of the data are the vector.
pub struct InterruptController {
    lines: Vec<Arc<Line>>,
    spurious: AtomicU64,
}

#[derive(Default)]
struct Line {
    allocated: AtomicBool,
    pending: AtomicBool,
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    count: usize,
    /// The last message that came.
    last: Option<(u64, u32)>,
}

/// A vector of one's own. It goes back when dropped.
pub struct Vector {
    number: u8,
    line: Arc<Line>,
}

impl InterruptController {
    /// All vectors free.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { lines: (0..VECTORS).map(|_| Arc::default()).collect(), spurious: AtomicU64::new(0) })
    }

    /// Takes a vector, if one is free.
    pub fn allocate(&self) -> Option<Vector> {
        let free = |line: &Arc<Line>| !line.allocated.swap(true, Ordering::AcqRel);
        let number = (FIRST..VECTORS).find(|&number| free(&self.lines[number]))?;
        let line = Arc::clone(&self.lines[number]);
        line.pending.store(false, Ordering::Release);
        line.waiting.lock().last = None;
        Some(Vector { number: number as u8, line })
    }

    /// The address and data of the last message that raised a vector of somebody's. They say for which processor it was: bits
    /// 19:12 of the address, and 63:40 for the higher bits of its identifier.
    pub fn last_message(&self, vector: u8) -> Option<(u64, u32)> {
        self.lines[usize::from(vector)].waiting.lock().last
    }

    /// Messages that named a vector which nobody had.
    pub fn spurious(&self) -> u64 {
        self.spurious.load(Ordering::Relaxed)
    }
}

impl MessageSink for InterruptController {
    fn message(&self, address: u64, data: u32) {
        let line = &self.lines[data as usize & (VECTORS - 1)];
        if !line.allocated.load(Ordering::Acquire) {
            self.spurious.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut waiting = line.waiting.lock();
        waiting.last = Some((address, data));
        // Release: what the device wrote before is seen by who takes the interrupt.
        line.pending.store(true, Ordering::Release);
        if waiting.count > 0 {
            line.wake.notify_all();
        }
    }
}

impl Vector {
    /// Its number.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The address and data of the message that raises it.
    pub fn message(&self) -> (u64, u32) {
        (0xfee0_0000, u32::from(self.number))
    }

    /// Waits until it was raised since the last wait that returned true, for `timeout` at most.
    pub fn wait(&self, timeout: Duration) -> bool {
        /// Waking a sleeper takes longer than most devices need.
        const SPIN: Duration = Duration::from_micros(20);
        if self.take() {
            return true;
        }
        let start = Instant::now();
        while start.elapsed() < SPIN.min(timeout) {
            std::thread::yield_now();
            if self.take() {
                return true;
            }
        }
        let deadline = start.checked_add(timeout);
        let mut waiting = self.line.waiting.lock();
        waiting.count += 1;
        let arrived = loop {
            if self.take() {
                break true;
            }
            match deadline {
                Some(deadline) => {
                    if self.line.wake.wait_until(&mut waiting, deadline).timed_out() {
                        break self.take();
                    }
                }
                None => self.line.wake.wait(&mut waiting),
            }
        };
        waiting.count -= 1;
        arrived
    }

    fn take(&self) -> bool {
        // A look first: the exchange would take the line away from who raises it.
        self.line.pending.load(Ordering::Acquire) && self.line.pending.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.line.allocated.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector({:#x})", self.number)
    }
}

impl fmt::Debug for InterruptController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptController").field("spurious", &self.spurious()).finish_non_exhaustive()
    }
}
