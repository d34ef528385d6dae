#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

pub mod addr;
pub mod cache;
pub mod cpu;
pub mod device_memory;
mod frame_pool;
pub mod frames;
pub mod gather;
pub mod map_error;
pub mod mmio;
pub mod page_sizes;
pub mod pci;
pub mod prot;
pub mod sync;
pub mod time;
pub mod trace;

pub use addr::{DmaAddr, PhysAddr};
pub use cache::CacheMaintenance;
pub use frame_pool::{FramePool, FreeFrameChanged};
pub use frames::{Extent, FrameRequest, Frames, OutOfFrames, Window};
pub use gather::{Flushed, FrameList, IotlbGather, LeakCounter};
pub use map_error::MapError;
pub use mmio::Mmio;
pub use page_sizes::PageSizes;
pub use prot::Prot;
pub use time::{Clock, Instant, TimedOut};

/// Everything that the stack asks of a machine, in one object: page frames, cache maintenance and time.
///
/// Implemented for every type that has the three parts; a kernel writes those and passes an `Arc<dyn Platform>` around.
pub trait Platform: Frames + CacheMaintenance + Clock {}

impl<T: Frames + CacheMaintenance + Clock + ?Sized> Platform for T {}
