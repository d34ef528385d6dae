//! Moves a disk through the driver: several queues, each on a thread of its own, each with many commands at a time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dma_api::{DmaBuffer, DmaError};
use nvme_driver::{Controller, IoQueue, NvmeError};

/// Commands outstanding in each queue.
pub(crate) const DEPTH: u32 = 32;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Requests, bytes and time of a series of transfers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

impl Tally {
    /// Millions of bytes a second.
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9) / 1e6
    }

    /// Requests a second.
    pub(crate) fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64().max(1e-9)
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.time += other.time;
    }
}

/// A stretch of the disk, moved in pieces of `chunk` bytes; the last piece may be shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    /// First byte, a multiple of the block size.
    pub(crate) start: u64,
    /// Length in bytes, a multiple of the block size.
    pub(crate) len: u64,
    /// Bytes in a request, a multiple of the block size.
    pub(crate) chunk: usize,
}

impl Stretch {
    fn chunks(&self) -> u64 {
        self.len.div_ceil(self.chunk as u64)
    }

    fn chunk_len(&self, index: u64) -> usize {
        (self.len - index * self.chunk as u64).min(self.chunk as u64) as usize
    }
}

/// Which way a stretch is moved, and what is done with each buffer.
pub(crate) enum Move<'a> {
    /// Read, and throw the data away.
    Read,
    /// Read, and keep each buffer with its place on the disk.
    Keep(&'a Mutex<Vec<(u64, DmaBuffer<u8>)>>),
    /// Fill the buffer for its place on the disk, and write it.
    Write(&'a (dyn Fn(u64, &mut [u8]) + Sync)),
}

/// The driver's queues and the buffers that move through them.
pub(crate) struct Mover<'c> {
    controller: &'c Controller,
    queues: Vec<IoQueue<'c>>,
    buffers: Mutex<Vec<DmaBuffer<u8>>>,
}

impl<'c> Mover<'c> {
    /// All I/O queues of `controller`.
    pub(crate) fn new(controller: &'c Controller) -> Result<Self, NvmeError> {
        let queues =
            (1..=controller.queues()).map(|id| controller.io_queue(id, DEPTH)).collect::<Result<_, _>>()?;
        Ok(Self { controller, queues, buffers: Mutex::new(Vec::new()) })
    }

    /// The first queue, for single commands.
    pub(crate) fn first(&mut self) -> &mut IoQueue<'c> {
        &mut self.queues[0]
    }

    /// Moves a stretch and says how long that took.
    pub(crate) fn run(&mut self, stretch: Stretch, how: &Move<'_>) -> Result<Tally, NvmeError> {
        let next = AtomicU64::new(0);
        let (controller, buffers) = (self.controller, &self.buffers);
        let start = Instant::now();
        let results: Vec<Result<(), NvmeError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .queues
                .iter_mut()
                .map(|queue| scope.spawn(|| work(controller, queue, buffers, &next, stretch, how)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let time = start.elapsed();
        results.into_iter().collect::<Result<(), _>>()?;
        Ok(Tally { requests: stretch.chunks(), bytes: stretch.len, time })
    }

    /// Takes buffers back that [`Move::Keep`] kept.
    pub(crate) fn recycle(&mut self, buffers: impl IntoIterator<Item = DmaBuffer<u8>>) {
        lock(&self.buffers).extend(buffers);
    }

    /// Sends one flush and waits for it.
    pub(crate) fn flush(&mut self) -> Result<(), NvmeError> {
        let queue = self.first();
        queue.flush()?;
        queue.wait(COMMAND_TIMEOUT)?.result
    }

    /// Reads one piece on the calling thread.
    pub(crate) fn read_one(&mut self, at: u64, len: usize) -> Result<DmaBuffer<u8>, NvmeError> {
        let block_size = self.controller.namespace().block_size as u64;
        let buffer = DmaBuffer::zeroed(self.controller.device(), len)?;
        let queue = self.first();
        queue.read(at / block_size, buffer).map_err(|rejected| rejected.error)?;
        let done = queue.wait(COMMAND_TIMEOUT)?;
        done.result?;
        done.buffer.ok_or(NvmeError::Dma(DmaError::Gone))
    }
}

/// One queue's thread: keeps the queue full until no piece is left.
fn work(
    controller: &Controller,
    queue: &mut IoQueue<'_>,
    buffers: &Mutex<Vec<DmaBuffer<u8>>>,
    next: &AtomicU64,
    stretch: Stretch,
    how: &Move<'_>,
) -> Result<(), NvmeError> {
    let block_size = controller.namespace().block_size as u64;
    let mut own: Vec<DmaBuffer<u8>> = Vec::new();
    let mut places = HashMap::new();
    let outcome = loop {
        while queue.outstanding() < queue.depth() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= stretch.chunks() {
                break;
            }
            let len = stretch.chunk_len(index);
            let mut buffer = match own.iter().position(|buffer| buffer.len() == len) {
                Some(at) => own.swap_remove(at),
                None => take(controller, buffers, len)?,
            };
            let at = stretch.start + index * stretch.chunk as u64;
            let sent = match how {
                Move::Read | Move::Keep(_) => queue.read(at / block_size, buffer),
                Move::Write(fill) => {
                    fill(at, &mut buffer);
                    queue.write(at / block_size, buffer)
                }
            };
            places.insert(sent.map_err(|rejected| rejected.error)?, at);
        }
        if queue.outstanding() == 0 {
            break Ok(());
        }
        let done = queue.wait(COMMAND_TIMEOUT)?;
        let at = places.remove(&done.tag).unwrap_or_default();
        if let Err(error) = done.result {
            break Err(error);
        }
        match (how, done.buffer) {
            (Move::Keep(kept), Some(buffer)) => lock(kept).push((at, buffer)),
            (_, Some(buffer)) => own.push(buffer),
            (_, None) => {}
        }
    };
    lock(buffers).append(&mut own);
    outcome
}

fn take(
    controller: &Controller,
    buffers: &Mutex<Vec<DmaBuffer<u8>>>,
    len: usize,
) -> Result<DmaBuffer<u8>, DmaError> {
    let mut free = lock(buffers);
    match free.iter().position(|buffer| buffer.len() == len) {
        Some(at) => Ok(free.swap_remove(at)),
        None => DmaBuffer::zeroed(controller.device(), len),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
