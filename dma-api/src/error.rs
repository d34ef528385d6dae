//! Why a DMA request failed.

use platform::{DmaAddr, PhysAddr};

/// Why memory could not be mapped or allocated for a device. Linux has one answer for all of these
/// (`DMA_MAPPING_ERROR`); users lose days on that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// The address lies beyond the device's mask, and nothing could bring it within.
    #[error("{address} is beyond the device's mask {mask:#x}")]
    MaskNotReachable {
        /// The first address that does not fit.
        address: PhysAddr,
        /// The device's mask.
        mask: u64,
    },
    /// No addresses of this width can be served (Linux: `-EIO` of `dma_set_mask`).
    #[error("a DMA mask of {mask:#x} cannot be served")]
    MaskNotSupported {
        /// The mask that was asked for.
        mask: u64,
    },
    /// The bus does not show this memory to its devices, or not in one piece.
    #[error("the bus shows its devices no memory in one piece from {address} on")]
    NotOnBus {
        /// Where the memory begins.
        address: PhysAddr,
    },
    /// The memory is not the machine's RAM, and there is no bounce pool to copy it through.
    #[error(
        "the memory is not RAM that a device can reach, and there is no swiotlb pool to bounce it through"
    )]
    NotRam,
    /// The memory would have to be bounced, and is longer than one bounce can be.
    #[error("{size} bytes are too large for a swiotlb slot run: at most {max} bytes can be bounced at once")]
    TooLargeForBounce {
        /// Bytes asked for.
        size: usize,
        /// The most that one run of slots holds for this device, in bytes.
        max: usize,
    },
    /// The memory would have to be bounced, and no run of slots is free.
    #[error("the swiotlb pool is full: no free run for {size} bytes, {used} of {total} slots in use")]
    BouncePoolFull {
        /// Bytes asked for.
        size: usize,
        /// Slots in use.
        used: usize,
        /// Slots in the pool.
        total: usize,
    },
    /// Coherent access was required ([`crate::Attrs::REQUIRE_COHERENT`]), and the memory would have to be bounced or the
    /// device does not see the CPU's caches.
    #[error("the device's access would not be coherent")]
    NotCoherent,
    /// No I/O addresses are left below the device's mask.
    #[error("no I/O addresses left for {size} bytes at or below {limit}")]
    AddressSpaceExhausted {
        /// Bytes asked for.
        size: usize,
        /// The highest address that would do.
        limit: DmaAddr,
    },
    /// A number that is no direction (Linux: `DMA_NONE`, and what is not in `enum dma_data_direction`).
    #[error("invalid direction")]
    InvalidDirection,
    /// A length of zero, or one that wraps around the end of the address space.
    #[error("invalid length {0}")]
    InvalidLength(usize),
    /// An alignment or boundary that cannot be served.
    #[error("invalid alignment {0:#x}")]
    InvalidAlignment(usize),
    /// No memory was left for the buffer or for page tables.
    #[error("out of memory")]
    OutOfMemory,
    /// The page table refused.
    #[error("the IOMMU refused the mapping: {0}")]
    Map(#[from] platform::MapError),
    /// The IOMMU did not answer in time.
    #[error("the IOMMU did not finish an invalidation")]
    IommuTimedOut,
    /// A list could not be mapped, and a part that had been mapped already could not be unmapped again: the device may
    /// still reach the memory, which must not be reused.
    #[error("a failed map could not be undone: {0}")]
    NotUndone(Quarantined),
    /// The device's translation was to be set up with its first mapping, and that failed, or the device is being reset.
    #[error("the IOMMU does not translate for the device yet")]
    NotAttached,
    /// The device has been removed.
    #[error("the device is gone")]
    Gone,
}

/// An unmap did not complete: the device may still reach the memory. The addresses and the memory are given up, counted
/// and never used again; the caller must not reuse the memory either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the unmap of {len} bytes at {address} did not complete; the memory is quarantined")]
pub struct Quarantined {
    /// Where the device may still reach it.
    pub address: DmaAddr,
    /// How many bytes.
    pub len: usize,
}
