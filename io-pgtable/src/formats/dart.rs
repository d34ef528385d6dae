//! Apple's DART, versions 1 (t8020, t8103) and 2 (t6000, t8110). There is no public specification: this is what Linux and m1n1
//! found out. Not proven by hardware here.

use platform::{PageSizes, PhysAddr, Prot};

use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};
use crate::registers::Registers;
use crate::table::Root;

/// A DART of a version, 1 or 2, whose pages have 2^`GRANULE_SHIFT` bytes; pages are in the lowest level only. See [`Dart1`] and
/// [`Dart2`].
///
/// **Not proven by hardware.** Its entries are those that Linux writes.
#[derive(Clone, Copy, Debug)]
pub struct Dart<const VERSION: u32, const GRANULE_SHIFT: u32> {
    ttbrs: u8,
}

/// DART 1, with pages of 4 KiB (12) or 16 KiB (14): two levels below up to four root pointers, up to 32 bits of I/O address with
/// the small pages and 36 with the large. The tables of the root pointers lie side by side.
#[doc(alias = "APPLE_DART")]
pub type Dart1<const GRANULE_SHIFT: u32> = Dart<1, GRANULE_SHIFT>;

/// DART 2, with pages of 16 KiB: two levels for up to 36 bits of I/O address, three for up to 42.
#[doc(alias = "APPLE_DART2")]
pub type Dart2 = Dart<2, 14>;

/// The entry is valid.
const VALID: u64 = 1 << 0;
/// Version 1: the page has no parts with rights of their own.
const NO_SUB_PAGES: u64 = 1 << 1;
/// Version 2: accesses are not cached.
const NON_CACHED: u64 = 1 << 1;
/// Bits 51:40, the last part of a page that may be used; the first, in bits 63:52, is 0.
const SUB_PAGE_END: u64 = 0xfff << 40;

impl<const VERSION: u32, const GRANULE_SHIFT: u32> Dart<VERSION, GRANULE_SHIFT> {
    const NO_WRITE: u64 = if VERSION == 1 { 1 << 7 } else { 1 << 2 };
    const NO_READ: u64 = if VERSION == 1 { 1 << 8 } else { 1 << 3 };
    /// The address field: bits 35:12 in place; bits 41:14 of the address at 37:10.
    const ADDRESS: u64 = if VERSION == 1 { 0xf_ffff_f000 } else { 0x3f_ffff_fc00 };
    /// From an address to its place.
    const ADDRESS_SHIFT: u32 = if VERSION == 1 { 0 } else { 4 };
    const INPUT_BITS: u32 = match (VERSION, GRANULE_SHIFT) {
        (1, 12) => 32,
        (1, 14) => 36,
        (2, 14) => 42,
        _ => panic!("no DART has such pages"),
    };

    const fn field(phys: PhysAddr) -> u64 {
        phys.get() >> Self::ADDRESS_SHIFT & Self::ADDRESS
    }
}

impl<const VERSION: u32, const GRANULE_SHIFT: u32> Format for Dart<VERSION, GRANULE_SHIFT> {
    const GRANULE_SHIFT: u32 = GRANULE_SHIFT;
    const INDEX_BITS: u32 = GRANULE_SHIFT - 3;
    const MAX_LEVEL: u32 = if VERSION == 1 { 2 } else { 3 };
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << GRANULE_SHIFT);
    const OUTPUT_BITS: u32 = if VERSION == 1 { 36 } else { 42 };

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        cfg.check(Quirks::empty())?;
        if cfg.ias <= Self::level_shift(2) || cfg.ias > Self::INPUT_BITS {
            return Err(CfgError::InputSize);
        }
        // What two levels of version 1 do not look up chooses a root pointer.
        let level = if VERSION == 1 || cfg.ias <= 36 { 2 } else { 3 };
        let shape = Shape {
            level,
            top_bits: cfg.ias - Self::level_shift(level),
            upper: Upper::Zero,
            page_sizes: Self::PAGE_SIZES,
            output_bits: Self::OUTPUT_BITS,
            table_bits: Self::OUTPUT_BITS,
        };
        let ttbrs = 1 << shape.top_bits.saturating_sub(Self::INDEX_BITS);
        Ok((Self { ttbrs }, shape))
    }

    #[inline]
    fn leaf(&self, phys: PhysAddr, _shift: u32, _level: u32, prot: Prot) -> u64 {
        let mut entry = VALID | SUB_PAGE_END | Self::field(phys);
        if VERSION == 1 {
            entry |= NO_SUB_PAGES;
        } else if !prot.contains(Prot::CACHE) {
            entry |= NON_CACHED;
        }
        if !prot.contains(Prot::READ) {
            entry |= Self::NO_READ;
        }
        if !prot.contains(Prot::WRITE) {
            entry |= Self::NO_WRITE;
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        VALID | Self::field(phys)
    }

    #[inline]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & VALID == 0 {
            return Decoded::Empty;
        }
        let phys = PhysAddr::new((entry & Self::ADDRESS) << Self::ADDRESS_SHIFT);
        if level > 1 {
            return Decoded::Table(phys);
        }
        let mut prot = Prot::empty();
        prot.set(Prot::READ, entry & Self::NO_READ == 0);
        prot.set(Prot::WRITE, entry & Self::NO_WRITE == 0);
        prot.set(Prot::CACHE, VERSION == 2 && entry & NON_CACHED == 0);
        Decoded::Leaf { phys, shift: GRANULE_SHIFT, prot }
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (VALID, VALID)
    }

    fn registers(&self, root: Root) -> Registers {
        let ttbr =
            |n: u64| if n < u64::from(self.ttbrs) { root.phys.get() + (n << GRANULE_SHIFT) } else { 0 };
        Registers::Dart {
            ttbr: [ttbr(0), ttbr(1), ttbr(2), ttbr(3)],
            ttbrs: self.ttbrs,
            levels: root.level as u8,
        }
    }
}
