//! Machines for the tests.

#![allow(dead_code, reason = "each test uses some of it")]

pub(crate) mod engine;

use std::io::Write;
use std::sync::Arc;

use backend_sim::{Config, SimMachine};
use dma_api::DmaBuffer;
use iommu_core::{Settings, Trust};
use platform::Platform;
use platform::pci::{ConfigSpace, PciAddress, RequesterId};

/// A disk of 1 MiB that nobody looks at.
const DISK: usize = 1 << 20;

/// Strict DMA domains: the default.
pub(crate) const STRICT: Settings = Settings { passthrough: None, lazy: false, forcedac: false };
/// Lazy DMA domains.
pub(crate) const LAZY: Settings = Settings { lazy: true, ..STRICT };
/// Identity domains.
// SAFETY: simulated devices do DMA only when a test tells them to, on memory of the simulated machine.
pub(crate) const IDENTITY: Settings = Settings { passthrough: Some(unsafe { Trust::new() }), ..STRICT };

/// Boots a machine: the default one with strict domains, after `change`.
pub(crate) fn boot(change: impl FnOnce(&mut Config)) -> SimMachine {
    let mut disk = tempfile::NamedTempFile::new().unwrap();
    disk.write_all(&vec![0; DISK]).unwrap();
    let mut config = Config { settings: STRICT, ..Config::new(disk.path()) };
    change(&mut config);
    // The machine has the file open; its name may go.
    SimMachine::boot(config).unwrap()
}

/// Boots the machine that has no IOMMU.
pub(crate) fn boot_without_iommu() -> SimMachine {
    boot(|config| *config = config.clone().without_iommu())
}

/// A page of the machine's memory that no device knows.
pub(crate) fn page(machine: &SimMachine) -> DmaBuffer<u8> {
    let platform: Arc<dyn Platform> = machine.platform().clone();
    DmaBuffer::zeroed_in(&platform, 4096).unwrap()
}

/// The domain identifier in a function's device table entry, as the hardware finds it: DomainID is bits 79:64 of the entry,
/// which is at 32 times the requester ID from the address in bits 51:12 of MMIO register 0000h.
pub(crate) fn domain_id(machine: &SimMachine, id: RequesterId) -> u32 {
    const IOMMU_BASE: u64 = 0xfeb8_0000;
    let registers = machine.hardware().registers_at(IOMMU_BASE).unwrap();
    let table = registers.read64(0) & 0x000f_ffff_ffff_f000;
    let second = machine.hardware().ram.read64(table + 32 * u64::from(id.get()) + 8).unwrap();
    second as u32 & 0xffff
}

/// The physical address of a function's first memory region: BARs 0 and 1, 64 bits wide.
pub(crate) fn bar0(machine: &SimMachine, address: PciAddress) -> u64 {
    let pci = &machine.hardware().pci;
    u64::from(pci.read32(address, 0x10) & !0xf) | u64::from(pci.read32(address, 0x14)) << 32
}
