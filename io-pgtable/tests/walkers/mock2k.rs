//! A second reading of the mock format.

use io_pgtable::{IoPgtableCfg, Root};

use super::{Fault, Found};
use crate::common::Arena;

pub(crate) fn look(arena: &Arena, root: Root, _cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    assert_eq!((root.level, root.phys.get() & 0xff), (5, 0), "the root register");
    if iova >= 1 << 44 {
        return Err(Fault::Absent);
    }
    let mut table = root.phys.get();
    for (level, shift) in [(4, 39), (3, 32), (2, 25), (1, 18), (0, 11)] {
        let index = iova >> shift & 0x7f;
        let entry = arena.read(table + 8 * index);
        if entry & 1 == 0 {
            return Err(Fault::of_empty(entry));
        }
        if entry >> 63 != 0 {
            return Err(Fault::Refused("bit 63"));
        }
        if entry & 2 == 0 {
            if level == 0 || entry & 0x1ffc != 0 {
                return Err(Fault::Refused("a bit of a pointer"));
            }
            table = entry >> 22 << 10;
            continue;
        }
        let items = match (entry >> 10 & 7, level) {
            (0, 0..=2) => 1,
            (2, 0 | 1) => 4,
            (4, 0 | 1) => 16,
            _ => return Err(Fault::Refused("a run of so many")),
        };
        if entry & 0xc == 0xc || entry >> 22 & 1 != 0 {
            return Err(Fault::Refused("a bit of a leaf"));
        }
        let (size, base) = (1u64 << shift, entry >> 23 << 11);
        // Every item of a run has its own address and what the first has otherwise, but for A and D.
        let first = index / items * items;
        let start = arena.read(table + 8 * first);
        for n in 0..items {
            let item = arena.read(table + 8 * (first + n));
            let expected = start + ((n * size) << 12);
            if (item ^ expected) & !0x300 != 0 {
                return Err(Fault::Refused("a run that is none"));
            }
        }
        if !base.is_multiple_of(size) || !(start >> 23 << 11).is_multiple_of(size * items) {
            return Err(Fault::Refused("an address below its size"));
        }
        let user = entry >> 7 & 1 == 0;
        let [read, write, execute] = [2, 3, 4].map(|bit| user && entry >> bit & 1 == 0);
        return Ok(Found { phys: base + iova % size, size: size * items, read, write, execute });
    }
    unreachable!("level 0 has pages only")
}
