//! Why a device cannot be had through VFIO.

use std::fmt;
use std::io;
use std::path::PathBuf;

use dma_api::DmaError;
use iommu_core::GroupError;
use platform::OutOfFrames;
use platform::pci::{PciAddress, PciError};
use swiotlb::PoolTooSmall;

/// Why a device cannot be had through VFIO. Each says what would change that.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// There is no such PCI function.
    #[error("there is no PCI function {0}")]
    NoSuchFunction(PciAddress),
    /// The function was not named when VFIO was opened.
    #[error("{0} is not among the devices that were opened")]
    NotOpened(PciAddress),
    /// It is behind no IOMMU, or that is off.
    #[error(
        "{0} is in no IOMMU group: no IOMMU is on (see the firmware's settings; on Intel, boot with intel_iommu=on)"
    )]
    NoIommu(PciAddress),
    /// Another driver has the function.
    #[error("{address} is bound to {}, not to vfio-pci", driver.as_deref().unwrap_or("no driver"))]
    NotBound {
        /// Which one.
        address: PciAddress,
        /// The kernel's driver that has it.
        driver: Option<String>,
    },
    /// Other devices of its group are with drivers of the kernel, so nobody in user space gets any of it.
    #[error("group {group} of {address} is not viable: {}", List(held_by))]
    NotViable {
        /// Which one was wanted.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// Who holds it back: functions with their drivers.
        held_by: Vec<(PciAddress, String)>,
    },
    /// The container takes no group: the platform's interrupts are not isolated from each other.
    #[error(
        "the kernel refuses group {0}, as it does where interrupts are not remapped: switch interrupt remapping on, or load \
         vfio_iommu_type1 with allow_unsafe_interrupts=1 if every device is trusted"
    )]
    UnsafeInterrupts(u32),
    /// The kernel has another VFIO than this crate knows.
    #[error("the kernel's VFIO has version {0}, and no other than 0 is known")]
    Version(u32),
    /// The kernel has no type1 IOMMU driver.
    #[error("the kernel's VFIO has no IOMMU of type1 v2: load the module vfio_iommu_type1")]
    NoType1,
    /// The kernel does not say what can be mapped.
    #[error("the kernel does not say which I/O addresses can be mapped (Linux says it from 5.4 on)")]
    NoRanges,
    /// A file of VFIO cannot be opened.
    #[error("{}: {error}; {}", path.display(), hint(error))]
    Open {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A call of VFIO failed.
    #[error("{what} failed: {error}")]
    Call {
        /// What was being done.
        what: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// The core refused.
    #[error("{0}")]
    Group(#[from] GroupError),
    /// Messages of a device and its pin are not connected at the same time.
    #[error("another kind of interrupts of {0} is connected, or its pin is already: drop its vectors first")]
    OtherInterrupts(PciAddress),
    /// An interrupt cannot be connected.
    #[error("an interrupt of {address}: {error}")]
    Interrupt {
        /// Which device.
        address: PciAddress,
        /// Why.
        error: PciError,
    },
    /// The device cannot be reset by itself.
    #[error("{0} has no reset of its own")]
    NoReset(PciAddress),
    /// There is no memory for the arena.
    #[error("no arena: {0}")]
    Arena(#[from] OutOfFrames),
    /// A device was to have its arena registered, and there is none.
    #[error("there is no arena to register for {0}: say how long it is to be (`Config::arena`)")]
    NoArena(PciAddress),
    /// The arena cannot be mapped for a device.
    #[error("registering the arena for {address} failed: {error}")]
    Register {
        /// Which device.
        address: PciAddress,
        /// Why.
        error: DmaError,
    },
    /// There is no memory for the bounce pool.
    #[error("{0}")]
    Pool(#[from] PoolTooSmall),
}

impl VfioError {
    pub(crate) fn call(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Call { what, error }
    }
}

/// What to do about a file that does not open.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "load the modules vfio_iommu_type1 and vfio-pci, and bind the device to vfio-pci"
        }
        io::ErrorKind::PermissionDenied => "give this user the file",
        io::ErrorKind::ResourceBusy => "another process has it",
        _ => "see the kernel's log",
    }
}

struct List<'a>(&'a [(PciAddress, String)]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, driver)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{address} is with {driver}")?;
        }
        if self.0.is_empty() { f.write_str("the kernel does not say why") } else { Ok(()) }
    }
}
