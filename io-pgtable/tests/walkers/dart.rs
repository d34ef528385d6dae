//! A second reading of what is known of Apple's DART, as a translation of one stream's root pointers.

use io_pgtable::{IoPgtableCfg, Root};

use super::{Fault, Found};
use crate::common::Arena;

type Looked = Result<Found, Fault>;

/// t8020 with 4 KiB: bits 31:30 of an address choose a TTBR, bits 29:21 and 20:12 index two tables.
pub(crate) fn t8020_4k(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    if iova >> cfg.ias != 0 {
        return Err(Fault::Absent);
    }
    let table = root.phys.get() + (iova >> 30) * 0x1000;
    let table = pointer(arena.read(table + 8 * (iova >> 21 & 0x1ff)), 0xf_ffff_f001, 0)?;
    t8020_page(arena.read(table + 8 * (iova >> 12 & 0x1ff)), iova, 0x1000)
}

/// t8020 with 16 KiB.
pub(crate) fn t8020_16k(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    if iova >> cfg.ias != 0 {
        return Err(Fault::Absent);
    }
    let table = pointer(arena.read(root.phys.get() + 8 * (iova >> 25)), 0xf_ffff_f001, 0)?;
    t8020_page(arena.read(table + 8 * (iova >> 14 & 0x7ff)), iova, 0x4000)
}

/// t8110: three levels of tables when the TCR says so, for which the configuration's size stands here.
pub(crate) fn t8110(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Looked {
    if iova >> cfg.ias != 0 {
        return Err(Fault::Absent);
    }
    let mut table = root.phys.get();
    if cfg.ias > 36 {
        table = pointer(arena.read(table + 8 * (iova >> 36)), 0x3f_ffff_fc01, 4)?;
    }
    let table = pointer(arena.read(table + 8 * (iova >> 25 & 0x7ff)), 0x3f_ffff_fc01, 4)?;
    let entry = arena.read(table + 8 * (iova >> 14 & 0x7ff));
    whole_page(entry)?;
    if entry & 0xff_ffff_ffff & !0x3f_ffff_fc0f != 0 {
        return Err(Fault::Refused("a bit that nobody knows"));
    }
    found((entry & 0x3f_ffff_fc00) << 4, iova, 0x4000, entry & 8 == 0, entry & 4 == 0)
}

fn pointer(entry: u64, known: u64, shift: u32) -> Result<u64, Fault> {
    if entry & 1 == 0 {
        Err(Fault::of_empty(entry))
    } else if entry & !known != 0 {
        Err(Fault::Refused("a bit that nobody knows in a pointer"))
    } else {
        Ok((entry - 1) << shift)
    }
}

/// The parts of a page from 63:52 to 51:40 are reached: all of it here.
fn whole_page(entry: u64) -> Result<(), Fault> {
    if entry & 1 == 0 {
        return Err(Fault::of_empty(entry));
    }
    if entry >> 40 != 0xfff { Err(Fault::Refused("a page in parts")) } else { Ok(()) }
}

fn t8020_page(entry: u64, iova: u64, size: u64) -> Looked {
    whole_page(entry)?;
    if entry & 0xff_ffff_ffff & !0xf_ffff_f183 != 0 || entry & 2 == 0 {
        return Err(Fault::Refused("a bit that nobody knows"));
    }
    found(entry & 0xf_ffff_f000, iova, size, entry & 0x100 == 0, entry & 0x80 == 0)
}

fn found(base: u64, iova: u64, size: u64, read: bool, write: bool) -> Looked {
    if !base.is_multiple_of(size) {
        return Err(Fault::Refused("an address below the page size"));
    }
    if !read && !write {
        return Err(Fault::Refused("a page without rights"));
    }
    Ok(Found { phys: base + iova % size, size, read, write, execute: read })
}
