//! Configuration space of a q35 machine, through its memory-mapped window.

use std::fmt;
use std::sync::Arc;

use platform::pci::{ConfigSpace, PciAddress};

use crate::qtest::{Qtest, Width};

/// Where the window is put (the 256 MiB that q35's firmware uses for it).
const WINDOW: u64 = 0xb000_0000;
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// PCIEXBAR of the host bridge 00:00.0; bit 0 turns the window on, and zeros in bits 2:1 make it 256 MiB long.
const PCIEXBAR: u32 = 0x60;
const ENABLE: u32 = 1;

/// Configuration space of segment 0.
pub(crate) struct QemuConfigSpace {
    qtest: Arc<Qtest>,
}

impl QemuConfigSpace {
    /// Turns the window on. ACPI then has a table that names it.
    pub(crate) fn new(qtest: Arc<Qtest>) -> Self {
        const SELECT: u32 = 1 << 31;
        for (register, value) in [(PCIEXBAR + 4, 0), (PCIEXBAR, WINDOW as u32 | ENABLE)] {
            qtest.out32(CONFIG_ADDRESS, SELECT | register);
            qtest.out32(CONFIG_DATA, value);
        }
        Self { qtest }
    }

    fn at(function: PciAddress, offset: u16) -> Option<u64> {
        let there = function.segment == 0 && offset & 3 == 0 && offset < 4096;
        there.then(|| WINDOW + (u64::from(function.id.get()) << 12) + u64::from(offset))
    }
}

impl ConfigSpace for QemuConfigSpace {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        Self::at(function, offset).map_or(u32::MAX, |at| self.qtest.read(Width::Long, at) as u32)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some(at) = Self::at(function, offset) {
            self.qtest.write(Width::Long, at, value.into());
        }
    }
}

impl fmt::Debug for QemuConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QemuConfigSpace")
    }
}
