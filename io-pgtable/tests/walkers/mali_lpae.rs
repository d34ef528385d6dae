//! A second reading of what is known of Mali's tables.

use io_pgtable::{IoPgtableCfg, Root};

use super::{Fault, Found};
use crate::common::Arena;

pub(crate) fn look(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    if iova >> cfg.ias != 0 {
        return Err(Fault::Absent);
    }
    let mut table = root.phys.get();
    assert_eq!(table & 0xfff, 0, "TRANSTAB has attributes below bit 12");
    for shift in [39, 30, 21, 12] {
        let entry = arena.read(table + 8 * (iova >> shift & 0x1ff));
        let address = entry & 0xff_ffff_f000;
        match entry & 3 {
            0 => return Err(Fault::of_empty(entry)),
            3 if shift > 12 && address | 3 == entry => table = address,
            1 if shift < 39 => {
                let size = 1u64 << shift;
                if !address.is_multiple_of(size) || entry >> 8 & 3 != 2 || entry & 0xc0 == 0 {
                    return Err(Fault::Refused("no page that Linux writes"));
                }
                let (read, write, execute) = (entry & 0x40 != 0, entry & 0x80 != 0, entry >> 53 & 3 == 0);
                return Ok(Found { phys: address + iova % size, size, read, write, execute });
            }
            _ => return Err(Fault::Refused("no entry of this level")),
        }
    }
    unreachable!("the lowest level has pages only")
}
