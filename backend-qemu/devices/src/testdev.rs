//! `iommu-testdev`, QEMU's device for trying an IOMMU (from QEMU 11.0 on): it writes where it is told, at once, and says how that
//! went.

use alloc::sync::Arc;

use platform::pci::{Function, PciError};
use platform::{DmaAddr, Mmio, PhysAddr};

const IDENTIFICATION: u32 = 0x0005_1b36;
/// Reading it does what has been ordered.
const TRIGGER: usize = 0x00;
const ADDRESS: usize = 0x04;
const LENGTH: usize = 0x0c;
const RESULT: usize = 0x10;
const DOORBELL: usize = 0x14;
const ATTRIBUTES: usize = 0x18;
const PHYSICAL: usize = 0x1c;

/// What it says of a write that is there.
const WRITTEN: u32 = 0;
/// Of one that was refused.
const REFUSED: u32 = 0xdead_0002;

/// Why `iommu-testdev` cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestdevError {
    /// No registers.
    #[error("iommu-testdev cannot be reached: {0}")]
    Pci(#[from] PciError),
    /// The function is another device.
    #[error("the function is not iommu-testdev: its identification is {0:#010x}")]
    NotTestdev(u32),
    /// It says something that is neither success nor refusal: what it wrote is not where it should be, for one.
    #[error("iommu-testdev says {0:#010x}")]
    Unexpected(u32),
}

/// The device.
#[derive(Debug)]
pub struct Testdev {
    function: Arc<dyn Function>,
    registers: Arc<dyn Mmio>,
}

impl Testdev {
    /// What it writes: a 32-bit word, again and again.
    pub const WORD: u32 = 0x1234_5678;

    /// Takes the device and lets it do DMA, which it may until this is dropped.
    ///
    /// # Errors
    /// [`TestdevError`] when the function is something else.
    pub fn new(function: Arc<dyn Function>) -> Result<Self, TestdevError> {
        let identification = function.config_read32(0);
        if identification != IDENTIFICATION {
            return Err(TestdevError::NotTestdev(identification));
        }
        let registers = function.bar(0)?;
        function.set_bus_master(true);
        Ok(Self { function, registers })
    }

    /// Has it write `len` bytes of [`Testdev::WORD`] to `to`, which is meant to be the memory at `there`: it looks. Whether it was
    /// allowed to.
    ///
    /// # Errors
    /// [`TestdevError::Unexpected`].
    pub fn write(&self, to: DmaAddr, there: PhysAddr, len: u32) -> Result<bool, TestdevError> {
        let halves = |at: usize, value: u64| {
            self.registers.write32(at, value as u32);
            self.registers.write32(at + 4, (value >> 32) as u32);
        };
        halves(ADDRESS, to.get());
        halves(PHYSICAL, there.get());
        self.registers.write32(LENGTH, len);
        self.registers.write32(ATTRIBUTES, 0);
        self.registers.write32(DOORBELL, 1);
        self.registers.read32(TRIGGER);
        match self.registers.read32(RESULT) {
            WRITTEN => Ok(true),
            REFUSED => Ok(false),
            other => Err(TestdevError::Unexpected(other)),
        }
    }
}

impl Drop for Testdev {
    fn drop(&mut self) {
        self.function.set_bus_master(false);
    }
}
