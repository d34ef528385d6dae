#![doc = include_str!("../README.md")]

pub mod bus;
pub mod interrupts;
pub mod iommu;
pub mod pci;
pub mod ram;
