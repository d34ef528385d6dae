//! A DMA engine without a driver's claim on it: it goes on while its group changes hands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use platform::pci::Function;
use platform::{DmaAddr, Mmio};

// The registers, as the hardware's documentation has them.
const SOURCE: usize = 0x00;
const DESTINATION: usize = 0x08;
const LENGTH: usize = 0x10;
const DATA: usize = 0x18;
const COMMAND: usize = 0x20;
const STATUS: usize = 0x28;
const PASID: usize = 0x30;
const WRITE: u64 = 2;
const READ: u64 = 3;
const BUSY: u64 = 1;
const DONE: u64 = 2;

/// The engine, polled: interrupts may be off.
pub(crate) struct RawEngine(Arc<dyn Mmio>);

impl RawEngine {
    pub(crate) fn new(function: &dyn Function) -> Self {
        function.set_bus_master(true);
        Self::of(function.bar(0).unwrap())
    }

    /// The engine with these registers; it is a bus master already.
    pub(crate) fn of(registers: Arc<dyn Mmio>) -> Self {
        Self(registers)
    }

    /// Writes 8 bytes; whether the device was told that they arrived.
    pub(crate) fn write(&self, address: DmaAddr, data: [u8; 8]) -> bool {
        self.0.write64(DESTINATION, address.get());
        self.0.write64(DATA, u64::from_le_bytes(data));
        self.execute(WRITE)
    }

    /// Reads 8 bytes, if it may.
    pub(crate) fn read(&self, address: DmaAddr) -> Option<[u8; 8]> {
        self.0.write64(SOURCE, address.get());
        self.execute(READ).then(|| self.0.read64(DATA).to_le_bytes())
    }

    /// Says which PASID its requests carry from now on, if any.
    pub(crate) fn use_pasid(&self, pasid: Option<u32>) {
        self.0.write64(PASID, pasid.map_or(0, |pasid| 1 << 31 | u64::from(pasid)));
    }

    fn execute(&self, command: u64) -> bool {
        self.0.write64(LENGTH, 8);
        self.0.write64(COMMAND, command);
        let start = Instant::now();
        while self.0.read64(STATUS) == BUSY {
            assert!(start.elapsed() < Duration::from_secs(10), "the engine never ends");
            std::thread::yield_now();
        }
        self.0.read64(STATUS) == DONE
    }
}
