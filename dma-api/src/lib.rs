#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod attrs;
mod device;
mod direction;
mod error;
mod fault;
mod ops;
mod parms;
mod scatter;

pub use attrs::Attrs;
pub use device::{Device, DeviceBuilder};
pub use direction::Direction;
pub use error::{DmaError, Quarantined};
pub use fault::{DeviceFault, FaultQueue};
pub use ops::{CoherentMemory, DmaMapOps};
pub use parms::DeviceParms;
pub use scatter::SgEntry;
