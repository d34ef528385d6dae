//! RISC-V's page table (Privileged Architecture, chapter "Supervisor-Level ISA": Sv32, Sv39, Sv48, Sv57, Svnapot, Svpbmt), as
//! the RISC-V IOMMU reads it.

use platform::{PageSizes, PhysAddr, Prot};

use crate::cfg::{CfgError, IoPgtableCfg, Quirks, Shape, Upper};
use crate::format::{Decoded, Format};

/// RISC-V: Sv39, Sv48 or Sv57, by the bits of the I/O address; signed. A page of 64 KiB is sixteen equal entries (Svnapot,
/// which every RISC-V IOMMU has). With [`Quirks::RISCV_SVPBMT`] entries have a memory type. [`RiscV32`] has entries of 32 bits.
///
/// Accessed and dirty bits are set from the start, so hardware never writes to an entry.
#[derive(Clone, Copy, Debug)]
pub struct RiscV<const ENTRY_BITS: u32 = 64> {
    memory_types: bool,
}

/// RISC-V's Sv32: 32 bits of I/O address, 34 of physical address, tables in the lowest 4 GiB; pages of 4 KiB and 4 MiB.
pub type RiscV32 = RiscV<32>;

/// V: the entry is valid.
const VALID: u64 = 1 << 0;
/// R: reads are allowed. An entry with none of R, W and X is a pointer.
const READ: u64 = 1 << 1;
/// W: writes are allowed. Reserved without R.
const WRITE: u64 = 1 << 2;
/// X: instructions may be fetched.
const EXECUTE: u64 = 1 << 3;
/// U: requests without privilege are allowed, which all are that name no process.
const USER: u64 = 1 << 4;
/// A: the entry has been used.
const ACCESSED: u64 = 1 << 6;
/// D: the page has been written.
const DIRTY: u64 = 1 << 7;
/// The address: bits 55:12 of it, at bits 53:10.
const PPN: u64 = 0x003f_ffff_ffff_fc00;
/// From an address to its place.
const PPN_SHIFT: u32 = 2;
/// PBMT, bits 62:61: not cached.
const NON_CACHED: u64 = 1 << 61;
/// PBMT: device memory.
const IO: u64 = 2 << 61;
/// N: one of several entries that are a page; its size is in the address.
const NAPOT: u64 = 1 << 63;
/// log2 of the one such size.
const NAPOT_SHIFT: u32 = 16;
/// What the address of such a page has in the bits that its size leaves free.
const NAPOT_SIZE: u64 = 0x8000;

impl<const ENTRY_BITS: u32> Format for RiscV<ENTRY_BITS> {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = if ENTRY_BITS == 32 { 10 } else { 9 };
    const ENTRY_BYTES: usize = ENTRY_BITS as usize / 8;
    const MAX_LEVEL: u32 = if ENTRY_BITS == 32 { 2 } else { 5 };
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(if ENTRY_BITS == 32 {
        1 << 12 | 1 << 22
    } else {
        1 << 12 | 1 << NAPOT_SHIFT | 1 << 21 | 1 << 30 | 1 << 39 | 1 << 48
    });
    const OUTPUT_BITS: u32 = if ENTRY_BITS == 32 { 34 } else { 56 };
    // Bits 9:8 are software's.
    const FLUSHED: u64 = 1 << 8;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        cfg.check(if ENTRY_BITS == 32 { Quirks::empty() } else { Quirks::RISCV_SVPBMT })?;
        let upper = match (ENTRY_BITS, cfg.ias) {
            (32, 32) => Upper::Zero,
            (64, 39 | 48 | 57) => Upper::Sign,
            _ => return Err(CfgError::InputSize),
        };
        let mut shape = Shape::of::<Self>(cfg.ias, upper)?;
        if ENTRY_BITS == 32 {
            // The upper half of a link between pages that wait to be freed must read as an empty entry.
            shape.table_bits = 32;
        }
        Ok((Self { memory_types: cfg.quirks.contains(Quirks::RISCV_SVPBMT) }, shape))
    }

    #[inline(always)]
    fn leaf(&self, phys: PhysAddr, shift: u32, _level: u32, prot: Prot) -> u64 {
        let mut entry = VALID | READ | USER | ACCESSED | phys.get() >> PPN_SHIFT & PPN;
        if shift == NAPOT_SHIFT {
            entry |= NAPOT | NAPOT_SIZE >> PPN_SHIFT;
        }
        if prot.contains(Prot::WRITE) {
            entry |= WRITE | DIRTY;
        }
        if !prot.contains(Prot::NOEXEC) {
            entry |= EXECUTE;
        }
        if self.memory_types {
            if prot.contains(Prot::MMIO) {
                entry |= IO;
            } else if !prot.contains(Prot::CACHE) {
                entry |= NON_CACHED;
            }
        }
        entry
    }

    #[inline]
    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        VALID | phys.get() >> PPN_SHIFT & PPN
    }

    #[inline(always)]
    fn decode(&self, entry: u64, level: u32) -> Decoded {
        if entry & VALID == 0 {
            return Decoded::Empty;
        }
        let phys = PhysAddr::new((entry & PPN) << PPN_SHIFT);
        if entry & (READ | WRITE | EXECUTE) == 0 {
            return Decoded::Table(phys);
        }
        let shift = if entry & NAPOT == 0 { Self::level_shift(level) } else { NAPOT_SHIFT };
        let mut prot = Prot::empty();
        prot.set(Prot::READ, entry & READ != 0);
        prot.set(Prot::WRITE, entry & WRITE != 0);
        prot.set(Prot::NOEXEC, entry & EXECUTE == 0);
        if self.memory_types {
            prot.set(Prot::MMIO, entry & IO != 0);
            prot.set(Prot::CACHE, entry & (IO | NON_CACHED) == 0);
        }
        Decoded::Leaf { phys: phys.align_down(1 << shift), shift, prot }
    }

    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (VALID | READ | NAPOT, VALID | READ)
    }
}
