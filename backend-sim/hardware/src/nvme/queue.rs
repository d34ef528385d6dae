//! Submission and completion queues in the host's memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::Shared;
use super::status::Status;
use crate::bus::Port;

/// A submission entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command([u64; 8]);

impl Command {
    pub(super) fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    pub(super) fn identifier(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    pub(super) fn namespace(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// Whether data is described by PRP entries, and the command is no part of a fused one.
    pub(super) fn is_plain(&self) -> bool {
        self.0[0] >> 8 & 0xc3 == 0
    }

    pub(super) fn prp(&self) -> (u64, u64) {
        (self.0[3], self.0[4])
    }

    /// Command dword 10 to 15.
    pub(super) fn dword(&self, number: usize) -> u32 {
        (self.0[number / 2] >> (32 * (number % 2))) as u32
    }
}

/// A ring in the host's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pub(super) base: u64,
    pub(super) entries: u32,
}

/// A submission queue.
pub(super) struct Submission {
    ring: Ring,
    head: u32,
    pub(super) completion: u16,
}

/// A completion queue.
pub(super) struct Completion {
    ring: Ring,
    tail: u32,
    phase: bool,
    /// Its vector, if it interrupts at all.
    vector: Option<u16>,
}

type Slot<T> = Arc<Mutex<Option<T>>>;

/// All queues, by number; 0 are the admin queues.
pub(super) struct Queues {
    pub(super) submission: Vec<Slot<Submission>>,
    pub(super) completion: Vec<Slot<Completion>>,
}

impl Queues {
    pub(super) fn new(count: usize) -> Self {
        Self {
            submission: (0..count).map(|_| Slot::default()).collect(),
            completion: (0..count).map(|_| Slot::default()).collect(),
        }
    }

    pub(super) fn create_admin(&self, submission: (u64, u32), completion: (u64, u32)) {
        let ring = |(base, entries): (u64, u32)| Ring { base, entries };
        *self.submission[0].lock() = Some(Submission { ring: ring(submission), head: 0, completion: 0 });
        *self.completion[0].lock() =
            Some(Completion { ring: ring(completion), tail: 0, phase: true, vector: Some(0) });
    }

    pub(super) fn create_completion(&self, id: u16, ring: Ring, vector: Option<u16>) {
        *self.completion[usize::from(id)].lock() = Some(Completion { ring, tail: 0, phase: true, vector });
    }

    pub(super) fn create_submission(&self, id: u16, ring: Ring, completion: u16) {
        *self.submission[usize::from(id)].lock() = Some(Submission { ring, head: 0, completion });
    }

    /// Forgets all queues, once nobody works on them.
    pub(super) fn reset(&self) {
        self.submission.iter().for_each(|queue| *queue.lock() = None);
        self.completion.iter().for_each(|queue| *queue.lock() = None);
    }
}

impl Shared {
    /// Serves every submission queue once; true when there was anything to do.
    pub(super) fn serve_all(&self, buffer: &mut Vec<u8>) -> bool {
        let count = self.doorbells.len() / 2;
        let mut busy = false;
        for id in 0..count {
            busy |= self.serve(id as u16, buffer);
        }
        busy
    }

    /// Takes the commands that a submission queue has, and completes them.
    fn serve(&self, id: u16, buffer: &mut Vec<u8>) -> bool {
        let Some(bus) = self.bus.get() else { return false };
        let slot = Arc::clone(&self.queues.submission[usize::from(id)]);
        // Somebody else works on it: he will see what is new.
        let Some(mut guard) = slot.try_lock() else { return false };
        let Some(queue) = guard.as_mut() else { return false };
        let tail = self.doorbells[2 * usize::from(id)].load(Ordering::SeqCst);
        if tail >= queue.ring.entries {
            self.fatal();
            return false;
        }
        if queue.head == tail || !self.ready() {
            return false;
        }
        // What is in one piece, up to the end of the ring, is read at once.
        let end = if tail > queue.head { tail } else { queue.ring.entries };
        let mut bytes = vec![0; (end - queue.head) as usize * 64];
        if bus.port.read(queue.ring.base + 64 * u64::from(queue.head), &mut bytes).is_err() {
            self.fatal();
            return false;
        }
        let mut done = 0;
        for entry in bytes.chunks_exact(64) {
            let mut words = [0; 8];
            for (word, bytes) in words.iter_mut().zip(entry.chunks_exact(8)) {
                *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            }
            let command = Command(words);
            let head = (queue.head + 1) % queue.ring.entries;
            queue.head = head;
            let outcome = if id == 0 {
                self.admin(&bus.port, &command)
            } else {
                self.io(&bus.port, &command, buffer).map(|()| 0)
            };
            // A command may be held for ever: an asynchronous event request.
            let completed = match outcome {
                Err(Held::Held) => true,
                Ok(result) => self.complete(&bus.port, id, queue, &command, result, Status::SUCCESS),
                Err(Held::Failed(status)) => self.complete(&bus.port, id, queue, &command, 0, status),
            };
            if !completed {
                self.fatal();
                return false;
            }
            done += 1;
            // The others need not wait for a whole batch of data.
            if id != 0 && done % 4 == 0 {
                self.interrupt(queue.completion);
            }
        }
        self.interrupt(queue.completion);
        true
    }

    /// Writes a completion entry; waits while the queue is full. False when that is impossible.
    fn complete(
        &self,
        port: &Port,
        id: u16,
        submission: &Submission,
        command: &Command,
        result: u32,
        status: Status,
    ) -> bool {
        let slot = Arc::clone(&self.queues.completion[usize::from(submission.completion)]);
        loop {
            let mut guard = slot.lock();
            let Some(queue) = guard.as_mut() else { return false };
            let head = self.doorbells[2 * usize::from(submission.completion) + 1].load(Ordering::SeqCst);
            let next = (queue.tail + 1) % queue.ring.entries;
            if next == head {
                // The host is told of what is there, and makes room.
                drop(guard);
                self.interrupt(submission.completion);
                if self.stop.load(Ordering::Acquire) || !self.ready() {
                    return false;
                }
                std::thread::yield_now();
                continue;
            }
            let mut entry = [0; 16];
            entry[0..4].copy_from_slice(&result.to_le_bytes());
            entry[8..10].copy_from_slice(&(submission.head as u16).to_le_bytes());
            entry[10..12].copy_from_slice(&id.to_le_bytes());
            entry[12..14].copy_from_slice(&command.identifier().to_le_bytes());
            // The phase tag is in the last piece that memory sees.
            entry[14..16].copy_from_slice(&(status.0 << 1 | u16::from(queue.phase)).to_le_bytes());
            if port.write(queue.ring.base + 16 * u64::from(queue.tail), &entry).is_err() {
                return false;
            }
            queue.tail = next;
            if next == 0 {
                queue.phase = !queue.phase;
            }
            return true;
        }
    }

    fn interrupt(&self, completion: u16) {
        let slot = Arc::clone(&self.queues.completion[usize::from(completion)]);
        let vector = slot.lock().as_ref().and_then(|queue| queue.vector);
        if let (Some(vector), Some(bus)) = (vector, self.bus.get()) {
            bus.interrupts.raise(vector);
        }
    }
}

/// Why a command has no result.
pub(super) enum Held {
    /// It is kept until something happens.
    Held,
    /// It failed.
    Failed(Status),
}

impl From<Status> for Held {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}
