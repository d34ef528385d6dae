//! `edu`, QEMU's teaching device: it copies between memory and a buffer of its own, and interrupts when told.

use std::sync::Arc;
use std::time::Duration;

use conformance::{Bench, Refused, Waiver};
use dma_api::{CoherentSlice, Device};
use platform::pci::{Function, Interrupt};
use platform::sync::Mutex;
use platform::time::poll_until;
use platform::{Clock, DmaAddr, Mmio};

use crate::Failure;

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

/// Where the device has its buffer, and how long that is.
const BUFFER: u64 = 0x4_0000;
pub(crate) const BUFFER_LEN: usize = 4096;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The device. It never tells whether a request of its was refused: look at memory.
pub(crate) struct Edu {
    function: Arc<dyn Function>,
    registers: Arc<dyn Mmio>,
    clock: Arc<dyn Clock>,
}

impl Edu {
    pub(crate) fn new(function: Arc<dyn Function>, clock: Arc<dyn Clock>) -> Result<Self, Failure> {
        let registers = function.bar(0)?;
        let identification = registers.read32(IDENTIFICATION);
        if identification & 0xffff != 0xed {
            return Err(format!("this is no edu: {identification:#x}").into());
        }
        function.set_bus_master(true);
        Ok(Self { function, registers, clock })
    }

    pub(crate) fn function(&self) -> &Arc<dyn Function> {
        &self.function
    }

    /// Copies memory into the device's buffer.
    pub(crate) fn read(&self, from: u64, len: usize) -> Result<(), Failure> {
        self.run(from, BUFFER, len, START)
    }

    /// Copies the device's buffer to memory.
    pub(crate) fn write(&self, to: u64, len: usize) -> Result<(), Failure> {
        self.run(BUFFER, to, len, START | TO_MEMORY)
    }

    fn run(&self, from: u64, to: u64, len: usize, command: u64) -> Result<(), Failure> {
        // QEMU ends when the device is told to leave its buffer.
        assert!(len <= BUFFER_LEN);
        self.registers.write64(SOURCE, from);
        self.registers.write64(DESTINATION, to);
        self.registers.write64(COUNT, len as u64);
        self.registers.write64(COMMAND, command);
        Ok(poll_until(&*self.clock, SOON, || self.registers.read64(COMMAND) & START == 0)?)
    }

    /// Interrupts, and waits for that.
    pub(crate) fn interrupt(&self, vector: &dyn Interrupt) -> Result<(), Failure> {
        self.raise();
        vector.wait(self.clock.now() + SOON)?;
        self.acknowledge()
    }

    pub(crate) fn raise(&self) {
        self.registers.write32(RAISE, 1);
    }

    /// Takes the interrupt back.
    pub(crate) fn acknowledge(&self) -> Result<(), Failure> {
        let status = self.registers.read32(INTERRUPT_STATUS);
        self.registers.write32(ACKNOWLEDGE, status);
        if status == 1 { Ok(()) } else { Err(format!("the interrupt's status is {status:#x}").into()) }
    }
}

/// `edu`, bound: it reads and writes wherever it is told, through a page that it may use both ways.
pub(crate) struct EduBench {
    edu: Edu,
    device: Arc<Device>,
    // One order at a time.
    staging: Mutex<CoherentSlice<u8>>,
    waivers: &'static [Waiver],
}

impl EduBench {
    pub(crate) fn new(edu: Edu, device: Device, waivers: &'static [Waiver]) -> Result<Self, Failure> {
        let device = Arc::new(device);
        device.set_mask(u64::MAX)?;
        let staging = Mutex::new(CoherentSlice::zeroed(&device, BUFFER_LEN)?);
        Ok(Self { edu, device, staging, waivers })
    }

    fn write_piece(&self, address: DmaAddr, data: &[u8]) -> Result<(), Failure> {
        let staging = self.staging.lock();
        data.iter().enumerate().for_each(|(index, &byte)| staging.write(index, byte));
        self.edu.read(staging.dma_address().get(), data.len())?;
        self.edu.write(address.get(), data.len())
    }

    fn read_piece(&self, address: DmaAddr, into: &mut [u8]) -> Result<(), Failure> {
        /// What is in the device's buffer when the read is refused.
        const NOTHING: u8 = 0xee;
        let staging = self.staging.lock();
        (0..into.len()).for_each(|index| staging.write(index, NOTHING));
        self.edu.read(staging.dma_address().get(), into.len())?;
        self.edu.read(address.get(), into.len())?;
        self.edu.write(staging.dma_address().get(), into.len())?;
        into.iter_mut().enumerate().for_each(|(index, byte)| *byte = staging.read(index));
        Ok(())
    }
}

impl Bench for EduBench {
    fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn device_write(&self, address: DmaAddr, data: &[u8]) -> Result<(), Refused> {
        for (index, piece) in data.chunks(BUFFER_LEN).enumerate() {
            let at = address.wrapping_add((BUFFER_LEN * index) as u64);
            self.write_piece(at, piece).map_err(|_| Refused)?;
        }
        Ok(())
    }

    fn device_read(&self, address: DmaAddr, into: &mut [u8]) -> Result<(), Refused> {
        for (index, piece) in into.chunks_mut(BUFFER_LEN).enumerate() {
            let at = address.wrapping_add((BUFFER_LEN * index) as u64);
            self.read_piece(at, piece).map_err(|_| Refused)?;
        }
        Ok(())
    }

    fn waivers(&self) -> &[Waiver] {
        self.waivers
    }
}
