//! ARM's long descriptors, stage 1 (Arm Architecture Reference Manual, sections D8.3 "Translation table descriptor formats",
//! D8.4 "Memory access control", D8.5 "Memory region attributes"; SMMU architecture specification, section 5.4 "Context
//! Descriptor").

use platform::{PageSizes, PhysAddr, Prot};

use super::arm_lpae::{self, ACCESSED, LPA2, NO_EXECUTE, SHAREABLE, TABLE_OR_PAGE, VALID};
use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};
use crate::registers::{ArmTcr, Registers};
use crate::table::Root;

/// ARM LPAE, stage 1, of granules of 2^`GRANULE_SHIFT` bytes (12, 14, 16), for 25 bits of I/O address to 48, or 52 with the largest
/// granule. [`Arm32LpaeS1`] has 32 at most, [`ArmLpa2S1`] 52 with the smaller granules. Pages of several entries with the contiguous hint are used; who wants Linux's sizes
/// alone says so in [`IoPgtableCfg::page_sizes`].
///
/// Quirks: [`Quirks::ARM_NS`], [`Quirks::ARM_TTBR1`], [`Quirks::ARM_OUTER_WBWA`] for walks that do not snoop; with 64 bits
/// [`Quirks::ARM_HD`], which marks all pages that can be written as written at first; with granules of 4 KiB
/// [`Quirks::ARM_CONTIGUOUS_1G`].
///
/// What can be written can be read. Pages that are not for privileged accesses alone are for both.
#[doc(alias = "ARM_64_LPAE_S1")]
#[derive(Clone, Copy, Debug)]
pub struct ArmLpaeS1<const GRANULE_SHIFT: u32, const BITS: u32 = 64> {
    /// What each leaf has by the quirks.
    leaf: u64,
    /// What each pointer has by the quirks.
    pointer: u64,
    /// DBM, for a page that can be written.
    dirty_management: u64,
    tcr: ArmTcr,
}

/// ARM LPAE, stage 1, of a 32-bit unit: 25 to 32 bits of I/O address, 40 of physical address.
#[doc(alias = "ARM_32_LPAE_S1")]
pub type Arm32LpaeS1 = ArmLpaeS1<12, 32>;

/// ARM LPAE, stage 1, with LPA2: 52 bits of both addresses with granules of 4 and 16 KiB. The unit has one shareability for all
/// ([`ArmTcr::sh`]), so that an entry that is MMIO does not say whether it was asked to be cached.
pub type ArmLpa2S1<const GRANULE_SHIFT: u32> = ArmLpaeS1<GRANULE_SHIFT, LPA2>;

/// AttrIndx, bits 4:2: an index into MAIR.
const ATTR_INDEX: u64 = 7 << 2;
/// AttrIndx 1: write-back.
const CACHED: u64 = 1 << 2;
/// AttrIndx 2: device memory.
const DEVICE: u64 = 2 << 2;
/// NS: the page is of the non-secure state.
const NON_SECURE: u64 = 1 << 5;
/// AP\[1]: unprivileged accesses are allowed.
const UNPRIVILEGED: u64 = 1 << 6;
/// AP\[2]: writes are not allowed.
const READ_ONLY: u64 = 1 << 7;
/// nG: of one ASID.
const NOT_GLOBAL: u64 = 1 << 11;
/// DBM: AP\[2] says that the page is clean.
const DIRTY_MANAGEMENT: u64 = 1 << 51;
/// NSTable: the table is of the non-secure state.
const NON_SECURE_TABLE: u64 = 1 << 63;
/// MAIR: normal memory that is not cached, write-back, device nGnRE, and cached in the outer cache alone.
const MAIR: u64 = 0xf404_ff44;

impl<const GRANULE_SHIFT: u32, const BITS: u32> ArmLpaeS1<GRANULE_SHIFT, BITS> {
    #[inline]
    fn address_field(phys: PhysAddr) -> u64 {
        if BITS == LPA2 {
            arm_lpae::lpa2_address_field(phys)
        } else {
            arm_lpae::address_field(GRANULE_SHIFT, phys)
        }
    }
}

impl<const GRANULE_SHIFT: u32, const BITS: u32> Format for ArmLpaeS1<GRANULE_SHIFT, BITS> {
    const GRANULE_SHIFT: u32 = GRANULE_SHIFT;
    const INDEX_BITS: u32 = GRANULE_SHIFT - 3;
    const MIN_TOP_BYTES: usize = arm_lpae::MIN_TOP_BYTES;
    const MAX_LEVEL: u32 = arm_lpae::max_level(GRANULE_SHIFT, BITS);
    const PAGE_SIZES: PageSizes = arm_lpae::page_sizes(GRANULE_SHIFT);
    const OUTPUT_BITS: u32 = arm_lpae::address_bits(GRANULE_SHIFT, BITS);
    const OWN_ADDRESS: bool = true;
    const FLUSHED: u64 = arm_lpae::FLUSHED;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        let mut known = Quirks::ARM_NS.union(Quirks::ARM_TTBR1).union(Quirks::ARM_OUTER_WBWA);
        known.set(Quirks::ARM_HD, BITS != 32);
        known.set(Quirks::ARM_CONTIGUOUS_1G, GRANULE_SHIFT == 12 && BITS != 32);
        cfg.check(known)?;
        if cfg.ias > Self::OUTPUT_BITS.min(if BITS == 32 { 32 } else { 64 }) {
            return Err(CfgError::InputSize);
        }
        let upper_half = cfg.quirks.contains(Quirks::ARM_TTBR1);
        let mut shape = Shape::of::<Self>(cfg.ias, if upper_half { Upper::One } else { Upper::Zero })?;
        shape.output_bits = Self::OUTPUT_BITS.min(cfg.oas);
        shape.page_sizes = arm_lpae::sizes_for(GRANULE_SHIFT, BITS, shape.output_bits, cfg.quirks);
        let tg = match (GRANULE_SHIFT, upper_half) {
            (12, false) => 0,
            (16, false) | (14, true) => 1,
            (14, false) | (12, true) => 2,
            _ => 3,
        };
        let non_secure = cfg.quirks.contains(Quirks::ARM_NS);
        let format = Self {
            leaf: ACCESSED | NOT_GLOBAL | if non_secure { NON_SECURE } else { 0 },
            pointer: VALID | TABLE_OR_PAGE | if non_secure { NON_SECURE_TABLE } else { 0 },
            dirty_management: if cfg.quirks.contains(Quirks::ARM_HD) { DIRTY_MANAGEMENT } else { 0 },
            tcr: arm_lpae::tcr(cfg, shape.output_bits, tg, BITS == LPA2)?,
        };
        Ok((format, shape))
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64 {
        let mut entry = self.leaf | arm_lpae::leaf_type(shift, level, Self::level_shift(level));
        entry |= Self::address_field(phys);
        if BITS != LPA2 {
            entry |= arm_lpae::shareability(prot.contains(Prot::CACHE));
        }
        if prot.contains(Prot::MMIO) {
            entry |= DEVICE;
        } else if prot.contains(Prot::CACHE) {
            entry |= CACHED;
        }
        entry |= if prot.contains(Prot::WRITE) { self.dirty_management } else { READ_ONLY };
        if !prot.contains(Prot::PRIV) {
            entry |= UNPRIVILEGED;
        }
        if prot.contains(Prot::NOEXEC) {
            entry |= NO_EXECUTE;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        self.pointer | Self::address_field(phys)
    }

    #[inline]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & VALID == 0 {
            return Decoded::Empty;
        }
        let phys = if BITS == LPA2 {
            arm_lpae::lpa2_address(entry)
        } else {
            arm_lpae::address(GRANULE_SHIFT, entry)
        };
        if level > 1 && entry & TABLE_OR_PAGE != 0 {
            return Decoded::Table(phys);
        }
        let shift = arm_lpae::leaf_shift(GRANULE_SHIFT, entry, level, Self::level_shift(level));
        let mut prot = Prot::READ;
        prot.set(Prot::WRITE, entry & READ_ONLY == 0 || entry & DIRTY_MANAGEMENT != 0);
        let cached = if BITS == LPA2 { entry & ATTR_INDEX == CACHED } else { entry & SHAREABLE == SHAREABLE };
        prot.set(Prot::CACHE, cached);
        prot.set(Prot::NOEXEC, entry & NO_EXECUTE != 0);
        prot.set(Prot::MMIO, entry & ATTR_INDEX == DEVICE);
        prot.set(Prot::PRIV, entry & UNPRIVILEGED == 0);
        Decoded::Leaf { phys: phys.align_down(1 << shift), shift, prot }
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (VALID | arm_lpae::CONTIGUOUS, VALID)
    }

    #[inline]
    fn marks_dirty(&self) -> bool {
        self.dirty_management != 0
    }

    #[inline]
    fn is_dirty(&self, entry: u64) -> bool {
        entry & (DIRTY_MANAGEMENT | READ_ONLY) == DIRTY_MANAGEMENT
    }

    #[inline]
    fn set_dirty(&self, entry: u64, dirty: bool) -> u64 {
        match (entry & DIRTY_MANAGEMENT != 0, dirty) {
            (false, _) => entry,
            (true, true) => entry & !READ_ONLY,
            (true, false) => entry | READ_ONLY,
        }
    }

    fn registers(&self, root: Root) -> Registers {
        Registers::ArmLpaeS1 { ttbr: root.phys.get(), tcr: self.tcr, mair: MAIR }
    }
}
