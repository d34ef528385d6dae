//! ARM's short descriptors (ARM Architecture Reference Manual, ARMv7-A, section B3.5 "Short-descriptor translation table format"),
//! with TEX remapping and the access flag on.

use platform::{PageSizes, PhysAddr, Prot};

use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};
use crate::registers::Registers;
use crate::table::Root;

/// ARM v7, short descriptors: 32 bits of I/O and of physical address, entries of 4 bytes. Pages of 64 KiB and 16 MiB are sixteen
/// equal entries. Tables are below 4 GiB.
///
/// Quirks: [`Quirks::ARM_NS`]; [`Quirks::NO_PERMS`], with which every page can be read, written and executed, whatever is asked;
/// with that [`Quirks::ARM_MTK_EXT`]: physical addresses of 35 bits, and I/O addresses of up to 34. Not
/// [`Quirks::ARM_MTK_TTBR_EXT`]: the list of freed tables goes through their first words, which hold 32 bits of address.
///
/// What can be written can be read.
#[doc(alias = "ARM_V7S")]
#[derive(Clone, Copy, Debug)]
pub struct ArmV7s {
    /// Whether entries have rights.
    rights: bool,
    /// Whether entries have address bits 34:32.
    wide: bool,
    /// NS of a pointer, and of a section.
    non_secure: bool,
    coherent: bool,
}

/// Bits 1:0 of a pointer in the first level, and of a large page in the second.
const POINTER_OR_LARGE: u64 = 1;
/// Bit 1 of a section, and of a small page.
const SECTION_OR_SMALL: u64 = 2;
/// Bits 1:0: all zero is empty.
const TYPE: u64 = 3;
/// Bit 18 of a section: one of sixteen.
const SUPERSECTION: u64 = 1 << 18;
/// B.
const BUFFERABLE: u64 = 1 << 2;
/// C.
const CACHEABLE: u64 = 1 << 3;
/// NS of a pointer.
const POINTER_NON_SECURE: u64 = 1 << 3;
/// NS of a section.
const SECTION_NON_SECURE: u64 = 1 << 19;
/// MediaTek: where address bits 32, 33 and 34 are.
const WIDE: [u32; 3] = [9, 4, 5];
/// TTBR where walks snoop: S, NOS, and write-back caches, outer and inner. Else shareable, not cached.
const TTBR: [u32; 2] = [0x02, 0x6a];
/// PRRR: what the remapped memory types are.
const PRRR: u32 = 0x800b_8204;
/// NMRR: how normal memory is cached.
const NMRR: u32 = 0x4000_4000;

/// Where attributes are in a leaf of some size.
struct Layout {
    /// The bits that say what the leaf is.
    kind: u64,
    /// XN.
    no_execute: u64,
    /// AP\[0], the access flag.
    accessed: u64,
    /// AP\[1].
    unprivileged: u64,
    /// AP\[2].
    read_only: u64,
    /// TEX\[0]: normal memory.
    normal: u64,
    /// S and nG.
    shared: u64,
}

impl Layout {
    #[inline]
    const fn of(shift: u32) -> Self {
        let (kind, xn, ap, ap2, tex, s) = match shift {
            12 => (SECTION_OR_SMALL, 0, 4, 9, 6, 10),
            16 => (POINTER_OR_LARGE, 15, 4, 9, 12, 10),
            20 => (SECTION_OR_SMALL, 4, 10, 15, 12, 16),
            _ => (SECTION_OR_SMALL | SUPERSECTION, 4, 10, 15, 12, 16),
        };
        Self {
            kind,
            no_execute: 1 << xn,
            accessed: 1 << ap,
            unprivileged: 2 << ap,
            read_only: 1 << ap2,
            normal: 1 << tex,
            shared: 3 << s,
        }
    }
}

impl Format for ArmV7s {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 8;
    const ENTRY_BYTES: usize = 4;
    const MIN_TOP_BYTES: usize = 1 << 14;
    const MAX_LEVEL: u32 = 2;
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << 12 | 1 << 16 | 1 << 20 | 1 << 24);
    const OUTPUT_BITS: u32 = 35;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        cfg.check(Quirks::ARM_NS.union(Quirks::NO_PERMS).union(Quirks::ARM_MTK_EXT))?;
        let rights = !cfg.quirks.contains(Quirks::NO_PERMS);
        let wide = cfg.quirks.contains(Quirks::ARM_MTK_EXT);
        if wide && rights {
            return Err(CfgError::Quirks);
        }
        if cfg.ias <= 20 || cfg.ias > if wide { 34 } else { 32 } {
            return Err(CfgError::InputSize);
        }
        let shape = Shape {
            level: 2,
            top_bits: cfg.ias - 20,
            upper: Upper::Zero,
            page_sizes: Self::PAGE_SIZES,
            output_bits: if wide { 35 } else { 32 },
            table_bits: 32,
        };
        let non_secure = cfg.quirks.contains(Quirks::ARM_NS);
        Ok((Self { rights, wide, non_secure, coherent: cfg.coherent_walk }, shape))
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64 {
        let layout = Layout::of(shift);
        let mut entry = layout.kind | layout.shared | phys.get() & 0xffff_f000;
        if self.wide {
            for (n, bit) in WIDE.into_iter().enumerate() {
                entry |= (phys.get() >> (32 + n) & 1) << bit;
            }
        }
        if prot.contains(Prot::MMIO) {
            entry |= BUFFERABLE;
        } else if prot.contains(Prot::CACHE) {
            entry |= layout.normal | BUFFERABLE | CACHEABLE;
        } else {
            entry |= layout.normal;
        }
        if self.rights {
            entry |= layout.accessed;
            if !prot.contains(Prot::PRIV) {
                entry |= layout.unprivileged;
            }
            if !prot.contains(Prot::WRITE) {
                entry |= layout.read_only;
            }
            if prot.contains(Prot::NOEXEC) {
                entry |= layout.no_execute;
            }
        }
        if self.non_secure && level == 2 {
            entry |= SECTION_NON_SECURE;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        let non_secure = if self.non_secure { POINTER_NON_SECURE } else { 0 };
        POINTER_OR_LARGE | non_secure | phys.get() & 0xffff_fc00
    }

    #[inline]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        let shift = match (level, entry & TYPE) {
            (_, 0) => return Decoded::Empty,
            (2, POINTER_OR_LARGE) => return Decoded::Table(PhysAddr::new(entry & 0xffff_fc00)),
            (2, _) if entry & SUPERSECTION == 0 => 20,
            (2, _) => 24,
            (_, POINTER_OR_LARGE) => 16,
            _ => 12,
        };
        let layout = Layout::of(shift);
        let mut phys = entry & 0xffff_f000;
        if self.wide {
            for (n, bit) in WIDE.into_iter().enumerate() {
                phys |= (entry >> bit & 1) << (32 + n);
            }
        }
        let mut prot = Prot::READ;
        prot.set(Prot::CACHE, entry & CACHEABLE != 0);
        prot.set(Prot::MMIO, entry & layout.normal == 0);
        prot.set(Prot::WRITE, !self.rights || entry & layout.read_only == 0);
        prot.set(Prot::PRIV, self.rights && entry & layout.unprivileged == 0);
        prot.set(Prot::NOEXEC, self.rights && entry & layout.no_execute != 0);
        Decoded::Leaf { phys: PhysAddr::new(phys).align_down(1 << shift), shift, prot }
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (SECTION_OR_SMALL, SECTION_OR_SMALL)
    }

    fn registers(&self, root: Root) -> Registers {
        let ttbr = root.phys.get() as u32 | TTBR[usize::from(self.coherent)];
        Registers::ArmV7s { ttbr, tcr: 0, nmrr: NMRR, prrr: PRRR }
    }
}
