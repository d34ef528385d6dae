//! An IO-APIC: pins that become messages by a table of redirection entries (Intel 82093AA). Each message is a write by the
//! IO-APIC under the name that firmware gives it, so an IOMMU remaps it like a device's.
//!
//! The window has an index at 00h and that register's data at 10h, 32 bits each: 00h identifier, 01h version, 10h and on two
//! registers for each pin. Pins are edge-triggered here.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use platform::Mmio;
use platform::pci::RequesterId;

use crate::bus::BusError;
use crate::pci::PciTree;

const INDEX: usize = 0x00;
const DATA: usize = 0x10;
/// Bytes of the window.
const WINDOW: usize = 0x20;

const VERSION: u32 = 0x20;
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR, which are the IO-APIC's.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// The IO-APIC.
pub struct IoApic {
    id: u8,
    requester: RequesterId,
    pci: Arc<PciTree>,
    state: Mutex<State>,
}

struct State {
    index: u32,
    entries: [u64; IoApic::PINS],
}

impl IoApic {
    /// Its pins.
    pub const PINS: usize = 24;

    /// With all pins masked. `requester` is the name that its messages carry.
    pub fn new(id: u8, requester: RequesterId, pci: Arc<PciTree>) -> Arc<Self> {
        let state = Mutex::new(State { index: 0, entries: [MASKED; Self::PINS] });
        Arc::new(Self { id, requester, pci, state })
    }

    /// A device raises `pin`: sends the message of its entry, unless that is masked.
    ///
    /// # Errors
    /// [`BusError::TargetAbort`] when the IOMMU refuses the message.
    pub fn raise(&self, pin: usize) -> Result<(), BusError> {
        let Some(entry) = self.state.lock().entries.get(pin).copied() else { return Ok(()) };
        if entry & MASKED != 0 {
            return Ok(());
        }
        // Bits 63:48 are bits 19:4 of the address, bit 11 is bit 2; vector and delivery mode are the data.
        let address = 0xfee0_0000 | (entry >> 48) << 4 | (entry >> 11 & 1) << 2;
        self.pci.send(self.requester, address, (entry & 0x7ff) as u32)
    }

    /// The pin and the half of its entry that register `index` is.
    fn entry_at(index: u32) -> Option<(usize, u32)> {
        let at = index.checked_sub(0x10)?;
        let pin = (at / 2) as usize;
        (pin < Self::PINS).then_some((pin, 32 * (at % 2)))
    }
}

// SAFETY: the window is this value's registers, nothing else.
unsafe impl Mmio for IoApic {
    fn len(&self) -> usize {
        WINDOW
    }

    fn read32(&self, offset: usize) -> u32 {
        let state = self.state.lock();
        match (offset, state.index) {
            (INDEX, index) => index,
            (DATA, 0) => u32::from(self.id) << 24,
            (DATA, 1) => VERSION | (Self::PINS as u32 - 1) << 16,
            (DATA, index) => {
                Self::entry_at(index).map_or(0, |(pin, shift)| (state.entries[pin] >> shift) as u32)
            }
            _ => u32::MAX,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();
        match offset {
            INDEX => state.index = value & 0xff,
            DATA => {
                if let Some((pin, shift)) = Self::entry_at(state.index) {
                    let half = 0xffff_ffff << shift;
                    let entry = &mut state.entries[pin];
                    *entry = *entry & !half | (u64::from(value) << shift) & !READ_ONLY;
                }
            }
            _ => {}
        }
    }

    fn read64(&self, _offset: usize) -> u64 {
        u64::MAX
    }

    fn write64(&self, _offset: usize, _value: u64) {}
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoApic({})", self.id)
    }
}
