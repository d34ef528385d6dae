//! The table of ARM's Mali GPUs, Midgard and early Bifrost. There is no public specification: this is what Linux writes. Not proven
//! by hardware here.

use platform::{PageSizes, PhysAddr, Prot};

use super::arm_lpae::{self, NO_EXECUTE, TABLE_OR_PAGE, VALID};
use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};
use crate::registers::Registers;
use crate::table::Root;

/// Mali LPAE: always four levels of 4 KiB, for 39 bits of I/O address to 48, and 40 of physical address. A unit with fewer bits takes
/// a table of 39.
///
/// **Not proven by hardware.** Its entries are those that Linux writes.
#[doc(alias = "ARM_MALI_LPAE")]
#[derive(Clone, Copy, Debug)]
pub struct MaliLpae {
    coherent: bool,
}

/// AttrIndx, bits 4:2: an index into MEMATTR.
const ATTR_INDEX: u64 = 7 << 2;
/// AttrIndx 1: write-allocate.
const CACHED: u64 = 1 << 2;
/// AttrIndx 2: device memory.
const DEVICE: u64 = 2 << 2;
/// Reads are allowed.
const READ: u64 = 1 << 6;
/// Writes are allowed.
const WRITE: u64 = 1 << 7;
/// SH, bits 9:8: outer shareable, since inner means inside the GPU.
const OUTER_SHAREABLE: u64 = 2 << 8;
/// TRANSTAB: a table, whose reads are inner shareable.
const TRANSTAB: u64 = 3 | 1 << 2;
/// TRANSTAB: outer shareable.
const TRANSTAB_SHARED: u64 = 1 << 4;
/// MEMATTR: what the entries' indices mean; 0 and 2 are the implementation's own.
const MEMATTR: u64 = 0x0088_8d88;

impl Format for MaliLpae {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 9;
    const MAX_LEVEL: u32 = 4;
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30);
    const OUTPUT_BITS: u32 = 40;
    const FLUSHED: u64 = arm_lpae::FLUSHED;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        cfg.check(Quirks::empty())?;
        if !matches!(cfg.ias, 39..=48) {
            return Err(CfgError::InputSize);
        }
        let shape = Shape {
            level: 4,
            top_bits: cfg.ias - 39,
            upper: Upper::Zero,
            page_sizes: Self::PAGE_SIZES,
            output_bits: Self::OUTPUT_BITS,
            table_bits: Self::OUTPUT_BITS,
        };
        Ok((Self { coherent: cfg.coherent_walk }, shape))
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, _shift: u32, _level: u32, prot: Prot) -> u64 {
        // The same type at every level, the lowest too.
        let mut entry = VALID | OUTER_SHAREABLE | arm_lpae::address_field(12, phys);
        if prot.contains(Prot::MMIO) {
            entry |= DEVICE;
        } else if prot.contains(Prot::CACHE) {
            entry |= CACHED;
        }
        if prot.contains(Prot::READ) {
            entry |= READ;
        }
        if prot.contains(Prot::WRITE) {
            entry |= WRITE;
        }
        if prot.contains(Prot::NOEXEC) {
            entry |= NO_EXECUTE;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        VALID | TABLE_OR_PAGE | arm_lpae::address_field(12, phys)
    }

    #[inline]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & VALID == 0 {
            return Decoded::Empty;
        }
        let phys = arm_lpae::address(12, entry);
        if level > 1 && entry & TABLE_OR_PAGE != 0 {
            return Decoded::Table(phys);
        }
        let mut prot = Prot::empty();
        prot.set(Prot::READ, entry & READ != 0);
        prot.set(Prot::WRITE, entry & WRITE != 0);
        prot.set(Prot::NOEXEC, entry & NO_EXECUTE != 0);
        prot.set(Prot::CACHE, entry & ATTR_INDEX == CACHED);
        prot.set(Prot::MMIO, entry & ATTR_INDEX == DEVICE);
        Decoded::Leaf { phys, shift: Self::level_shift(level), prot }
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (VALID, VALID)
    }

    fn registers(&self, root: Root) -> Registers {
        let shared = if self.coherent { TRANSTAB_SHARED } else { 0 };
        Registers::MaliLpae { transtab: root.phys.get() | TRANSTAB | shared, memattr: MEMATTR }
    }
}
