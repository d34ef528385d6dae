//! A toy machine: a software IOMMU under `DmaMapOps`, kept right, with faults to choose from.
// Each test file uses its part.
#![allow(dead_code, unreachable_pub)]

mod memory;
mod toy;

use memory::Memory;
pub use toy::{Fault, Machine, Toy};
