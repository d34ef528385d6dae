//! What firmware got wrong without making the table useless.

use core::fmt;

use platform::pci::{PciAddress, RequesterId};

use super::SpecialKind;

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
    /// The table's bytes do not add up to zero; only [`Ivrs::decode`](super::Ivrs::decode) passes over it.
    BadChecksum {
        /// What they add up to.
        sum: u8,
    },
    /// Two blocks of one IOMMU have its registers at different addresses; the block that counts is believed.
    BaseDiffers {
        /// The IOMMU.
        unit: PciAddress,
    },
    /// An ACPI device entry in a block of type 10h or 11h, which has none; ignored, as Linux does.
    AcpiInOldBlock {
        /// Its device.
        device: u16,
    },
    /// An ACPI device without a hardware identifier; ignored.
    NoHid {
        /// Its device.
        device: u16,
    },
    /// A unique identifier of an unknown format, or of a length that its format does not have; kept as far as it goes.
    BadUid {
        /// The device.
        device: u16,
        /// The format.
        format: u8,
        /// The length in bytes.
        len: u8,
    },
    /// One IO-APIC or HPET is given two requester IDs; the first counts.
    DuplicateSpecial {
        /// What it is.
        kind: SpecialKind,
        /// The IO-APIC's identifier or the HPET's number.
        handle: u8,
    },
    /// An IO-APIC of the machine is not in the table: its interrupts cannot be remapped (`ivrs_ioapic` can name it).
    IoApicNotListed {
        /// Its identifier in the MADT.
        id: u8,
    },
    /// The table lists an IO-APIC that the machine does not have.
    IoApicUnknown {
        /// Its identifier.
        handle: u8,
        /// Its requester ID.
        device: u16,
    },
    /// No IO-APIC at 00:14.0, where the one with the legacy interrupts is.
    NoSouthbridgeIoApic,
    /// A correction names a device that no unit translates for; passed over.
    OverrideWithoutUnit {
        /// The device.
        device: PciAddress,
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
            Self::BadChecksum { .. } => "bad-checksum",
            Self::BaseDiffers { .. } => "base-differs",
            Self::AcpiInOldBlock { .. } => "acpi-in-old-block",
            Self::NoHid { .. } => "no-hid",
            Self::BadUid { .. } => "bad-uid",
            Self::DuplicateSpecial { .. } => "duplicate-special",
            Self::IoApicNotListed { .. } => "ioapic-not-listed",
            Self::IoApicUnknown { .. } => "ioapic-unknown",
            Self::NoSouthbridgeIoApic => "no-southbridge-ioapic",
            Self::OverrideWithoutUnit { .. } => "override-without-unit",
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
            Self::BadChecksum { sum } => write!(f, "the bytes add up to {sum:#04x} instead of zero"),
            Self::BaseDiffers { unit } => {
                write!(f, "blocks of {unit} have its registers at different addresses")
            }
            Self::AcpiInOldBlock { device } => {
                write!(f, "ACPI device {} in a block older than 40h ignored", RequesterId::new(device))
            }
            Self::NoHid { device } => {
                write!(f, "ACPI device {} without a hardware identifier ignored", RequesterId::new(device))
            }
            Self::BadUid { device, format, len } => {
                write!(
                    f,
                    "ACPI device {} has a unique identifier of format {format} and length {len}",
                    RequesterId::new(device)
                )
            }
            Self::DuplicateSpecial { kind, handle } => write!(f, "{kind}[{handle}] is at two devices"),
            Self::IoApicNotListed { id } => {
                write!(f, "IOAPIC[{id}] of the machine's MADT is not in the table (ivrs_ioapic= can add it)")
            }
            Self::IoApicUnknown { handle, device } => {
                write!(f, "IOAPIC[{handle}] at {} is not in the machine's MADT", RequesterId::new(device))
            }
            Self::NoSouthbridgeIoApic => write!(f, "no IO-APIC is at 00:14.0, the southbridge"),
            Self::OverrideWithoutUnit { device } => {
                write!(f, "no unit translates for {device}: the correction is ignored")
            }
            Self::ExclusionAsUnity { start, len } => {
                write!(f, "excluded memory at {start:#x}, {len:#x} bytes, is mapped directly instead")
            }
        }
    }
}
