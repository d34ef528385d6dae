//! A PCI function: its registers, where firmware has put them, and its message interrupts.

use alloc::boxed::Box;
use alloc::sync::Arc;

use platform::pci::{ConfigSpace, Function, Interrupt, PciAddress, PciError};
use platform::{Instant, Mmio, PhysAddr, Platform, TimedOut};

use super::config_space::Ecam;
use super::registers::Registers;
use crate::boot::interrupts::{Vector, sleep_unless};

/// Messages to the first processor.
pub(super) const MESSAGE_ADDRESS: u32 = 0xfee0_0000;

/// One function, for its driver.
#[derive(Debug)]
pub(super) struct PciFunction {
    pub(super) address: PciAddress,
    pub(super) config_space: Arc<Ecam>,
    pub(super) platform: Arc<dyn Platform>,
}

/// A capability of the function that sends messages from a table in its registers.
struct Msix {
    capability: u16,
    count: u16,
    bar: u8,
    table: usize,
}

impl PciFunction {
    fn msix(&self) -> Option<Msix> {
        const MSIX: u8 = 0x11;
        let mut at = self.config_read32(0x34) as u16 & 0xfc;
        // A list cannot be longer than the space for it.
        for _ in 0..48 {
            let header = self.config_read32(at);
            if at >= 0x40 && header as u8 == MSIX {
                let table = self.config_read32(at + 4);
                let count = (header >> 16 & 0x7ff) as u16 + 1;
                return Some(Msix {
                    capability: at,
                    count,
                    bar: (table & 7) as u8,
                    table: (table & !7) as usize,
                });
            }
            at = (header >> 8) as u16 & 0xfc;
        }
        None
    }
}

// SAFETY: registers stay where firmware has put them.
unsafe impl Function for PciFunction {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn config_read32(&self, offset: u16) -> u32 {
        self.config_space.read32(self.address, offset)
    }

    fn config_write32(&self, offset: u16, value: u32) {
        self.config_space.write32(self.address, offset, value);
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Mmio>, PciError> {
        const BAR0: u16 = 0x10;
        const COMMAND: u16 = 0x04;
        const MEMORY: u32 = 1 << 1;
        const IO: u32 = 1;
        const IS_64_BIT: u32 = 1 << 2;
        const FLAGS: u32 = 0xf;
        let none = PciError::NoSuchBar(index);
        if index > 5 {
            return Err(none);
        }
        let register = BAR0 + 4 * u16::from(index);
        let low = self.config_read32(register);
        let high = if low & IS_64_BIT != 0 && index < 5 { self.config_read32(register + 4) } else { 0 };
        if low & IO != 0 || low & !FLAGS == 0 || high != 0 {
            return Err(none);
        }
        // How long it is shows in what can be written; meanwhile the function must not answer there.
        let command = self.config_read32(COMMAND) & 0xffff;
        self.config_write32(COMMAND, command & !MEMORY);
        self.config_write32(register, u32::MAX);
        let len = (self.config_read32(register) & !FLAGS).wrapping_neg();
        self.config_write32(register, low);
        self.config_write32(COMMAND, command | MEMORY);
        // SAFETY: what firmware has put there answers there; all below 4 GiB is mapped as it is.
        Ok(Arc::new(unsafe { Registers::new(PhysAddr::new((low & !FLAGS).into()), len as usize) }))
    }

    fn interrupt_count(&self) -> u16 {
        self.msix().map_or(0, |msix| msix.count)
    }

    fn interrupt(&self, vector: u16) -> Result<Box<dyn Interrupt>, PciError> {
        const ENABLE: u32 = 1 << 31;
        const MASK_ALL: u32 = 1 << 30;
        let msix = self.msix().filter(|msix| vector < msix.count);
        let msix = msix.ok_or(PciError::NoSuchVector { vector, count: self.interrupt_count() })?;
        let (table, entry) = (self.bar(msix.bar)?, msix.table + 16 * usize::from(vector));
        let vector = Vector::allocate().ok_or(PciError::OutOfVectors)?;
        table.write32(entry, MESSAGE_ADDRESS);
        table.write32(entry + 4, 0);
        table.write32(entry + 8, vector.number().into());
        table.write32(entry + 12, 0);
        let control = self.config_read32(msix.capability) & !MASK_ALL;
        self.config_write32(msix.capability, control | ENABLE);
        Ok(Box::new(Message { table, entry, vector, platform: Arc::clone(&self.platform) }))
    }
}

/// An entry of the table, connected to a vector.
#[derive(Debug)]
struct Message {
    table: Arc<dyn Mmio>,
    entry: usize,
    vector: Vector,
    platform: Arc<dyn Platform>,
}

impl Interrupt for Message {
    fn wait(&self, deadline: Instant) -> Result<(), TimedOut> {
        while !self.vector.take() {
            if self.platform.now() >= deadline {
                return Err(TimedOut);
            }
            sleep_unless(|| self.vector.has_arrived());
        }
        Ok(())
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        const MASKED: u32 = 1;
        self.table.write32(self.entry + 12, MASKED);
    }
}
