//! The MADT, as far as it is needed to see whether the IVRS names the machine's IO-APICs.

use alloc::vec::Vec;

use platform::pci::RequesterId;

use super::bytes::Bytes;
use super::{DeviceEntry, Ivrs, SpecialKind, Warning};

/// The IO-APICs that the MADT (`APIC` table) lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Madt {
    /// Their identifiers in the table's order.
    pub io_apics: Vec<u8>,
}

/// Why a table is no MADT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MadtError {
    /// Fewer bytes than a header has, or than its length field says.
    #[error("the MADT has {have} bytes where {need} are needed")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that should be.
        need: usize,
    },
    /// The signature is not `APIC`.
    #[error("the table's signature is not APIC")]
    Signature,
    /// A structure is shorter than its header or leaves the table.
    #[error("the structure at offset {at:#x} of the MADT has an impossible length")]
    Structure {
        /// Its offset in the table.
        at: usize,
    },
}

impl Madt {
    /// Parses the table that `table` starts with. Its checksum is not looked at: this driver takes nothing from it but
    /// warnings.
    ///
    /// # Errors
    /// [`MadtError`] when it makes no sense.
    pub fn parse(table: &[u8]) -> Result<Self, MadtError> {
        const HEADER: usize = 44;
        const IO_APIC: u8 = 1;
        let whole = Bytes::new(table);
        let truncated = |need| MadtError::Truncated { have: table.len(), need };
        if whole.array::<4>(0).ok_or(truncated(HEADER))? != *b"APIC" {
            return Err(MadtError::Signature);
        }
        let length = whole.u32(4).ok_or(truncated(HEADER))? as usize;
        let bytes = whole.slice(0, length.max(HEADER)).ok_or(truncated(length.max(HEADER)))?;
        let mut io_apics = Vec::new();
        let mut at = HEADER;
        while at < bytes.len() {
            let structure = bytes.u8(at + 1).and_then(|len| bytes.slice(at, usize::from(len)));
            let structure = structure.filter(|it| it.len() >= 2).ok_or(MadtError::Structure { at })?;
            if structure.u8(0) == Some(IO_APIC) {
                io_apics.push(structure.u8(2).ok_or(MadtError::Structure { at })?);
            }
            at += structure.len();
        }
        Ok(Self { io_apics })
    }
}

impl Ivrs {
    /// The requester ID of the IO-APIC that holds the machine's legacy interrupts.
    const SOUTHBRIDGE: u16 = RequesterId::from_parts(0, 0x14, 0).get();

    /// What keeps this table from being used for interrupt remapping: IO-APICs that it does not name, or names otherwise
    /// than the machine's MADT (Linux: `check_ioapic_information`).
    #[doc(alias = "check_ioapic_information")]
    pub fn check_io_apics(&self, madt: Option<&Madt>) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let listed: Vec<(u8, u16)> = self
            .units()
            .into_iter()
            .flat_map(|unit| &unit.entries)
            .filter_map(|entry| match *entry {
                DeviceEntry::Special { kind: SpecialKind::IoApic, handle, device, .. } => {
                    Some((handle, device))
                }
                _ => None,
            })
            .collect();
        if let Some(madt) = madt {
            let unlisted = madt.io_apics.iter().filter(|id| !listed.iter().any(|(handle, _)| handle == *id));
            warnings.extend(unlisted.map(|&id| Warning::IoApicNotListed { id }));
            let unknown = listed.iter().filter(|(handle, _)| !madt.io_apics.contains(handle));
            warnings.extend(unknown.map(|&(handle, device)| Warning::IoApicUnknown { handle, device }));
        }
        if !listed.iter().any(|&(_, device)| device == Self::SOUTHBRIDGE) {
            warnings.push(Warning::NoSouthbridgeIoApic);
        }
        warnings
    }
}
