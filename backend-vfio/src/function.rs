//! A device as a `platform::pci::Function`.

use std::fmt;
use std::sync::Arc;

use platform::Mmio;
use platform::pci::{Function, Interrupt, PciAddress, PciError};

use crate::bar::Bar;
use crate::device::OpenDevice;
use crate::interrupt::Vector;
use crate::memory::ProcessPlatform;

/// One function, for its driver.
pub(crate) struct VfioFunction {
    pub(crate) device: Arc<OpenDevice>,
    pub(crate) platform: Arc<ProcessPlatform>,
}

// SAFETY: a region keeps its mapping and the device's file as long as it lives.
unsafe impl Function for VfioFunction {
    fn address(&self) -> PciAddress {
        self.device.address
    }

    fn config_read32(&self, offset: u16) -> u32 {
        self.device.config_read32(offset)
    }

    fn config_write32(&self, offset: u16, value: u32) {
        self.device.config_write32(offset, value);
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Mmio>, PciError> {
        const LAST: u8 = 5;
        const FIRST_REGISTER: u16 = 0x10;
        const IO: u32 = 1;
        let none = PciError::NoSuchBar(index);
        self.device.check()?;
        if index > LAST || self.config_read32(FIRST_REGISTER + 4 * u16::from(index)) & IO != 0 {
            return Err(none);
        }
        let region = self.device.region(index.into()).map_err(|_| none)?;
        if region.len == 0 {
            return Err(none);
        }
        Ok(Arc::new(Bar::new(Arc::clone(&self.device), region)))
    }

    fn interrupt_count(&self) -> u16 {
        self.device.interrupts.lock().count as u16
    }

    fn interrupt(&self, vector: u16) -> Result<Box<dyn Interrupt>, PciError> {
        Ok(Box::new(Vector::connect(&self.device, &self.platform, vector)?))
    }
}

impl fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VfioFunction({})", self.device.address)
    }
}
