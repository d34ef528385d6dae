//! IVMD blocks: memory that devices need at its own address.

use alloc::vec::Vec;

use platform::Prot;

use super::Warning;
use super::bytes::Bytes;

/// Which devices a memory block is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IvmdScope {
    /// All of the segment (type 20h), or all of one IOMMU (23h), which is taken as all too.
    All,
    /// One device (21h).
    Device(u16),
    /// A range of devices, both ends included (22h).
    Range(u16, u16),
}

/// I/O Virtualization Memory Definition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ivmd {
    /// The block's type, 20h to 23h.
    pub kind: u8,
    /// The flags byte.
    pub flags: u8,
    /// Which devices it is for.
    pub scope: IvmdScope,
    /// PCI segment (Linux reads it from the first reserved bytes).
    pub segment: u16,
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Ivmd {
    const UNITY: u8 = 1 << 0;
    const READ: u8 = 1 << 1;
    const WRITE: u8 = 1 << 2;
    const EXCLUSION: u8 = 1 << 3;

    /// `None` when the block is too short for its type.
    pub(super) fn parse(block: Bytes<'_>, warnings: &mut Vec<Warning>) -> Option<Self> {
        let kind = block.u8(0)?;
        let (device, auxiliary) = (block.u16(4)?, block.u16(6)?);
        let ivmd = Self {
            kind,
            flags: block.u8(1)?,
            scope: match kind {
                0x21 => IvmdScope::Device(device),
                0x22 => IvmdScope::Range(device, auxiliary),
                _ => IvmdScope::All,
            },
            segment: block.u16(8)?,
            start: block.u64(16)?,
            len: block.u64(24)?,
        };
        if let IvmdScope::Range(first, last) = ivmd.scope
            && first > last
        {
            warnings.push(Warning::RangeBackwards { first, last });
        }
        if ivmd.last().is_none() {
            warnings.push(Warning::BadMemory { start: ivmd.start, len: ivmd.len });
        } else if ivmd.is_exclusion() {
            warnings.push(Warning::ExclusionAsUnity { start: ivmd.start, len: ivmd.len });
        }
        Some(ivmd)
    }

    /// The last address, or `None` when the length is zero or leaves the address space.
    pub const fn last(&self) -> Option<u64> {
        match self.len.checked_sub(1) {
            Some(span) => self.start.checked_add(span),
            None => None,
        }
    }

    /// Whether firmware asks for the exclusion range, which is mapped directly instead.
    pub const fn is_exclusion(&self) -> bool {
        self.flags & Self::EXCLUSION != 0
    }

    /// The permissions of the direct mapping, or `None` when none is asked for.
    pub fn unity(&self) -> Option<Prot> {
        if self.is_exclusion() {
            return Some(Prot::READ | Prot::WRITE);
        }
        if self.flags & Self::UNITY == 0 {
            return None;
        }
        let mut prot = Prot::empty();
        prot.set(Prot::READ, self.flags & Self::READ != 0);
        prot.set(Prot::WRITE, self.flags & Self::WRITE != 0);
        (!prot.is_empty()).then_some(prot)
    }

    /// Whether it is for `device` of `segment`.
    pub const fn applies_to(&self, segment: u16, device: u16) -> bool {
        segment == self.segment
            && match self.scope {
                IvmdScope::All => true,
                IvmdScope::Device(id) => id == device,
                IvmdScope::Range(first, last) => first <= device && device <= last,
            }
    }
}
