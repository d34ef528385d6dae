//! The flush queue of lazy mode (Linux: `struct iova_fq`): ranges that were unmapped and wait for an invalidation.
//!
//! A range may be used again only after a flush that *started* after it was queued has *finished*. Two counters say so: a
//! range is queued with the number of flushes started, and is free once more flushes have finished than that.

use alloc::collections::VecDeque;

use platform::sync::PerCpu;
use platform::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use platform::{DmaAddr, Flushed, FrameList};

use crate::domain::Domain;
use crate::iova::IovaDomain;
use crate::ops::SyncError;

/// Ranges that a CPU's queue holds before it must flush (Linux: `IOVA_DEFAULT_FQ_SIZE`).
const CAPACITY: usize = 256;

#[derive(Debug)]
struct Entry {
    at: DmaAddr,
    len: u64,
    tables: FrameList,
    /// Flushes that had started when it was queued.
    counter: u64,
}

/// Ranges that wait, per CPU.
#[derive(Debug)]
pub(crate) struct FlushQueue {
    queues: PerCpu<VecDeque<Entry>>,
    started: AtomicU64,
    finished: AtomicU64,
    /// Whether anything was queued since the last flush of the timer.
    armed: AtomicBool,
    quarantined: AtomicU64,
    failed: AtomicBool,
}

impl FlushQueue {
    pub(crate) fn new(cpus: usize) -> Self {
        Self {
            queues: PerCpu::new(cpus, |_| VecDeque::with_capacity(CAPACITY)),
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            quarantined: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// Queues a range that is unmapped, with the table pages that its unmap took out. When the queue is full it is flushed
    /// first.
    pub(crate) fn push(&self, domain: &Domain, iovas: &IovaDomain, at: DmaAddr, len: u64, tables: FrameList) {
        // The unmap's writes come before reading the counter: a flush that started later sees them.
        fence(Ordering::SeqCst);
        let mut queue = self.queues.lock();
        self.free_finished(domain, iovas, &mut queue);
        while queue.len() >= CAPACITY {
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

    /// What Linux's timer does every 10 ms: flush once, then free what that allows.
    pub(crate) fn tick(&self, domain: &Domain, iovas: &IovaDomain) {
        if self.armed.swap(false, Ordering::Relaxed) {
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
                // SAFETY: for the same reason no IOMMU remembers the table pages.
                unsafe { entry.tables.free(&**domain.platform()) };
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
