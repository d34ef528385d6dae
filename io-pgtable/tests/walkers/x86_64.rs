//! A second reading of the AMD64 Architecture Programmer's Manual, volume 2, sections 5.3 to 5.6: long-mode translation of a
//! request without privilege, as an IOMMU does it.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::{Fault, Found};
use crate::common::Arena;

/// Levels count from 0 here, the lowest.
const PAGE_OFFSET: u32 = 12;

/// What hardware finds; panics at an entry that no driver may write.
pub(crate) fn walk(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    descend(arena, root, cfg, iova, assert_well_written)
}

/// What hardware finds, whatever is there.
pub(crate) fn hardware(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    descend(arena, root, cfg, iova, |_, _| ())
}

/// Whether an entry is a page: PS, or the lowest level.
fn is_page(entry: u64, level: u32) -> bool {
    level == 0 || entry & 0x80 != 0
}

/// The address bits of a page that its size leaves free, but bit 12, which is a memory type in a large page.
fn reserved_address(level: u32) -> u64 {
    ((1 << (PAGE_OFFSET + 9 * level)) - 1) & !0x1fff
}

fn assert_well_written(entry: u64, level: u32) {
    if entry & 1 == 0 {
        return assert_eq!(entry, 0, "not present, and not clear");
    }
    assert_eq!(entry & 0x7ff0_0000_0000_0000, 0, "{entry:#x}: bits that nobody asked for");
    if is_page(entry, level) {
        assert!(level <= 2, "{entry:#x}: a page in level {level}");
        assert_eq!(
            entry & reserved_address(level),
            0,
            "{entry:#x}: low address bits of a large page are reserved"
        );
        assert!(level == 0 || entry & 0x1000 == 0, "{entry:#x}: a memory type that nobody asked for");
        assert_ne!(entry & 0x20, 0, "{entry:#x}: hardware would have to set A");
        assert_eq!(entry & 0x40 != 0, entry & 2 != 0, "{entry:#x}: hardware would have to set D");
    }
}

fn descend(
    arena: &Arena,
    root: Root,
    cfg: &IoPgtableCfg,
    iova: u64,
    look: impl Fn(u64, u32),
) -> Result<Found, Fault> {
    // Four levels translate 48 bits, five 57.
    let levels = if cfg.ias <= 48 { 4 } else { 5 };
    assert_eq!(root.level, levels);
    if cfg.quirks.contains(Quirks::SIGN_EXTEND) {
        let above = iova >> (cfg.ias - 1);
        if above != 0 && above != u64::MAX >> (cfg.ias - 1) {
            return Err(Fault::Absent);
        }
    } else if iova >> cfg.ias != 0 {
        return Err(Fault::Absent);
    }
    let (mut table, mut read, mut write) = (root.phys.get(), true, true);
    for level in (0..levels).rev() {
        let offset_bits = PAGE_OFFSET + 9 * level;
        let entry = arena.read(table + 8 * ((iova >> offset_bits) % 512));
        look(entry, level);
        if entry & 1 == 0 {
            return Err(Fault::of_empty(entry));
        }
        write &= entry & 2 != 0;
        // A supervisor's page is none for a device.
        read &= entry & 4 != 0;
        // Encrypted memory is where it is without the bit.
        let address = entry & 0x000f_ffff_ffff_f000 & !cfg.encryption;
        if is_page(entry, level) {
            if level > 2 || entry & reserved_address(level) != 0 {
                return Err(Fault::Refused("a page above level 2, or low address bits of a large page"));
            }
            let size = 1u64 << offset_bits;
            let base = address & !(size - 1);
            let phys = base + iova % size;
            return Ok(Found { phys, size, read, write: write && read, execute: read });
        }
        table = address;
    }
    unreachable!("the lowest level has pages only");
}
