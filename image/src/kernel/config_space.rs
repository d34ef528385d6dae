//! Configuration space, where the MCFG table says that it is.

use platform::pci::{ConfigSpace, PciAddress};
use platform::{Mmio, PhysAddr};

use super::registers::Registers;

/// Configuration space of segment 0.
#[derive(Debug)]
pub(super) struct Ecam(Registers);

impl Ecam {
    /// At that address, for all 256 buses.
    ///
    /// # Safety
    /// It is there.
    pub(super) unsafe fn new(base: PhysAddr) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Registers::new(base, 256 << 20) })
    }
}

fn offset(function: PciAddress, offset: u16) -> usize {
    match (function.segment, offset) {
        (0, 0..4096) => usize::from(function.id.get()) << 12 | usize::from(offset),
        // Where nothing is.
        _ => usize::MAX,
    }
}

impl ConfigSpace for Ecam {
    fn read32(&self, function: PciAddress, at: u16) -> u32 {
        self.0.read32(offset(function, at))
    }

    fn write32(&self, function: PciAddress, at: u16, value: u32) {
        self.0.write32(offset(function, at), value);
    }
}
