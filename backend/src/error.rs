//! Why a backend could not be opened, or a device not be had.

use iommu_core::DomainType;
use platform::pci::PciAddress;

/// Why a backend could not be opened, or a device not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No backend of this name was built in.
    #[error("no backend {name:?} in this build; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The disk is a file where the machine's is a controller, or the other way round.
    #[error("the disk of the machine {backend:?} is {wanted}")]
    Disk {
        /// Which machine.
        backend: &'static str,
        /// What its disk is.
        wanted: &'static str,
    },
    /// No device of the machine can be told to read and write anywhere.
    #[error("the machine {0:?} has no device that goes wherever it is told")]
    NoRogue(&'static str),
    /// The machine has no IOMMU, so there are no domains whose type could be chosen.
    #[error("the machine {0:?} has no IOMMU, so it has no domain types")]
    NoDomains(&'static str),
    /// No default domain of this machine is of this type.
    #[error("a default domain of type {0} is not possible on this machine")]
    DomainType(DomainType),
    /// This host does not have what the machine is made of.
    #[error("{0}")]
    Absent(Box<dyn std::error::Error + Send + Sync>),
    /// The machine could not be started.
    #[error("the machine did not start: {0}")]
    Start(Box<dyn std::error::Error + Send + Sync>),
    /// The machine has no such function.
    #[error("there is no function {0}")]
    NoSuchFunction(PciAddress),
    /// The device cannot be had this way.
    #[error("{address}: {why}")]
    Device {
        /// Which one.
        address: PciAddress,
        /// Why not.
        why: Box<dyn std::error::Error + Send + Sync>,
    },
}
