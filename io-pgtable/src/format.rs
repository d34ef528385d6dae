//! What makes a format: constants and small functions, no algorithm.

use core::fmt;

use platform::{PageSizes, PhysAddr, Prot};

/// An entry, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// Nothing is here.
    Empty,
    /// A table of the next lower level.
    Table(PhysAddr),
    /// A page, or one of the entries that together are a page.
    Leaf {
        /// Where the page begins.
        phys: PhysAddr,
        /// log2 of its size in bytes.
        shift: u32,
        /// What a device may do there.
        prot: Prot,
    },
}

/// A page-table format of 64-bit entries in tables of one page frame each.
pub trait Format: fmt::Debug + Send + Sync + 'static {
    /// log2 of the smallest page in bytes.
    const GRANULE_SHIFT: u32;
    /// log2 of the entries in a table.
    const INDEX_BITS: u32;
    /// The highest level that the top may have; the lowest is 1.
    const MAX_LEVEL: u32;
    /// All page sizes.
    const PAGE_SIZES: PageSizes;
    /// The highest physical address.
    const MAX_PHYS: PhysAddr;

    /// The entry, or the one that is repeated, for a page of 2^`shift` bytes at `phys`, which is aligned to it.
    fn leaf(phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64;

    /// The entry of level `level` that leads to the table at `phys`, one level below.
    fn pointer(phys: PhysAddr, level: u32) -> u64;

    /// Reads an entry of level `level`.
    fn decode(entry: u64, level: u32) -> Decoded;

    /// log2 of the bytes that one entry of a level stands for.
    fn level_shift(level: u32) -> u32 {
        Self::GRANULE_SHIFT + (level - 1) * Self::INDEX_BITS
    }

    /// The level at which pages of 2^`shift` bytes have their entries.
    fn leaf_level(shift: u32) -> u32 {
        (shift - Self::GRANULE_SHIFT) / Self::INDEX_BITS + 1
    }
}
