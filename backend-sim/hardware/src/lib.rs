#![doc = include_str!("../README.md")]

pub mod ats;
pub mod bus;
mod disk;
pub mod dma_engine;
pub mod firmware;
mod hpet;
pub mod interrupts;
mod io_apic;
pub mod iommu;
mod machine;
pub mod nvme;
pub mod pci;
pub mod pri;
pub mod ram;
pub mod virtio;

pub use disk::DiskError;
pub use hpet::Hpet;
pub use io_apic::IoApic;
pub use machine::{Machine, MachineConfig, MachineError};
