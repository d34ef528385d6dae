//! The flush queue of lazy mode (Linux: `struct iova_fq`): ranges that were unmapped and wait for an invalidation.
//!
//! A range may be used again only after a flush that *started* after it was queued has *finished*. Two counters say so: a
//! range is queued with the number of flushes started, and is free once more flushes have finished than that.

use alloc::collections::{TryReserveError, VecDeque};

use platform::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use platform::sync::{PerCpu, fence_after_lock};
use platform::{DmaAddr, Flushed, FrameList, Instant};

use crate::domain::Domain;
use crate::iova::IovaDomain;
use crate::ops::SyncError;

/// How a domain's ranges wait (Linux: `enum iommu_dma_queue_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum QueueMode {
    /// In a short queue per CPU, until the next tick (Linux: `IOMMU_DMA_OPTS_PER_CPU_QUEUE`).
    PerCpu,
    /// All in one long queue, for an IOMMU whose flushes are dear (Linux: `IOMMU_DMA_OPTS_SINGLE_QUEUE`).
    Single,
}

impl QueueMode {
    /// Ranges that a queue holds before it must flush (Linux: `IOVA_DEFAULT_FQ_SIZE`, `IOVA_SINGLE_FQ_SIZE`).
    const fn capacity(self) -> usize {
        match self {
            // A model's is full with two.
            _ if cfg!(loom) => 2,
            Self::PerCpu => 256,
            Self::Single => 32768,
        }
    }

    /// How long a range waits at least, unless the queue is full, in nanoseconds (Linux: `IOVA_DEFAULT_FQ_TIMEOUT`, which is
    /// what a tick is here, and `IOVA_SINGLE_FQ_TIMEOUT`).
    const fn timeout(self) -> u64 {
        match self {
            Self::PerCpu => 0,
            Self::Single => 1_000_000_000,
        }
    }
}

#[derive(Debug)]
struct Entry {
    at: DmaAddr,
    len: u64,
    tables: FrameList,
    /// Flushes that had started when it was queued.
    counter: u64,
}

/// Ranges that wait.
#[derive(Debug)]
pub(crate) struct FlushQueue {
    mode: QueueMode,
    queues: PerCpu<VecDeque<Entry>>,
    started: AtomicU64,
    finished: AtomicU64,
    /// Whether anything was queued since the last flush of the timer.
    armed: AtomicBool,
    /// When a tick first found it so, in nanoseconds; `u64::MAX` if none has.
    armed_at: AtomicU64,
    quarantined: AtomicU64,
    failed: AtomicBool,
}

impl FlushQueue {
    /// A queue for which there is no room yet: see [`FlushQueue::make_room`].
    pub(crate) fn new(mode: QueueMode, cpus: usize) -> Self {
        let queues = if mode == QueueMode::Single { 1 } else { cpus };
        Self {
            mode,
            queues: PerCpu::new(queues, |_| VecDeque::new()),
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            armed_at: AtomicU64::new(u64::MAX),
            quarantined: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Allocates the queues, before the domain becomes lazy: an unmap allocates nothing (Linux: `iommu_dma_init_fq`).
    pub(crate) fn make_room(&self) -> Result<(), TryReserveError> {
        self.queues.iter().try_for_each(|mut queue| queue.try_reserve_exact(self.mode.capacity()))
    }

    /// Queues a range that is unmapped, with the table pages that its unmap took out. When the queue is full it is flushed
    /// first.
    pub(crate) fn push(&self, domain: &Domain, iovas: &IovaDomain, at: DmaAddr, len: u64, tables: FrameList) {
        let mut queue = self.queues.lock();
        // The unmap's writes come before reading the counters: a flush that starts later sees them.
        fence_after_lock();
        self.free_finished(domain, iovas, &mut queue);
        while queue.len() >= self.mode.capacity() {
            // Nobody waits for an IOMMU with the lock held, so others may fill the queue meanwhile.
            drop(queue);
            let flushed = self.flush(domain);
            queue = self.queues.lock();
            match flushed {
                Ok(()) => self.free_finished(domain, iovas, &mut queue),
                Err(SyncError) => self.quarantine_all(domain, &mut queue),
            }
        }
        queue.push_back(Entry { at, len, tables, counter: self.started.load(Ordering::Acquire) });
        drop(queue);
        if !self.armed.load(Ordering::Relaxed) {
            self.armed.swap(true, Ordering::Relaxed);
        }
    }

    /// What Linux's timer does: flush once, then free what that allows.
    pub(crate) fn tick(&self, domain: &Domain, iovas: &IovaDomain, now: Instant) {
        if !self.armed.load(Ordering::Relaxed) {
            return;
        }
        let armed_at = self.armed_at.load(Ordering::Relaxed).min(now.as_nanos());
        if now.as_nanos() - armed_at < self.mode.timeout() {
            self.armed_at.store(armed_at, Ordering::Relaxed);
        } else if self.armed.swap(false, Ordering::Relaxed) {
            self.armed_at.store(u64::MAX, Ordering::Relaxed);
            self.drain(domain, iovas);
        }
    }

    /// Flushes and frees everything queued before the call. When the flush fails nothing in the queues is ever used again.
    pub(crate) fn drain(&self, domain: &Domain, iovas: &IovaDomain) {
        let flushed = self.flush(domain);
        for mut queue in self.queues.iter() {
            match flushed {
                Ok(()) => self.free_finished(domain, iovas, &mut queue),
                Err(SyncError) => self.quarantine_all(domain, &mut queue),
            }
        }
    }

    /// Whether a flush has failed: the devices of the domain must be blocked.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Bytes of I/O addresses that will never be used again.
    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Ranges that wait now.
    pub(crate) fn waiting(&self) -> u64 {
        self.queues.iter().map(|queue| queue.len() as u64).sum()
    }

    fn flush(&self, domain: &Domain) -> Result<(), SyncError> {
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        // Paired with that of `push`: who queued before the flush started has its unmap seen by the flush.
        fence(Ordering::SeqCst);
        match domain.flush_all() {
            // Flushes of several CPUs may finish out of turn: each covers what was queued before it started.
            Ok(_flushed) => {
                self.finished.fetch_max(number, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                self.failed.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    fn free_finished(&self, domain: &Domain, iovas: &IovaDomain, queue: &mut VecDeque<Entry>) {
        let finished = self.finished.load(Ordering::Acquire);
        while queue.front().is_some_and(|entry| entry.counter < finished) {
            if let Some(entry) = queue.pop_front() {
                // SAFETY: a flush of the whole domain that started after the range was queued has finished.
                let flushed = unsafe { Flushed::assert() };
                if !entry.tables.is_empty() {
                    // SAFETY: for the same reason no IOMMU remembers the table pages.
                    unsafe { domain.free_tables(entry.tables) };
                }
                iovas.free(entry.at, entry.len, &flushed);
            }
        }
    }

    /// Gives up what waits: it is leaked and counted.
    #[cold]
    fn quarantine_all(&self, domain: &Domain, queue: &mut VecDeque<Entry>) {
        for entry in queue.drain(..) {
            self.quarantined.fetch_add(entry.len, Ordering::Relaxed);
            domain.leaks().add(1 + entry.tables.len() as u64);
        }
    }
}
