#![doc = include_str!("../README.md")]
#![cfg(target_os = "linux")]

mod bar;
mod calls;
mod capability;
mod container;
mod device;
mod driver;
mod error;
mod function;
mod group;
mod host;
mod info;
mod interrupt;
pub mod kernel;
mod memory;
mod reactor;
mod registered;
mod survey;
mod vfio;

pub use error::VfioError;
pub use host::{Host, parse_address};
pub use info::IommuInfo;
pub use interrupt::Vector;
pub use memory::ProcessPlatform;
pub use registered::Registered;
pub use survey::{Candidate, Obstacle, survey};
pub use vfio::{Config, Vfio};
