#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod cookie;
mod default_domain;
mod dma;
mod domain;
mod fault;
mod flush_queue;
mod group;
mod iommu;
pub mod iova;
mod ops;
pub mod pci;
mod scatter;

pub use default_domain::Settings;
pub use domain::Domain;
pub use fault::{Fault, FaultFlags, FaultKind};
pub use group::{Group, GroupError, Owner};
pub use iommu::{Iommu, Statistics};
pub use ops::{
    AttachError, Capability, DomainError, DomainOps, DomainType, IommuOps, ProbeError, Probed, ResvRegion,
    ResvType, SyncError,
};
