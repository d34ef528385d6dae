#![doc = include_str!("../README.md")]

pub mod bus;
mod disk;
pub mod dma_engine;
pub mod firmware;
pub mod interrupts;
pub mod iommu;
mod machine;
pub mod nvme;
pub mod pci;
pub mod ram;
pub mod virtio;

pub use disk::DiskError;
pub use machine::{Machine, MachineConfig, MachineError};
