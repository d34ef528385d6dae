//! What is told to whoever watches.

use alloc::boxed::Box;
use core::fmt;
use core::panic::Location;

use platform::DmaAddr;

use crate::{Attrs, Direction, Segment};

/// How a mapping was made, and so how it must end (Linux: `dma_debug_single` and its neighbours).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MappingKind {
    /// By `map_phys`; ended by `unmap_phys`.
    Single,
    /// By `map_foreign`; ended by `unmap_phys`.
    Foreign,
    /// By `map_sg`; ended by `unmap_sg`.
    Scatter,
    /// By `alloc`; ended by `free`.
    Coherent,
    /// By `alloc_pages`; ended by `free_pages`.
    Pages,
    /// By `link` of the two-step interface; ended by its `unlink` and `destroy`.
    Linked,
}

impl MappingKind {
    /// Whether what was made as `self` is ended as `other` is.
    pub(super) fn ends_as(self, other: Self) -> bool {
        let single = |kind| matches!(kind, Self::Single | Self::Foreign);
        self == other || single(self) && single(other)
    }
}

impl fmt::Display for MappingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single mapping",
            Self::Foreign => "bounced mapping",
            Self::Scatter => "scatter list",
            Self::Coherent => "coherent memory",
            Self::Pages => "page allocation",
            Self::Linked => "link",
        })
    }
}

/// A mapping and where the driver made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// How it was made.
    pub kind: MappingKind,
    /// Where the device finds it; of a scatter list, its first segment.
    pub address: DmaAddr,
    /// Bytes; of a scatter list, those of all its segments.
    pub len: usize,
    /// Which way data moves.
    pub dir: Direction,
    /// The call that made it: the driver's own where everything between is `#[track_caller]`, as `Device` and the safe
    /// types are.
    pub made_at: &'static Location<'static>,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, len, dir, made_at } = self;
        write!(f, "the {kind} of {len} bytes at {address} ({dir:?}, made at {made_at})")
    }
}

/// A breach of the DMA API's rules.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Mistake {
    /// A map or an allocation of nothing. It was refused.
    #[error("a {kind} of no bytes was asked for at {made_at}")]
    Empty {
        /// What was asked for.
        kind: MappingKind,
        /// By whom.
        made_at: &'static Location<'static>,
    },
    /// The device got addresses that it cannot say. The ops within are wrong, or the mask was set too late.
    #[error("{mapping} is beyond the device's mask {mask:#x}")]
    BeyondMask {
        /// What was mapped.
        mapping: Mapping,
        /// The device's mask, for streaming or coherent memory.
        mask: u64,
    },
    /// Two mappings of other memory lead through the same addresses. The ops within are wrong.
    #[error("{mapping} has addresses of {other}")]
    AddressInUse {
        /// The later mapping.
        mapping: Mapping,
        /// The one whose addresses it has.
        other: Mapping,
    },
    /// The same memory is mapped twice, and the device may write to it (Linux: "cacheline tracking EEXIST").
    #[error("{mapping} is of memory that {other} has, and the device may write to it")]
    MemoryInUse {
        /// The later mapping.
        mapping: Mapping,
        /// The earlier one.
        other: Mapping,
    },
    /// A segment of a mapped list is longer than the device takes.
    #[error("a segment of {} bytes at {} is longer than the device's {max}: {mapping}", segment.len, segment.address)]
    SegmentTooLong {
        /// The list.
        mapping: Mapping,
        /// The segment.
        segment: Segment,
        /// The most that the device takes, in bytes.
        max: u64,
    },
    /// A segment of a mapped list crosses a boundary that the device cannot.
    #[error(
        "a segment of {} bytes at {} crosses the device's boundary {boundary:#x}: {mapping}",
        segment.len, segment.address
    )]
    SegmentCrossesBoundary {
        /// The list.
        mapping: Mapping,
        /// The segment.
        segment: Segment,
        /// The boundary, as a mask of ones.
        boundary: u64,
    },
    /// What was never mapped for this device, or not as beginning there, was unmapped or freed. It was refused.
    #[error("a {kind} of {len} bytes at {address} was ended that this device does not have")]
    NotMapped {
        /// What it was ended as.
        kind: MappingKind,
        /// Where.
        address: DmaAddr,
        /// The bytes that the caller named.
        len: usize,
    },
    /// What had been unmapped or freed not long before was unmapped or freed again. It was refused.
    #[error("{mapping} was ended a second time")]
    EndedTwice {
        /// What it was.
        mapping: Mapping,
    },
    /// A mapping was ended as another kind. It was refused.
    #[error("{mapping} was ended as a {ended_as}")]
    WrongKind {
        /// The mapping, which lives on.
        mapping: Mapping,
        /// What it was ended as.
        ended_as: MappingKind,
    },
    /// A mapping was ended with another size. It was ended whole.
    #[error("{mapping} was ended as one of {len} bytes")]
    WrongSize {
        /// The mapping.
        mapping: Mapping,
        /// The size that the caller named.
        len: usize,
    },
    /// A mapping was ended with another direction. It was ended with its own.
    #[error("{mapping} was ended as {dir:?}")]
    WrongDirection {
        /// The mapping.
        mapping: Mapping,
        /// The direction that the caller named.
        dir: Direction,
    },
    /// Coherent memory was freed with another CPU address. It was freed with its own.
    #[error("{mapping} is at {at:#x} for the CPU, and was freed at {freed_at:#x}")]
    WrongCpuAddress {
        /// The memory.
        mapping: Mapping,
        /// Where the CPU sees it.
        at: usize,
        /// Where the caller said that it does.
        freed_at: usize,
    },
    /// Coherent memory was freed with other attributes. It was freed with its own.
    #[error("{mapping} was allocated with {attrs:?} and freed with {freed_with:?}")]
    WrongAttrs {
        /// The memory.
        mapping: Mapping,
        /// Its attributes.
        attrs: Attrs,
        /// The attributes that the caller named.
        freed_with: Attrs,
    },
    /// A scatter list was unmapped with another number of elements. It was unmapped whole.
    #[error("{mapping} has {elements} elements, and was ended with {ended_with}")]
    WrongElements {
        /// The list.
        mapping: Mapping,
        /// How many elements were mapped.
        elements: usize,
        /// How many the caller named; often the number of segments.
        ended_with: usize,
    },
    /// A scatter list was changed between its map and its unmap. It was unmapped as it was mapped.
    #[error("{mapping} was changed before it was ended: element {element} is not as the map left it")]
    ListChanged {
        /// The list.
        mapping: Mapping,
        /// The first element that differs.
        element: usize,
    },
    /// What is not mapped was synced. It was refused.
    #[error("{len} bytes at {address} were synced that this device does not have")]
    SyncNotMapped {
        /// Where.
        address: DmaAddr,
        /// How many bytes.
        len: usize,
    },
    /// A sync reached beyond its mapping. It was refused.
    #[error("{len} bytes at {address} were synced, beyond {mapping}")]
    SyncOutside {
        /// The mapping, or a segment's list.
        mapping: Mapping,
        /// Where the sync began.
        address: DmaAddr,
        /// How many bytes.
        len: usize,
    },
    /// Coherent memory was synced, which needs none. It was refused.
    #[error("{mapping} was synced, which coherent memory is not")]
    SyncCoherent {
        /// The memory.
        mapping: Mapping,
    },
    /// A scatter list was synced with another number of elements. It was refused.
    #[error("{mapping} has {elements} elements, and was synced with {synced_with}")]
    SyncElements {
        /// The list.
        mapping: Mapping,
        /// How many elements were mapped.
        elements: usize,
        /// How many the caller named; often the number of segments.
        synced_with: usize,
    },
    /// A mapping was synced in another direction than its own. It was synced in its own. (Linux lets one that goes both
    /// ways pass; here the contract of the sync does not.)
    #[error("{mapping} was synced as {dir:?}")]
    SyncDirection {
        /// The mapping.
        mapping: Mapping,
        /// The direction that the caller named.
        dir: Direction,
    },
    /// The CPU asked for what the device wrote, and the device may only read.
    #[error("{mapping} was synced for the CPU as {dir:?}, and the device only reads it")]
    SyncReadOnlyForCpu {
        /// The mapping.
        mapping: Mapping,
        /// The direction that the caller named.
        dir: Direction,
    },
    /// What the CPU wrote was handed to a device that may only write.
    #[error("{mapping} was synced for the device as {dir:?}, and the device only writes it")]
    SyncWriteOnlyForDevice {
        /// The mapping.
        mapping: Mapping,
        /// The direction that the caller named.
        dir: Direction,
    },
    /// The device went with mappings left: forgotten, or never unmapped (Linux: "device driver has pending DMA allocations
    /// while released from device").
    #[error("the device is gone with {count} mappings of {bytes} bytes left, the first {first}")]
    Leaked {
        /// How many.
        count: usize,
        /// Bytes in all of them.
        bytes: usize,
        /// The oldest.
        first: Mapping,
    },
    /// A free block of a pool was written: by a device that had not stopped, or that never had it (Linux: "dma_pool_alloc ...
    /// (corrupted)").
    #[error("the block at {block} of the pool {pool:?} was written while it was free: {found:#04x} at {at}")]
    FreeBlockChanged {
        /// The pool's name.
        pool: Box<str>,
        /// Where the device finds the block.
        block: DmaAddr,
        /// The first byte that changed.
        at: DmaAddr,
        /// What it holds.
        found: u8,
    },
    /// A pool went before its blocks: some are still held, or forgotten (Linux: "dma_pool_destroy ... busy"). Its memory stays
    /// until they are gone.
    #[error("the pool {pool:?} is gone with {count} blocks in use, among them {block}, taken at {taken_at}")]
    PoolBusy {
        /// The pool's name.
        pool: Box<str>,
        /// How many.
        count: usize,
        /// Where the device finds the first of them.
        block: DmaAddr,
        /// The call that took it.
        taken_at: &'static Location<'static>,
    },
    /// There are more mappings than are remembered: from now on nothing is checked for this device (Linux: "debugging out
    /// of memory - disabling").
    #[error("more than {limit} mappings live: the device is not checked any more")]
    TooMany {
        /// How many ranges are remembered at most.
        limit: usize,
    },
}

/// One mistake of one device's driver, or of the ops behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The device's name.
    pub device: Box<str>,
    /// What was wrong.
    pub mistake: Mistake,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.mistake)
    }
}
