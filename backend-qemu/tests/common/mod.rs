//! Machines for the tests.

#![allow(dead_code, reason = "each test uses some of it")]

use std::io::Write as _;
use std::sync::Arc;

use backend_qemu::{Config, Program, ProgramError, QemuMachine};
use dma_api::DmaBuffer;
use iommu_core::{Settings, Trust};
use platform::Platform;
use platform::pci::PciAddress;

pub(crate) const PAGE: usize = 4096;
/// `edu`, as device 5 of the root bus.
pub(crate) const EDU: PciAddress = PciAddress::new(0, 0, 5, 0);

/// Strict DMA domains: the default.
pub(crate) const STRICT: Settings = Settings { passthrough: None, lazy: false, forcedac: false };
/// Identity domains.
// SAFETY: QEMU's devices do DMA only when a test tells them to, on memory of their machine.
pub(crate) const IDENTITY: Settings = Settings { passthrough: Some(unsafe { Trust::new() }), ..STRICT };

/// A machine with `edu`.
pub(crate) fn with_edu() -> Config {
    Config::q35().edu(EDU.id.device())
}

/// Starts a machine. `None` where there is no QEMU, which is said, and which is a failure when one was asked for by name.
pub(crate) fn start(config: Config) -> Option<QemuMachine> {
    match Program::find() {
        Err(ProgramError::NotFound) if !Program::is_demanded() => {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("a test");
            // Not by `eprintln`, which the test harness swallows when a test passes.
            let why = ProgramError::NotFound;
            let _ = writeln!(std::io::stderr(), "not run: {test}: {why}");
            None
        }
        program => Some(QemuMachine::start(config.program(program.unwrap())).unwrap()),
    }
}

/// Pages of the machine's memory that no device knows.
pub(crate) fn pages(machine: &QemuMachine, count: usize) -> DmaBuffer<u8> {
    let platform: Arc<dyn Platform> = machine.platform().clone();
    DmaBuffer::zeroed_in(&platform, count * PAGE).unwrap()
}

/// What a page is filled with.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed).collect()
}
