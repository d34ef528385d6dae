//! x86-64's page table (AMD64 Architecture Programmer's Manual, volume 2, section 5.3): a CPU's, the AMD IOMMU's guest table
//! ("v2"), and the first stage of VT-d.

use platform::{PageSizes, PhysAddr, Prot};

use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};

/// x86-64: 4 levels for 47 or 48 bits, 5 levels for 56 or 57. With [`Quirks::SIGN_EXTEND`] addresses are signed, of 48 or 57
/// bits; without it they are unsigned, and a table of 47 or 56 bits is one that both ways of reading agree on. An encryption bit
/// may be asked for.
///
/// Dirty bits are set from the start, so hardware never writes to an entry.
#[derive(Clone, Copy, Debug)]
pub struct X86_64 {
    encryption: u64,
}

/// P: the entry is present; a page can be read.
const PRESENT: u64 = 1 << 0;
/// R/W: writes are allowed.
const WRITE: u64 = 1 << 1;
/// U/S: requests without privilege are allowed.
const USER: u64 = 1 << 2;
/// A: the entry has been used.
const ACCESSED: u64 = 1 << 5;
/// D: the page has been written.
const DIRTY: u64 = 1 << 6;
/// PS, above the lowest level: the entry is a page.
const PAGE: u64 = 1 << 7;
/// The address field, bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Format for X86_64 {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 9;
    const MAX_LEVEL: u32 = 5;
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30);
    const OUTPUT_BITS: u32 = 52;
    // Bits 11:9 are software's.
    const FLUSHED: u64 = 1 << 9;
    const BREAK_BEFORE_MAKE: bool = false;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        IoPgtableCfg { encryption: 0, ..*cfg }.check(Quirks::SIGN_EXTEND)?;
        if cfg.encryption & !ADDRESS != 0 {
            return Err(CfgError::Quirks);
        }
        let upper = match (cfg.quirks.contains(Quirks::SIGN_EXTEND), cfg.ias) {
            (true, 48 | 57) => Upper::Sign,
            (false, 47 | 48 | 56 | 57) => Upper::Zero,
            _ => return Err(CfgError::InputSize),
        };
        let mut shape = Shape::of::<Self>(cfg.ias, upper)?;
        if cfg.encryption != 0 {
            shape.output_bits = cfg.encryption.trailing_zeros();
            shape.table_bits = shape.output_bits;
        }
        Ok((Self { encryption: cfg.encryption }, shape))
    }

    #[inline(always)]
    fn leaf(&self, phys: PhysAddr, _shift: u32, level: u32, prot: Prot) -> u64 {
        let mut entry = PRESENT | USER | ACCESSED | phys.get() & ADDRESS;
        if level > 1 {
            entry |= PAGE;
        }
        if prot.contains(Prot::WRITE) {
            entry |= WRITE | DIRTY;
        }
        if !prot.contains(Prot::MMIO) {
            entry |= self.encryption;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        // Rights are the AND of all levels: only the leaf decides.
        PRESENT | WRITE | USER | ACCESSED | phys.get() & ADDRESS | self.encryption
    }

    #[inline(always)]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & PRESENT == 0 {
            return Decoded::Empty;
        }
        let phys = PhysAddr::new(entry & ADDRESS & !self.encryption);
        if level > 1 && entry & PAGE == 0 {
            return Decoded::Table(phys);
        }
        let shift = Self::level_shift(level);
        let mut prot = Prot::READ;
        prot.set(Prot::WRITE, entry & WRITE != 0);
        prot.set(Prot::MMIO, self.encryption & !entry != 0);
        // Bit 12 of a large page is a memory type.
        Decoded::Leaf { phys: phys.align_down(1 << shift), shift, prot }
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (PRESENT, PRESENT)
    }
}
