//! The AMD IOMMU's host page table (AMD I/O Virtualization Technology, section 2.2.3; "v1").
//!
//! Every power of two from 4 KiB on is a page size: a page that is no level's own is written as several equal entries whose
//! address field says the size, with a next level of 7.

use platform::{PageSizes, PhysAddr, Prot};

use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};

/// AMD v1: 1 to 6 levels, growing. Quirks: [`Quirks::FORCE_COHERENCE`], and an encryption bit.
#[derive(Clone, Copy, Debug)]
pub struct AmdV1 {
    /// The encryption bit.
    encryption: u64,
    /// The bits of an entry that are its address.
    address: u64,
    /// FC, when every page has it.
    coherent: u64,
}

/// PR: the entry is present.
const PRESENT: u64 = 1 << 0;
/// D: hardware has written to the page.
const DIRTY: u64 = 1 << 6;
/// Next Level, bits 11:9. 0 is a page of the level's own size.
const NEXT_LEVEL_SHIFT: u32 = 9;
/// A page whose size is coded in the address field.
const NEXT_LEVEL_CODED: u64 = 7;
/// The address field, bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// FC: accesses are coherent whatever the request says.
const FORCE_COHERENT: u64 = 1 << 60;
/// IR: reads are allowed.
const READ: u64 = 1 << 61;
/// IW: writes are allowed.
const WRITE: u64 = 1 << 62;

impl Format for AmdV1 {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 9;
    const MAX_LEVEL: u32 = 6;
    // 4 KiB to 2^51 but 512 GiB, which some hardware gets wrong.
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(((1 << 52) - (1 << 12)) & !(1 << 39));
    const OUTPUT_BITS: u32 = 52;
    const GROWS: bool = true;
    // Bits 4:1 are software's.
    const FLUSHED: u64 = 1 << 1;
    const BREAK_BEFORE_MAKE: bool = false;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        IoPgtableCfg { encryption: 0, ..*cfg }.check(Quirks::FORCE_COHERENCE)?;
        if cfg.encryption & !ADDRESS != 0 {
            return Err(CfgError::Quirks);
        }
        let coherent = if cfg.quirks.contains(Quirks::FORCE_COHERENCE) { FORCE_COHERENT } else { 0 };
        let mut shape = Shape::of::<Self>(cfg.ias, Upper::Zero)?;
        if cfg.encryption != 0 {
            // Memory ends below the encryption bit, and so does the code of a size.
            shape.output_bits = cfg.encryption.trailing_zeros();
            shape.table_bits = shape.output_bits;
            shape.page_sizes = shape.page_sizes.intersection(PageSizes::from_bits(cfg.encryption - 1));
        }
        Ok((Self { encryption: cfg.encryption, address: ADDRESS & !cfg.encryption, coherent }, shape))
    }

    #[inline(always)]
    fn leaf(&self, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64 {
        let mut entry = PRESENT | self.coherent;
        if shift == Self::level_shift(level) {
            entry |= phys.get() & ADDRESS;
        } else {
            // The lowest zero bit from bit 12 on is the size's bit less one: below it ones, in it zero.
            let size = 1u64 << shift;
            entry |= (phys.get() | (size - 1)) & !(size >> 1) & ADDRESS;
            entry |= NEXT_LEVEL_CODED << NEXT_LEVEL_SHIFT;
        }
        if prot.contains(Prot::READ) {
            entry |= READ;
        }
        if prot.contains(Prot::WRITE) {
            entry |= WRITE;
        }
        if prot.contains(Prot::CACHE) {
            entry |= FORCE_COHERENT;
        }
        if !prot.contains(Prot::MMIO) {
            entry |= self.encryption;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, level: u32) -> u64 {
        // Permissions are the AND of all levels: only the leaf decides.
        let next_level = (u64::from(level) - 1) << NEXT_LEVEL_SHIFT;
        PRESENT | next_level | phys.get() & ADDRESS | self.encryption | READ | WRITE
    }

    #[inline(always)]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & PRESENT == 0 {
            return Decoded::Empty;
        }
        let address = entry & self.address;
        let next_level = entry >> NEXT_LEVEL_SHIFT & 7;
        let shift = match next_level {
            0 => Self::level_shift(level),
            NEXT_LEVEL_CODED => (address | 0xfff).trailing_ones() + 1,
            _ => return Decoded::Table(PhysAddr::new(address)),
        };
        let mut prot = Prot::empty();
        prot.set(Prot::READ, entry & READ != 0);
        prot.set(Prot::WRITE, entry & WRITE != 0);
        prot.set(Prot::CACHE, entry & FORCE_COHERENT != 0);
        prot.set(Prot::MMIO, self.encryption & !entry != 0);
        Decoded::Leaf { phys: PhysAddr::new(address & !((1u64 << shift) - 1)), shift, prot }
    }

    #[inline(always)]
    fn table(&self, entry: u64, _level: u32) -> Option<PhysAddr> {
        // A next level of 1 to 6, neither 0 nor 7: one more has a bit above the lowest. An entry that is not present has 0.
        let leads_down = entry.wrapping_add(1 << NEXT_LEVEL_SHIFT) & 6 << NEXT_LEVEL_SHIFT != 0;
        leads_down.then(|| PhysAddr::new(entry & self.address))
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (PRESENT | 7 << NEXT_LEVEL_SHIFT, PRESENT)
    }

    #[inline]
    fn marks_dirty(&self) -> bool {
        true
    }

    #[inline]
    fn is_dirty(&self, entry: u64) -> bool {
        entry & DIRTY != 0
    }

    #[inline]
    fn set_dirty(&self, entry: u64, dirty: bool) -> u64 {
        if dirty { entry | DIRTY } else { entry & !DIRTY }
    }
}
