//! An I/O queue: reads, writes and flushes, many at a time.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use dma_api::{Device, DmaBuffer, FromDevice, MapFailed, Streaming, ToDevice};
use platform::DmaAddr;
use platform::pci::Interrupt;

use crate::command::{Command, Completion};
use crate::controller::QueueNumber;
use crate::prp::{Prp, PrpList};
use crate::queue::QueuePair;
use crate::{Controller, NvmeError};

/// One I/O queue, for one thread. Commands are collected and sent when the queue is waited on or
/// [submitted](IoQueue::submit).
#[derive(Debug)]
pub struct IoQueue<'c> {
    controller: &'c Controller,
    pair: QueuePair,
    interrupt: Box<dyn Interrupt>,
    slots: Box<[Slot<'c>]>,
    free: Vec<u16>,
    unsent: bool,
    // Last: the next queue of this number gets its interrupt when this one's is gone.
    number: QueueNumber<'c>,
}

#[derive(Debug)]
struct Slot<'c> {
    list: PrpList,
    transfer: Option<Transfer<'c>>,
}

#[derive(Debug)]
enum Transfer<'c> {
    Read(Streaming<'c, DmaBuffer<u8>, FromDevice>),
    Write(Streaming<'c, DmaBuffer<u8>, ToDevice>),
    Flush,
}

/// Names an outstanding command of a queue until it is done.
pub type Tag = u16;

/// A command that ended.
#[derive(Debug)]
pub struct Done {
    /// Which one.
    pub tag: Tag,
    /// How it ended.
    pub result: Result<(), NvmeError>,
    /// The buffer of a read or write; `None` for a flush, and when taking it back from the controller failed.
    pub buffer: Option<DmaBuffer<u8>>,
}

/// A command that was not sent; the buffer comes back.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    /// Why.
    pub error: NvmeError,
    /// What was to be read into or written; `None` only when taking it back from the controller failed.
    pub buffer: Option<DmaBuffer<u8>>,
}

impl<'c> IoQueue<'c> {
    pub(crate) fn new(
        controller: &'c Controller,
        number: QueueNumber<'c>,
        pair: QueuePair,
        interrupt: Box<dyn Interrupt>,
    ) -> Self {
        let depth = u16::try_from(pair.capacity()).unwrap_or(u16::MAX);
        Self {
            controller,
            pair,
            interrupt,
            slots: (0..depth).map(|_| Slot { list: PrpList::default(), transfer: None }).collect(),
            free: (0..depth).rev().collect(),
            unsent: false,
            number,
        }
    }

    /// How many commands may be outstanding.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// How many are.
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Reads into the whole of `buffer`, from `block` on.
    ///
    /// # Errors
    /// [`Rejected`], with the buffer: the queue is full, the range is none of the disk, or the buffer could not be mapped.
    pub fn read(&mut self, block: u64, buffer: DmaBuffer<u8>) -> Result<Tag, Rejected> {
        self.transfer(block, buffer, Command::read, |device, buffer| {
            let mapped = Streaming::map(device, buffer)?;
            Ok((mapped.dma_address(), Transfer::Read(mapped)))
        })
    }

    /// Writes the whole of `buffer`, from `block` on.
    ///
    /// # Errors
    /// As [`IoQueue::read`].
    pub fn write(&mut self, block: u64, buffer: DmaBuffer<u8>) -> Result<Tag, Rejected> {
        self.transfer(block, buffer, Command::write, |device, buffer| {
            let mapped = Streaming::map(device, buffer)?;
            Ok((mapped.dma_address(), Transfer::Write(mapped)))
        })
    }

    /// Makes everything durable whose write is done.
    ///
    /// # Errors
    /// [`NvmeError::QueueFull`].
    pub fn flush(&mut self) -> Result<Tag, NvmeError> {
        let tag = self.free.pop().ok_or(NvmeError::QueueFull)?;
        self.push(tag, Transfer::Flush, Command::flush(self.controller.namespace().id));
        Ok(tag)
    }

    /// Tells the controller of the commands collected so far.
    pub fn submit(&mut self) {
        if core::mem::take(&mut self.unsent) {
            self.pair.ring();
        }
    }

    /// Sends what is collected and waits until a command ends, for `timeout` at most.
    ///
    /// # Errors
    /// [`NvmeError::TimedOut`], [`NvmeError::Fatal`] and [`NvmeError::UnexpectedCompletion`]. That a command failed is in
    /// [`Done::result`].
    pub fn wait(&mut self, timeout: Duration) -> Result<Done, NvmeError> {
        self.submit();
        let mut deadline = None;
        loop {
            if let Some(completion) = self.pair.pop() {
                self.pair.release_completions();
                return self.finish(completion);
            }
            let platform = self.controller.device().platform();
            let deadline = *deadline.get_or_insert_with(|| platform.now() + timeout);
            if self.interrupt.wait(deadline).is_err() {
                self.controller.check()?;
                return Err(NvmeError::TimedOut("complete a command"));
            }
        }
    }

    /// The number of blocks in `bytes` from `block` on, if one command can move them.
    fn check_range(&self, block: u64, bytes: usize) -> Result<u32, NvmeError> {
        let namespace = self.controller.namespace();
        let bad = NvmeError::BadRange { block, bytes };
        let whole = bytes != 0 && bytes.is_multiple_of(namespace.block_size);
        if !whole || bytes > self.controller.max_transfer() {
            return Err(bad);
        }
        let blocks = (bytes / namespace.block_size) as u32;
        match block.checked_add(u64::from(blocks)) {
            Some(end) if end <= namespace.blocks => Ok(blocks),
            _ => Err(bad),
        }
    }

    fn transfer(
        &mut self,
        block: u64,
        buffer: DmaBuffer<u8>,
        command: impl FnOnce(u32, u64, u32, Prp) -> Command,
        map: impl FnOnce(&'c Device, DmaBuffer<u8>) -> Result<(DmaAddr, Transfer<'c>), MapFailed<DmaBuffer<u8>>>,
    ) -> Result<Tag, Rejected> {
        let len = buffer.len();
        let blocks = match self.check_range(block, len) {
            Ok(blocks) => blocks,
            Err(error) => return Err(Rejected { error, buffer: Some(buffer) }),
        };
        let Some(tag) = self.free.pop() else {
            return Err(Rejected { error: NvmeError::QueueFull, buffer: Some(buffer) });
        };
        let (address, transfer) = match map(self.controller.device(), buffer) {
            Ok(mapped) => mapped,
            Err(failed) => {
                self.free.push(tag);
                return Err(Rejected { error: failed.error.into(), buffer: Some(failed.buffer) });
            }
        };
        let lists = self.controller.lists();
        match self.slots[usize::from(tag)].list.describe(lists, address.get(), len) {
            Ok(prp) => {
                self.push(tag, transfer, command(self.controller.namespace().id, block, blocks, prp));
                Ok(tag)
            }
            Err(error) => {
                self.free.push(tag);
                Err(Rejected { error, buffer: transfer.end().ok().flatten() })
            }
        }
    }

    fn push(&mut self, tag: Tag, transfer: Transfer<'c>, command: Command) {
        self.slots[usize::from(tag)].transfer = Some(transfer);
        self.pair.push(command, tag);
        self.unsent = true;
    }

    fn finish(&mut self, completion: Completion) -> Result<Done, NvmeError> {
        let tag = completion.identifier;
        let unexpected = NvmeError::UnexpectedCompletion(tag);
        let slot = self.slots.get_mut(usize::from(tag)).ok_or(unexpected)?;
        let transfer = slot.transfer.take().ok_or(unexpected)?;
        self.free.push(tag);
        let status =
            if completion.status.is_success() { Ok(()) } else { Err(NvmeError::Command(completion.status)) };
        let (result, buffer) = match transfer.end() {
            Ok(buffer) => (status, buffer),
            Err(error) => (Err(error), None),
        };
        Ok(Done { tag, result, buffer })
    }
}

impl Transfer<'_> {
    /// Takes the buffer back from the controller.
    fn end(self) -> Result<Option<DmaBuffer<u8>>, NvmeError> {
        match self {
            Self::Read(mapped) => Ok(Some(mapped.unmap()?)),
            Self::Write(mapped) => Ok(Some(mapped.unmap()?)),
            Self::Flush => Ok(None),
        }
    }
}

impl Drop for IoQueue<'_> {
    fn drop(&mut self) {
        // When the controller does not delete the queue, unmapping its memory stops it.
        let _ = self.controller.delete_io_queue(self.number.id);
    }
}
