//! A second reading of the VT-d specification, second-stage translation in legacy mode or by a PASID entry without SSADE.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::{Fault, Found};
use crate::common::Arena;

pub(crate) fn look(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    // AW 1, 2, 3 are 39, 48, 57 bits; what is behind MGAW faults.
    let levels = match cfg.ias {
        ..=39 => 3,
        40..=48 => 4,
        _ => 5,
    };
    assert_eq!(root.level, levels);
    if iova >> cfg.ias != 0 {
        return Err(Fault::Absent);
    }
    let (mut table, mut rights) = (root.phys.get(), 3);
    for below in (0..levels).rev() {
        let shift = 12 + 9 * below;
        let entry = arena.read(table | (iova >> shift & 0x1ff) << 3);
        if entry & 3 == 0 {
            return Err(Fault::of_empty(entry));
        }
        rights &= entry & 3;
        // Bit 62 is reserved, and so are address bits that the platform lacks.
        let host_bits = cfg.oas.min(52);
        if entry >> 62 & 1 == 1 || entry << 12 >> 12 >> host_bits != 0 {
            return Err(Fault::Refused("a reserved bit"));
        }
        let large = entry >> 7 & 1 == 1;
        let snoop = entry >> 11 & 1 == 1;
        if below > 0 && !large {
            if snoop {
                return Err(Fault::Refused("SNP in a pointer"));
            }
            table = entry & 0xf_ffff_ffff_f000;
            continue;
        }
        if below > 2 {
            return Err(Fault::Refused("a page of 512 GiB"));
        }
        if snoop && !cfg.quirks.contains(Quirks::FORCE_COHERENCE) {
            return Err(Fault::Refused("SNP without snoop control"));
        }
        let size = 1u64 << shift;
        let base = entry & 0xf_ffff_ffff_f000;
        if base & (size - 1) != 0 {
            return Err(Fault::Refused("low address bits of a large page"));
        }
        let (read, write) = (rights & 1 != 0, rights & 2 != 0);
        return Ok(Found { phys: base + iova % size, size, read, write, execute: true });
    }
    unreachable!("the lowest level has pages only")
}
