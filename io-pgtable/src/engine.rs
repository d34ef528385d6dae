//! The one engine: map, unmap and walk for every format.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

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
    fn table_for(&self, iova: u64, level: u32) -> Result<PhysAddr, MapError> {
        let root = self.root();
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

    /// Writes a page of 2^`shift` bytes: one entry, or several equal ones.
    #[inline]
    fn store_leaf(
        &self,
        table: PhysAddr,
        level: u32,
        entries: Range<usize>,
        phys: PhysAddr,
        shift: u32,
        prot: Prot,
    ) {
        let leaf = F::leaf(phys, shift, level, prot);
        for index in entries {
            // Release: the memory's contents, zeros included, are there before a device can reach them.
            self.entry(table, index).store(leaf, Ordering::Release);
        }
    }

    /// Maps what `entries` stand for although some of them lead to tables. Earlier mappings may have left those behind,
    /// empty: an unmap frees only tables that its own range covers. They are filled instead of being replaced by a larger
    /// page, which would take an invalidation. Returns the bytes mapped beside the error.
    #[cold]
    fn map_in_pieces(
        &self,
        table: PhysAddr,
        level: u32,
        entries: Range<usize>,
        iova: DmaAddr,
        phys: PhysAddr,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        let (mut index, mut done) = (entries.start, 0);
        while index < entries.end {
            let (at, from) = (iova.wrapping_add(done), phys.wrapping_add(done));
            let entry = self.entry(table, index);
            let below = match F::decode(entry.load(Ordering::Acquire), level) {
                Decoded::Leaf { .. } => return (done, Err(MapError::InUse(at))),
                Decoded::Table(below) => below,
                Decoded::Empty => {
                    if let Some(log2) = self.largest_free(table, level, index..entries.end) {
                        let shift = F::level_shift(level) + log2;
                        self.store_leaf(table, level, index..index + (1 << log2), from, shift, prot);
                        index += 1 << log2;
                        done += 1 << shift;
                        continue;
                    }
                    match self.install(entry, level, at.get()) {
                        Ok(below) => below,
                        Err(error) => return (done, Err(error)),
                    }
                }
            };
            let (mapped, result) =
                self.map_in_pieces(below, level - 1, 0..1 << F::INDEX_BITS, at, from, prot);
            done += mapped;
            if result.is_err() {
                return (done, result);
            }
            index += 1;
        }
        (done, Ok(()))
    }

    /// log2 of the entries that the largest page has which begins with the first of `entries`, when those are empty. `None`
    /// when the format has no page of this level's own size.
    fn largest_free(&self, table: PhysAddr, level: u32, entries: Range<usize>) -> Option<u32> {
        let most = entries.start.trailing_zeros().min(entries.len().ilog2()).min(F::INDEX_BITS - 1);
        let empty = |index| self.entry(table, index).load(Ordering::Relaxed) == 0;
        (0..=most).rev().find(|log2| {
            F::PAGE_SIZES.contains(1 << (F::level_shift(level) + log2))
                && (entries.start..entries.start + (1 << log2)).all(empty)
        })
    }

    /// Checks a run of pages against the format.
    #[inline]
    fn check(
        &self,
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
        let fits = F::leaf_level(page_size.trailing_zeros()) <= self.root().level;
        if last > self.aperture().1 || last_phys > F::MAX_PHYS || !fits {
            return Err(MapError::OutOfRange(iova));
        }
        Ok(len)
    }

    /// Unmaps [`at`, `end`) below a table; `at` moves on. Returns false when it must stop.
    fn unmap_below(
        &self,
        table: PhysAddr,
        level: u32,
        at: &mut u64,
        end: u64,
        gather: &mut IotlbGather<'_>,
    ) -> bool {
        let shift = F::level_shift(level);
        let first = Self::index(*at, level);
        let entries = 1usize << F::INDEX_BITS;
        let mut index = first;
        while *at < end && index < entries {
            let entry = self.entry(table, index);
            match F::decode(entry.load(Ordering::Acquire), level) {
                Decoded::Empty => return false,
                Decoded::Leaf { shift: page_shift, .. } => {
                    let size = 1u64 << page_shift;
                    if *at & (size - 1) != 0 {
                        return false;
                    }
                    let replicas = 1usize << (page_shift - shift);
                    for replica in index..index + replicas {
                        self.entry(table, replica).store(0, Ordering::Relaxed);
                    }
                    *at += size;
                    index += replicas;
                }
                Decoded::Table(below) => {
                    let start = *at;
                    let next = (start >> shift).wrapping_add(1) << shift;
                    let covered = start & ((1 << shift) - 1) == 0 && next.wrapping_sub(1) < end;
                    let stop = if covered { next.wrapping_sub(1).wrapping_add(1) } else { end.min(next) };
                    let go_on = self.unmap_below(below, level - 1, at, stop, gather);
                    // Only the caller's own range is below it, and all of that is gone.
                    if covered && go_on && words::all_zero(self.entries(below)) {
                        entry.store(0, Ordering::Relaxed);
                        self.pages.fetch_sub(1, Ordering::Relaxed);
                        // SAFETY: the page is out of the tree, and came from these frames.
                        unsafe { gather.add_table(self.window, below) };
                    }
                    if !go_on {
                        return false;
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
        trace::event("io_pgtable_ops.map_pages", iova.get(), page_size * count as u64);
        let len = match self.check(iova, phys, page_size, count, prot) {
            Ok(len) => len,
            Err(error) => return (0, Err(error)),
        };
        let shift = page_size.trailing_zeros();
        let level = F::leaf_level(shift);
        let replicas = 1usize << (shift - F::level_shift(level));
        let mut done = 0;
        while done < len {
            let at = iova.get() + done;
            let table = match self.table_for(at, level) {
                Ok(table) => table,
                Err(error) => return (done, Err(error)),
            };
            let mut index = Self::index(at, level);
            while index < 1 << F::INDEX_BITS && done < len {
                let run = index..index + replicas;
                if run.clone().all(|index| self.entry(table, index).load(Ordering::Relaxed) == 0) {
                    self.store_leaf(table, level, run, phys.wrapping_add(done), shift, prot);
                    done += page_size;
                } else {
                    let (at, phys) = (DmaAddr::new(iova.get() + done), phys.wrapping_add(done));
                    let (mapped, result) = self.map_in_pieces(table, level, run, at, phys, prot);
                    done += mapped;
                    if result.is_err() {
                        return (done, result);
                    }
                }
                index += replicas;
            }
        }
        (done, Ok(()))
    }

    #[inline]
    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        trace::event("io_pgtable_ops.unmap_pages", iova.get(), len);
        let Some(last) = iova.last_of(len).filter(|&last| last <= self.aperture().1) else { return 0 };
        let root = self.root();
        let mut at = iova.get();
        // The very last byte of the address space has no end behind it; nothing is ever mapped there in part.
        self.unmap_below(root.phys, root.level, &mut at, last.get().saturating_add(1), gather);
        let unmapped = at.wrapping_sub(iova.get());
        gather.add_range(iova, unmapped);
        unmapped
    }

    fn iova_to_phys(&self, iova: DmaAddr) -> Option<Translation> {
        if iova > self.aperture().1 {
            return None;
        }
        let root = self.root();
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
        let top = F::level_shift(self.root().level) + F::INDEX_BITS;
        // Pages larger than the whole table cannot be mapped.
        let mask = if top >= 64 { u64::MAX } else { (1 << top) - 1 };
        F::PAGE_SIZES.intersection(PageSizes::from_bits(mask))
    }

    #[inline]
    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        let bits = F::level_shift(self.root().level) + F::INDEX_BITS;
        (DmaAddr::new(0), DmaAddr::new(if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }))
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
