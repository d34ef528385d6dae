//! Choosing a backend by name.

use std::path::PathBuf;

use iommu_core::DomainType;

use crate::{Backend, BackendError};

/// What the machine should be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file that is its disk.
    pub disk: PathBuf,
    /// Whether the machine may write to it.
    pub disk_writable: bool,
    /// I/O queues that the disk's controller should have.
    pub queues: u16,
    /// The type of the groups' default domains: DMA, DMA-FQ or identity; DMA when nothing is said. A machine without an
    /// IOMMU has none.
    pub domain_type: Option<DomainType>,
}

type Opener = fn(&Options) -> Result<Box<dyn Backend>, BackendError>;

/// Every backend in this build, the default one first: the simulated machine with its IOMMU, the one without, then
/// QEMU's.
const BACKENDS: &[(&str, Opener)] = &[
    #[cfg(feature = "sim")]
    ("sim", crate::sim::open),
    #[cfg(feature = "swiotlb")]
    ("swiotlb", crate::sim::open_without_iommu),
    #[cfg(feature = "qemu")]
    ("qemu", crate::qemu::open),
];

/// The names of the backends in this build, the default one first.
pub fn names() -> impl Iterator<Item = &'static str> {
    BACKENDS.iter().map(|&(name, _)| name)
}

/// Opens the backend called `name`, or the first of [`names`].
///
/// # Errors
/// [`BackendError::Unknown`] when there is none of this name, [`BackendError::NoDomains`] and [`BackendError::DomainType`]
/// when the domain type is not possible, [`BackendError::Absent`] when this host does not have what the machine is made of,
/// [`BackendError::Start`] when the machine does not start.
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
