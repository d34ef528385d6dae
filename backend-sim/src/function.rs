//! A function of the simulated PCI tree as a `platform::pci::Function`.

use std::fmt;
use std::sync::Arc;

use iommu_core::{IrqRemap, IrqRemapError, IrqSource, IrqTarget, RemappedIrqs};
use platform::pci::{ConfigSpace, Function, Interrupt, MsiMessage, PciAddress, PciError};
use platform::{Clock, Instant, Mmio, TimedOut};
use sim_hardware::interrupts::{InterruptController, Vector};
use sim_hardware::pci::PciTree;

use crate::hardware::{PROCESSOR, message_of};
use crate::platform::SimPlatform;

const MSIX_ENABLE: u32 = 1 << 31;

/// One function, for its driver.
pub(crate) struct SimFunction {
    pub(crate) address: PciAddress,
    pub(crate) tree: Arc<PciTree>,
    pub(crate) interrupts: Arc<InterruptController>,
    /// What gives messages, where interrupts are remapped.
    pub(crate) remap: Option<Arc<dyn IrqRemap>>,
    /// Other names under which its messages may arrive.
    pub(crate) aliases: Vec<PciAddress>,
    pub(crate) platform: Arc<SimPlatform>,
}

/// Where a function's MSI-X structures are.
struct Msix {
    capability: u16,
    count: u16,
    bar: u8,
    table: usize,
}

impl SimFunction {
    /// The message that is to raise `line`, and the remapping that leads there.
    fn message(&self, line: &Vector) -> Result<(MsiMessage, Option<Box<dyn RemappedIrqs>>), IrqRemapError> {
        let Some(remap) = &self.remap else { return Ok((message_of(line), None)) };
        let irqs = remap.alloc(IrqSource::Msi { function: self.address, aliases: &self.aliases }, 1)?;
        irqs.set_target(0, IrqTarget::fixed(line.number(), PROCESSOR))?;
        Ok((irqs.message(0)?, Some(irqs)))
    }

    fn msix(&self) -> Option<Msix> {
        const ID: u8 = 0x11;
        let mut at = self.config_read32(0x34) as u16 & 0xfc;
        for _ in 0..48 {
            if at < 0x40 {
                return None;
            }
            let header = self.config_read32(at);
            if header as u8 == ID {
                let table = self.config_read32(at + 4);
                let count = (header >> 16 & 0x7ff) as u16 + 1;
                return Some(Msix {
                    capability: at,
                    count,
                    bar: (table & 7) as u8,
                    table: table as usize & !7,
                });
            }
            at = (header >> 8) as u16 & 0xfc;
        }
        None
    }
}

// SAFETY: regions come from the tree, which keeps its functions as long as a region lives.
unsafe impl Function for SimFunction {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn config_read32(&self, offset: u16) -> u32 {
        self.tree.read32(self.address, offset)
    }

    fn config_write32(&self, offset: u16, value: u32) {
        self.tree.write32(self.address, offset, value);
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Mmio>, PciError> {
        self.tree.mmio(self.address.id, index).ok_or(PciError::NoSuchBar(index))
    }

    fn interrupt_count(&self) -> u16 {
        self.msix().map_or(0, |msix| msix.count)
    }

    fn interrupt(&self, vector: u16) -> Result<Box<dyn Interrupt>, PciError> {
        let none = PciError::NoSuchVector { vector, count: self.interrupt_count() };
        let msix = self.msix().filter(|msix| vector < msix.count).ok_or(none)?;
        let table = self.bar(msix.bar)?;
        let line = self.interrupts.allocate().ok_or(PciError::OutOfVectors)?;
        let entry = msix.table + 16 * usize::from(vector);
        let (MsiMessage { address, data }, irqs) = self.message(&line).map_err(|_| PciError::OutOfVectors)?;
        table.write32(entry, address as u32);
        table.write32(entry + 4, (address >> 32) as u32);
        table.write32(entry + 8, data);
        table.write32(entry + 12, 0);
        let control = self.config_read32(msix.capability);
        self.config_write32(msix.capability, control | MSIX_ENABLE);
        Ok(Box::new(SimInterrupt { _irqs: irqs, line, table, entry, platform: Arc::clone(&self.platform) }))
    }
}

impl fmt::Debug for SimFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFunction({})", self.address)
    }
}

/// A connected MSI-X vector.
// Fields are dropped in this order: a vector is free once nothing leads to it any more.
#[derive(Debug)]
struct SimInterrupt {
    _irqs: Option<Box<dyn RemappedIrqs>>,
    line: Vector,
    table: Arc<dyn Mmio>,
    entry: usize,
    platform: Arc<SimPlatform>,
}

impl Interrupt for SimInterrupt {
    fn wait(&self, deadline: Instant) -> Result<(), TimedOut> {
        let timeout = deadline - self.platform.now();
        if self.line.wait(timeout) { Ok(()) } else { Err(TimedOut) }
    }
}

impl Drop for SimInterrupt {
    fn drop(&mut self) {
        const MASKED: u32 = 1;
        self.table.write32(self.entry + 12, MASKED);
    }
}
