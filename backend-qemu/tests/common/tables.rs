//! Page tables of any format, as hardware reads them: what each size of page and each permission lets through.

use std::sync::atomic::Ordering;

use backend_qemu::{Edu, QemuMachine};
use platform::{DmaAddr, FrameRequest, Frames, PhysAddr, Prot};

use super::{PAGE, RW};

/// An IOMMU with a page table, and edu behind it.
pub(crate) trait Tables {
    fn machine(&self) -> &QemuMachine;
    fn edu(&self) -> &Edu;
    /// The smallest page, in bytes.
    fn granule(&self) -> u64 {
        PAGE as u64
    }
    /// What the format can say; permissions that it cannot are left out.
    fn prots(&self) -> &[Prot] {
        &[RW, Prot::READ]
    }
    /// Maps one page, and has the IOMMU look again.
    fn map(&mut self, at: u64, phys: u64, size: u64, prot: Prot);
    /// Unmaps it, and has the IOMMU forget it.
    fn unmap(&mut self, at: u64, size: u64);
}

/// Writes a word of the machine's memory.
pub(crate) fn put(machine: &QemuMachine, at: PhysAddr, value: u64) {
    // SAFETY: every frame of these tests is their own as long as they run; devices access whole words.
    unsafe { machine.platform().window().word(at) }.store(value, Ordering::Relaxed);
}

/// Reads one.
pub(crate) fn word(machine: &QemuMachine, at: PhysAddr) -> u64 {
    // SAFETY: as in `put`.
    unsafe { machine.platform().window().word(at) }.load(Ordering::Relaxed)
}

/// A frame of the test's own, the highest at or below an address.
fn frame_below(machine: &QemuMachine, last: u64) -> PhysAddr {
    let request = FrameRequest { limit: PhysAddr::new(last), ..FrameRequest::ONE };
    machine.platform().alloc(request).unwrap()
}

/// Has edu copy a word.
fn copy(unit: &dyn Tables, from: u64, to: u64) {
    let clock = &**unit.machine().platform();
    unit.edu().read(clock, DmaAddr::new(from), 0, 8).unwrap();
    unit.edu().write(clock, DmaAddr::new(to), 0, 8).unwrap();
}

/// Each page (a size, and where in memory it begins) in its first and last frame, at `iova`: what may be read and written is,
/// what may only be read is not written, what may only be written is not read, and beside it and afterwards there is nothing.
pub(crate) fn every_page(unit: &mut dyn Tables, iova: u64, pages: &[(u64, u64)]) {
    const HOME: u64 = 0x10_0000;
    let granule = unit.granule();
    let whole = FrameRequest { align: granule as usize, ..FrameRequest::anywhere(granule as usize) };
    let home = unit.machine().platform().alloc(whole).unwrap();
    unit.map(HOME, home.get(), granule, RW);
    let mut value = 0x0102_0304_0506_0708_u64;
    let mut next = move || {
        value = value.rotate_left(9) ^ 0x5555;
        value
    };
    for &(size, phys) in pages {
        let last = frame_below(unit.machine(), phys + (size - 1));
        let start = phys.max(last.get().saturating_sub(1 << 30));
        let frames = if size == PAGE as u64 {
            vec![last]
        } else {
            vec![frame_below(unit.machine(), start + PAGE as u64 - 1), last]
        };
        for frame in frames {
            assert!(
                frame.get() >= phys && frame.get() - phys < size,
                "{frame} is not in the page at {phys:#x}"
            );
            let at = iova + (frame.get() - phys);
            for prot in unit.prots().to_vec() {
                unit.map(iova, phys, size, prot);
                let (old, new) = (next(), next());
                put(unit.machine(), frame, old);
                put(unit.machine(), home, new);
                copy(unit, at, HOME);
                assert_eq!(
                    word(unit.machine(), home) == old,
                    prot.contains(Prot::READ),
                    "reading {at:#x} of {size:#x} bytes with {prot:?}"
                );
                put(unit.machine(), home, new);
                copy(unit, HOME, at);
                let expected = if prot.contains(Prot::WRITE) { new } else { old };
                assert_eq!(word(unit.machine(), frame), expected, "writing {size:#x} bytes with {prot:?}");
                for beside in [iova - 8, iova + size] {
                    put(unit.machine(), home, new);
                    copy(unit, HOME, beside);
                    copy(unit, beside, HOME);
                    assert_ne!(word(unit.machine(), home), old, "{beside:#x} beside {size:#x} bytes");
                }
                unit.unmap(iova, size);
                put(unit.machine(), home, next());
                copy(unit, HOME, at);
                assert_eq!(word(unit.machine(), frame), expected, "{size:#x} bytes, unmapped");
            }
        }
    }
    unit.machine().health().unwrap();
}
