//! A DMA engine of the simulated machine as a device that does as it is told.

use std::sync::Arc;
use std::time::Duration;

use conformance::{Bench, Refused, Waiver};
use dma_api::{Device, DmaError};
use parking_lot::Mutex;
use platform::pci::{Function, Interrupt, PciError};
use platform::{DmaAddr, Mmio};

const SOURCE: usize = 0x00;
const DESTINATION: usize = 0x08;
const LENGTH: usize = 0x10;
const DATA: usize = 0x18;
const COMMAND: usize = 0x20;
const STATUS: usize = 0x28;

const WRITE: u64 = 2;
const READ: u64 = 3;
const DONE: u64 = 2;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the engine cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No registers, no interrupt.
    #[error("the DMA engine cannot be reached: {0}")]
    Pci(#[from] PciError),
    /// It does not take a mask of 64 bits.
    #[error("the DMA engine cannot be used: {0}")]
    Dma(#[from] DmaError),
}

/// The engine, bound.
#[derive(Debug)]
pub struct EngineBench {
    device: Arc<Device>,
    function: Arc<dyn Function>,
    registers: Arc<dyn Mmio>,
    // One order at a time.
    interrupt: Mutex<Box<dyn Interrupt>>,
    waivers: Vec<Waiver>,
}

impl EngineBench {
    pub(crate) fn new(function: Arc<dyn Function>, device: Device) -> Result<Self, EngineError> {
        let registers = function.bar(0)?;
        let interrupt = Mutex::new(function.interrupt(0)?);
        function.set_bus_master(true);
        Ok(Self { device: Arc::new(device), function, registers, interrupt, waivers: Vec::new() })
    }

    /// The same with rules that do not hold for it.
    #[must_use]
    pub fn waiving(mut self, waivers: &[Waiver]) -> Self {
        self.waivers = waivers.to_vec();
        self
    }

    /// Has the engine execute one command.
    fn execute(&self, command: u64, address: DmaAddr, len: usize, data: u64) -> Result<u64, Refused> {
        let interrupt = self.interrupt.lock();
        let registers = &self.registers;
        registers.write64(SOURCE, address.get());
        registers.write64(DESTINATION, address.get());
        registers.write64(LENGTH, len as u64);
        registers.write64(DATA, data);
        registers.write64(COMMAND, command);
        let deadline = self.device.platform().now() + TIMEOUT;
        interrupt.wait(deadline).map_err(|_| Refused)?;
        if registers.read64(STATUS) == DONE { Ok(registers.read64(DATA)) } else { Err(Refused) }
    }
}

impl Bench for EngineBench {
    fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn device_write(&self, address: DmaAddr, data: &[u8]) -> Result<(), Refused> {
        let mut result = Ok(());
        for (index, piece) in data.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            let at = address.wrapping_add(8 * index as u64);
            result = result.and(self.execute(WRITE, at, piece.len(), u64::from_le_bytes(word)).map(drop));
        }
        result
    }

    fn device_read(&self, address: DmaAddr, into: &mut [u8]) -> Result<(), Refused> {
        let mut result = Ok(());
        for (index, piece) in into.chunks_mut(8).enumerate() {
            let at = address.wrapping_add(8 * index as u64);
            match self.execute(READ, at, piece.len(), 0) {
                Ok(word) => piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]),
                Err(refused) => result = Err(refused),
            }
        }
        result
    }

    fn waivers(&self) -> &[Waiver] {
        &self.waivers
    }
}

impl Drop for EngineBench {
    fn drop(&mut self) {
        self.function.set_bus_master(false);
    }
}
