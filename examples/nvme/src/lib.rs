#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod command;
mod controller;
mod error;
mod identify;
mod io_queue;
mod prp;
mod queue;
mod registers;

pub use command::CommandStatus;
pub use controller::Controller;
pub use error::NvmeError;
pub use identify::{ControllerInfo, NamespaceInfo};
pub use io_queue::{Done, IoQueue, Rejected, Tag};
