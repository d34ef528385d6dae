//! What a table is asked to be.

use platform::PageSizes;

use crate::format::Format;

bitflags::bitflags! {
    /// Ways in which hardware departs from its format, and choices that a format leaves (Linux: `IO_PGTABLE_QUIRK_*`, with its
    /// values, and the feature bits of `generic_pt`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Quirks: u32 {
        /// ARM: the table is of the non-secure state (`IO_PGTABLE_QUIRK_ARM_NS`).
        const ARM_NS = 1 << 0;
        /// ARM v7s: entries have no rights (`IO_PGTABLE_QUIRK_NO_PERMS`).
        const NO_PERMS = 1 << 1;
        /// ARM v7s: MediaTek's addresses of more than 32 bits (`IO_PGTABLE_QUIRK_ARM_MTK_EXT`).
        const ARM_MTK_EXT = 1 << 3;
        /// ARM v7s: MediaTek's tables above 4 GiB (`IO_PGTABLE_QUIRK_ARM_MTK_TTBR_EXT`).
        const ARM_MTK_TTBR_EXT = 1 << 4;
        /// ARM: the table of the upper half of the address space (`IO_PGTABLE_QUIRK_ARM_TTBR1`).
        const ARM_TTBR1 = 1 << 5;
        /// ARM: walks that do not snoop may use the outer cache (`IO_PGTABLE_QUIRK_ARM_OUTER_WBWA`).
        const ARM_OUTER_WBWA = 1 << 6;
        /// ARM: hardware marks what was written (`IO_PGTABLE_QUIRK_ARM_HD`).
        const ARM_HD = 1 << 7;
        /// ARM: stage 2 decides the memory type alone (`IO_PGTABLE_QUIRK_ARM_S2FWB`).
        const ARM_S2FWB = 1 << 8;
        /// x86-64: addresses are signed, as a CPU's are; else they are unsigned, as AMD's IOMMU has them
        /// (`PT_FEAT_SIGN_EXTEND`).
        const SIGN_EXTEND = 1 << 16;
        /// Every page is coherent, whatever a mapping asks (`PT_FEAT_VTDSS_FORCE_COHERENCE`,
        /// `PT_FEAT_AMDV1_FORCE_COHERENCE`).
        const FORCE_COHERENCE = 1 << 17;
        /// VT-d: read-only pages are refused (`PT_FEAT_VTDSS_FORCE_WRITEABLE`).
        const FORCE_WRITEABLE = 1 << 18;
        /// RISC-V: entries have a memory type (the extension Svpbmt).
        const RISCV_SVPBMT = 1 << 19;
        /// ARM: sixteen blocks of 1 GiB may have the contiguous hint together, which other software does not use.
        const ARM_CONTIGUOUS_1G = 1 << 20;
    }
}

/// What a table is asked to be (Linux: `struct io_pgtable_cfg`).
#[doc(alias = "io_pgtable_cfg")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoPgtableCfg {
    /// See each.
    pub quirks: Quirks,
    /// Page sizes that hardware can do, or is wanted to; what the format lacks of them is left out (`pgsize_bitmap`).
    pub page_sizes: PageSizes,
    /// Bits of an I/O address (`ias`).
    pub ias: u32,
    /// Bits of a physical address (`oas`); what is more than the format's is cut to that.
    pub oas: u32,
    /// Whether hardware that walks the table snoops the CPU's caches (`coherent_walk`). Else the platform's cache maintenance
    /// is called for what is written.
    pub coherent_walk: bool,
    /// The bit that says that memory is encrypted, as a mask, for tables and for pages that are not MMIO; else 0
    /// (`sme_me_mask`).
    pub encryption: u64,
}

impl IoPgtableCfg {
    /// A table for I/O addresses of `ias` bits, with all of the format's page sizes and addresses, whose hardware snoops.
    pub const fn new(ias: u32) -> Self {
        Self {
            quirks: Quirks::empty(),
            page_sizes: PageSizes::from_bits(u64::MAX),
            ias,
            oas: 64,
            coherent_walk: true,
            encryption: 0,
        }
    }

    /// The same with these quirks.
    #[must_use]
    pub const fn with_quirks(mut self, quirks: Quirks) -> Self {
        self.quirks = quirks;
        self
    }

    /// Refuses quirks other than these, and an encryption bit, for formats that have none.
    ///
    /// # Errors
    /// [`CfgError::Quirks`].
    pub const fn check(&self, known: Quirks) -> Result<(), CfgError> {
        if self.quirks.difference(known).is_empty() && self.encryption == 0 {
            Ok(())
        } else {
            Err(CfgError::Quirks)
        }
    }
}

/// Why there is no table of a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CfgError {
    /// The format lacks one of the quirks, or two of them exclude each other.
    #[error("the page-table format lacks a quirk that was asked for")]
    Quirks,
    /// The format has no tables for so many bits of I/O address.
    #[error("the page-table format has no tables for this size of I/O address")]
    InputSize,
    /// The format has no physical addresses of so few or so many bits.
    #[error("the page-table format cannot do this size of physical address")]
    OutputSize,
    /// None of the page sizes is one of the format.
    #[error("the page-table format has none of these page sizes")]
    PageSizes,
    /// Hardware does not snoop, and the table has no cache maintenance.
    #[error("the page table's hardware does not snoop, and there is no cache maintenance")]
    NotCoherent,
    /// There is no page frame for the top.
    #[error("out of memory for page tables")]
    OutOfMemory,
}

/// Which I/O addresses a table stands for, above the bits that it looks up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upper {
    /// They are zero.
    Zero,
    /// They are one (ARM's TTBR1).
    One,
    /// They are the highest bit that is looked up (a CPU's canonical addresses).
    Sign,
}

/// The top of a table, as a configuration wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The level of the top.
    pub level: u32,
    /// Index bits of the top: fewer or more than those of the tables below it.
    pub top_bits: u32,
    /// The bits above those.
    pub upper: Upper,
    /// The page sizes of this configuration. The engine leaves out those that are too large for the top, and those that the
    /// configuration does not name.
    pub page_sizes: PageSizes,
    /// Bits that a page's physical address may have.
    pub output_bits: u32,
    /// Bits that a table's physical address may have.
    pub table_bits: u32,
}

impl Shape {
    /// As few levels of `F` as I/O addresses of `ias` bits take.
    ///
    /// # Errors
    /// [`CfgError::InputSize`] when that is none, or more than the format has.
    pub fn of<F: Format>(ias: u32, upper: Upper) -> Result<Self, CfgError> {
        if ias <= F::GRANULE_SHIFT || ias > 64 {
            return Err(CfgError::InputSize);
        }
        let level = (ias - F::GRANULE_SHIFT).div_ceil(F::INDEX_BITS);
        if level > F::MAX_LEVEL {
            return Err(CfgError::InputSize);
        }
        let top_bits = ias - F::level_shift(level);
        Ok(Self {
            level,
            top_bits,
            upper,
            page_sizes: F::PAGE_SIZES,
            output_bits: F::OUTPUT_BITS,
            table_bits: F::OUTPUT_BITS,
        })
    }
}
