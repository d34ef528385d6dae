//! The IVRS table: where firmware says which IOMMUs there are and which devices are behind them (specification, "I/O
//! Virtualization Reporting Structure").
//!
//! Whatever the bytes, parsing ends, reads nothing outside the table and answers with an [`Ivrs`] or an [`IvrsError`].
//! Mistakes that firmware is known to make are passed over with a [`Warning`].

mod bytes;
mod ivhd;
mod ivmd;
mod madt;
mod overrides;
mod quirks;
mod warning;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

pub use ivhd::{DeviceEntry, Ivhd, IvhdFlags, SpecialKind, Uid};
pub use ivmd::{Ivmd, IvmdScope};
pub use madt::{Madt, MadtError};
pub use overrides::{Override, OverrideError};
pub use quirks::{QUIRKS, QuirkError, overrides_for};
pub use warning::Warning;

use bytes::Bytes;

/// Why a table is refused as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IvrsError {
    /// Fewer bytes than a header has, or than its length field says.
    #[error("the table has {have} bytes where {need} are needed")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that should be.
        need: usize,
    },
    /// The signature is not `IVRS`.
    #[error("the table's signature is not IVRS")]
    Signature,
    /// The bytes do not add up to zero.
    #[error("the table's bytes add up to {0:#04x} instead of zero")]
    Checksum(u8),
    /// A block has a length that is shorter than its header or leaves the table; nothing after it can be found.
    #[error("the block of type {kind:#04x} at offset {at:#x} has the impossible length {len}")]
    BlockLength {
        /// Offset of the block in the table.
        at: usize,
        /// Its type.
        kind: u8,
        /// What it says its length is.
        len: usize,
    },
}

/// IVinfo: what the table says of all IOMMUs together.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct IvInfo(u32);

impl IvInfo {
    /// The 32 bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// EFRSup: the feature images of the IVHD blocks are valid.
    pub const fn efr_sup(self) -> bool {
        self.0 & 1 != 0
    }

    /// DMA remapping was on before the operating system started (Linux: `IOMMU_CAP_PRE_BOOT_PROTECTION`).
    pub const fn preboot_dma_protection(self) -> bool {
        self.0 & 2 != 0
    }

    /// PAsize: bits of a physical address.
    pub const fn pa_size(self) -> u8 {
        (self.0 >> 8 & 0x7f) as u8
    }

    /// VAsize: bits of a virtual address.
    pub const fn va_size(self) -> u8 {
        (self.0 >> 15 & 0x7f) as u8
    }

    /// HtAtsResv: ATS addresses of the HyperTransport range are reserved.
    pub const fn ht_ats_resv(self) -> bool {
        self.0 >> 22 & 1 != 0
    }
}

impl fmt::Debug for IvInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IvInfo({:#x})", self.0)
    }
}

/// A table, parsed.
#[derive(Clone, Debug)]
pub struct Ivrs {
    /// The header's revision.
    pub revision: u8,
    /// The header's OEM identifier.
    pub oem_id: [u8; 6],
    /// What holds for all IOMMUs.
    pub info: IvInfo,
    /// Every IVHD block in the table's order: several may describe one IOMMU.
    pub ivhds: Vec<Ivhd>,
    /// Every IVMD block in the table's order.
    pub ivmds: Vec<Ivmd>,
    /// How many blocks of each type there are, unknown ones included.
    pub blocks: BTreeMap<u8, usize>,
    /// How many device entries of each type there are in all IVHD blocks together, padding as type 0.
    pub entries: BTreeMap<u8, usize>,
    /// What was passed over.
    pub warnings: Vec<Warning>,
}

const HEADER: usize = 48;
const SUM: usize = 9;

impl Ivrs {
    /// Parses the table that `table` starts with; bytes after its length are ignored.
    ///
    /// # Errors
    /// [`IvrsError`] when the checksum is wrong, or the header or the chain of blocks makes no sense.
    pub fn parse(table: &[u8]) -> Result<Self, IvrsError> {
        Self::read(table, false)
    }

    /// As [`Ivrs::parse`], but a wrong checksum is only a warning: for a person who looks at a table, not for a driver.
    ///
    /// # Errors
    /// [`IvrsError`] when the header or the chain of blocks makes no sense.
    pub fn decode(table: &[u8]) -> Result<Self, IvrsError> {
        Self::read(table, true)
    }

    fn read(table: &[u8], any_sum: bool) -> Result<Self, IvrsError> {
        let whole = Bytes::new(table);
        let truncated = |need| IvrsError::Truncated { have: table.len(), need };
        let signature = whole.array::<4>(0).ok_or(truncated(HEADER))?;
        if signature != *b"IVRS" {
            return Err(IvrsError::Signature);
        }
        let length = whole.u32(4).ok_or(truncated(HEADER))? as usize;
        if length < HEADER {
            return Err(truncated(HEADER));
        }
        let bytes = whole.slice(0, length).ok_or(truncated(length))?;
        let sum = bytes.sum();
        if sum != 0 && !any_sum {
            return Err(IvrsError::Checksum(sum));
        }
        let (revision, oem_id, info) =
            (|| Some((bytes.u8(8)?, bytes.array::<6>(SUM + 1)?, bytes.u32(36)?)))()
                .ok_or(truncated(HEADER))?;

        let mut ivrs = Self {
            revision,
            oem_id,
            info: IvInfo(info),
            ivhds: Vec::new(),
            ivmds: Vec::new(),
            blocks: BTreeMap::new(),
            entries: BTreeMap::new(),
            warnings: Vec::new(),
        };
        if sum != 0 {
            ivrs.warnings.push(Warning::BadChecksum { sum });
        }
        let mut at = HEADER;
        while at < length {
            at += ivrs.block(bytes, at)?;
        }
        ivrs.find_contradictions();
        Ok(ivrs)
    }

    /// What only all blocks together show.
    fn find_contradictions(&mut self) {
        let mut found = Vec::new();
        let mut specials: BTreeMap<(SpecialKind, u8), u16> = BTreeMap::new();
        for unit in self.units() {
            let same = |ivhd: &&Ivhd| ivhd.address == unit.address;
            if self.ivhds.iter().filter(same).any(|ivhd| ivhd.mmio_base != unit.mmio_base) {
                found.push(Warning::BaseDiffers { unit: unit.address });
            }
            for entry in &unit.entries {
                let DeviceEntry::Special { kind, handle, device, .. } = *entry else { continue };
                if specials.insert((kind, handle), device).is_some_and(|other| other != device) {
                    found.push(Warning::DuplicateSpecial { kind, handle });
                }
            }
        }
        self.warnings.extend(found);
    }

    /// Takes in the block at `at` and returns its length, at least 4.
    fn block(&mut self, table: Bytes<'_>, at: usize) -> Result<usize, IvrsError> {
        const BLOCK_HEADER: usize = 4;
        let kind = table.u8(at).unwrap_or(0);
        let len = usize::from(table.u16(at + 2).unwrap_or(0));
        let impossible = IvrsError::BlockLength { at, kind, len };
        if len < BLOCK_HEADER {
            return Err(impossible);
        }
        let block = table.slice(at, len).ok_or(impossible)?;
        *self.blocks.entry(kind).or_insert(0) += 1;
        match kind {
            0x10 | 0x11 | 0x40 => {
                let ivhd =
                    Ivhd::parse(block, self.info, &mut self.entries, &mut self.warnings).ok_or(impossible)?;
                self.ivhds.push(ivhd);
            }
            0x20..=0x23 => {
                self.ivmds.push(Ivmd::parse(block, &mut self.warnings).ok_or(impossible)?);
            }
            _ => self.warnings.push(Warning::UnknownBlock { kind, at }),
        }
        Ok(len)
    }

    /// The block that counts for each IOMMU: of those with the same segment and device the one with the highest type, the
    /// last when there are several (Linux: `get_highest_supported_ivhd_type`). In the order in which the IOMMUs first
    /// appear.
    #[doc(alias = "get_highest_supported_ivhd_type")]
    pub fn units(&self) -> Vec<&Ivhd> {
        let mut units: Vec<&Ivhd> = Vec::new();
        for ivhd in &self.ivhds {
            match units.iter_mut().find(|unit| unit.address == ivhd.address) {
                Some(unit) if ivhd.kind >= unit.kind => *unit = ivhd,
                Some(_) => {}
                None => units.push(ivhd),
            }
        }
        units
    }
}
