//! The one engine: map, unmap and walk for every format.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use platform::frames::FRAME_SIZE;
use platform::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use platform::sync::words;
use platform::{
    DmaAddr, FrameRequest, Frames, IotlbGather, MapError, PageSizes, PhysAddr, Prot, Window, trace,
};

use crate::format::{Decoded, Format};
use crate::table::{IoPageTable, Root, Translation};

/// A page table of format `F`, in frames of the platform.
pub struct PageTable<F: Format> {
    /// Address and level of the top in one word, so that nobody sees one without the other.
    root: AtomicU64,
    frames: Arc<dyn Frames>,
    window: Window,
    pages: AtomicUsize,
    _format: PhantomData<F>,
}

/// An unmap on its way.
struct Unmapping<'a, 'g> {
    first: u64,
    len: u64,
    /// Bytes unmapped; more than `len` when a page goes whole that ends behind the range.
    done: u64,
    gather: &'a mut IotlbGather<'g>,
}

impl Unmapping<'_, '_> {
    /// Where it stands. Zero behind the last address of all.
    #[inline]
    fn at(&self) -> u64 {
        self.first.wrapping_add(self.done)
    }
}

impl<F: Format> PageTable<F> {
    /// An empty table whose top is of `level` (1 to the format's highest; others are brought into that range).
    ///
    /// # Errors
    /// [`MapError::OutOfMemory`] when there is no frame for the top.
    pub fn new(frames: Arc<dyn Frames>, level: u32) -> Result<Self, MapError> {
        let level = level.clamp(1, F::MAX_LEVEL);
        let top = frames.alloc(FrameRequest::ONE).map_err(|_| MapError::OutOfMemory)?;
        Ok(Self {
            root: AtomicU64::new(top.get() | u64::from(level)),
            window: frames.window(),
            frames,
            pages: AtomicUsize::new(1),
            _format: PhantomData,
        })
    }

    /// The last I/O address below a top of `level`.
    #[inline]
    fn last_address(level: u32) -> u64 {
        let bits = F::level_shift(level) + F::INDEX_BITS;
        if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
    }

    #[inline]
    fn index(iova: u64, level: u32) -> usize {
        (iova >> F::level_shift(level)) as usize & ((1 << F::INDEX_BITS) - 1)
    }

    /// The entry `index` of the table at `table`.
    #[inline]
    fn entry(&self, table: PhysAddr, index: usize) -> &AtomicU64 {
        // SAFETY: `table` is a table of this tree, in a frame that lives until the tree is dropped or the only caller whose
        // range covers the whole table takes it out; hardware reads entries atomically.
        unsafe { self.window.word(table.wrapping_add(8 * index as u64)) }
    }

    /// All entries of the table at `table`.
    #[inline]
    fn entries(&self, table: PhysAddr) -> &[AtomicU64] {
        // SAFETY: as in `entry`.
        unsafe { self.window.words(table) }
    }

    /// The table of `level` for an address, made with all above it if need be.
    #[inline]
    fn table_for(&self, root: Root, iova: u64, level: u32) -> Result<PhysAddr, MapError> {
        let (mut table, mut at) = (root.phys, root.level);
        while at > level {
            let entry = self.entry(table, Self::index(iova, at));
            // Acquire: what is behind a pointer was written before it.
            table = match F::decode(entry.load(Ordering::Acquire), at) {
                Decoded::Table(next) => next,
                Decoded::Leaf { .. } => return Err(MapError::InUse(DmaAddr::new(iova))),
                Decoded::Empty => self.install(entry, at, iova)?,
            };
            at -= 1;
        }
        Ok(table)
    }

    /// Makes a table below an empty entry, unless somebody else was first.
    #[cold]
    fn install(&self, entry: &AtomicU64, level: u32, iova: u64) -> Result<PhysAddr, MapError> {
        let new = self.frames.alloc(FrameRequest::ONE).map_err(|_| MapError::OutOfMemory)?;
        // Release: the table's zeros are there before the pointer to them.
        let pointer = F::pointer(new, level);
        match entry.compare_exchange(0, pointer, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                self.pages.fetch_add(1, Ordering::Relaxed);
                Ok(new)
            }
            Err(found) => {
                // SAFETY: nobody has seen the frame.
                unsafe { self.frames.free(new, FRAME_SIZE) };
                match F::decode(found, level) {
                    Decoded::Table(table) => Ok(table),
                    _ => Err(MapError::InUse(DmaAddr::new(iova))),
                }
            }
        }
    }

    /// Checks a run of pages against the format and the top, and returns its length in bytes.
    #[inline]
    fn check(
        root: Root,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> Result<u64, MapError> {
        if !prot.intersects(Prot::READ | Prot::WRITE) {
            return Err(MapError::NoAccess);
        }
        if !F::PAGE_SIZES.contains(page_size) || (iova.get() | phys.get()) & (page_size - 1) != 0 {
            return Err(MapError::NoPageSize(iova));
        }
        let len = page_size.checked_mul(count as u64).ok_or(MapError::OutOfRange(iova))?;
        let last = iova.last_of(len).ok_or(MapError::OutOfRange(iova))?;
        let last_phys = phys.last_of(len).ok_or(MapError::OutOfRange(iova))?;
        // The top level has its entries for tables and for pages of its own size.
        let fits = F::leaf_level(page_size.trailing_zeros()) <= root.level;
        if last.get() > Self::last_address(root.level) || last_phys > F::MAX_PHYS || !fits {
            return Err(MapError::OutOfRange(iova));
        }
        Ok(len)
    }

    /// Writes the entries of a page of 2^`shift` bytes, if they are empty. Returns whether they were.
    #[inline]
    fn set_leaf(&self, table: PhysAddr, index: usize, phys: PhysAddr, shift: u32, prot: Prot) -> bool {
        let level = F::leaf_level(shift);
        let replicas = index..index + (1usize << (shift - F::level_shift(level)));
        let empty = replicas.clone().all(|index| self.entry(table, index).load(Ordering::Relaxed) == 0);
        if empty {
            let leaf = F::leaf(phys, shift, level, prot);
            for index in replicas {
                // Release: the memory's contents, zeros included, are there before a device can reach them.
                self.entry(table, index).store(leaf, Ordering::Release);
            }
        }
        empty
    }

    /// Maps one page of 2^`shift` bytes.
    #[inline]
    fn map_page(
        &self,
        root: Root,
        iova: u64,
        phys: PhysAddr,
        shift: u32,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        let level = F::leaf_level(shift);
        match self.table_for(root, iova, level) {
            Ok(table) if self.set_leaf(table, Self::index(iova, level), phys, shift, prot) => {
                (1 << shift, Ok(()))
            }
            Ok(table) => self.map_around(root, table, iova, phys, shift, prot),
            Err(error) => (0, Err(error)),
        }
    }

    /// Maps `len` bytes in pages of 2^`shift` bytes.
    #[inline(never)]
    fn map_run(
        &self,
        root: Root,
        iova: u64,
        phys: PhysAddr,
        shift: u32,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        let level = F::leaf_level(shift);
        let replicas = 1usize << (shift - F::level_shift(level));
        let mut done = 0;
        while done < len {
            let table = match self.table_for(root, iova + done, level) {
                Ok(table) => table,
                Err(error) => return (done, Err(error)),
            };
            let mut index = Self::index(iova + done, level);
            while index < 1 << F::INDEX_BITS && done < len {
                let from = phys.wrapping_add(done);
                if self.set_leaf(table, index, from, shift, prot) {
                    done += 1 << shift;
                } else {
                    let (part, result) = self.map_around(root, table, iova + done, from, shift, prot);
                    done += part;
                    if result.is_err() {
                        return (done, result);
                    }
                }
                index += replicas;
            }
        }
        (done, Ok(()))
    }

    /// Maps a page of 2^`shift` bytes, whose entries in `table` are not all empty, as smaller ones: where an unmap has emptied
    /// tables and left them. Nobody else uses those now, but the IOMMU may remember them: to take them out would need an
    /// invalidation.
    #[cold]
    #[inline(never)]
    fn map_around(
        &self,
        root: Root,
        table: PhysAddr,
        iova: u64,
        phys: PhysAddr,
        shift: u32,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        let level = F::leaf_level(shift);
        let index = Self::index(iova, level);
        let replicas = 1usize << (shift - F::level_shift(level));
        let has_table = (index..index + replicas).any(|index| {
            let entry = self.entry(table, index).load(Ordering::Relaxed);
            matches!(F::decode(entry, level), Decoded::Table(_))
        });
        let smaller = F::PAGE_SIZES.bits() & ((1 << shift) - 1);
        match smaller.checked_ilog2() {
            Some(smaller) if has_table => self.map_run(root, iova, phys, smaller, 1 << shift, prot),
            _ => (0, Err(MapError::InUse(DmaAddr::new(iova)))),
        }
    }

    /// A table as low as can be whose entries stand for a whole range: no table above it is covered by the range. So a small
    /// unmap is one walk.
    #[inline]
    fn lowest_around(&self, root: Root, first: u64, last: u64) -> (PhysAddr, u32) {
        // Both ends have the same index at all levels above the highest bit in which they differ. A range that is all of an
        // entry differs in all bits below that entry's.
        let lowest = match (first ^ last).checked_add(1) {
            Some(differing) => F::leaf_level(differing.ilog2().max(F::GRANULE_SHIFT)),
            None => root.level,
        };
        let (mut table, mut level) = (root.phys, root.level);
        while level > lowest {
            match F::decode(self.entry(table, Self::index(first, level)).load(Ordering::Acquire), level) {
                Decoded::Table(below) => (table, level) = (below, level - 1),
                _ => break,
            }
        }
        (table, level)
    }

    /// Unmaps what is left of a range below a table. Returns false when it must stop.
    fn unmap_below(&self, table: PhysAddr, level: u32, range: &mut Unmapping<'_, '_>) -> bool {
        let shift = F::level_shift(level);
        let mut index = Self::index(range.at(), level);
        while range.done < range.len && index < 1 << F::INDEX_BITS {
            let entry = self.entry(table, index);
            match F::decode(entry.load(Ordering::Acquire), level) {
                Decoded::Empty => return false,
                Decoded::Leaf { shift: page_shift, .. } => {
                    let size = 1u64 << page_shift;
                    if range.at() & (size - 1) != 0 {
                        return false;
                    }
                    let replicas = 1usize << (page_shift - shift);
                    for replica in index..index + replicas {
                        self.entry(table, replica).store(0, Ordering::Relaxed);
                    }
                    // All 2^64 bytes of the largest table are one more than can be said.
                    range.done = range.done.saturating_add(size);
                    index += replicas;
                }
                Decoded::Table(below) => {
                    let span = 1u64 << shift;
                    let covered = range.at() & (span - 1) == 0 && range.len - range.done >= span;
                    let go_on = self.unmap_below(below, level - 1, range);
                    if !go_on {
                        return false;
                    }
                    // Only the caller's own range is below it, and all of that is gone.
                    if covered && words::all_zero(self.entries(below)) {
                        entry.store(0, Ordering::Relaxed);
                        self.pages.fetch_sub(1, Ordering::Relaxed);
                        // SAFETY: the page is out of the tree, and came from these frames.
                        unsafe { range.gather.add_table(self.window, below) };
                    }
                    index += 1;
                }
            }
        }
        true
    }

    /// Frees the tables below one, and it.
    ///
    /// # Safety
    /// Nobody uses the tree any more.
    unsafe fn free_below(&self, table: PhysAddr, level: u32) {
        if level > 1 {
            for entry in self.entries(table) {
                if let Decoded::Table(below) = F::decode(entry.load(Ordering::Relaxed), level) {
                    // SAFETY: the caller's promise.
                    unsafe { self.free_below(below, level - 1) };
                }
            }
        }
        // SAFETY: the caller's promise; the frame came from these frames as one.
        unsafe { self.frames.free(table, FRAME_SIZE) };
    }
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
        let root = self.root();
        match Self::check(root, iova, phys, page_size, count, prot) {
            Ok(_) if count == 1 => self.map_page(root, iova.get(), phys, page_size.trailing_zeros(), prot),
            Ok(len) => self.map_run(root, iova.get(), phys, page_size.trailing_zeros(), len, prot),
            Err(error) => (0, Err(error)),
        }
    }

    #[inline]
    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        trace::event("io_pgtable_ops.unmap_pages", iova.get(), len);
        let root = self.root();
        let Some(last) = iova.last_of(len).filter(|last| last.get() <= Self::last_address(root.level)) else {
            return 0;
        };
        let (table, level) = self.lowest_around(root, iova.get(), last.get());
        let mut range = Unmapping { first: iova.get(), len, done: 0, gather };
        self.unmap_below(table, level, &mut range);
        let unmapped = range.done;
        gather.add_range(iova, unmapped);
        unmapped
    }

    fn iova_to_phys(&self, iova: DmaAddr) -> Option<Translation> {
        let root = self.root();
        if iova.get() > Self::last_address(root.level) {
            return None;
        }
        let (mut table, mut level) = (root.phys, root.level);
        loop {
            let entry = self.entry(table, Self::index(iova.get(), level)).load(Ordering::Acquire);
            match F::decode(entry, level) {
                Decoded::Empty => return None,
                Decoded::Table(below) if level > 1 => (table, level) = (below, level - 1),
                Decoded::Table(_) => return None,
                Decoded::Leaf { phys, shift, prot } => {
                    let page_size = 1u64 << shift;
                    return Some(Translation {
                        phys: phys.wrapping_add(iova.offset_in(page_size)),
                        page_size,
                        prot,
                    });
                }
            }
        }
    }

    fn page_sizes(&self) -> PageSizes {
        // Pages larger than the whole table cannot be mapped.
        F::PAGE_SIZES.intersection(PageSizes::from_bits(Self::last_address(self.root().level)))
    }

    #[inline]
    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        (DmaAddr::new(0), DmaAddr::new(Self::last_address(self.root().level)))
    }

    #[inline]
    fn root(&self) -> Root {
        let root = self.root.load(Ordering::Acquire);
        let level_mask = FRAME_SIZE as u64 - 1;
        Root { phys: PhysAddr::new(root & !level_mask), level: (root & level_mask) as u32 }
    }

    fn table_pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }
}

impl<F: Format> Drop for PageTable<F> {
    fn drop(&mut self) {
        let root = self.root();
        // SAFETY: the owner drops the table after the last device was taken off it.
        unsafe { self.free_below(root.phys, root.level) };
    }
}

impl<F: Format> fmt::Debug for PageTable<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable").field("root", &self.root()).field("pages", &self.table_pages()).finish()
    }
}
