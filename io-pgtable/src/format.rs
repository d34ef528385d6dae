//! What makes a format: constants and small functions, no algorithm.
//!
//! # How a format is written
//!
//! A file in `src/formats/`: a small `Copy` type that holds what the configuration chose (nothing, for many), and [`Format`]
//! for it. What differs only by numbers (a granule, a stage) is a const parameter of the type. Then:
//!
//! 1. **Geometry** is constants. Levels count from 1, the lowest. An entry of level *n* stands for 2^([`Format::level_shift`])
//!    bytes: granule, then [`Format::INDEX_BITS`] more for each level. A table below the top is 2^`INDEX_BITS` entries of
//!    [`Format::ENTRY_BYTES`], aligned to its own size. The top may have fewer or more index bits (a small top, concatenated
//!    tables): that is [`Shape::top_bits`], from the configuration at run time; its memory is aligned to its size, and not
//!    smaller than [`Format::MIN_TOP_BYTES`].
//! 2. **Page sizes** are one bitmap. A size that is a level's own is one entry. A size between a level's own and the next
//!    one's is several entries of the lower level, side by side: all equal ([`Format::OWN_ADDRESS`] false: AMD v1, RISC-V
//!    NAPOT, ARM v7s), or each with its own address (true: ARM's contiguous hint). Which sizes exist is all that the engine
//!    needs to know of that.
//! 3. **Entries** are written by [`Format::leaf`] and [`Format::pointer`] and read by [`Format::decode`]; always as `u64`,
//!    of which a 32-bit format uses the lower half.
//! 4. **The configuration** is read once, by [`Format::new`]: refuse quirks that the format lacks ([`IoPgtableCfg::check`]),
//!    choose the levels ([`Shape::of`] for most), keep run-time bits in `self`.
//!
//! The engine asks this of every format:
//!
//! - the empty entry is zero, and a word whose low ten bits are zero (the link of a page that waits to be freed) decodes as
//!   [`Decoded::Empty`];
//! - a pointer differs from a leaf by the entry's bits and its level alone;
//! - `leaf` for what `decode` found gives the same entry again, but for marks that hardware makes: so the rights that `decode`
//!   returns are complete;
//! - `leaf` for an address is the bits of the address moved to their place, and bits that do not depend on it.
//!
//! Then the tests: golden words in `tests/golden_NAME.rs`, from another implementation or the specification; a walker in
//! `tests/walkers/NAME.rs` that reads the specification a second time and shares nothing with this crate; and one line of
//! `conformance!` in `tests/conformance.rs`, which runs the whole kit on the format with that walker.

use core::fmt;

use platform::{PageSizes, PhysAddr, Prot};

use crate::cfg::{CfgError, IoPgtableCfg, Shape};
use crate::registers::Registers;
use crate::table::Root;

/// An entry, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// Nothing is here.
    Empty,
    /// A table of the next lower level.
    Table(PhysAddr),
    /// A page, or one of the entries that together are a page.
    Leaf {
        /// Where the page begins: for one of several entries, where the first one's part begins.
        phys: PhysAddr,
        /// log2 of the page's size in bytes, all its entries together.
        shift: u32,
        /// What a device may do there, as far as the format can say it.
        prot: Prot,
    },
}

/// A page-table format. A value holds what the configuration chose at run time. See the module `format`'s source for how one
/// is written; `src/formats/amdv1.rs` is an example.
pub trait Format: Copy + fmt::Debug + Send + Sync + 'static {
    /// log2 of the smallest page in bytes. It may have nothing to do with a CPU's pages, or with the size of a table.
    const GRANULE_SHIFT: u32;
    /// log2 of the entries of a table below the top.
    const INDEX_BITS: u32;
    /// Bytes of an entry: 8 or 4.
    const ENTRY_BYTES: usize = 8;
    /// The least memory that a top takes. A format with small tops (ARM) says less than a table.
    const MIN_TOP_BYTES: usize = Self::ENTRY_BYTES << Self::INDEX_BITS;
    /// The highest level that the top may have; the lowest is 1.
    const MAX_LEVEL: u32;
    /// All page sizes. What a configuration lacks of them goes in [`Format::new`].
    const PAGE_SIZES: PageSizes;
    /// How many bits a physical address may have.
    const OUTPUT_BITS: u32;
    /// Whether each of the entries that together are a page holds its own address. Else all are equal.
    const OWN_ADDRESS: bool = false;
    /// Whether a top of one more level may take the place of a full one while the table is in use.
    const GROWS: bool = false;
    /// Software's bit of a pointer that says that the pointer has reached memory, for units that do not snoop the CPU's
    /// caches. Zero when the format has none free: then a pointer is written back each time one is met.
    const FLUSHED: u64 = 0;
    /// Whether a page in use must be unmapped, and that flushed, before a table may take its place.
    const BREAK_BEFORE_MAKE: bool = true;

    /// Reads the configuration.
    ///
    /// # Errors
    /// What of it the format cannot do.
    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError>;

    /// The first entry for a page of 2^`shift` bytes, of level `level`, whose part of memory begins at `phys`. For a page of
    /// several entries that are all equal `phys` is where the page begins; when each holds its own address this is called for
    /// each of them, with the same `shift`.
    fn leaf(&self, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64;

    /// The entry of level `level` that leads to the table at `phys`, one level below.
    fn pointer(&self, phys: PhysAddr, level: u32) -> u64;

    /// Reads an entry of level `level`.
    fn decode(&self, entry: u64, level: u32) -> Decoded;

    /// The table that an entry of a level above the lowest leads to, if that is what it is. As [`Format::decode`] says of each
    /// entry that the engine writes; a format may say it shorter.
    #[inline(always)]
    fn table(&self, entry: u64, level: u32) -> Option<PhysAddr> {
        match self.decode(entry, level) {
            Decoded::Table(table) => Some(table),
            Decoded::Empty | Decoded::Leaf { .. } => None,
        }
    }

    /// Whether a page with these rights can be written. Read or write at least, for every format.
    #[inline]
    fn accepts(&self, prot: Prot) -> bool {
        prot.intersects(Prot::READ | Prot::WRITE)
    }

    /// Which bits of an entry of the lowest level say that it is a page of the smallest size, and their values. Such entries
    /// are unmapped in bulk; others are looked at one by one, so a format whose pages differ may leave some out. An entry of a
    /// larger page must not have them.
    #[inline]
    fn page_pattern(&self) -> (u64, u64) {
        (0, 1)
    }

    /// Whether hardware marks pages that it wrote to.
    #[inline]
    fn marks_dirty(&self) -> bool {
        false
    }

    /// Whether hardware has marked a page's entry as written.
    #[inline]
    fn is_dirty(&self, _entry: u64) -> bool {
        false
    }

    /// A page's entry with that mark, or without.
    #[inline]
    fn set_dirty(&self, entry: u64, _dirty: bool) -> u64 {
        entry
    }

    /// What hardware is told of a table with this top.
    fn registers(&self, root: Root) -> Registers {
        Registers::Root(root)
    }

    /// log2 of the bytes that one entry of a level stands for.
    #[inline]
    fn level_shift(level: u32) -> u32 {
        Self::GRANULE_SHIFT + (level - 1) * Self::INDEX_BITS
    }

    /// The level at which pages of 2^`shift` bytes have their entries.
    #[inline]
    fn leaf_level(shift: u32) -> u32 {
        (shift - Self::GRANULE_SHIFT) / Self::INDEX_BITS + 1
    }
}
