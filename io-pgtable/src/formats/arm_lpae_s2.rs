//! ARM's long descriptors, stage 2 (Arm Architecture Reference Manual, sections D8.3 "Translation table descriptor formats" and
//! D8.2 "Translation process", concatenated tables; SMMU architecture specification, section 5.2 "Stream Table Entry").

use platform::{PageSizes, PhysAddr, Prot};

use super::arm_lpae::{self, ACCESSED, NO_EXECUTE, SHAREABLE, TABLE_OR_PAGE, VALID};
use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};
use crate::registers::{ArmTcr, Registers};
use crate::table::Root;

/// ARM LPAE, stage 2, of granules of 2^`GRANULE_SHIFT` bytes (12, 14, 16), for 25 bits of I/O address to 48, or 52 with the largest
/// granule. [`Arm32LpaeS2`] has 40 at most. Where hardware has no start at a level, for it has few physical addresses
/// ([`IoPgtableCfg::oas`]), the top is up to sixteen tables of the next lower level side by side. Pages of several entries with the
/// contiguous hint are used.
///
/// Quirk: [`Quirks::ARM_S2FWB`].
#[doc(alias = "ARM_64_LPAE_S2")]
#[derive(Clone, Copy, Debug)]
pub struct ArmLpaeS2<const GRANULE_SHIFT: u32, const BITS: u32 = 64> {
    /// MemAttr of memory that is cached.
    cached: u64,
    vtcr: ArmTcr,
}

/// ARM LPAE, stage 2, of a 32-bit unit: 25 to 40 bits of I/O address, 40 of physical address.
#[doc(alias = "ARM_32_LPAE_S2")]
pub type Arm32LpaeS2 = ArmLpaeS2<12, 32>;

/// MemAttr, bits 5:2.
const MEM_ATTR: u64 = 0xf << 2;
/// MemAttr: device nGnRE.
const DEVICE: u64 = 1 << 2;
/// MemAttr: normal memory that is not cached.
const NON_CACHED: u64 = 5 << 2;
/// MemAttr: write-back.
const WRITE_BACK: u64 = 0xf << 2;
/// MemAttr with FWB: write-back, whatever stage 1 says.
const FORCE_WRITE_BACK: u64 = 6 << 2;
/// S2AP\[0]: reads are allowed.
const READ: u64 = 1 << 6;
/// S2AP\[1]: writes are allowed.
const WRITE: u64 = 1 << 7;
/// log2 of how many tables may be side by side at the top.
const CONCATENATED_BITS: u32 = 4;

impl<const GRANULE_SHIFT: u32, const BITS: u32> ArmLpaeS2<GRANULE_SHIFT, BITS> {
    /// Whether hardware with physical addresses of so many bits starts a walk at a level. The lowest is 1; ARM calls it 3.
    fn starts_at(level: u32, output_bits: u32) -> bool {
        match (GRANULE_SHIFT, level) {
            (12, 4) | (16, 3) => output_bits >= 44,
            (14, 4) => false,
            (14, 3) => output_bits >= 42,
            _ => true,
        }
    }
}

impl<const GRANULE_SHIFT: u32, const BITS: u32> Format for ArmLpaeS2<GRANULE_SHIFT, BITS> {
    const GRANULE_SHIFT: u32 = GRANULE_SHIFT;
    const INDEX_BITS: u32 = GRANULE_SHIFT - 3;
    const MIN_TOP_BYTES: usize = arm_lpae::MIN_TOP_BYTES;
    // 32 bits: the top of the level above may be concatenated.
    const MAX_LEVEL: u32 = arm_lpae::max_level(GRANULE_SHIFT, 64);
    const PAGE_SIZES: PageSizes = arm_lpae::page_sizes(GRANULE_SHIFT);
    const OUTPUT_BITS: u32 = arm_lpae::address_bits(GRANULE_SHIFT, BITS);
    const OWN_ADDRESS: bool = true;
    const FLUSHED: u64 = arm_lpae::FLUSHED;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        let mut known = Quirks::ARM_S2FWB;
        known.set(Quirks::ARM_CONTIGUOUS_1G, GRANULE_SHIFT == 12 && BITS == 64);
        cfg.check(known)?;
        if cfg.ias > Self::OUTPUT_BITS {
            return Err(CfgError::InputSize);
        }
        let mut shape = Shape::of::<Self>(cfg.ias, Upper::Zero)?;
        shape.output_bits = Self::OUTPUT_BITS.min(cfg.oas);
        shape.page_sizes = arm_lpae::sizes_for(GRANULE_SHIFT, BITS, shape.output_bits, cfg.quirks);
        if !Self::starts_at(shape.level, shape.output_bits) {
            if shape.top_bits > CONCATENATED_BITS {
                return Err(CfgError::InputSize);
            }
            shape.level -= 1;
            shape.top_bits += Self::INDEX_BITS;
        }
        let tg = match GRANULE_SHIFT {
            12 => 0,
            16 => 1,
            _ => 2,
        };
        let cached = if cfg.quirks.contains(Quirks::ARM_S2FWB) { FORCE_WRITE_BACK } else { WRITE_BACK };
        Ok((Self { cached, vtcr: arm_lpae::tcr(cfg, shape.output_bits, tg, false)? }, shape))
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64 {
        let mut entry = ACCESSED | arm_lpae::leaf_type(shift, level, Self::level_shift(level));
        entry |= arm_lpae::address_field(GRANULE_SHIFT, phys);
        entry |= arm_lpae::shareability(prot.contains(Prot::CACHE));
        entry |= if prot.contains(Prot::MMIO) {
            DEVICE
        } else if prot.contains(Prot::CACHE) {
            self.cached
        } else {
            NON_CACHED
        };
        if prot.contains(Prot::READ) {
            entry |= READ;
        }
        if prot.contains(Prot::WRITE) {
            entry |= WRITE;
        }
        if prot.contains(Prot::NOEXEC) {
            // As Linux has it; with FEAT_XNX bit 53 lets EL1 fetch.
            entry |= NO_EXECUTE;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        VALID | TABLE_OR_PAGE | arm_lpae::address_field(GRANULE_SHIFT, phys)
    }

    #[inline]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & VALID == 0 {
            return Decoded::Empty;
        }
        let phys = arm_lpae::address(GRANULE_SHIFT, entry);
        if level > 1 && entry & TABLE_OR_PAGE != 0 {
            return Decoded::Table(phys);
        }
        let shift = arm_lpae::leaf_shift(GRANULE_SHIFT, entry, level, Self::level_shift(level));
        let mut prot = Prot::empty();
        prot.set(Prot::READ, entry & READ != 0);
        prot.set(Prot::WRITE, entry & WRITE != 0);
        prot.set(Prot::CACHE, entry & SHAREABLE == SHAREABLE);
        prot.set(Prot::NOEXEC, entry & NO_EXECUTE != 0);
        prot.set(Prot::MMIO, entry & MEM_ATTR == DEVICE);
        Decoded::Leaf { phys: phys.align_down(1 << shift), shift, prot }
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (VALID | arm_lpae::CONTIGUOUS, VALID)
    }

    fn registers(&self, root: Root) -> Registers {
        // SL0 counts up from the lowest level that it can say: 2 for granules of 4 KiB, 1 for others.
        let lowest = if GRANULE_SHIFT == 12 { 2 } else { 1 };
        Registers::ArmLpaeS2 { vttbr: root.phys.get(), vtcr: self.vtcr, sl: (root.level - lowest) as u8 }
    }
}
