//! A pair of queues: commands in, completions out.

use alloc::sync::Arc;

use dma_api::{CoherentSlice, Device, dma_rmb, dma_wmb};
use platform::Mmio;

use crate::NvmeError;
use crate::command::{COMMAND_WORDS, COMPLETION_WORDS, Command, Completion};
use crate::registers::{completion_doorbell, submission_doorbell};

/// A submission queue and its completion queue, in coherent memory. The owner numbers commands and never has more
/// outstanding than [`QueuePair::capacity`].
#[derive(Debug)]
pub(crate) struct QueuePair {
    submission: CoherentSlice<u64>,
    completion: CoherentSlice<u64>,
    registers: Arc<dyn Mmio>,
    submission_doorbell: usize,
    completion_doorbell: usize,
    entries: u32,
    tail: u32,
    head: u32,
    /// What the phase tag of a new entry is in this round.
    phase: bool,
}

impl QueuePair {
    /// Queue `id` with `entries` entries (at least 2) each way.
    pub(crate) fn new(
        device: &Arc<Device>,
        registers: Arc<dyn Mmio>,
        doorbell_stride: usize,
        id: u16,
        entries: u32,
    ) -> Result<Self, NvmeError> {
        Ok(Self {
            submission: CoherentSlice::zeroed(device, entries as usize * COMMAND_WORDS)?,
            completion: CoherentSlice::zeroed(device, entries as usize * COMPLETION_WORDS)?,
            registers,
            submission_doorbell: submission_doorbell(id, doorbell_stride),
            completion_doorbell: completion_doorbell(id, doorbell_stride),
            entries,
            tail: 0,
            head: 0,
            phase: true,
        })
    }

    /// How many commands may be outstanding: a ring with all entries full would look empty.
    pub(crate) fn capacity(&self) -> u32 {
        self.entries - 1
    }

    pub(crate) fn submission_address(&self) -> u64 {
        self.submission.dma_address().get()
    }

    pub(crate) fn completion_address(&self) -> u64 {
        self.completion.dma_address().get()
    }

    /// Puts a command into the ring. The controller sees it after [`QueuePair::ring`].
    pub(crate) fn push(&mut self, command: Command, identifier: u16) {
        let first = self.tail as usize * COMMAND_WORDS;
        for (index, word) in command.words(identifier).into_iter().enumerate() {
            self.submission.write(first + index, word);
        }
        self.tail = (self.tail + 1) % self.entries;
    }

    /// Tells the controller of new commands.
    pub(crate) fn ring(&self) {
        dma_wmb();
        self.registers.write32(self.submission_doorbell, self.tail);
    }

    /// Takes the next completion, if there is one. The controller gets the entry back after
    /// [`QueuePair::release_completions`].
    pub(crate) fn pop(&mut self) -> Option<Completion> {
        let first = self.head as usize * COMPLETION_WORDS;
        // The second word carries the phase tag, which the controller writes last.
        let second = self.completion.read(first + 1);
        if Completion::phase(second) != self.phase {
            return None;
        }
        dma_rmb();
        let completion = Completion::from_words(self.completion.read(first), second);
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(completion)
    }

    /// Gives the entries of all taken completions back.
    pub(crate) fn release_completions(&self) {
        self.registers.write32(self.completion_doorbell, self.head);
    }
}
