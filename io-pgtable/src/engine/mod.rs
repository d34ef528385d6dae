//! The one engine: map, unmap and walk for every format.

mod grow;
mod look;
mod map;
mod split;
mod unmap;

pub use grow::ChangeTop;

use alloc::sync::Arc;
use core::fmt;

use platform::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use platform::{
    CacheMaintenance, DmaAddr, Extent, Flushed, FrameRequest, Frames, IotlbGather, MapError, PageSizes,
    PhysAddr, Prot, trace,
};

use crate::cfg::{CfgError, IoPgtableCfg, Shape, Upper};
use crate::entries::Entries;
use crate::format::{Decoded, Format};
use crate::registers::Registers;
use crate::table::{Broken, IoPageTable, NoDirtyMarks, Root, Split, SplitError, Translation, WalkEntry};
use grow::Growth;

/// A page table of format `F`, in frames of the platform.
pub struct PageTable<F: Format> {
    /// Address and level of the top in one word, so that nobody sees one without the other.
    root: AtomicU64,
    format: F,
    entries: Entries<F>,
    shape: Shape,
    /// The page sizes that are one entry, for the shortest way; none, when entries must be written back.
    single: PageSizes,
    /// The bits that a top looks up, by its level.
    masks: [u64; LEVEL_MASK as usize + 1],
    /// Where the I/O addresses begin, in an order in which they are one range.
    first: u64,
    /// The highest physical address of a page.
    max_phys: PhysAddr,
    /// The memory of a table below the top: aligned to its size.
    table_request: FrameRequest,
    frames: Arc<dyn Frames>,
    /// For units that do not snoop.
    cache: Option<Arc<dyn CacheMaintenance>>,
    growth: Option<Growth>,
    pages: AtomicUsize,
}

/// What a table is built on.
pub struct Parts {
    /// Memory for tables.
    pub frames: Arc<dyn Frames>,
    /// The CPU's caches, for a table whose hardware does not snoop ([`IoPgtableCfg::coherent_walk`]); not asked otherwise.
    pub cache: Option<Arc<dyn CacheMaintenance>>,
    /// The owner's answer to a new top. With it a table of a format that grows reaches more addresses than it begins with.
    pub change_top: Option<ChangeTop>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("frames", &self.frames).finish_non_exhaustive()
    }
}

/// The word for a top.
fn root_word(root: Root) -> u64 {
    root.phys.get() | u64::from(root.level)
}

/// Which bits of the root's word hold its level: every top is aligned to more.
const LEVEL_MASK: u64 = 7;

impl<F: Format> PageTable<F> {
    /// Bytes of a table below the top.
    const TABLE_BYTES: usize = F::ENTRY_BYTES << F::INDEX_BITS;
    const TABLE_ENTRIES: usize = 1 << F::INDEX_BITS;

    /// An empty table whose hardware snoops and whose top stays.
    ///
    /// # Errors
    /// [`CfgError`]: what of the configuration the format cannot do, or that there is no memory for the top.
    pub fn new(frames: Arc<dyn Frames>, cfg: &IoPgtableCfg) -> Result<Self, CfgError> {
        Self::with_parts(Parts { frames, cache: None, change_top: None }, cfg)
    }

    /// An empty table.
    ///
    /// # Errors
    /// [`CfgError`]: what of the configuration the format cannot do, or that there is no memory for the top.
    pub fn with_parts(parts: Parts, cfg: &IoPgtableCfg) -> Result<Self, CfgError> {
        let Parts { frames, cache, change_top } = parts;
        const { assert!(F::MIN_TOP_BYTES as u64 > LEVEL_MASK && F::MAX_LEVEL as u64 <= LEVEL_MASK) };
        let (format, mut shape) = F::new(cfg)?;
        if F::GROWS {
            // Whole levels: any of them may become the one below the top.
            shape.top_bits = F::INDEX_BITS;
        }
        let output_bits = shape.output_bits.min(cfg.oas);
        if output_bits <= F::GRANULE_SHIFT {
            return Err(CfgError::OutputSize);
        }
        shape.page_sizes = shape.page_sizes.intersection(cfg.page_sizes);
        if shape.page_sizes.bits() == 0 {
            return Err(CfgError::PageSizes);
        }
        if !cfg.coherent_walk && cache.is_none() {
            return Err(CfgError::NotCoherent);
        }
        let bits_of = |level: u32| (F::level_shift(level.max(1)) + shape.top_bits).min(64);
        let bits = bits_of(shape.level);
        let first = match shape.upper {
            Upper::Zero => 0,
            // Only a top that stays.
            _ if F::GROWS => return Err(CfgError::InputSize),
            Upper::One => !low_bits(bits),
            // Those of the upper half, then, behind a carry out of all bits, those of the lower.
            Upper::Sign => !low_bits(bits - 1),
        };
        let entries = Entries::new(frames.window());
        let cache = if cfg.coherent_walk { None } else { cache };
        let of_levels = (1..=F::MAX_LEVEL).fold(0, |bits, level| bits | 1 << F::level_shift(level));
        let single = PageSizes::from_bits(if cache.is_none() { of_levels } else { 0 });
        let limit = PhysAddr::new(low_bits(shape.table_bits.min(cfg.oas)));
        let size = Self::top_bytes(shape.top_bits);
        let top = FrameRequest { size, align: size, limit };
        let top = frames.alloc(top).map_err(|_| CfgError::OutOfMemory)?;
        let table = Self {
            masks: core::array::from_fn(|level| low_bits(bits_of(level as u32))),
            first,
            root: AtomicU64::new(root_word(Root { phys: top, level: shape.level })),
            format,
            entries,
            shape,
            single: single.intersection(shape.page_sizes),
            max_phys: PhysAddr::new(low_bits(output_bits)),
            table_request: FrameRequest { size: Self::TABLE_BYTES, align: Self::TABLE_BYTES, limit },
            frames,
            cache,
            growth: if F::GROWS { change_top.map(Growth::new) } else { None },
            pages: AtomicUsize::new(1),
        };
        // Hardware may look up more bits than the configuration has.
        table.wrote(top, 0, size / F::ENTRY_BYTES);
        Ok(table)
    }

    /// Writes entries back to memory, for units that do not snoop. After the CPU's write, before anybody hears of it.
    #[inline]
    fn wrote(&self, table: PhysAddr, index: usize, count: usize) {
        if let Some(cache) = &self.cache {
            let at = self.entries.window().ptr(self.entries.at(table, index));
            cache.clean(at, F::ENTRY_BYTES * count);
        }
    }

    /// The same for a pointer, and says so in it.
    #[inline]
    fn wrote_pointer(&self, table: PhysAddr, index: usize) {
        if self.cache.is_some() {
            self.wrote(table, index, 1);
            let entry = self.entries.load(table, index, Ordering::Relaxed);
            // Only the mark can have come meanwhile: a pointer that is used is not changed.
            let _marked = self.entries.replace(table, index, entry, entry | F::FLUSHED);
        }
    }

    /// Writes a pointer back that somebody else has installed and not yet written back.
    #[inline]
    fn met_pointer(&self, table: PhysAddr, index: usize, entry: u64) {
        if self.cache.is_some() && (F::FLUSHED == 0 || entry & F::FLUSHED == 0) {
            self.wrote_pointer(table, index);
        }
    }

    /// Bytes of a top with so many index bits.
    fn top_bytes(bits: u32) -> usize {
        (F::ENTRY_BYTES << bits).max(F::MIN_TOP_BYTES)
    }

    /// How many bits of an I/O address a top of `level` looks up.
    #[inline]
    fn input_bits(&self, level: u32) -> u32 {
        (F::level_shift(level) + self.shape.top_bits).min(64)
    }

    /// The bits of an address that the table looks up, if the table stands for the whole range that ends `span` bytes behind it.
    #[inline]
    fn looked_up(&self, root: Root, iova: u64, span: u64) -> Option<u64> {
        let mask = self.masks[(u64::from(root.level) & LEVEL_MASK) as usize];
        // A format that grows has all addresses from zero on.
        let offset = if F::GROWS { iova } else { iova.wrapping_sub(self.first) };
        iova.checked_add(span)?;
        (offset <= mask && span <= mask - offset).then_some(iova & mask)
    }

    /// The table of a level for an address, and the index in it, if there is one.
    #[inline(always)]
    fn table_at(&self, root: Root, iova: u64, lowest: u32) -> Option<(PhysAddr, usize)> {
        // Copies: each acquire would read them again.
        let (entries, format) = (self.entries, self.format);
        let (mut table, mut level) = (root.phys, root.level);
        let (mut index, mut turned) = Self::indices(iova, level);
        if level < lowest {
            return None;
        }
        while level > lowest {
            // Acquire: what is behind a pointer was written before it.
            table = format.table(entries.load(table, index, Ordering::Acquire), level)?;
            level -= 1;
            (index, turned) = Self::next_index(turned);
        }
        Some((table, index))
    }

    /// The index in a top of `level`, for the bits that are looked up; and these bits turned so that the index is lowest.
    #[inline(always)]
    fn indices(iova: u64, level: u32) -> (usize, u64) {
        let shift = F::level_shift(level);
        ((iova >> shift) as usize, iova.rotate_right(shift))
    }

    /// The index in the next lower table, and the bits turned on. Always the same turn, whatever the level is.
    #[inline(always)]
    fn next_index(turned: u64) -> (usize, u64) {
        let turned = turned.rotate_left(F::INDEX_BITS);
        (turned as usize & (Self::TABLE_ENTRIES - 1), turned)
    }

    /// The index in a table below the top, for the bits that are looked up.
    #[inline]
    fn index(iova: u64, level: u32) -> usize {
        (iova >> F::level_shift(level)) as usize & (Self::TABLE_ENTRIES - 1)
    }

    /// The index in the table of `level`, which may be the top.
    #[inline]
    fn index_below(root: Root, iova: u64, level: u32) -> usize {
        if level == root.level { (iova >> F::level_shift(level)) as usize } else { Self::index(iova, level) }
    }

    /// How many entries the table of `level` has.
    #[inline]
    fn entry_count(&self, root: Root, level: u32) -> usize {
        if level == root.level { 1 << self.shape.top_bits } else { Self::TABLE_ENTRIES }
    }

    /// The level that the top has, or may come to.
    #[inline]
    fn highest_level(&self) -> u32 {
        let level = self.root().level;
        self.growth.as_ref().map_or(level, |growth| growth.highest(F::MAX_LEVEL).max(level))
    }

    /// The page sizes below a top of `level`: pages larger than the whole table cannot be mapped.
    #[inline]
    fn sizes_below(&self, level: u32) -> PageSizes {
        self.shape.page_sizes.intersection(PageSizes::from_bits(low_bits(self.input_bits(level))))
    }

    /// Frees the tables below one.
    ///
    /// # Safety
    /// Nobody uses the tree any more.
    unsafe fn free_below(&self, table: PhysAddr, level: u32, entry_count: usize) {
        if level == 1 {
            return;
        }
        for index in 0..entry_count.min(Self::loaded_entries()) {
            let entry = self.entries.load(table, index, Ordering::Relaxed);
            if let Decoded::Table(below) = self.format.decode(entry, level) {
                // SAFETY: the caller's promise; the table came from these frames with this size.
                unsafe {
                    self.free_below(below, level - 1, Self::TABLE_ENTRIES);
                    self.frames.free(below, Self::TABLE_BYTES);
                }
            }
        }
    }

    /// How many entries of a table exist: fewer in a model, where others are aliases of those.
    const fn loaded_entries() -> usize {
        if cfg!(loom) { platform::frames::WORDS_PER_FRAME } else { usize::MAX }
    }
}

/// A word whose `bits` lowest bits are set.
#[inline]
const fn low_bits(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

// SAFETY: entries are written as the format says, below pointers that are installed after what they lead to; `unmap` takes
// a table out before it gives it to the gather.
unsafe impl<F: Format> IoPageTable for PageTable<F> {
    #[inline]
    unsafe fn map_pages(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        trace::event("io_pgtable_ops.map_pages", iova.get(), page_size.saturating_mul(count as u64));
        self.map_sized(iova, phys, page_size, count, prot)
    }

    #[inline]
    unsafe fn map_range(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        trace::event("io_pgtable_ops.map_pages", iova.get(), len);
        self.map_fitting(iova, phys, len, prot)
    }

    unsafe fn map_sg(&self, iova: DmaAddr, list: &[Extent], prot: Prot) -> (u64, Result<(), MapError>) {
        trace::event("io_pgtable_ops.map_sg", iova.get(), list.len() as u64);
        self.map_list(iova, list, prot)
    }

    #[inline]
    unsafe fn unmap_range(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        trace::event("io_pgtable_ops.unmap_pages", iova.get(), len);
        self.unmap_to(iova, len, gather)
    }

    #[inline]
    fn iova_to_phys(&self, iova: DmaAddr) -> Option<Translation> {
        self.translate(iova)
    }

    fn walk(&self, iova: DmaAddr, visit: &mut dyn FnMut(WalkEntry)) {
        let root = self.root();
        if let Some(address) = self.looked_up(root, iova.get(), 0) {
            let _page = self.page_at(root, address, visit);
        }
    }

    unsafe fn for_each_page(&self, iova: DmaAddr, len: u64, visit: &mut dyn FnMut(DmaAddr, Translation)) {
        self.pages_of(iova, len, &mut |root, page| {
            let found = Translation { phys: page.phys, page_size: 1 << page.shift, prot: page.prot };
            visit(self.address(root, page.iova), found);
        });
    }

    unsafe fn read_and_clear_dirty(
        &self,
        iova: DmaAddr,
        len: u64,
        clear: bool,
        gather: &mut IotlbGather<'_>,
        visit: &mut dyn FnMut(DmaAddr, u64),
    ) -> Result<(), NoDirtyMarks> {
        self.dirty(iova, len, clear, gather, visit)
    }

    unsafe fn split(
        &self,
        iova: DmaAddr,
        page_size: u64,
        gather: &mut IotlbGather<'_>,
    ) -> Result<Split, SplitError> {
        self.split_page(iova, page_size, gather)
    }

    unsafe fn mend(&self, broken: &mut Broken, flushed: &Flushed) -> Result<(), MapError> {
        self.mend_page(broken, flushed)
    }

    fn page_sizes(&self) -> PageSizes {
        self.sizes_below(self.highest_level())
    }

    #[inline]
    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        let bits = self.input_bits(self.highest_level());
        let (first, last) = match self.shape.upper {
            Upper::Zero => (0, low_bits(bits)),
            Upper::One => (!low_bits(bits), u64::MAX),
            Upper::Sign => (0, low_bits(bits - 1)),
        };
        (DmaAddr::new(first), DmaAddr::new(last))
    }

    #[inline]
    fn root(&self) -> Root {
        let root = self.root.load(Ordering::Acquire);
        Root { phys: PhysAddr::new(root & !LEVEL_MASK), level: (root & LEVEL_MASK) as u32 }
    }

    fn registers(&self) -> Registers {
        self.format.registers(self.root())
    }

    fn table_pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }
}

impl<F: Format> Drop for PageTable<F> {
    fn drop(&mut self) {
        let root = self.root();
        // SAFETY: the owner drops the table after the last device was taken off it; the top came from these frames with this
        // size.
        unsafe {
            self.free_below(root.phys, root.level, 1 << self.shape.top_bits);
            self.frames.free(root.phys, Self::top_bytes(self.shape.top_bits));
        }
    }
}

impl<F: Format> fmt::Debug for PageTable<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable").field("root", &self.root()).field("pages", &self.table_pages()).finish()
    }
}
