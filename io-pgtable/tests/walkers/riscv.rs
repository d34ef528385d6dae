//! A second reading of the RISC-V Privileged Architecture ("Virtual Address Translation Process", Svnapot, Svpbmt) as the
//! RISC-V IOMMU runs it for a request without a process: user privilege, hardware that updates neither A nor D.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::Found;
use crate::common::Arena;

/// What hardware finds; panics at an entry that no driver may write.
pub(crate) fn walk(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Option<Found> {
    descend(arena, root, cfg, iova, |pte, why| assert_eq!(pte, 0, "{why}"))
}

/// What hardware finds, whatever is there.
pub(crate) fn hardware(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Option<Found> {
    descend(arena, root, cfg, iova, |_, _| ())
}

/// Stops at an entry for a reason; `stop` hears of it.
fn descend(
    arena: &Arena,
    root: Root,
    cfg: &IoPgtableCfg,
    iova: u64,
    stop: impl Fn(u64, &str),
) -> Option<Found> {
    // Sv39, Sv48, Sv57: the address must be the sign extension of its low bits.
    let unused = 64 - cfg.ias;
    if ((iova << unused) as i64 >> unused) as u64 != iova {
        return None;
    }
    let mut level = (cfg.ias - 12) / 9;
    assert_eq!(root.level, level);
    let mut table = root.phys.get();
    while level > 0 {
        level -= 1;
        let vpn = iova >> (12 + 9 * level) & 0x1ff;
        let pte = arena.read(table + vpn * 8);
        let refuse = |why: &str| {
            stop(pte, why);
            None
        };
        let [v, r, w, x, u, _g, a, d] = std::array::from_fn(|bit| pte >> bit & 1 == 1);
        if !v {
            return refuse("not valid, and not clear");
        }
        if pte >> 54 & 0x7f != 0 {
            return refuse("reserved bits");
        }
        let (pbmt, n) = (pte >> 61 & 3, pte >> 63 == 1);
        if pbmt != 0 && !cfg.quirks.contains(Quirks::RISCV_SVPBMT) {
            return refuse("no memory types here");
        }
        let ppn = pte >> 10 & 0xfff_ffff_ffff;
        if !r && !w && !x {
            if u || a || d || pbmt != 0 || n {
                return refuse("reserved bits of a pointer");
            }
            table = ppn << 12;
            continue;
        }
        if w && !r {
            return refuse("writable and not readable is reserved");
        }
        if pbmt == 3 {
            return refuse("a reserved memory type");
        }
        if n && !(level == 0 && ppn & 0xf == 8) {
            return refuse("the only size of NAPOT is 64 KiB");
        }
        let size = 1u64 << if n { 16 } else { 12 + 9 * level };
        let base = if n { (ppn & !0xf) << 12 } else { ppn << 12 };
        if base % size != 0 {
            return refuse("a misaligned superpage");
        }
        // Without hardware updates an access to a page without A, or a write to one without D, faults.
        let reach = u && a;
        return Some(Found { phys: base + iova % size, size, read: reach && r, write: reach && w && d });
    }
    panic!("a pointer in the lowest level");
}
