//! `edu` as the checks use it: told by address, with the guest's clock.

use std::sync::Arc;
use std::time::Duration;

use conformance::Waiver;
use dma_api::Device;
use platform::pci::{Function, Interrupt};
use platform::{Clock, DmaAddr};
pub(crate) use qemu_devices::EDU_BUFFER as BUFFER_LEN;
use qemu_devices::EduBench;

use crate::Failure;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The device. It never tells whether a request of its was refused: look at memory.
pub(crate) struct Edu {
    edu: qemu_devices::Edu,
    clock: Arc<dyn Clock>,
}

impl Edu {
    pub(crate) fn new(function: Arc<dyn Function>, clock: Arc<dyn Clock>) -> Result<Self, Failure> {
        Ok(Self { edu: qemu_devices::Edu::new(function)?, clock })
    }

    pub(crate) fn function(&self) -> &Arc<dyn Function> {
        self.edu.function()
    }

    /// Copies memory into the device's buffer.
    pub(crate) fn read(&self, from: u64, len: usize) -> Result<(), Failure> {
        Ok(self.edu.read(&*self.clock, DmaAddr::new(from), 0, len)?)
    }

    /// Copies the device's buffer to memory.
    pub(crate) fn write(&self, to: u64, len: usize) -> Result<(), Failure> {
        Ok(self.edu.write(&*self.clock, DmaAddr::new(to), 0, len)?)
    }

    /// Interrupts, and waits for that.
    pub(crate) fn interrupt(&self, vector: &dyn Interrupt) -> Result<(), Failure> {
        self.raise();
        vector.wait(self.clock.now() + SOON)?;
        self.acknowledge()
    }

    pub(crate) fn raise(&self) {
        self.edu.raise(1);
    }

    /// Takes the interrupt back.
    pub(crate) fn acknowledge(&self) -> Result<(), Failure> {
        match self.edu.acknowledge() {
            1 => Ok(()),
            reasons => Err(format!("the interrupt's status is {reasons:#x}").into()),
        }
    }
}

/// `edu`, bound: it reads and writes wherever it is told.
pub(crate) fn bench(
    function: Arc<dyn Function>,
    device: Device,
    waivers: &[Waiver],
) -> Result<EduBench, Failure> {
    device.set_mask(u64::MAX)?;
    Ok(EduBench::new(qemu_devices::Edu::new(function)?, device)?.waiving(waivers))
}
