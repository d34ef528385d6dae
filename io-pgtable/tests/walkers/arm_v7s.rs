//! A second reading of the ARM Architecture Reference Manual, ARMv7-A, section B3.5: short descriptors, an unprivileged access of
//! domain 0 as a client, access flag on.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::{Fault, Found};
use crate::common::Arena;

pub(crate) fn look(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    if iova >> cfg.ias != 0 {
        return Err(Fault::Absent);
    }
    let top = root.phys.get();
    assert_eq!(top & 0x3fff, 0, "TTBR has bits 31:14");
    let mediatek = cfg.quirks.contains(Quirks::ARM_MTK_EXT);
    let no_rights = cfg.quirks.contains(Quirks::NO_PERMS);
    // MediaTek's 32nd to 34th bit of an address, where the architecture has AP bits, or others that are zero.
    let more = |entry: u32| {
        if !mediatek {
            return 0;
        }
        let [b32, b33, b34] = [9, 4, 5].map(|bit| u64::from(entry >> bit & 1));
        b32 << 32 | b33 << 33 | b34 << 34
    };
    let first = arena.read_half(top + 4 * (iova >> 20));
    if first & 3 == 0 {
        return Err(Fault::of_empty(first.into()));
    }
    if first & 2 != 0 {
        let ap = [10, 11, 15].map(|bit| first >> bit & 1 == 1);
        let rights = rights(no_rights, ap, first >> 4 & 1 == 1)?;
        let first64 = u64::from(first);
        if first >> 18 & 1 == 0 {
            return Ok(found(first64 & 0xfff0_0000 | more(first), 20, true, iova, rights));
        }
        let base = first64 & 0xff00_0000;
        let base = if mediatek {
            base | more(first)
        } else {
            // The architecture's own: 35:32 in 23:20, 39:36 in 8:5.
            base | (first64 >> 20 & 0xf) << 32 | (first64 >> 5 & 0xf) << 36
        };
        let copies = (0..16).all(|n| arena.read_half(top + 4 * (iova >> 24 << 4 | n)) == first);
        return Ok(found(base, 24, copies, iova, rights));
    }
    let table = u64::from(first & !0x3ff);
    let index = iova >> 12 & 0xff;
    let second = arena.read_half(table + 4 * index);
    match second & 3 {
        0 => Err(Fault::of_empty(second.into())),
        1 => {
            let rights =
                rights(no_rights, [4, 5, 9].map(|bit| second >> bit & 1 == 1), second >> 15 & 1 == 1)?;
            let copies = (0..16).all(|n| arena.read_half(table + 4 * (index & !15 | n)) == second);
            let base = u64::from(second & 0xffff_0000) | more(second);
            Ok(found(base, 16, copies, iova, rights))
        }
        _ => {
            let rights = rights(no_rights, [4, 5, 9].map(|bit| second >> bit & 1 == 1), second & 1 == 1)?;
            Ok(found(u64::from(second & 0xffff_f000) | more(second), 12, true, iova, rights))
        }
    }
}

/// Read, write, execute. One must be able to read what one executes.
fn rights(none: bool, [flag, user, read_only]: [bool; 3], xn: bool) -> Result<[bool; 3], Fault> {
    if none {
        return Ok([true; 3]);
    }
    if !flag { Err(Fault::Refused("the access flag")) } else { Ok([user, user && !read_only, user && !xn]) }
}

/// A page of 2^`bits` bytes; it is one only when all its copies are there.
fn found(base: u64, bits: u32, copies: bool, iova: u64, [read, write, execute]: [bool; 3]) -> Found {
    let size = if copies { 1 << bits } else { 1 << (bits - 4) };
    Found { phys: base + iova % (1 << bits), size, read, write, execute }
}
