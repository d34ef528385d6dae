//! What firmware got wrong without making the table useless.

use core::fmt;

/// A mistake that was passed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A block of a type that this driver does not know; skipped by its length.
    UnknownBlock {
        /// Its type.
        kind: u8,
        /// Its offset in the table.
        at: usize,
    },
    /// A device entry of a type that this driver does not know; skipped by the length that its type implies.
    UnknownEntry {
        /// Its type.
        kind: u8,
        /// Its offset in its block.
        at: usize,
    },
    /// A device entry reaches over the end of its block; the rest of the block is ignored.
    TruncatedEntry {
        /// Its type.
        kind: u8,
        /// Its offset in its block.
        at: usize,
    },
    /// A range was started and never ended, or a new one started first; ignored.
    RangeWithoutEnd {
        /// The first device of the range.
        first: u16,
    },
    /// A range end without a start; ignored.
    RangeWithoutStart {
        /// The device of the range end.
        last: u16,
    },
    /// A range that ends before it starts; ignored.
    RangeBackwards {
        /// The first device.
        first: u16,
        /// The last device.
        last: u16,
    },
    /// A special device of a variety other than IO-APIC and HPET; ignored.
    UnknownSpecial {
        /// Its variety.
        variety: u8,
    },
    /// Memory of no length, or memory that leaves the address space; ignored when directly mapped.
    BadMemory {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// An exclusion range; mapped directly for reading and writing instead, as Linux does.
    ExclusionAsUnity {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Warning {
    /// A short name that does not change: what a tool prints and a test looks for.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownBlock { .. } => "unknown-block",
            Self::UnknownEntry { .. } => "unknown-entry",
            Self::TruncatedEntry { .. } => "truncated-entry",
            Self::RangeWithoutEnd { .. } => "range-without-end",
            Self::RangeWithoutStart { .. } => "range-without-start",
            Self::RangeBackwards { .. } => "range-backwards",
            Self::UnknownSpecial { .. } => "unknown-special",
            Self::BadMemory { .. } => "bad-memory",
            Self::ExclusionAsUnity { .. } => "exclusion-as-unity",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name())?;
        match *self {
            Self::UnknownBlock { kind, at } => {
                write!(f, "block of type {kind:#04x} at offset {at:#x} skipped")
            }
            Self::UnknownEntry { kind, at } => {
                write!(f, "entry of type {kind:#04x} at offset {at:#x} skipped")
            }
            Self::TruncatedEntry { kind, at } => {
                write!(f, "entry of type {kind:#04x} at offset {at:#x} leaves its block; the rest is ignored")
            }
            Self::RangeWithoutEnd { first } => write!(f, "range from device {first:#06x} has no end"),
            Self::RangeWithoutStart { last } => write!(f, "range to device {last:#06x} has no start"),
            Self::RangeBackwards { first, last } => {
                write!(f, "range of devices {first:#06x} to {last:#06x} runs backwards")
            }
            Self::UnknownSpecial { variety } => write!(f, "special device of variety {variety} ignored"),
            Self::BadMemory { start, len } => {
                write!(f, "memory at {start:#x} has the impossible length {len:#x}")
            }
            Self::ExclusionAsUnity { start, len } => {
                write!(f, "excluded memory at {start:#x}, {len:#x} bytes, is mapped directly instead")
            }
        }
    }
}
