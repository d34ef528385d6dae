//! `edu`, QEMU's teaching device, as a device that does as it is told: it copies between memory and a buffer of its own.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use conformance::{Bench, Refused, Waiver};
use dma_api::{CoherentSlice, Device, DmaError};
use platform::pci::{Function, PciError};
use platform::sync::Mutex;
use platform::time::poll_until;
use platform::{Clock, DmaAddr, Mmio, TimedOut};

const IDENTIFICATION: usize = 0x00;
const INTERRUPT_STATUS: usize = 0x24;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;

const START: u64 = 1;
const TO_MEMORY: u64 = 2;

/// Where the device thinks that its buffer is.
const BUFFER: u64 = 0x4_0000;
/// How long that is, in bytes.
pub const EDU_BUFFER: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why `edu` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EduError {
    /// No registers.
    #[error("edu cannot be reached: {0}")]
    Pci(#[from] PciError),
    /// The function is another device.
    #[error("the function is not edu: its identification is {0:#x}")]
    NotEdu(u32),
    /// No memory for it.
    #[error("edu cannot be used: {0}")]
    Dma(#[from] DmaError),
    /// It does not finish.
    #[error("edu does not finish: {0}")]
    TimedOut(#[from] TimedOut),
}

/// The device itself. What it is told to do it does, and it never tells whether a request of its was refused: look at memory.
#[derive(Debug)]
pub struct Edu {
    function: Arc<dyn Function>,
    registers: Arc<dyn Mmio>,
}

impl Edu {
    /// Takes the device and lets it do DMA, which it may until this is dropped.
    ///
    /// # Errors
    /// [`EduError`] when the function is something else.
    pub fn new(function: Arc<dyn Function>) -> Result<Self, EduError> {
        let registers = function.bar(0)?;
        let identification = registers.read32(IDENTIFICATION);
        if identification & 0xffff != 0xed {
            return Err(EduError::NotEdu(identification));
        }
        function.set_bus_master(true);
        Ok(Self { function, registers })
    }

    /// The function that it is.
    pub fn function(&self) -> &Arc<dyn Function> {
        &self.function
    }

    /// Has it interrupt, for the given reason, which is not 0.
    pub fn raise(&self, reason: u32) {
        self.registers.write32(RAISE, reason);
    }

    /// Takes its interrupt back and says for which reasons it was.
    pub fn acknowledge(&self) -> u32 {
        let reasons = self.registers.read32(INTERRUPT_STATUS);
        self.registers.write32(ACKNOWLEDGE, reasons);
        reasons
    }

    /// Has it copy `len` bytes of memory at `from` to `offset` of its buffer.
    ///
    /// # Errors
    /// [`EduError::TimedOut`].
    ///
    /// # Panics
    /// When the buffer is not that long.
    pub fn read(
        &self,
        clock: &(impl Clock + ?Sized),
        from: DmaAddr,
        offset: usize,
        len: usize,
    ) -> Result<(), EduError> {
        self.run(clock, from.get(), BUFFER + offset as u64, check(offset, len), START)
    }

    /// Has it copy `len` bytes at `offset` of its buffer to memory at `to`.
    ///
    /// # Errors
    /// [`EduError::TimedOut`].
    ///
    /// # Panics
    /// When the buffer is not that long.
    pub fn write(
        &self,
        clock: &(impl Clock + ?Sized),
        to: DmaAddr,
        offset: usize,
        len: usize,
    ) -> Result<(), EduError> {
        self.run(clock, BUFFER + offset as u64, to.get(), check(offset, len), START | TO_MEMORY)
    }

    fn run(
        &self,
        clock: &(impl Clock + ?Sized),
        from: u64,
        to: u64,
        len: u64,
        command: u64,
    ) -> Result<(), EduError> {
        self.registers.write64(SOURCE, from);
        self.registers.write64(DESTINATION, to);
        self.registers.write64(COUNT, len);
        self.registers.write64(COMMAND, command);
        Ok(poll_until(clock, TIMEOUT, || self.registers.read64(COMMAND) & START == 0)?)
    }
}

/// QEMU ends when the device is told to leave its buffer.
fn check(offset: usize, len: usize) -> u64 {
    assert!(offset <= EDU_BUFFER && len <= EDU_BUFFER - offset, "edu's buffer is {EDU_BUFFER} bytes long");
    len as u64
}

impl Drop for Edu {
    fn drop(&mut self) {
        self.function.set_bus_master(false);
    }
}

/// What its buffer is filled with before it reads, so that what was refused shows.
const NOTHING: u8 = 0xee;

/// `edu`, bound: it reads and writes wherever it is told, through a page that it may use both ways.
#[derive(Debug)]
pub struct EduBench {
    edu: Edu,
    device: Arc<Device>,
    // One order at a time.
    staging: Mutex<CoherentSlice<u8>>,
    waivers: Vec<Waiver>,
}

impl EduBench {
    /// The device with what it is bound as.
    ///
    /// # Errors
    /// [`EduError::Dma`] when there is no memory for the page that it copies through.
    pub fn new(edu: Edu, device: Device) -> Result<Self, EduError> {
        let device = Arc::new(device);
        let staging = Mutex::new(CoherentSlice::zeroed(&device, EDU_BUFFER)?);
        Ok(Self { edu, device, staging, waivers: Vec::new() })
    }

    /// The same with rules that do not hold for it.
    #[must_use]
    pub fn waiving(mut self, waivers: &[Waiver]) -> Self {
        self.waivers = waivers.to_vec();
        self
    }

    fn write_piece(&self, address: DmaAddr, data: &[u8]) -> Result<(), EduError> {
        let (staging, clock) = (self.staging.lock(), &**self.device.platform());
        data.iter().enumerate().for_each(|(index, &byte)| staging.write(index, byte));
        self.edu.read(clock, staging.dma_address(), 0, data.len())?;
        self.edu.write(clock, address, 0, data.len())
    }

    fn read_piece(&self, address: DmaAddr, into: &mut [u8]) -> Result<(), EduError> {
        let (staging, clock) = (self.staging.lock(), &**self.device.platform());
        (0..into.len()).for_each(|index| staging.write(index, NOTHING));
        self.edu.read(clock, staging.dma_address(), 0, into.len())?;
        self.edu.read(clock, address, 0, into.len())?;
        self.edu.write(clock, staging.dma_address(), 0, into.len())?;
        into.iter_mut().enumerate().for_each(|(index, byte)| *byte = staging.read(index));
        Ok(())
    }
}

impl Bench for EduBench {
    fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn device_write(&self, address: DmaAddr, data: &[u8]) -> Result<(), Refused> {
        for (index, piece) in data.chunks(EDU_BUFFER).enumerate() {
            let at = address.wrapping_add((EDU_BUFFER * index) as u64);
            self.write_piece(at, piece).map_err(|_| Refused)?;
        }
        Ok(())
    }

    fn device_read(&self, address: DmaAddr, into: &mut [u8]) -> Result<(), Refused> {
        for (index, piece) in into.chunks_mut(EDU_BUFFER).enumerate() {
            let at = address.wrapping_add((EDU_BUFFER * index) as u64);
            self.read_piece(at, piece).map_err(|_| Refused)?;
        }
        Ok(())
    }

    fn waivers(&self) -> &[Waiver] {
        &self.waivers
    }
}
