//! A second reading of the RISC-V Privileged Architecture ("Virtual Address Translation Process", Svnapot, Svpbmt) as the
//! RISC-V IOMMU runs it for a request without a process: user privilege, hardware that updates neither A nor D.

use io_pgtable::{IoPgtableCfg, Quirks, Root};

use super::Found;
use crate::common::Arena;

pub(crate) fn walk(arena: &Arena, root: Root, cfg: &IoPgtableCfg, iova: u64) -> Option<Found> {
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
        let [v, r, w, x, u, _g, a, d] = std::array::from_fn(|bit| pte >> bit & 1 == 1);
        if !v {
            assert_eq!(pte, 0, "not valid, and not clear");
            return None;
        }
        assert_eq!(pte >> 54 & 0x7f, 0, "{pte:#x}: reserved bits");
        let (pbmt, n) = (pte >> 61 & 3, pte >> 63 == 1);
        let ppn = pte >> 10 & 0xfff_ffff_ffff;
        if !r && !w && !x {
            assert!(!u && !a && !d && pbmt == 0 && !n, "{pte:#x}: reserved bits of a pointer");
            table = ppn << 12;
            continue;
        }
        assert!(r || !w, "{pte:#x}: writable and not readable is reserved");
        assert!(cfg.quirks.contains(Quirks::RISCV_SVPBMT) || pbmt == 0, "{pte:#x}: no memory types here");
        assert_ne!(pbmt, 3, "{pte:#x}: a reserved memory type");
        let bits = if n {
            assert!(level == 0 && ppn & 0xf == 8, "{pte:#x}: the only size of NAPOT is 64 KiB");
            16
        } else {
            12 + 9 * level
        };
        let size = 1u64 << bits;
        let base = if n { (ppn & !0xf) << 12 } else { ppn << 12 };
        assert_eq!(base % size, 0, "{pte:#x}: a misaligned superpage");
        // Without hardware updates an access to a page without A, or a write to one without D, faults.
        let reach = u && a;
        return Some(Found { phys: base + iova % size, size, read: reach && r, write: reach && w && d });
    }
    panic!("a pointer in the lowest level");
}
