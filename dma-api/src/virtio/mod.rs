//! Drivers of the crate `virtio-drivers` on this stack: its `Hal` over a [`Device`](crate::Device), and its `Transport` over a
//! [`platform::pci::Function`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use dma_api::virtio::virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
//! use dma_api::virtio::{VirtioPci, virtio_hal};
//!
//! virtio_hal! {
//!     /// The DMA of the disk.
//!     struct DiskHal;
//! }
//!
//! # use dma_api::Device;
//! # use platform::pci::Function;
//! fn first_sector(function: Arc<dyn Function>, device: Arc<Device>) -> Result<[u8; SECTOR_SIZE], Box<dyn std::error::Error>> {
//!     let transport = VirtioPci::new(function, &device)?;
//!     DiskHal::slot().set(device).map_err(|_| "the disk has a driver already")?;
//!     let mut disk = VirtIOBlk::<DiskHal, _>::new(transport)?;
//!     let mut sector = [0; SECTOR_SIZE];
//!     disk.read_blocks(0, &mut sector)?;
//!     drop(disk);
//!     DiskHal::slot().take(); // and with it the device
//!     Ok(sector)
//! }
//! ```
//!
//! What to know of those drivers: they poll, without a deadline, so a device that dies in the middle of a request takes the
//! caller's thread with it; and they lend borrowed memory to the device, which no type keeps from being used too early
//! (their own methods for that are `unsafe`).

mod hal;
mod transport;

pub use hal::HalSlot;
pub use transport::{VirtioPci, VirtioPciError};

pub use crate::virtio_hal;
/// The crate adapted to, in the version that the adapters are for.
pub use virtio_drivers;
