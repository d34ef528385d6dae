#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod ats;
mod attach;
pub mod command;
mod command_queue;
mod completion;
mod config;
mod control;
mod device_table;
mod domain;
mod domain_id;
mod driver;
pub mod dte;
mod dump;
pub mod event;
mod gcr3;
mod guest_domain;
mod hardware;
mod init;
mod interrupt;
pub mod invalidate;
mod irq_remap;
pub mod ivrs;
mod listeners;
mod log;
mod memory;
mod pasid;
pub mod pci_capability;
pub mod ppr;
pub mod registers;
mod segment;
mod unit;

pub use command_queue::{CommandError, CommandQueue, CommandStatistics};
pub use completion::Ticket;
pub use config::{Config, PageTableFormat};
pub use device_table::DeviceTable;
pub use domain::PagingDomain;
pub use driver::AmdVi;
pub use dump::Dump;
pub use hardware::{Hardware, MsiMessage};
pub use init::{InitError, InitState};
pub use interrupt::{Handled, fault};
pub use irq_remap::{IrqRemapConfig, NoIrqRemap, irte};
pub use log::{EventLog, LogStatistics, PprLog};
pub use unit::Unit;
