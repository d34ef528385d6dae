//! The machines of this build, and what they have.

use std::io::Write as _;

use backend::{BackendError, Disk, DomainType, Options};
use tempfile::NamedTempFile;

/// A file as a machine's disk.
pub(crate) fn file(disk: &NamedTempFile, writable: bool) -> Disk {
    Disk::File { path: disk.path().into(), writable }
}

/// Every backend of this build whose disk is a file and that this host has what it takes for. What is left out is said.
pub(crate) fn names() -> Vec<&'static str> {
    let disk = NamedTempFile::new().unwrap();
    disk.as_file().set_len(512).unwrap();
    let options = Options { disk: file(&disk, false), queues: 1, domain_type: None };
    let is_there = |name: &&str| match backend::open(Some(name), &options) {
        Err(why @ (BackendError::Absent(_) | BackendError::Disk { .. })) => {
            // Not by `eprintln`, which the test harness swallows when a test passes.
            let _ = writeln!(std::io::stderr(), "not run: backend {name}: {why}");
            false
        }
        _ => true,
    };
    backend::names().filter(is_there).collect()
}

/// Whether a backend has default domains of this type: without an IOMMU there are none, and QEMU's IOMMU remembers absence, so
/// it is not used lazily.
pub(crate) fn has_domain_type(name: &str, domain_type: DomainType) -> bool {
    match name {
        "swiotlb" => false,
        "qemu" => domain_type != DomainType::DmaFq,
        _ => true,
    }
}
