#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod area;
mod config;
mod dma;
mod pool;
mod request;
mod swiotlb;
mod transient;

pub use config::{Config, OptionError};
pub use dma::SwiotlbDma;
pub use swiotlb::{PoolTooSmall, Statistics, Swiotlb};

/// Bytes in a slot (Linux: `IO_TLB_SIZE`).
pub const SLOT_SIZE: usize = 2048;

/// Slots in a segment, which no mapping crosses (Linux: `IO_TLB_SEGSIZE`).
pub const SEGMENT_SLOTS: usize = 128;

/// Bytes in a segment.
const SEGMENT: usize = SEGMENT_SLOTS * SLOT_SIZE;
