//! Drivers of the crate `virtio-drivers` on this stack: its `Hal` over a [`Device`](crate::Device), and its `Transport` over a
//! [`platform::pci::Function`].
//!
//! ```
//! #![forbid(unsafe_code)]
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
//! What to know of those drivers:
//!
//! - They poll, without a deadline: a device that dies in the middle of a request takes the caller's thread with it. No
//!   interrupt is connected; what the device would interrupt for is in its ISR status (`ack_interrupt`).
//! - They lend borrowed memory, which cannot be quarantined, and `Hal` has no errors. So where a mapping cannot be made or
//!   ended, the panic does not unwind ([`HalSlot::share`], [`HalSlot::unshare`]).
//! - The device reaches whole buffers in the machine's RAM where they are, as with every `Streaming` map: behind an IOMMU, an
//!   untrusted device gets copies of what is no whole page.

mod hal;
mod transport;

pub use hal::HalSlot;
pub use transport::{VirtioPci, VirtioPciError};

pub use crate::virtio_hal;
/// The crate adapted to, in the version that the adapters are for.
pub use virtio_drivers;
