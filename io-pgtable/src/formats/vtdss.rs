//! VT-d's second-stage table (Intel Virtualization Technology for Directed I/O, sections 3.7 "Second-Stage Translation" and 9.8
//! "Second-Stage Paging Entries").

use platform::{PageSizes, PhysAddr, Prot};

use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};

/// VT-d, second stage: 3 levels for 31 to 39 bits (MGAW), 4 for up to 48, 5 for up to 57; AW of the context or PASID entry is the
/// number of levels less two. Quirks: [`Quirks::FORCE_COHERENCE`] sets SNP, which is reserved where hardware has no snoop control;
/// [`Quirks::FORCE_WRITEABLE`]. Large pages that hardware lacks (SSLPS) are left out by [`IoPgtableCfg::page_sizes`].
///
/// No bit says "present": an entry without rights is empty. Hardware sets A and D only where SSADE is on.
#[doc(alias = "vtdss")]
#[derive(Clone, Copy, Debug)]
pub struct VtdSs {
    /// SNP, when every page has it.
    snoop: u64,
    /// Whether a page must be writable.
    writeable: bool,
}

/// R: reads are allowed.
const READ: u64 = 1 << 0;
/// W: writes are allowed.
const WRITE: u64 = 1 << 1;
/// PS, above the lowest level: the entry is a page.
const PAGE: u64 = 1 << 7;
/// D: the page has been written.
const DIRTY: u64 = 1 << 9;
/// SNP: accesses snoop, whatever the request says.
const SNOOP: u64 = 1 << 11;
/// The address field, bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Format for VtdSs {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 9;
    const MAX_LEVEL: u32 = 5;
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30);
    const OUTPUT_BITS: u32 = 52;
    // Bit 10 is software's.
    const FLUSHED: u64 = 1 << 10;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        cfg.check(Quirks::FORCE_COHERENCE.union(Quirks::FORCE_WRITEABLE))?;
        if cfg.ias < 31 {
            return Err(CfgError::InputSize);
        }
        let snoop = if cfg.quirks.contains(Quirks::FORCE_COHERENCE) { SNOOP } else { 0 };
        let writeable = cfg.quirks.contains(Quirks::FORCE_WRITEABLE);
        Ok((Self { snoop, writeable }, Shape::of::<Self>(cfg.ias, Upper::Zero)?))
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, _shift: u32, level: u32, prot: Prot) -> u64 {
        let mut entry = self.snoop | phys.get() & ADDRESS;
        if level > 1 {
            entry |= PAGE;
        }
        if prot.contains(Prot::READ) {
            entry |= READ;
        }
        if prot.contains(Prot::WRITE) {
            entry |= WRITE;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        // Rights are the AND of all levels: only the leaf decides.
        READ | WRITE | phys.get() & ADDRESS
    }

    #[inline]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & (READ | WRITE) == 0 {
            return Decoded::Empty;
        }
        let phys = PhysAddr::new(entry & ADDRESS);
        if level > 1 && entry & PAGE == 0 {
            return Decoded::Table(phys);
        }
        let mut prot = Prot::empty();
        prot.set(Prot::READ, entry & READ != 0);
        prot.set(Prot::WRITE, entry & WRITE != 0);
        Decoded::Leaf { phys, shift: Self::level_shift(level), prot }
    }

    #[inline]
    fn accepts(&self, prot: Prot) -> bool {
        prot.contains(Prot::WRITE) || !self.writeable && prot.contains(Prot::READ)
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (READ | WRITE, READ | WRITE)
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
