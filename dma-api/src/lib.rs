#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod attrs;
mod buffer;
mod checked;
mod coherent;
mod counted;
mod device;
mod direct;
mod direction;
mod error;
mod fault;
mod faulty;
mod gated;
mod ops;
mod parms;
mod pool;
mod scatter;
mod scoped;
mod sg_map;
mod stable;
mod streaming;
#[cfg(feature = "virtio-drivers")]
pub mod virtio;
mod volatile;

pub use attrs::Attrs;
pub use buffer::DmaBuffer;
pub use checked::{Checked, DmaDebug, Mapping, MappingKind, Mistake, Report};
pub use coherent::{Coherent, CoherentSlice, dma_rmb, dma_wmb};
pub use counted::{Counted, OpsCounters, OpsStatistics, SizeHistogram};
pub use device::{Device, DeviceBuilder};
pub use direct::{BusRange, BusRanges, DmaDirect, InvalidBusRange};
pub use direction::Direction;
pub use error::{DmaError, Quarantined};
pub use fault::{DeviceFault, FaultQueue};
pub use faulty::{Calls, FaultPlan, Faulty};
pub use gated::Gated;
pub use ops::{CoherentMemory, DmaMapOps};
pub use parms::DeviceParms;
pub use pool::{DmaPool, PoolItem};
pub use scatter::SgEntry;
pub use scoped::{BorrowedFor, Scoped, ScopedError};
pub use sg_map::{ScatterList, Segment};
pub use stable::{
    Bidirectional, BufferFor, ExclusiveBuffer, FromDevice, MapDirection, RawVec, StableBuffer, ToDevice,
};
pub use streaming::{CpuOwned, MapFailed, Streaming};
