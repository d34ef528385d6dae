//! A second reading of the RISC-V Privileged Architecture ("Virtual Address Translation Process", Svnapot, Svpbmt) as the
//! RISC-V IOMMU runs it for a request without a process: user privilege, hardware that updates neither A nor D.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::{Fault, Found};
use crate::common::Arena;

pub(crate) fn walk(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    // Sv39, Sv48, Sv57: the address must be the sign extension of its low bits.
    let unused = 64 - cfg.ias;
    if ((iova << unused) as i64 >> unused) as u64 != iova {
        return Err(Fault::Absent);
    }
    let mut level = (cfg.ias - 12) / 9;
    assert_eq!(root.level, level);
    let mut table = root.phys.get();
    while level > 0 {
        level -= 1;
        let vpn = iova >> (12 + 9 * level) & 0x1ff;
        let pte = arena.read(table + vpn * 8);
        let [v, r, w, x, u, _g, a, d] = std::array::from_fn(|bit| pte >> bit & 1 == 1);
        if !v {
            return Err(Fault::of_empty(pte));
        }
        let (pbmt, n) = (pte >> 61 & 3, pte >> 63 == 1);
        if pte >> 54 & 0x7f != 0 {
            return Err(Fault::Refused("reserved bits"));
        }
        let ppn = pte >> 10 & 0xfff_ffff_ffff;
        if !r && !w && !x {
            if u || a || d || pbmt != 0 || n {
                return Err(Fault::Refused("reserved bits of a pointer"));
            }
            table = ppn << 12;
            continue;
        }
        if w && !r {
            return Err(Fault::Refused("writable and not readable is reserved"));
        }
        if pbmt == 3 || pbmt != 0 && !cfg.quirks.contains(Quirks::RISCV_SVPBMT) {
            return Err(Fault::Refused("a memory type that is none here"));
        }
        if n && (level > 0 || ppn & 0xf != 8) {
            return Err(Fault::Refused("the only size of NAPOT is 64 KiB"));
        }
        let bits = if n { 16 } else { 12 + 9 * level };
        let size = 1u64 << bits;
        let base = if n { (ppn & !0xf) << 12 } else { ppn << 12 };
        if !base.is_multiple_of(size) {
            return Err(Fault::Refused("a misaligned superpage"));
        }
        // Without hardware updates an access to a page without A, or a write to one without D, faults.
        let reach = u && a;
        let (read, write, execute) = (reach && r, reach && w && d, reach && x);
        return Ok(Found { phys: base + iova % size, size, read, write, execute });
    }
    Err(Fault::Refused("a pointer in the lowest level"))
}

/// Sv32: entries of 32 bits, ten bits of the address a level, and none of the extensions.
pub(crate) fn sv32(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    assert_eq!((cfg.ias, root.level), (32, 2));
    if iova >> 32 != 0 {
        return Err(Fault::Absent);
    }
    let mut table = root.phys.get();
    for (shift, last) in [(22, false), (12, true)] {
        let at = table + (iova >> shift & 0x3ff) * 4;
        let pte = arena.read(at & !7) >> (8 * (at & 4)) & 0xffff_ffff;
        let [v, r, w, x, u, _g, a, d] = std::array::from_fn(|bit| pte >> bit & 1 == 1);
        if !v {
            return Err(Fault::of_empty(pte));
        }
        let address = pte >> 10 << 12;
        if !r && !w && !x {
            if u || a || d || last {
                return Err(Fault::Refused("no pointer stands here"));
            }
            table = address;
            continue;
        }
        let size = 1u64 << shift;
        if w && !r || !address.is_multiple_of(size) {
            return Err(Fault::Refused("a reserved leaf"));
        }
        let reach = u && a;
        let phys = address + iova % size;
        return Ok(Found { phys, size, read: reach && r, write: reach && w && d, execute: reach && x });
    }
    unreachable!("the last level has no pointers")
}
