//! Machines for the tests.

#![allow(dead_code, reason = "each test uses some of it")]

use std::io::Write;

use backend_sim::{Config, SimMachine};
use iommu_core::Settings;

/// A disk of 1 MiB that nobody looks at.
const DISK: usize = 1 << 20;

/// Strict DMA domains: the default.
pub(crate) const STRICT: Settings = Settings { passthrough: false, lazy: false, forcedac: false };
/// Lazy DMA domains.
pub(crate) const LAZY: Settings = Settings { lazy: true, ..STRICT };
/// Identity domains.
pub(crate) const IDENTITY: Settings = Settings { passthrough: true, ..STRICT };

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
