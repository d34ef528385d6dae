//! The one engine: map, unmap and walk for every format.

mod map;
mod unmap;

use alloc::sync::Arc;
use core::fmt;

use platform::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use platform::{
    DmaAddr, Extent, FrameRequest, Frames, IotlbGather, MapError, PageSizes, PhysAddr, Prot, trace,
};

use crate::cfg::{CfgError, IoPgtableCfg, Shape, Upper};
use crate::entries::Entries;
use crate::format::{Decoded, Format};
use crate::table::{IoPageTable, Root, Translation};

/// A page table of format `F`, in frames of the platform.
pub struct PageTable<F: Format> {
    /// Address and level of the top in one word, so that nobody sees one without the other.
    root: AtomicU64,
    format: F,
    entries: Entries<F>,
    shape: Shape,
    /// The highest physical address of a page.
    max_phys: PhysAddr,
    /// The memory of a table below the top: aligned to its size.
    table_request: FrameRequest,
    frames: Arc<dyn Frames>,
    pages: AtomicUsize,
}

/// Which bits of the root's word hold its level: every top is aligned to more.
const LEVEL_MASK: u64 = 7;

impl<F: Format> PageTable<F> {
    /// Bytes of a table below the top.
    const TABLE_BYTES: usize = F::ENTRY_BYTES << F::INDEX_BITS;
    const TABLE_ENTRIES: usize = 1 << F::INDEX_BITS;

    /// An empty table.
    ///
    /// # Errors
    /// [`CfgError`]: what of the configuration the format cannot do, or that there is no memory for the top.
    pub fn new(frames: Arc<dyn Frames>, cfg: &IoPgtableCfg) -> Result<Self, CfgError> {
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
        let entries = Entries::new(frames.window());
        let limit = PhysAddr::new(low_bits(shape.table_bits.min(cfg.oas)));
        let size = Self::top_bytes(shape.top_bits);
        let top = FrameRequest { size, align: size, limit };
        let top = frames.alloc(top).map_err(|_| CfgError::OutOfMemory)?;
        Ok(Self {
            root: AtomicU64::new(top.get() | u64::from(shape.level)),
            format,
            entries,
            shape,
            max_phys: PhysAddr::new(low_bits(output_bits)),
            table_request: FrameRequest { size: Self::TABLE_BYTES, align: Self::TABLE_BYTES, limit },
            frames,
            pages: AtomicUsize::new(1),
        })
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

    /// Where the I/O addresses of a table with so many bits begin, in an order in which they are one range.
    #[inline]
    fn first_address(&self, bits: u32) -> u64 {
        match self.shape.upper {
            Upper::Zero => 0,
            Upper::One => !low_bits(bits),
            // Those of the upper half, then, behind a carry out of all bits, those of the lower.
            Upper::Sign => !low_bits(bits - 1),
        }
    }

    /// The bits of an address that the table looks up, if the table stands for the whole range that ends `span` bytes behind it.
    #[inline]
    fn looked_up(&self, root: Root, iova: u64, span: u64) -> Option<u64> {
        let bits = self.input_bits(root.level);
        let mask = low_bits(bits);
        let offset = iova.wrapping_sub(self.first_address(bits));
        iova.checked_add(span)?;
        (offset <= mask && span <= mask - offset).then_some(iova & mask)
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

    unsafe fn map_range(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        trace::event("io_pgtable_ops.map_range", iova.get(), len);
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

    fn iova_to_phys(&self, iova: DmaAddr) -> Option<Translation> {
        let root = self.root();
        let address = self.looked_up(root, iova.get(), 0)?;
        let (mut table, mut level) = (root.phys, root.level);
        let mut index = (address >> F::level_shift(level)) as usize;
        loop {
            match self.format.decode(self.entries.load(table, index, Ordering::Acquire), level) {
                Decoded::Empty => return None,
                Decoded::Table(below) if level > 1 => (table, level) = (below, level - 1),
                Decoded::Table(_) => return None,
                Decoded::Leaf { phys, shift, prot } => {
                    let page_size = 1u64 << shift;
                    let phys = phys.wrapping_add(iova.offset_in(page_size));
                    return Some(Translation { phys, page_size, prot });
                }
            }
            index = Self::index(address, level);
        }
    }

    fn page_sizes(&self) -> PageSizes {
        // Pages larger than the whole table cannot be mapped.
        let bits = self.input_bits(self.root().level);
        self.shape.page_sizes.intersection(PageSizes::from_bits(low_bits(bits)))
    }

    #[inline]
    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        let bits = self.input_bits(self.root().level);
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
