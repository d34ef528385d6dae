//! Why a page table refused a mapping.

use crate::DmaAddr;

/// Why a map stopped. What was mapped before the error is reported beside it and is the caller's to undo.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Something is mapped at this address already; it was left as it is (Linux: `-EADDRINUSE`, `-EEXIST`).
    #[error("{0} is mapped already")]
    InUse(DmaAddr),
    /// The I/O or the physical address lies beyond what the table can express (Linux: `-ERANGE`).
    #[error("the range at {0} is beyond the reach of the page table")]
    OutOfRange(DmaAddr),
    /// No page size of the table fits the alignment of both addresses and the length (Linux: `-ENXIO`, `-EINVAL`).
    #[error("no page size fits the alignment of the range at {0}")]
    NoPageSize(DmaAddr),
    /// Neither read nor write was asked for (Linux: `-EINVAL`).
    #[error("a mapping must allow reading or writing")]
    NoAccess,
    /// No page frame was left for a table (Linux: `-ENOMEM`).
    #[error("out of memory for page tables")]
    OutOfMemory,
    /// The process may not keep more memory in place: its limit of locked memory (Linux: `-ENOMEM` of VFIO, `RLIMIT_MEMLOCK`).
    #[error(
        "the process has locked as much memory as it may: raise RLIMIT_MEMLOCK (`ulimit -l`, systemd: LimitMEMLOCK=)"
    )]
    PinLimit,
    /// Whoever owns the IOMMU allows no more mappings (Linux: `-ENOSPC` of VFIO, which allows 65,535 by default).
    #[error(
        "the IOMMU's owner allows no more mappings: map fewer and longer pieces, or raise the parameter dma_entry_limit of \
         the module vfio_iommu_type1"
    )]
    TooManyMappings,
    /// The driver under the domain failed in a way of its own: the device or its IOMMU is gone (Linux: `-ENODEV`).
    #[error("the IOMMU is gone")]
    Gone,
}
