//! Commands and completions (NVM Express 1.4, sections 4.2 to 4.6).

use core::fmt;

use crate::prp::Prp;

/// Words of 64 bits in a submission entry.
pub(crate) const COMMAND_WORDS: usize = 8;
/// Words of 64 bits in a completion entry.
pub(crate) const COMPLETION_WORDS: usize = 2;

mod opcode {
    pub(super) const DELETE_SUBMISSION_QUEUE: u64 = 0x00;
    pub(super) const CREATE_SUBMISSION_QUEUE: u64 = 0x01;
    pub(super) const DELETE_COMPLETION_QUEUE: u64 = 0x04;
    pub(super) const CREATE_COMPLETION_QUEUE: u64 = 0x05;
    pub(super) const IDENTIFY: u64 = 0x06;
    pub(super) const SET_FEATURES: u64 = 0x09;
    pub(super) const FLUSH: u64 = 0x00;
    pub(super) const WRITE: u64 = 0x01;
    pub(super) const READ: u64 = 0x02;
}

/// One submission entry, the command identifier left to the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Command([u64; COMMAND_WORDS]);

impl Command {
    fn new(opcode: u64, namespace: u32, prp: Prp) -> Self {
        Self([opcode | u64::from(namespace) << 32, 0, 0, prp.first, prp.second, 0, 0, 0])
    }

    /// Sets dwords 10 and 11.
    fn dwords_10_11(mut self, dword_10: u32, dword_11: u32) -> Self {
        self.0[5] = u64::from(dword_10) | u64::from(dword_11) << 32;
        self
    }

    /// Identify: the controller (`what` 1) or a namespace (`what` 0).
    pub(crate) fn identify(namespace: u32, what: u32, prp: Prp) -> Self {
        Self::new(opcode::IDENTIFY, namespace, prp).dwords_10_11(what, 0)
    }

    /// Set Features, Number of Queues: how many I/O queues of each kind are wanted, from 1.
    pub(crate) fn set_queue_count(queues: u16) -> Self {
        const NUMBER_OF_QUEUES: u32 = 0x07;
        let count = u32::from(queues - 1);
        Self::new(opcode::SET_FEATURES, 0, Prp::default()).dwords_10_11(NUMBER_OF_QUEUES, count << 16 | count)
    }

    /// Create I/O Completion Queue, contiguous, with interrupt `vector`.
    pub(crate) fn create_completion_queue(id: u16, entries: u32, address: u64, vector: u16) -> Self {
        const CONTIGUOUS: u32 = 1 << 0;
        const INTERRUPTS: u32 = 1 << 1;
        Self::new(opcode::CREATE_COMPLETION_QUEUE, 0, Prp { first: address, second: 0 }).dwords_10_11(
            (entries - 1) << 16 | u32::from(id),
            u32::from(vector) << 16 | INTERRUPTS | CONTIGUOUS,
        )
    }

    /// Create I/O Submission Queue, contiguous, whose completions go to the completion queue of the same number.
    pub(crate) fn create_submission_queue(id: u16, entries: u32, address: u64) -> Self {
        const CONTIGUOUS: u32 = 1 << 0;
        Self::new(opcode::CREATE_SUBMISSION_QUEUE, 0, Prp { first: address, second: 0 })
            .dwords_10_11((entries - 1) << 16 | u32::from(id), u32::from(id) << 16 | CONTIGUOUS)
    }

    pub(crate) fn delete_submission_queue(id: u16) -> Self {
        Self::new(opcode::DELETE_SUBMISSION_QUEUE, 0, Prp::default()).dwords_10_11(u32::from(id), 0)
    }

    pub(crate) fn delete_completion_queue(id: u16) -> Self {
        Self::new(opcode::DELETE_COMPLETION_QUEUE, 0, Prp::default()).dwords_10_11(u32::from(id), 0)
    }

    fn transfer(opcode: u64, namespace: u32, block: u64, blocks: u32, prp: Prp) -> Self {
        let mut command = Self::new(opcode, namespace, prp).dwords_10_11(block as u32, (block >> 32) as u32);
        command.0[6] = u64::from(blocks - 1) & 0xffff;
        command
    }

    /// Read `blocks` (1 to 65,536) blocks from `block` on.
    pub(crate) fn read(namespace: u32, block: u64, blocks: u32, prp: Prp) -> Self {
        Self::transfer(opcode::READ, namespace, block, blocks, prp)
    }

    /// Write `blocks` (1 to 65,536) blocks from `block` on.
    pub(crate) fn write(namespace: u32, block: u64, blocks: u32, prp: Prp) -> Self {
        Self::transfer(opcode::WRITE, namespace, block, blocks, prp)
    }

    /// Make what was written durable.
    pub(crate) fn flush(namespace: u32) -> Self {
        Self::new(opcode::FLUSH, namespace, Prp::default())
    }

    /// The entry with its identifier.
    pub(crate) fn words(self, identifier: u16) -> [u64; COMMAND_WORDS] {
        let mut words = self.0;
        words[0] |= u64::from(identifier) << 16;
        words
    }
}

/// One completion entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Completion {
    /// Command-specific result (dword 0).
    pub(crate) result: u32,
    /// How far the controller has read the submission queue.
    pub(crate) submission_head: u16,
    /// Which command this is the end of.
    pub(crate) identifier: u16,
    pub(crate) status: CommandStatus,
}

impl Completion {
    /// The phase tag, in the entry's second word.
    pub(crate) fn phase(second: u64) -> bool {
        second >> 48 & 1 != 0
    }

    pub(crate) fn from_words(first: u64, second: u64) -> Self {
        Self {
            result: first as u32,
            submission_head: second as u16,
            identifier: (second >> 32) as u16,
            status: CommandStatus((second >> 49) as u16),
        }
    }
}

/// How a command ended: the status field of its completion without the phase tag.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CommandStatus(u16);

impl CommandStatus {
    /// Whether the command did what it was asked to.
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// The status code type: 0 generic, 1 command specific, 2 media and data integrity.
    pub const fn code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// The status code.
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Whether trying again is useless.
    pub const fn do_not_retry(self) -> bool {
        self.0 >> 14 & 1 != 0
    }

    fn name(self) -> &'static str {
        match (self.code_type(), self.code()) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid command opcode",
            (0, 0x02) => "invalid field in command",
            (0, 0x04) => "data transfer error",
            (0, 0x06) => "internal error",
            (0, 0x07) => "command abort requested",
            (0, 0x08) => "aborted: submission queue deleted",
            (0, 0x0b) => "invalid namespace or format",
            (0, 0x13) => "invalid PRP offset",
            (0, 0x20) => "namespace is write protected",
            (0, 0x80) => "LBA out of range",
            (1, 0x01) => "invalid queue identifier",
            (1, 0x02) => "invalid queue size",
            (1, 0x08) => "invalid interrupt vector",
            (1, 0x82) => "attempted write to read only range",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            _ => "unknown status",
        }
    }
}

impl fmt::Display for CommandStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (type {}, code {:#04x})", self.name(), self.code_type(), self.code())
    }
}

impl fmt::Debug for CommandStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
