//! Memory that a backend allocates for a device.

use alloc::boxed::Box;
use core::ptr::NonNull;

use platform::DmaAddr;

/// Memory that CPU and device share, as [`DmaMapOps::alloc`](crate::DmaMapOps::alloc) returned it.
#[derive(Clone, Copy, Debug)]
pub struct CoherentMemory {
    /// Where the CPU sees it.
    pub cpu: NonNull<u8>,
    /// Where the device sees it.
    pub dma: DmaAddr,
    /// Bytes asked for.
    pub size: usize,
}

// SAFETY: the pointer is a plain address of memory that belongs to whoever holds this value.
unsafe impl Send for CoherentMemory {}
// SAFETY: as above; nothing is reached through a shared reference.
unsafe impl Sync for CoherentMemory {}

/// Pages that CPU and device use in turns, as [`DmaMapOps::alloc_pages`](crate::DmaMapOps::alloc_pages) returned them (Linux:
/// the `struct sg_table` of `dma_alloc_noncontiguous`): one run of addresses for the device, pieces for the CPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageMemory {
    /// Where the device sees the first byte.
    pub dma: DmaAddr,
    /// Bytes asked for.
    pub size: usize,
    /// Where the CPU sees them, in the device's order. Together they are at least `size` bytes.
    pub pieces: Box<[PagePiece]>,
}

/// A piece of [`PageMemory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagePiece {
    /// Where the CPU sees it.
    pub cpu: NonNull<u8>,
    /// Its length in bytes.
    pub len: usize,
}

// SAFETY: the pointer is a plain address of memory that belongs to whoever holds this value.
unsafe impl Send for PagePiece {}
// SAFETY: as above; nothing is reached through a shared reference.
unsafe impl Sync for PagePiece {}

impl From<CoherentMemory> for PageMemory {
    /// Memory in one piece.
    fn from(CoherentMemory { cpu, dma, size }: CoherentMemory) -> Self {
        Self { dma, size, pieces: Box::new([PagePiece { cpu, len: size }]) }
    }
}
