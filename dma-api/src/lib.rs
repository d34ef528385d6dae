#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod attrs;
mod buffer;
mod bus;
mod checked;
mod coherent;
mod counted;
mod device;
mod direct;
mod direction;
mod elements;
mod error;
mod fault;
mod faulty;
mod forward;
mod gated;
mod iova;
mod memory;
mod ops;
mod pages;
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
pub use bus::{BusRange, BusRanges, InvalidBusRange};
pub use checked::{Checked, DmaDebug, Mapping, MappingKind, Mistake, Report};
pub use coherent::{Coherent, CoherentSlice, CoherentView, dma_rmb, dma_wmb};
pub use counted::{Counted, OpsCounters, OpsStatistics, SizeHistogram};
pub use device::{Device, DeviceBuilder};
pub use direct::DmaDirect;
pub use direction::Direction;
pub use error::{DmaError, Quarantined};
pub use fault::{DeviceFault, FaultQueue};
pub use faulty::{Calls, FaultPlan, Faulty};
pub use gated::Gated;
pub use iova::{DmaIova, IovaOps, IovaPart, IovaRange};
pub use memory::{CoherentMemory, PageMemory, PagePiece};
pub use ops::DmaMapOps;
pub use pages::{CpuPages, DmaPages};
pub use parms::DeviceParms;
pub use pool::{DmaPool, PoolItem};
pub use scatter::SgEntry;
pub use scoped::{BorrowedFor, Scoped, ScopedError};
pub use sg_map::{CpuOwnedList, ScatterList, Segment};
pub use stable::{
    Bidirectional, BufferFor, ExclusiveBuffer, FromDevice, MapDirection, RawVec, StableBuffer, ToDevice,
};
pub use streaming::{CpuOwned, CpuPart, MapFailed, Streaming};
