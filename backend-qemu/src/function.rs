//! A function of QEMU's PCI tree as a `platform::pci::Function`.

use std::fmt;
use std::sync::Arc;

use platform::pci::{ConfigSpace, Function, Interrupt, PciAddress, PciError};
use platform::{Instant, Mmio, TimedOut};

use crate::config_space::QemuConfigSpace;
use crate::enumerate::Bars;
use crate::messages::{Message, MessagePage};
use crate::mmio::QtestMmio;
use crate::qtest::Qtest;

/// One function, for its driver.
pub(crate) struct QemuFunction {
    pub(crate) address: PciAddress,
    pub(crate) config: Arc<QemuConfigSpace>,
    pub(crate) bars: Arc<Bars>,
    pub(crate) qtest: Arc<Qtest>,
    pub(crate) messages: Arc<MessagePage>,
}

/// How a function sends messages.
enum Messages {
    /// A table of them, in registers.
    Msix { capability: u16, count: u16, bar: u8, table: usize },
    /// One, in configuration space.
    Msi { capability: u16 },
}

impl QemuFunction {
    fn messages(&self) -> Option<Messages> {
        if let Some(capability) = self.capability(0x11) {
            let table = self.config_read32(capability + 4);
            return Some(Messages::Msix {
                capability,
                count: (self.config_read32(capability) >> 16 & 0x7ff) as u16 + 1,
                bar: (table & 7) as u8,
                table: table as usize & !7,
            });
        }
        self.capability(0x05).map(|capability| Messages::Msi { capability })
    }

    fn capability(&self, id: u8) -> Option<u16> {
        let mut at = self.config_read32(0x34) as u16 & 0xfc;
        // A list cannot be longer than the space for it.
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            let header = self.config_read32(at);
            if header as u8 == id {
                return Some(at);
            }
            at = (header >> 8) as u16 & 0xfc;
        }
        None
    }

    fn connect_msix(
        &self,
        capability: u16,
        table: Arc<dyn Mmio>,
        entry: usize,
        message: Message,
    ) -> Box<dyn Interrupt> {
        const ENABLE: u32 = 1 << 31;
        const MASK_ALL: u32 = 1 << 30;
        table.write32(entry, message.address() as u32);
        table.write32(entry + 4, (message.address() >> 32) as u32);
        table.write32(entry + 8, message.data());
        table.write32(entry + 12, 0);
        let control = self.config_read32(capability) & !MASK_ALL;
        self.config_write32(capability, control | ENABLE);
        Box::new(Connected { message, disconnect: Disconnect::Msix { table, entry } })
    }

    fn connect_msi(&self, capability: u16, message: Message) -> Box<dyn Interrupt> {
        const IS_64_BIT: u32 = 1 << 23;
        const MULTIPLE: u32 = 7 << 20;
        let control = self.config_read32(capability) & !MULTIPLE;
        self.config_write32(capability + 4, message.address() as u32);
        let data = if control & IS_64_BIT != 0 {
            self.config_write32(capability + 8, (message.address() >> 32) as u32);
            capability + 12
        } else {
            capability + 8
        };
        let rest = self.config_read32(data) & 0xffff_0000;
        self.config_write32(data, rest | message.data());
        self.config_write32(capability, control | MSI_ENABLE);
        let config = Arc::clone(&self.config);
        let disconnect = Disconnect::Msi { config, address: self.address, capability };
        Box::new(Connected { message, disconnect })
    }
}

const MSI_ENABLE: u32 = 1 << 16;

// SAFETY: regions are QEMU's to keep, and nothing of this process.
unsafe impl Function for QemuFunction {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn config_read32(&self, offset: u16) -> u32 {
        self.config.read32(self.address, offset)
    }

    fn config_write32(&self, offset: u16, value: u32) {
        self.config.write32(self.address, offset, value);
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Mmio>, PciError> {
        let bar = self.bars.get(&(self.address, index)).ok_or(PciError::NoSuchBar(index))?;
        Ok(Arc::new(QtestMmio { qtest: Arc::clone(&self.qtest), base: bar.base, len: bar.len as usize }))
    }

    fn interrupt_count(&self) -> u16 {
        match self.messages() {
            Some(Messages::Msix { count, .. }) => count,
            Some(Messages::Msi { .. }) => 1,
            None => 0,
        }
    }

    fn interrupt(&self, vector: u16) -> Result<Box<dyn Interrupt>, PciError> {
        let none = PciError::NoSuchVector { vector, count: self.interrupt_count() };
        if vector >= self.interrupt_count() {
            return Err(none);
        }
        match self.messages().ok_or(none)? {
            Messages::Msix { capability, bar, table, .. } => {
                let registers = self.bar(bar)?;
                let message = self.messages.allocate().ok_or(PciError::OutOfVectors)?;
                Ok(self.connect_msix(capability, registers, table + 16 * usize::from(vector), message))
            }
            Messages::Msi { capability } => {
                let message = self.messages.allocate().ok_or(PciError::OutOfVectors)?;
                Ok(self.connect_msi(capability, message))
            }
        }
    }
}

impl fmt::Debug for QemuFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QemuFunction({})", self.address)
    }
}

/// A message that a function sends.
#[derive(Debug)]
struct Connected {
    message: Message,
    disconnect: Disconnect,
}

#[derive(Debug)]
enum Disconnect {
    Msix { table: Arc<dyn Mmio>, entry: usize },
    Msi { config: Arc<QemuConfigSpace>, address: PciAddress, capability: u16 },
}

impl Interrupt for Connected {
    fn wait(&self, deadline: Instant) -> Result<(), TimedOut> {
        self.message.wait(deadline)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        match &self.disconnect {
            Disconnect::Msix { table, entry } => {
                const MASKED: u32 = 1;
                table.write32(entry + 12, MASKED);
            }
            Disconnect::Msi { config, address, capability } => {
                let control = config.read32(*address, *capability);
                config.write32(*address, *capability, control & !MSI_ENABLE);
            }
        }
    }
}
