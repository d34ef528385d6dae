//! IVHD blocks: an IOMMU and the devices behind it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use platform::PhysAddr;
use platform::pci::{PciAddress, RequesterId};

use super::bytes::Bytes;
use super::{IvInfo, Warning};
use crate::dte::PersistentFlags;
use crate::registers::{ExtendedFeatures, ExtendedFeatures2};

bitflags::bitflags! {
    /// The flags of an IVHD block: how the unit's control register is to be set, and what it can do.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct IvhdFlags: u8 {
        /// HtTunEn.
        const HT_TUN = 1 << 0;
        /// PassPW.
        const PASS_PW = 1 << 1;
        /// ResPassPW.
        const RES_PASS_PW = 1 << 2;
        /// Isoc.
        const ISOC = 1 << 3;
        /// IotlbSup.
        const IOTLB_SUP = 1 << 4;
        /// Coherent.
        const COHERENT = 1 << 5;
        /// PreFSup, in blocks of type 10h.
        const PREF_SUP = 1 << 6;
        /// PPRSup, in blocks of type 10h.
        const PPR_SUP = 1 << 7;
    }
}

/// What a special device is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SpecialKind {
    /// An IO-APIC.
    IoApic,
    /// A high-precision event timer.
    Hpet,
}

impl fmt::Display for SpecialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoApic => "IOAPIC",
            Self::Hpet => "HPET",
        })
    }
}

/// The unique identifier of an ACPI device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Uid {
    /// There is none.
    None,
    /// A number: firmware writes it in any number of bytes; those above eight are dropped.
    Integer(u64),
    /// A string, such as the device's path.
    String(Vec<u8>),
}

impl Uid {
    /// Whether a device that ACPI knows by `uid` is meant: an entry without one means all.
    pub fn matches(&self, uid: &str) -> bool {
        match self {
            Self::None => true,
            Self::Integer(number) => uid.parse() == Ok(*number),
            Self::String(text) => text == uid.as_bytes(),
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Integer(number) => write!(f, "{number}"),
            Self::String(text) => write!(f, "{}", text.escape_ascii()),
        }
    }
}

/// What a device entry says, ranges put together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceEntry {
    /// All devices of the segment (01h).
    All {
        /// What to keep in their device table entries.
        flags: PersistentFlags,
    },
    /// Devices `first` to `last`, both included: one for a select entry (02h, 46h), else a range (03h, 47h, and 04h).
    Devices {
        /// The first device.
        first: u16,
        /// The last device.
        last: u16,
        /// What to keep in their device table entries.
        flags: PersistentFlags,
        /// The extended data setting of 46h and 47h; bit 31 says that ATS is disabled.
        extended: Option<u32>,
    },
    /// Devices `first` to `last` whose requests carry the name `alias` (42h, 43h, and 04h).
    Alias {
        /// The first device.
        first: u16,
        /// The last device.
        last: u16,
        /// The requester ID that the IOMMU sees (the specification's source device).
        alias: u16,
        /// What to keep in their device table entries.
        flags: PersistentFlags,
    },
    /// A device that is not found by scanning (48h).
    Special {
        /// What it is.
        kind: SpecialKind,
        /// The IO-APIC's identifier or the HPET's number.
        handle: u8,
        /// The requester ID that it uses.
        device: u16,
        /// What to keep in its device table entry.
        flags: PersistentFlags,
    },
    /// A device that is known to ACPI only (F0h).
    Acpi {
        /// The requester ID that it uses.
        device: u16,
        /// What to keep in its device table entry.
        flags: PersistentFlags,
        /// The hardware identifier, padded with zeros.
        hid: [u8; 8],
        /// The compatible identifier.
        cid: [u8; 8],
        /// The unique identifier.
        uid: Uid,
    },
}

impl DeviceEntry {
    /// First and last device that the entry speaks of.
    pub const fn devices(&self) -> (u16, u16) {
        match *self {
            Self::All { .. } => (0, u16::MAX),
            Self::Devices { first, last, .. } | Self::Alias { first, last, .. } => (first, last),
            Self::Special { device, .. } | Self::Acpi { device, .. } => (device, device),
        }
    }

    /// What to keep in the device table entries.
    pub const fn flags(&self) -> PersistentFlags {
        match *self {
            Self::All { flags }
            | Self::Devices { flags, .. }
            | Self::Alias { flags, .. }
            | Self::Special { flags, .. }
            | Self::Acpi { flags, .. } => flags,
        }
    }
}

/// I/O Virtualization Hardware Definition: one IOMMU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ivhd {
    /// The block's type: 10h, 11h or 40h. The higher, the more it can say.
    pub kind: u8,
    /// How to set the unit up.
    pub flags: IvhdFlags,
    /// The unit's own PCI function.
    pub address: PciAddress,
    /// Offset of the IOMMU capability in its configuration space.
    pub capability_offset: u16,
    /// Where its registers are.
    pub mmio_base: PhysAddr,
    /// IOMMU info: message number and unit ID.
    pub info: u16,
    /// Type 10h: the feature reporting field; else the attributes.
    pub features: u32,
    /// The image of the extended feature register, in 11h and 40h of tables that say that it is valid.
    pub efr: Option<ExtendedFeatures>,
    /// The image of the second one, likewise.
    pub efr2: Option<ExtendedFeatures2>,
    /// Its devices.
    pub entries: Vec<DeviceEntry>,
}

/// A range that waits for its end.
struct OpenRange {
    first: u16,
    flags: PersistentFlags,
    alias: Option<u16>,
    extended: Option<u32>,
}

impl Ivhd {
    /// `None` when the block is shorter than its type's header.
    pub(super) fn parse(
        block: Bytes<'_>,
        info: IvInfo,
        counts: &mut BTreeMap<u8, usize>,
        warnings: &mut Vec<Warning>,
    ) -> Option<Self> {
        let kind = block.u8(0)?;
        let (header, has_image) = if kind == 0x10 { (24, false) } else { (40, true) };
        // Everything up to the entries must be there.
        block.slice(0, header)?;
        let image = |at| if has_image && info.efr_sup() { block.u64(at) } else { None };
        let mut ivhd = Self {
            kind,
            flags: IvhdFlags::from_bits_retain(block.u8(1)?),
            address: PciAddress { segment: block.u16(16)?, id: RequesterId::new(block.u16(4)?) },
            capability_offset: block.u16(6)?,
            mmio_base: PhysAddr::new(block.u64(8)?),
            info: block.u16(18)?,
            features: block.u32(20)?,
            efr: image(24).map(ExtendedFeatures::from_bits),
            efr2: image(32).map(ExtendedFeatures2::from_bits),
            entries: Vec::new(),
        };
        ivhd.parse_entries(block, header, counts, warnings);
        Some(ivhd)
    }

    fn parse_entries(
        &mut self,
        block: Bytes<'_>,
        header: usize,
        counts: &mut BTreeMap<u8, usize>,
        warnings: &mut Vec<Warning>,
    ) {
        let mut open: Option<OpenRange> = None;
        let mut at = header;
        while at < block.len() {
            let kind = block.u8(at).unwrap_or(0);
            let Some(entry) = entry_length(block, at).and_then(|len| block.slice(at, len)) else {
                warnings.push(Warning::TruncatedEntry { kind, at });
                break;
            };
            *counts.entry(if kind == 0x40 { 0 } else { kind }).or_insert(0) += 1;
            if self.parse_entry(entry, at, &mut open, warnings).is_none() {
                warnings.push(Warning::TruncatedEntry { kind, at });
                break;
            }
            at += entry.len();
        }
        if let Some(range) = open {
            warnings.push(Warning::RangeWithoutEnd { first: range.first });
        }
    }

    /// `None` when the entry is shorter than its type needs.
    fn parse_entry(
        &mut self,
        entry: Bytes<'_>,
        at: usize,
        open: &mut Option<OpenRange>,
        warnings: &mut Vec<Warning>,
    ) -> Option<()> {
        let kind = entry.u8(0)?;
        let device = entry.u16(1)?;
        let flags = PersistentFlags::from_bits(entry.u8(3)?);
        let mut start = |range| {
            if let Some(old) = open.replace(range) {
                warnings.push(Warning::RangeWithoutEnd { first: old.first });
            }
        };
        match kind {
            // Padding, and the reserved 8-byte entry.
            0x00 | 0x40 | 0x41 => {}
            0x01 => self.entries.push(DeviceEntry::All { flags }),
            0x02 => {
                self.entries.push(DeviceEntry::Devices {
                    first: device,
                    last: device,
                    flags,
                    extended: None,
                });
            }
            0x03 => start(OpenRange { first: device, flags, alias: None, extended: None }),
            0x04 => match open.take() {
                None => warnings.push(Warning::RangeWithoutStart { last: device }),
                Some(range) if device < range.first => {
                    warnings.push(Warning::RangeBackwards { first: range.first, last: device });
                }
                Some(OpenRange { first, flags, alias: Some(alias), .. }) => {
                    self.entries.push(DeviceEntry::Alias { first, last: device, alias, flags });
                }
                Some(OpenRange { first, flags, extended, .. }) => {
                    self.entries.push(DeviceEntry::Devices { first, last: device, flags, extended });
                }
            },
            0x42 => {
                let alias = entry.u16(5)?;
                self.entries.push(DeviceEntry::Alias { first: device, last: device, alias, flags });
            }
            0x43 => start(OpenRange { first: device, flags, alias: Some(entry.u16(5)?), extended: None }),
            0x46 => {
                let extended = Some(entry.u32(4)?);
                self.entries.push(DeviceEntry::Devices { first: device, last: device, flags, extended });
            }
            0x47 => {
                start(OpenRange { first: device, flags, alias: None, extended: Some(entry.u32(4)?) });
            }
            0x48 => {
                let (handle, device, variety) = (entry.u8(4)?, entry.u16(5)?, entry.u8(7)?);
                let kind = match variety {
                    1 => SpecialKind::IoApic,
                    2 => SpecialKind::Hpet,
                    _ => {
                        warnings.push(Warning::UnknownSpecial { variety });
                        return Some(());
                    }
                };
                self.entries.push(DeviceEntry::Special { kind, handle, device, flags });
            }
            0xf0 => {
                let (hid, cid) = (entry.array(4)?, entry.array(12)?);
                let (format, len) = (entry.u8(20)?, entry.u8(21)?);
                let bytes = entry.slice(22, usize::from(len))?.to_vec();
                if self.kind != 0x40 {
                    warnings.push(Warning::AcpiInOldBlock { device });
                    return Some(());
                }
                if hid[0] == 0 {
                    warnings.push(Warning::NoHid { device });
                    return Some(());
                }
                if !matches!((format, len), (0, 0) | (1, 1..=8) | (2, 1..)) {
                    warnings.push(Warning::BadUid { device, format, len });
                }
                let uid = match format {
                    1 => {
                        Uid::Integer(bytes.iter().take(8).rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
                    }
                    2 => Uid::String(bytes),
                    _ => Uid::None,
                };
                self.entries.push(DeviceEntry::Acpi { device, flags, hid, cid, uid });
            }
            _ => warnings.push(Warning::UnknownEntry { kind, at }),
        }
        Some(())
    }

    /// The highest device that an entry or an alias of this block names.
    pub fn highest_device(&self) -> u16 {
        let aliases = self.entries.iter().map(|entry| match *entry {
            DeviceEntry::Alias { last, alias, .. } => last.max(alias),
            ref other => other.devices().1,
        });
        aliases.max().unwrap_or(0).max(self.address.id.get())
    }

    /// The number of the unit's MSI message.
    pub const fn msi_number(&self) -> u8 {
        (self.info & 0x1f) as u8
    }

    /// Whether host address translation is disabled (the HATDis attribute of types 11h and 40h).
    pub const fn host_translation_disabled(&self) -> bool {
        self.kind != 0x10 && self.features & 1 != 0
    }
}

/// How many bytes the entry at `at` has by its type, at least 4; `None` when that cannot be known.
fn entry_length(block: Bytes<'_>, at: usize) -> Option<usize> {
    match block.u8(at)? {
        0x00..=0x3f => Some(4),
        0x40..=0x7f => Some(8),
        0x80..=0xbf => Some(16),
        0xf0 => Some(22 + usize::from(block.u8(at + 21)?)),
        _ => None,
    }
}
