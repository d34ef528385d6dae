//! One timer of a high-precision event timer block (IA-PC HPET specification 1.0a), as far as its interrupt goes: it has no
//! clock, and expires when it is told to. Its message is written under the name that firmware gives the block.
//!
//! Registers of 64 bits: 100h configuration of timer 0, 110h its FSB interrupt route (value in 31:0, address in 63:32).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use platform::Mmio;
use platform::pci::RequesterId;

use crate::bus::BusError;
use crate::pci::PciTree;

const CONFIGURATION: usize = 0x100;
const FSB_ROUTE: usize = 0x110;
const WINDOW: usize = 0x400;

const INTERRUPT_ENABLED: u64 = 1 << 2;
const FSB_ENABLED: u64 = 1 << 14;
const FSB_CAPABLE: u64 = 1 << 15;

/// The block.
pub struct Hpet {
    requester: RequesterId,
    pci: Arc<PciTree>,
    configuration: AtomicU64,
    route: AtomicU64,
}

impl Hpet {
    /// With its timer off. `requester` is the name that its messages carry.
    pub fn new(requester: RequesterId, pci: Arc<PciTree>) -> Arc<Self> {
        Arc::new(Self { requester, pci, configuration: AtomicU64::new(0), route: AtomicU64::new(0) })
    }

    /// The timer expires: sends its message, if it is enabled.
    ///
    /// # Errors
    /// [`BusError::TargetAbort`] when the IOMMU refuses the message.
    pub fn expire(&self) -> Result<(), BusError> {
        let on = INTERRUPT_ENABLED | FSB_ENABLED;
        if self.configuration.load(Ordering::Acquire) & on != on {
            return Ok(());
        }
        let route = self.route.load(Ordering::Acquire);
        self.pci.send(self.requester, route >> 32, route as u32)
    }

    fn register(&self, offset: usize) -> Option<&AtomicU64> {
        match offset {
            CONFIGURATION => Some(&self.configuration),
            FSB_ROUTE => Some(&self.route),
            _ => None,
        }
    }
}

// SAFETY: the window is this value's registers, nothing else.
unsafe impl Mmio for Hpet {
    fn len(&self) -> usize {
        WINDOW
    }

    fn read32(&self, offset: usize) -> u32 {
        (self.read64(offset & !7) >> (8 * (offset & 4))) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        let (old, shift) = (self.read64(offset & !7), 8 * (offset & 4));
        self.write64(offset & !7, old & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    fn read64(&self, offset: usize) -> u64 {
        let value = self.register(offset).map_or(0, |register| register.load(Ordering::Acquire));
        if offset == CONFIGURATION { value | FSB_CAPABLE } else { value }
    }

    fn write64(&self, offset: usize, value: u64) {
        if let Some(register) = self.register(offset) {
            register.store(value, Ordering::Release);
        }
    }
}

impl fmt::Debug for Hpet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hpet({})", self.requester)
    }
}
