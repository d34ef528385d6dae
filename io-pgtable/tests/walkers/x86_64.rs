//! A second reading of the AMD64 Architecture Programmer's Manual, volume 2, sections 5.3 to 5.6: long-mode translation of a
//! request without privilege, as an IOMMU does it.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::Found;
use crate::common::Arena;

pub(crate) fn walk(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Option<Found> {
    // Four levels translate 48 bits, five 57.
    let levels = if cfg.ias <= 48 { 4 } else { 5 };
    assert_eq!(root.level, levels);
    if cfg.quirks.contains(Quirks::SIGN_EXTEND) {
        let above = iova >> (cfg.ias - 1);
        if above != 0 && above != u64::MAX >> (cfg.ias - 1) {
            return None;
        }
    } else if iova >> cfg.ias != 0 {
        return None;
    }
    let (mut table, mut read, mut write) = (root.phys.get(), true, true);
    for level in (0..levels).rev() {
        let offset_bits = 12 + 9 * level;
        let entry = arena.read(table + 8 * ((iova >> offset_bits) % 512));
        if entry & 1 == 0 {
            assert_eq!(entry, 0, "not present, and not clear");
            return None;
        }
        write &= entry & 2 != 0;
        // A supervisor's page is none for a device.
        read &= entry & 4 != 0;
        let is_page = level == 0 || entry & 0x80 != 0;
        assert!(!is_page || level <= 2, "{entry:#x}: a page in level {level}");
        assert_eq!(entry & 0x7ff0_0000_0000_0000, 0, "{entry:#x}: bits that nobody asked for");
        let address = entry & 0x000f_ffff_ffff_f000;
        // Encrypted memory is where it is without the bit.
        let address = address & !cfg.encryption;
        if is_page {
            let size = 1u64 << offset_bits;
            assert_eq!(address % size, 0, "{entry:#x}: low address bits of a large page are reserved");
            assert_ne!(entry & 0x20, 0, "{entry:#x}: hardware would have to set A");
            assert_eq!(entry & 0x40 != 0, entry & 2 != 0, "{entry:#x}: hardware would have to set D");
            return Some(Found { phys: address + iova % size, size, read, write: write && read });
        }
        table = address;
    }
    unreachable!("the lowest level has pages only");
}
