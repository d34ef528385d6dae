#![doc = include_str!("../README.md")]

pub mod bus;
pub mod dma_engine;
pub mod firmware;
pub mod interrupts;
pub mod iommu;
mod machine;
pub mod nvme;
pub mod pci;
pub mod ram;

pub use machine::{Machine, MachineConfig, MachineError};
