//! What both stages of ARM's long descriptors share (Arm Architecture Reference Manual, section D8.3 "Translation table
//! descriptor formats").

use platform::{PageSizes, PhysAddr};

use crate::cfg::{CfgError, IoPgtableCfg, Quirks};
use crate::registers::ArmTcr;

/// Bit 0: the descriptor is valid.
pub(super) const VALID: u64 = 1 << 0;
/// Bit 1: a table, or at the lowest level a page; else a block.
pub(super) const TABLE_OR_PAGE: u64 = 1 << 1;
/// SH, bits 9:8.
pub(super) const SHAREABLE: u64 = 3 << 8;
/// SH: outer shareable.
const OUTER_SHAREABLE: u64 = 2 << 8;
/// AF: without it an access faults.
pub(super) const ACCESSED: u64 = 1 << 10;
/// Contiguous: one of several entries side by side that are a page.
pub(super) const CONTIGUOUS: u64 = 1 << 52;
/// XN, PXN and UXN, bits 54:53.
pub(super) const NO_EXECUTE: u64 = 3 << 53;
/// Bits 58:55 are software's, in a pointer too.
pub(super) const FLUSHED: u64 = 1 << 55;
/// The least memory that a top takes.
pub(super) const MIN_TOP_BYTES: usize = 64;

/// log2 of how many entries with the hint are a page of `level`, the lowest being 1.
const fn contiguous_bits(granule_shift: u32, level: u32) -> u32 {
    match (granule_shift, level) {
        (12, 1..=3) => 4,
        (14, 1) => 7,
        (14, 2) | (16, 1 | 2) => 5,
        _ => 0,
    }
}

/// Pages, blocks, and runs with the hint.
pub(super) const fn page_sizes(granule_shift: u32) -> PageSizes {
    PageSizes::from_bits(match granule_shift {
        12 => 1 << 12 | 1 << 16 | 1 << 21 | 1 << 25 | 1 << 30 | RUN_OF_1G | 1 << 39,
        14 => 1 << 14 | 1 << 21 | 1 << 25 | 1 << 30 | 1 << 36,
        16 => 1 << 16 | 1 << 21 | 1 << 29 | 1 << 34 | 1 << 42,
        _ => panic!("granules are of 4, 16 and 64 KiB"),
    })
}

/// Sixteen blocks of 1 GiB with the hint.
const RUN_OF_1G: u64 = 1 << 34;
/// BITS of a table with LPA2 ("large physical addresses"): 52 bits with granules of 4 and 16 KiB.
pub(super) const LPA2: u32 = 52;

/// Those of a configuration: 4 TiB takes physical addresses of 52 bits, 64 and 512 GiB take LPA2, a run of 1 GiB is asked for.
pub(super) fn sizes_for(granule_shift: u32, bits: u32, output_bits: u32, quirks: Quirks) -> PageSizes {
    let largest = match granule_shift {
        _ if bits == LPA2 => 1 << 39,
        16 if output_bits == 52 => 1 << 42,
        _ => 1 << 34,
    };
    let with_run = granule_shift != 12 || quirks.contains(Quirks::ARM_CONTIGUOUS_1G);
    let left_out = if with_run { 0 } else { RUN_OF_1G };
    let sizes = PageSizes::from_bits((2 * largest - 1) & !left_out);
    page_sizes(granule_shift).intersection(sizes)
}

/// Bits of an address, of either kind: 52 only with granules of 64 KiB, or with LPA2.
pub(super) const fn address_bits(granule_shift: u32, bits: u32) -> u32 {
    match (bits, granule_shift) {
        (32, _) => 40,
        (LPA2, _) | (_, 16) => 52,
        _ => 48,
    }
}

/// The highest level of a top: what ARM calls 0, or 1, or -1.
pub(super) const fn max_level(granule_shift: u32, bits: u32) -> u32 {
    match (granule_shift, bits) {
        (16, _) | (_, 32) => 3,
        (12, LPA2) => 5,
        _ => 4,
    }
}

/// An address in its place: granules of 64 KiB have bits 51:48 at 15:12.
#[inline]
pub(super) const fn address_field(granule_shift: u32, phys: PhysAddr) -> u64 {
    let phys = phys.get();
    let high = if granule_shift == 16 { phys >> 36 & 0xf000 } else { 0 };
    phys & 0x0000_ffff_ffff_f000 | high
}

/// The address of an entry.
#[inline]
pub(super) const fn address(granule_shift: u32, entry: u64) -> PhysAddr {
    let low = entry & 0x0000_ffff_ffff_f000;
    PhysAddr::new(if granule_shift == 16 { low & !0xf000 | (low & 0xf000) << 36 } else { low })
}

/// The same with LPA2, which has bits 51:50 at 9:8.
#[inline]
pub(super) const fn lpa2_address_field(phys: PhysAddr) -> u64 {
    let phys = phys.get();
    phys & 0x0003_ffff_ffff_f000 | phys >> 42 & 0x300
}

/// The address of such an entry.
#[inline]
pub(super) const fn lpa2_address(entry: u64) -> PhysAddr {
    PhysAddr::new(entry & 0x0003_ffff_ffff_f000 | (entry & 0x300) << 42)
}

/// What a leaf of `level` has of its kind: page or block, alone or one of several.
#[inline]
pub(super) const fn leaf_type(shift: u32, level: u32, level_shift: u32) -> u64 {
    let page = if level == 1 { TABLE_OR_PAGE } else { 0 };
    let run = if shift == level_shift { 0 } else { CONTIGUOUS };
    VALID | page | run
}

/// log2 of the size of a leaf's page.
#[inline]
pub(super) const fn leaf_shift(granule_shift: u32, entry: u64, level: u32, level_shift: u32) -> u32 {
    if entry & CONTIGUOUS == 0 { level_shift } else { level_shift + contiguous_bits(granule_shift, level) }
}

/// SH of memory: only what is cached is inner shareable, whatever the memory type.
#[inline]
pub(super) const fn shareability(cached: bool) -> u64 {
    if cached { SHAREABLE } else { OUTER_SHAREABLE }
}

/// TCR and VTCR, for I/O addresses of `cfg.ias` bits and physical addresses of `output_bits`.
///
/// # Errors
/// [`CfgError::InputSize`], [`CfgError::OutputSize`], [`CfgError::Quirks`].
pub(super) fn tcr(cfg: &IoPgtableCfg, output_bits: u32, tg: u8, ds: bool) -> Result<ArmTcr, CfgError> {
    // TxSZ is 39 at most.
    if cfg.ias < 25 {
        return Err(CfgError::InputSize);
    }
    let sizes = [32, 36, 40, 42, 44, 48, 52];
    let ps = sizes.iter().position(|bits| *bits == output_bits).ok_or(CfgError::OutputSize)?;
    let outer_cached = cfg.quirks.contains(Quirks::ARM_OUTER_WBWA);
    let (sh, irgn, orgn) = match (cfg.coherent_walk, outer_cached) {
        (true, true) => return Err(CfgError::Quirks),
        (true, false) => (3, 1, 1),
        (false, outer_cached) => (2, 0, u8::from(outer_cached)),
    };
    Ok(ArmTcr { ps: ps as u8, tg, sh, orgn, irgn, tsz: (64 - cfg.ias) as u8, ds })
}
