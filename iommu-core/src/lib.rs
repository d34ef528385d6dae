#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

mod cookie;
mod dma;
mod domain;
mod fault;
mod flush_queue;
mod group;
mod iommu;
mod iopf;
pub mod iova;
mod irq_remap;
mod lookups;
mod msi;
mod ops;
mod pasids;
pub mod pci;
mod resv;
mod scatter;
mod settings;

pub use domain::Domain;
pub use fault::{Fault, FaultFlags, FaultHandler, FaultKind};
pub use group::{Group, GroupError, Owner, ResetFence};
pub use iommu::{Iommu, Statistics};
pub use iopf::{IopfGroup, IopfQueue, PageRequest, PageResponse, ResponseCode, UnknownDevice};
pub use irq_remap::{
    DestinationMode, IrqDelivery, IrqRemap, IrqRemapError, IrqSource, IrqTarget, RemappedIrqs, io_apic_entry,
};
pub use ops::{
    AttachError, Capability, DeviceGroup, DirtyError, DomainError, DomainOps, DomainType, HwInfo, IommuOps,
    PagingFlags, ProbeError, Probed, SyncError,
};
pub use pasids::GlobalPasid;
pub use resv::{ResvRegion, ResvType};
pub use settings::{ParameterError, Settings, Trust};
