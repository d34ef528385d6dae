//! The commands of the command buffer (specification, "Commands"): sixteen bytes each.

use core::fmt;

use platform::PhysAddr;
use platform::pci::RequesterId;

use crate::invalidate::Cover;

/// One command, as its two 64-bit words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Command {
    /// Bits 63:0: the opcode is in 63:60.
    q0: u64,
    /// Bits 127:64.
    q1: u64,
}

const _: () = assert!(size_of::<Command>() == Command::SIZE as usize);

/// The opcodes, in bits 63:60 of the first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Opcode {
    /// COMPLETION_WAIT.
    CompletionWait = 1,
    /// INVALIDATE_DEVTAB_ENTRY.
    InvalidateDevtabEntry = 2,
    /// INVALIDATE_IOMMU_PAGES.
    InvalidateIommuPages = 3,
    /// INVALIDATE_IOTLB_PAGES.
    InvalidateIotlbPages = 4,
    /// INVALIDATE_INTERRUPT_TABLE.
    InvalidateInterruptTable = 5,
    /// COMPLETE_PPR_REQUEST.
    CompletePprRequest = 7,
    /// INVALIDATE_IOMMU_ALL.
    InvalidateIommuAll = 8,
}

impl Opcode {
    const fn bits(self) -> u64 {
        (self as u64) << 60
    }
}

/// GN of an invalidation: it is about guest translations of a PASID.
const GN: u64 = 1 << 2;

impl Command {
    /// Bytes in a command.
    pub const SIZE: u64 = 16;

    /// The command with these words.
    ///
    /// # Safety
    /// The unit executes it: when it makes the unit write, it is to memory that the caller has for this.
    pub const unsafe fn from_words([q0, q1]: [u64; 2]) -> Self {
        Self { q0, q1 }
    }

    /// Its words, the lower one first.
    #[inline]
    pub const fn words(self) -> [u64; 2] {
        [self.q0, self.q1]
    }

    /// COMPLETION_WAIT that stores `data` to `at` (8-byte aligned) once every command before it has been executed
    /// (Linux: `build_completion_wait`).
    #[doc(alias = "build_completion_wait")]
    ///
    /// # Safety
    /// The unit will write to `at`: it is memory that the caller has for this.
    pub const unsafe fn completion_wait(at: PhysAddr, data: u64) -> Self {
        const STORE: u64 = 1 << 0;
        Self { q0: Opcode::CompletionWait.bits() | (at.get() & 0x000f_ffff_ffff_fff8) | STORE, q1: data }
    }

    /// COMPLETION_WAIT that sets ComWaitInt of the status register.
    pub const fn completion_interrupt() -> Self {
        const INTERRUPT: u64 = 1 << 1;
        Self { q0: Opcode::CompletionWait.bits() | INTERRUPT, q1: 0 }
    }

    /// INVALIDATE_DEVTAB_ENTRY: the unit reads the device table entry of `device` again (Linux: `build_inv_dte`).
    #[doc(alias = "build_inv_dte")]
    pub const fn invalidate_devtab_entry(device: u16) -> Self {
        Self { q0: Opcode::InvalidateDevtabEntry.bits() | device as u64, q1: 0 }
    }

    /// INVALIDATE_IOMMU_PAGES: drops translations of `domain` in `cover`, and with `pde` cached table pointers as well as
    /// leaves (Linux: `build_inv_iommu_pages`).
    #[doc(alias = "build_inv_iommu_pages")]
    #[inline]
    pub const fn invalidate_iommu_pages(domain: u16, cover: Cover, pde: bool) -> Self {
        const PDE: u64 = 1 << 1;
        Self {
            q0: Opcode::InvalidateIommuPages.bits() | (domain as u64) << 32,
            q1: cover.encode() | if pde { PDE } else { 0 },
        }
    }

    /// INVALIDATE_IOMMU_PAGES with GN: drops guest translations of a PASID (20 bits) of `domain` in `cover`, and cached table
    /// pointers with them (Linux: `build_inv_iommu_pages`).
    #[doc(alias = "build_inv_iommu_pages")]
    pub const fn invalidate_guest_pages(domain: u16, pasid: u32, cover: Cover) -> Self {
        let Self { q0, q1 } = Self::invalidate_iommu_pages(domain, cover, true);
        Self { q0: q0 | pasid as u64 & 0xf_ffff, q1: q1 | GN }
    }

    /// INVALIDATE_IOTLB_PAGES: `device`, which can hold `depth` invalidations (1 to 32), drops the translations in `cover` that
    /// it keeps itself, of requests with `pasid` (20 bits); 0 is for those without, where a guest table translates them (Linux:
    /// `build_inv_iotlb_pages`).
    #[doc(alias = "build_inv_iotlb_pages")]
    pub const fn invalidate_iotlb_pages(device: u16, depth: u8, pasid: Option<u32>, cover: Cover) -> Self {
        let (device, depth) = (device as u64, depth as u64);
        let q0 = Opcode::InvalidateIotlbPages.bits() | device << 32 | depth << 24 | device;
        match pasid {
            None => Self { q0, q1: cover.encode() },
            Some(pasid) => {
                // In three pieces.
                let (low, middle, high) = (pasid & 0xff, pasid >> 8 & 0xff, pasid >> 16 & 0xf);
                let pasid = (middle as u64) << 16 | (low as u64) << 48 | (high as u64) << 56;
                Self { q0: q0 | pasid, q1: cover.encode() | GN }
            }
        }
    }

    /// INVALIDATE_INTERRUPT_TABLE: drops the interrupt remapping entries of `device` (Linux: `build_inv_irt`).
    #[doc(alias = "build_inv_irt")]
    pub const fn invalidate_interrupt_table(device: u16) -> Self {
        Self { q0: Opcode::InvalidateInterruptTable.bits() | device as u64, q1: 0 }
    }

    /// COMPLETE_PPR_REQUEST: answers the page requests of `group` (9 bits) of `device` with `code` (4 bits); the answer carries
    /// `pasid` (20 bits) if there is one (Linux: `build_complete_ppr`).
    #[doc(alias = "build_complete_ppr")]
    pub const fn complete_ppr_request(device: u16, pasid: Option<u32>, group: u16, code: u8) -> Self {
        let (pasid, gn) = match pasid {
            Some(pasid) => (pasid as u64 & 0xf_ffff, GN),
            None => (0, 0),
        };
        let tag = group as u64 & 0x1ff | (code as u64 & 0xf) << 12;
        Self { q0: Opcode::CompletePprRequest.bits() | pasid << 32 | device as u64, q1: tag << 32 | gn }
    }

    /// INVALIDATE_IOMMU_ALL: drops everything; only where the unit has IASup (Linux: `build_inv_all`).
    #[doc(alias = "build_inv_all")]
    pub const fn invalidate_iommu_all() -> Self {
        Self { q0: Opcode::InvalidateIommuAll.bits(), q1: 0 }
    }

    /// The specification's name, `None` for an opcode that this driver does not use.
    pub const fn name(self) -> Option<&'static str> {
        match self.q0 >> 60 {
            1 => Some("COMPLETION_WAIT"),
            2 => Some("INVALIDATE_DEVTAB_ENTRY"),
            3 => Some("INVALIDATE_IOMMU_PAGES"),
            4 => Some("INVALIDATE_IOTLB_PAGES"),
            5 => Some("INVALIDATE_INTERRUPT_TABLE"),
            7 => Some("COMPLETE_PPR_REQUEST"),
            8 => Some("INVALIDATE_IOMMU_ALL"),
            _ => None,
        }
    }

    /// Whether the command drops something that the unit caches.
    pub const fn is_invalidation(self) -> bool {
        !matches!(self.q0 >> 60, 1 | 7)
    }
}

impl fmt::Display for Command {
    /// Its words and what they say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x} {:016x} {}", self.q0, self.q1, self.name().unwrap_or("UNKNOWN"))?;
        match self.q0 >> 60 {
            1 if self.q0 & 1 != 0 => write!(f, " stores {:#x}", self.q1),
            2 | 4 | 5 | 7 => write!(f, " device={}", RequesterId::new(self.q0 as u16)),
            3 => write!(f, " domain={:#06x}", self.q0 >> 32 & 0xffff),
            _ => Ok(()),
        }
    }
}
