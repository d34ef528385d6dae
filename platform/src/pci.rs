//! PCI functions: their addresses, configuration space, registers and interrupts.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

use crate::mmio::Mmio;
use crate::time::{Instant, TimedOut};

/// What a function puts on the bus as its own name: bus in bits 15:8, device in 7:3, function in 2:0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct RequesterId(u16);

impl RequesterId {
    /// From the 16 bits.
    pub const fn new(bits: u16) -> Self {
        Self(bits)
    }

    /// From bus, device (0–31) and function (0–7); higher bits of the latter two are dropped.
    pub const fn from_parts(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | ((device & 31) as u16) << 3 | (function & 7) as u16)
    }

    /// The 16 bits.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device number, 0–31.
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 31) as u8
    }

    /// The function number, 0–7.
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Device and function together, as configuration space numbers them (Linux: `devfn`).
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{:x}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a PCI function is: a segment (Linux: domain) and a requester ID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PciAddress {
    /// PCI segment.
    pub segment: u16,
    /// Bus, device and function.
    pub id: RequesterId,
}

impl PciAddress {
    /// The function `bus:device.function` of `segment`.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Self {
        Self { segment, id: RequesterId::from_parts(bus, device, function) }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.id)
    }
}

/// What is no address of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no PCI address such as 0000:00:1c.0")]
pub struct NoPciAddress;

/// Hexadecimal `segment:bus:device.function`, or without a segment, which is 0 then.
impl FromStr for PciAddress {
    type Err = NoPciAddress;

    fn from_str(text: &str) -> Result<Self, NoPciAddress> {
        let number = |text: &str, digits: usize, last: u16| {
            let plain = text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = u16::from_str_radix(text, 16).ok().filter(|number| plain && *number <= last);
            number.ok_or(NoPciAddress)
        };
        let (rest, function) = text.rsplit_once('.').ok_or(NoPciAddress)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(NoPciAddress)?;
        let (segment, bus) = rest.split_once(':').unwrap_or(("0", rest));
        Ok(Self::new(
            number(segment, 4, u16::MAX)?,
            number(bus, 2, 0xff)? as u8,
            number(device, 2, 31)? as u8,
            number(function, 1, 7)? as u8,
        ))
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message-signalled interrupt: what a function writes, and where.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "msi_msg")]
pub struct MsiMessage {
    /// Where it writes (on x86 in FEE0_0000h to FEEF_FFFFh).
    pub address: u64,
    /// What it writes.
    pub data: u32,
}

/// Configuration space of a whole machine: what enumeration and grouping read.
pub trait ConfigSpace: Send + Sync {
    /// Reads the aligned 32-bit word at byte `offset` (0–4092). All ones when nobody answers.
    fn read32(&self, function: PciAddress, offset: u16) -> u32;

    /// Writes the aligned 32-bit word at byte `offset` (0–4092).
    fn write32(&self, function: PciAddress, offset: u16, value: u32);
}

/// Why a function did not give what was asked of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// The base address register is not there, or is no memory region.
    #[error("BAR {0} does not exist")]
    NoSuchBar(u8),
    /// The function has no interrupt of that number.
    #[error("interrupt vector {vector} does not exist: the function has {count}")]
    NoSuchVector {
        /// What was asked for.
        vector: u16,
        /// How many there are.
        count: u16,
    },
    /// The machine has no interrupt to give.
    #[error("out of interrupt vectors")]
    OutOfVectors,
    /// The function has been removed.
    #[error("the function is gone")]
    Gone,
}

/// One PCI function as its driver sees it.
///
/// # Safety
/// As for [`Mmio`]: what `bar` returns stays valid as long as it lives.
pub unsafe trait Function: Send + Sync + fmt::Debug {
    /// Where it is.
    fn address(&self) -> PciAddress;

    /// Reads the aligned 32-bit word of its configuration space at byte `offset` (0–4092).
    fn config_read32(&self, offset: u16) -> u32;

    /// Writes the aligned 32-bit word of its configuration space at byte `offset` (0–4092).
    fn config_write32(&self, offset: u16, value: u32);

    /// The memory region behind base address register `index` (0–5). A 64-bit region has the index of its lower half.
    ///
    /// # Errors
    /// [`PciError::NoSuchBar`] when there is no memory region, [`PciError::Gone`] after removal.
    fn bar(&self, index: u8) -> Result<Arc<dyn Mmio>, PciError>;

    /// How many message interrupts the function can have at most (Linux: `pci_msix_vec_count`).
    fn interrupt_count(&self) -> u16;

    /// Connects and unmasks message interrupt `vector` (Linux: `pci_alloc_irq_vectors` and `request_irq`). It is
    /// disconnected when the returned value is dropped.
    ///
    /// # Errors
    /// [`PciError::NoSuchVector`], [`PciError::OutOfVectors`], [`PciError::Gone`].
    fn interrupt(&self, vector: u16) -> Result<Box<dyn Interrupt>, PciError>;

    /// Lets the function read and write memory, or stops it (Linux: `pci_set_master`, `pci_clear_master`).
    fn set_bus_master(&self, on: bool) {
        const COMMAND: u16 = 0x04;
        const BUS_MASTER: u32 = 1 << 2;
        // The upper half is the status register, whose bits are cleared by writing ones.
        let command = self.config_read32(COMMAND) & 0xffff;
        let command = if on { command | BUS_MASTER } else { command & !BUS_MASTER };
        self.config_write32(COMMAND, command);
    }
}

/// An interrupt as something to wait on: the same on threads, eventfd, qtest and `hlt`.
///
/// An interrupt that arrives while nobody waits is remembered, several as one. What the device wrote before it raised
/// the interrupt is visible when the wait returns (it acquires).
pub trait Interrupt: Send + Sync + fmt::Debug {
    /// Waits until the interrupt has arrived since the last wait that returned `Ok`.
    ///
    /// # Errors
    /// [`TimedOut`] when `deadline` passed first.
    fn wait(&self, deadline: Instant) -> Result<(), TimedOut>;
}
