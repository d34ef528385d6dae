//! A format that no hardware has, in which every comfortable assumption is wrong at once: pages of 2 KiB, tables of 1 KiB, a top of
//! 256 bytes, physical addresses that are not in their place, forbidding bits, and several entries a page that each have their own
//! address.

use io_pgtable::{CfgError, Decoded, Format, IoPgtableCfg, Quirks, Shape, Upper};
use platform::{PageSizes, PhysAddr, Prot};

/// 44 bits of I/O address in five levels, 51 of physical address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mock2k;

const VALID: u64 = 1 << 0;
const PAGE: u64 = 1 << 1;
const NO_READ: u64 = 1 << 2;
const NO_WRITE: u64 = 1 << 3;
const NO_EXECUTE: u64 = 1 << 4;
const MMIO: u64 = 1 << 5;
const CACHED: u64 = 1 << 6;
const PRIVILEGED: u64 = 1 << 7;
const DIRTY: u64 = 1 << 9;
/// log2 of the entries of a page, bits 12:10.
const RUN_SHIFT: u32 = 10;
/// Bits 50:10 of an address.
const ADDRESS: u64 = ((1 << 41) - 1) << 22;
const ADDRESS_SHIFT: u32 = 12;

impl Format for Mock2k {
    const GRANULE_SHIFT: u32 = 11;
    const INDEX_BITS: u32 = 7;
    const MIN_TOP_BYTES: usize = 256;
    const MAX_LEVEL: u32 = 5;
    const PAGE_SIZES: PageSizes =
        PageSizes::from_bits(1 << 11 | 1 << 13 | 1 << 15 | 1 << 18 | 1 << 20 | 1 << 22 | 1 << 25);
    const OUTPUT_BITS: u32 = 51;
    const OWN_ADDRESS: bool = true;
    const FLUSHED: u64 = 1 << 13;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        cfg.check(Quirks::empty())?;
        if cfg.ias != 44 {
            return Err(CfgError::InputSize);
        }
        Ok((Self, Shape::of::<Self>(cfg.ias, Upper::Zero)?))
    }

    fn leaf(&self, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64 {
        let run = u64::from(shift - Self::level_shift(level));
        let mut entry = VALID | PAGE | run << RUN_SHIFT | phys.get() << ADDRESS_SHIFT & ADDRESS;
        for (right, bit) in [(Prot::READ, NO_READ), (Prot::WRITE, NO_WRITE)] {
            if !prot.contains(right) {
                entry |= bit;
            }
        }
        let kinds =
            [(Prot::NOEXEC, NO_EXECUTE), (Prot::MMIO, MMIO), (Prot::CACHE, CACHED), (Prot::PRIV, PRIVILEGED)];
        for (kind, bit) in kinds {
            if prot.contains(kind) {
                entry |= bit;
            }
        }
        entry
    }

    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        VALID | phys.get() << ADDRESS_SHIFT & ADDRESS
    }

    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & VALID == 0 {
            return Decoded::Empty;
        }
        let phys = PhysAddr::new((entry & ADDRESS) >> ADDRESS_SHIFT);
        if entry & PAGE == 0 {
            return Decoded::Table(phys);
        }
        let shift = Self::level_shift(level) + (entry >> RUN_SHIFT & 7) as u32;
        let mut prot = Prot::empty();
        prot.set(Prot::READ, entry & NO_READ == 0);
        prot.set(Prot::WRITE, entry & NO_WRITE == 0);
        prot.set(Prot::NOEXEC, entry & NO_EXECUTE != 0);
        prot.set(Prot::MMIO, entry & MMIO != 0);
        prot.set(Prot::CACHE, entry & CACHED != 0);
        prot.set(Prot::PRIV, entry & PRIVILEGED != 0);
        Decoded::Leaf { phys: phys.align_down(1 << shift), shift, prot }
    }

    fn page_pattern(&self) -> (u64, u64) {
        (VALID | PAGE | 7 << RUN_SHIFT, VALID | PAGE)
    }

    fn marks_dirty(&self) -> bool {
        true
    }

    fn is_dirty(&self, entry: u64) -> bool {
        entry & DIRTY != 0
    }

    fn set_dirty(&self, entry: u64, dirty: bool) -> u64 {
        if dirty { entry | DIRTY } else { entry & !DIRTY }
    }
}
