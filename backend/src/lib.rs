#![doc = include_str!("../README.md")]

#[cfg(any(feature = "sim", feature = "swiotlb", feature = "qemu", feature = "vfio"))]
mod describe;
mod error;
mod machine;
mod open;
#[cfg(feature = "qemu")]
mod qemu;
#[cfg(any(feature = "sim", feature = "qemu"))]
mod settings;
#[cfg(any(feature = "sim", feature = "swiotlb"))]
mod sim;
#[cfg(feature = "vfio")]
mod vfio;

pub use conformance::Bench;
pub use error::BackendError;
pub use iommu_core::{DomainType, Fault};
pub use machine::{Backend, Confinement, Description, FunctionDescription, GroupDescription, Statistics};
pub use open::{Disk, Options, names, open};

/// The example of the workspace's README, which needs a machine to run on.
#[cfg(all(doctest, feature = "sim"))]
#[doc = include_str!("../../README.md")]
struct WorkspaceReadme;
