//! Mapping.

use platform::sync::atomic::{Ordering, fence};
use platform::{DmaAddr, MapError, PhysAddr, Prot, trace};

use super::{PageTable, low_bits};
use crate::format::{Decoded, Format};
use crate::table::{IoPageTable, Root};

/// What a map did: bytes, and why it stopped.
type Mapped = (u64, Result<(), MapError>);

impl<F: Format> PageTable<F> {
    #[inline]
    pub(super) fn map_pages_(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> Mapped {
        trace::event("io_pgtable_ops.map_pages", iova.get(), page_size.saturating_mul(count as u64));
        let root = self.root();
        match self.check(root, iova, phys, page_size, count, prot) {
            Ok((address, _)) if count == 1 => {
                self.map_page(root, address, phys, page_size.trailing_zeros(), prot)
            }
            Ok((address, len)) => self.map_run(root, address, phys, page_size.trailing_zeros(), len, prot),
            Err(error) => (0, Err(error)),
        }
    }

    /// Checks a run of pages against the format and the top, and returns the bits that are looked up and its length in bytes.
    #[inline]
    fn check(
        &self,
        root: Root,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> Result<(u64, u64), MapError> {
        if !self.format.accepts(prot) {
            return Err(MapError::NoAccess);
        }
        if !self.shape.page_sizes.contains(page_size) || (iova.get() | phys.get()) & (page_size - 1) != 0 {
            return Err(MapError::NoPageSize(iova));
        }
        let out_of_range = MapError::OutOfRange(iova);
        let len = page_size.checked_mul(count as u64).ok_or(out_of_range)?;
        let last_phys = phys.last_of(len).ok_or(out_of_range)?;
        let address = self.looked_up(root, iova.get(), len - 1).ok_or(out_of_range)?;
        // The top level has its entries for tables and for pages of its own size.
        if last_phys > self.max_phys || F::leaf_level(page_size.trailing_zeros()) > root.level {
            return Err(out_of_range);
        }
        Ok((address, len))
    }

    /// The table of `level` for an address, made with all above it if need be.
    #[inline]
    fn table_for(&self, root: Root, iova: u64, level: u32) -> Result<PhysAddr, MapError> {
        let (mut table, mut at) = (root.phys, root.level);
        let mut index = (iova >> F::level_shift(at)) as usize;
        while at > level {
            // Acquire: what is behind a pointer was written before it.
            table = match self.format.decode(self.entries.load(table, index, Ordering::Acquire), at) {
                Decoded::Table(next) => next,
                Decoded::Leaf { .. } => return Err(self.in_use(root, iova)),
                Decoded::Empty => self.install(root, table, index, at, iova)?,
            };
            at -= 1;
            index = Self::index(iova, at);
        }
        Ok(table)
    }

    /// Makes a table below an empty entry, unless somebody else was first.
    #[cold]
    fn install(
        &self,
        root: Root,
        table: PhysAddr,
        index: usize,
        level: u32,
        iova: u64,
    ) -> Result<PhysAddr, MapError> {
        let new = self.frames.alloc(self.table_request).map_err(|_| MapError::OutOfMemory)?;
        // Release: the table's zeros are there before the pointer to them.
        let pointer = self.format.pointer(new, level);
        match self.entries.replace(table, index, 0, pointer) {
            Ok(()) => {
                self.pages.fetch_add(1, Ordering::Relaxed);
                Ok(new)
            }
            Err(found) => {
                // SAFETY: nobody has seen the frame.
                unsafe { self.frames.free(new, Self::TABLE_BYTES) };
                match self.format.decode(found, level) {
                    Decoded::Table(table) => Ok(table),
                    _ => Err(self.in_use(root, iova)),
                }
            }
        }
    }

    /// The error for the bits of an address that are looked up.
    #[cold]
    fn in_use(&self, root: Root, iova: u64) -> MapError {
        let bits = self.input_bits(root.level);
        let first = self.first_address(bits);
        let offset = iova.wrapping_sub(first) & low_bits(bits);
        MapError::InUse(DmaAddr::new(first.wrapping_add(offset)))
    }

    /// Writes the entries of a page of 2^`shift` bytes, if they are empty. Returns whether they were.
    #[inline]
    fn set_leaf(&self, table: PhysAddr, index: usize, phys: PhysAddr, shift: u32, prot: Prot) -> bool {
        let level = F::leaf_level(shift);
        let level_shift = F::level_shift(level);
        let leaf = self.format.leaf(phys, shift, level, prot);
        if shift == level_shift {
            let empty = self.entries.load(table, index, Ordering::Relaxed) == 0;
            if empty {
                // Release: the memory's contents, zeros included, are there before a device can reach them.
                self.entries.store(table, index, leaf, Ordering::Release);
            }
            return empty;
        }
        let count = 1usize << (shift - level_shift);
        let empty = self.entries.all_zero(table, index, count);
        if empty {
            // As above, for what is stored relaxed.
            fence(Ordering::Release);
            if F::OWN_ADDRESS {
                let step = self.step(leaf, phys, shift, level, prot);
                self.entries.store_rising(table, index, count, leaf, step);
            } else {
                self.entries.fill(table, index, count, leaf);
            }
        }
        empty
    }

    /// What is between the entries of two neighbours.
    #[inline]
    fn step(&self, leaf: u64, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> u64 {
        let next = phys.wrapping_add(1 << F::level_shift(level));
        self.format.leaf(next, shift, level, prot).wrapping_sub(leaf)
    }

    /// Maps one page of 2^`shift` bytes.
    #[inline]
    fn map_page(&self, root: Root, iova: u64, phys: PhysAddr, shift: u32, prot: Prot) -> Mapped {
        let level = F::leaf_level(shift);
        match self.table_for(root, iova, level) {
            Ok(table) => {
                let index = Self::index_below(root, iova, level);
                if self.set_leaf(table, index, phys, shift, prot) {
                    (1 << shift, Ok(()))
                } else {
                    self.map_around(root, table, iova, phys, shift, prot)
                }
            }
            Err(error) => (0, Err(error)),
        }
    }

    /// Maps `len` bytes in pages of 2^`shift` bytes.
    #[inline(never)]
    fn map_run(&self, root: Root, iova: u64, phys: PhysAddr, shift: u32, len: u64, prot: Prot) -> Mapped {
        let level = F::leaf_level(shift);
        let slots = 1usize << (shift - F::level_shift(level));
        let end = self.entry_count(root, level);
        let mut done = 0;
        while done < len {
            let table = match self.table_for(root, iova + done, level) {
                Ok(table) => table,
                Err(error) => return (done, Err(error)),
            };
            let mut index = Self::index_below(root, iova + done, level);
            while index < end && done < len {
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
                index += slots;
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
    ) -> Mapped {
        let level = F::leaf_level(shift);
        let index = Self::index_below(root, iova, level);
        let slots = 1usize << (shift - F::level_shift(level));
        let has_table = (index..index + slots).any(|index| {
            let entry = self.entries.load(table, index, Ordering::Relaxed);
            matches!(self.format.decode(entry, level), Decoded::Table(_))
        });
        let smaller = self.shape.page_sizes.bits() & ((1 << shift) - 1);
        match smaller.checked_ilog2() {
            Some(smaller) if has_table => self.map_run(root, iova, phys, smaller, 1 << shift, prot),
            _ => (0, Err(self.in_use(root, iova))),
        }
    }
}
