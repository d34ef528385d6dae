//! Configuration space of a machine, through its memory-mapped window.

use std::fmt;
use std::sync::Arc;

use platform::pci::{ConfigSpace, PciAddress};

use crate::board::Board;
use crate::qtest::{Qtest, Width};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// PCIEXBAR of the host bridge 00:00.0; bit 0 turns the window on, and zeros in bits 2:1 make it 256 MiB long.
const PCIEXBAR: u32 = 0x60;
const ENABLE: u32 = 1;

/// Configuration space of segment 0.
pub(crate) struct QemuConfigSpace {
    qtest: Arc<Qtest>,
    window: u64,
}

impl QemuConfigSpace {
    /// The board's. On a PC turns the window on first; ACPI then has a table that names it.
    pub(crate) fn new(qtest: Arc<Qtest>, board: &Board) -> Self {
        const SELECT: u32 = 1 << 31;
        let window = board.config_space;
        if board.is_pc {
            for (register, value) in [(PCIEXBAR + 4, 0), (PCIEXBAR, window as u32 | ENABLE)] {
                qtest.out32(CONFIG_ADDRESS, SELECT | register);
                qtest.out32(CONFIG_DATA, value);
            }
        }
        Self { qtest, window }
    }

    fn at(&self, function: PciAddress, offset: u16) -> Option<u64> {
        let there = function.segment == 0 && offset & 3 == 0 && offset < 4096;
        there.then(|| self.window + (u64::from(function.id.get()) << 12) + u64::from(offset))
    }
}

impl ConfigSpace for QemuConfigSpace {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.at(function, offset).map_or(u32::MAX, |at| self.qtest.read(Width::Long, at) as u32)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some(at) = self.at(function, offset) {
            self.qtest.write(Width::Long, at, value.into());
        }
    }
}

impl fmt::Debug for QemuConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QemuConfigSpace")
    }
}
