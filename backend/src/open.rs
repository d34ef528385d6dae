//! Choosing a backend by name.

#[cfg(any(feature = "sim", feature = "swiotlb", feature = "qemu"))]
use std::path::Path;
use std::path::PathBuf;

use iommu_core::DomainType;
use platform::pci::PciAddress;

use crate::{Backend, BackendError};

/// What the machine should be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its disk.
    pub disk: Disk,
    /// I/O queues that an emulated disk's controller should have.
    pub queues: u16,
    /// The type of the groups' default domains: DMA, DMA-FQ or identity; DMA when nothing is said. A machine without an
    /// IOMMU has none.
    pub domain_type: Option<DomainType>,
}

/// What a machine's disk is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Disk {
    /// A file of the host, which the controller of an emulated machine makes a disk of.
    File {
        /// Where it is.
        path: PathBuf,
        /// Whether the machine may write to it.
        writable: bool,
    },
    /// An NVMe controller of the host, bound to vfio-pci.
    Controller(PciAddress),
}

#[cfg(any(feature = "sim", feature = "swiotlb", feature = "qemu"))]
impl Disk {
    /// The file and whether it may be written, for the machine `backend`, whose disk is one.
    ///
    /// # Errors
    /// [`BackendError::Disk`] when it is a controller.
    pub(crate) fn file(&self, backend: &'static str) -> Result<(&Path, bool), BackendError> {
        match self {
            Self::File { path, writable } => Ok((path, *writable)),
            Self::Controller(_) => Err(BackendError::Disk { backend, wanted: "a file" }),
        }
    }
}

type Opener = fn(&Options) -> Result<Box<dyn Backend>, BackendError>;

/// Every backend in this build, the default one first: the simulated machine with its IOMMU, the one without, then
/// QEMU's, then the host's own devices.
const BACKENDS: &[(&str, Opener)] = &[
    #[cfg(feature = "sim")]
    ("sim", crate::sim::open),
    #[cfg(feature = "swiotlb")]
    ("swiotlb", crate::sim::open_without_iommu),
    #[cfg(feature = "qemu")]
    ("qemu", crate::qemu::open),
    #[cfg(feature = "vfio")]
    ("vfio", crate::vfio::open),
];

/// The names of the backends in this build, the default one first.
pub fn names() -> impl Iterator<Item = &'static str> {
    BACKENDS.iter().map(|&(name, _)| name)
}

/// Opens the backend called `name`, or the first of [`names`].
///
/// # Errors
/// [`BackendError::Unknown`] when there is none of this name, [`BackendError::Disk`] when its disk is of the other kind,
/// [`BackendError::NoDomains`] and [`BackendError::DomainType`]
/// when the domain type is not possible, [`BackendError::Absent`] when this host does not have what the machine is made of,
/// [`BackendError::Start`] when the machine does not start, [`BackendError::NoSuchFunction`] and [`BackendError::Device`] when the
/// controller that is to be the disk cannot be had.
pub fn open(name: Option<&str>, options: &Options) -> Result<Box<dyn Backend>, BackendError> {
    let chosen = BACKENDS.iter().find(|&&(known, _)| name.is_none_or(|name| name == known));
    match chosen {
        Some((_, open)) => open(options),
        None => Err(BackendError::Unknown {
            name: name.unwrap_or("any").into(),
            known: names().collect::<Vec<_>>().join(", "),
        }),
    }
}
