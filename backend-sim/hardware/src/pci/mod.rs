//! The PCI tree: configuration space, routing by the rules of ACS, message interrupts.

mod config_space;
mod function;
mod msix;
mod tree;

pub use config_space::Acs;
pub use tree::{Builder, IommuFunction, PciTree};
