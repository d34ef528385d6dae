//! Unmapping.

use platform::sync::atomic::Ordering;
use platform::{DmaAddr, IotlbGather, PhysAddr};

use super::PageTable;
use crate::format::{Decoded, Format};
use crate::table::{IoPageTable, Root};

/// An unmap on its way.
struct Unmapping<'a, 'g> {
    root: Root,
    first: u64,
    len: u64,
    /// Bytes unmapped; more than `len` when a page goes whole that ends behind the range.
    done: u64,
    /// Tables taken out.
    tables: usize,
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
    #[inline]
    pub(super) fn unmap_to(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        if self.unmap_entry(iova, len) {
            gather.add_range(iova, len);
            return len;
        }
        self.unmap_any(iova, len, gather)
    }

    #[inline(never)]
    fn unmap_any(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        let root = self.root();
        let Some(span) = len.checked_sub(1) else { return 0 };
        let Some(first) = self.looked_up(root, iova.get(), span) else { return 0 };
        let (table, level) = self.lowest_around(root, first, first + span);
        let mut range = Unmapping { root, first, len, done: 0, tables: 0, gather };
        self.unmap_below(table, level, &mut range);
        let (unmapped, tables) = (range.done, range.tables);
        if tables > 0 {
            self.pages.fetch_sub(tables, Ordering::Relaxed);
        }
        gather.add_range(iova, unmapped);
        unmapped
    }

    /// The usual call: a page of one entry, which is there as such. Returns whether it was so; if not, nothing is done.
    #[inline(always)]
    fn unmap_entry(&self, iova: DmaAddr, size: u64) -> bool {
        if !self.single.contains(size) || iova.get() & (size - 1) != 0 {
            return false;
        }
        let root = self.root();
        // A page at a multiple of its size, of a level that is there, is in the table whole or not at all.
        let Some(address) = self.looked_up(root, iova.get(), 0) else { return false };
        let (table, index) = if size == 1 << F::GRANULE_SHIFT {
            // The smallest apart, so that all about it is constant.
            let Some((table, index)) = self.table_at(root, address, 1) else { return false };
            let (mask, value) = self.format.page_pattern();
            if self.entries.load(table, index, Ordering::Relaxed) & mask != value {
                return false;
            }
            (table, index)
        } else {
            let shift = size.trailing_zeros();
            let level = F::leaf_level(shift);
            let Some((table, index)) = self.table_at(root, address, level) else { return false };
            let entry = self.entries.load(table, index, Ordering::Relaxed);
            match self.format.decode(entry, level) {
                Decoded::Leaf { shift: found, .. } if found == shift => (table, index),
                _ => return false,
            }
        };
        self.entries.store(table, index, 0, Ordering::Relaxed);
        true
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
        let mut index = (first >> F::level_shift(level)) as usize;
        while level > lowest {
            match self.format.decode(self.entries.load(table, index, Ordering::Acquire), level) {
                Decoded::Table(below) => (table, level) = (below, level - 1),
                _ => break,
            }
            index = Self::index(first, level);
        }
        (table, level)
    }

    /// Unmaps what is left of a range below a table. Returns false when it must stop.
    fn unmap_below(&self, table: PhysAddr, level: u32, range: &mut Unmapping<'_, '_>) -> bool {
        let shift = F::level_shift(level);
        let end = self.entry_count(range.root, level);
        let mut index = Self::index_below(range.root, range.at(), level);
        while range.done < range.len && index < end {
            if level == 1 && range.at() & ((1 << shift) - 1) == 0 {
                // As many of the smallest pages as come.
                let wanted = (range.len - range.done).div_ceil(1 << shift).min((end - index) as u64);
                let pattern = self.format.page_pattern();
                let cleared = self.entries.clear_matching(table, index, wanted as usize, pattern);
                if cleared > 0 {
                    self.wrote(table, index, cleared);
                    range.done += (cleared as u64) << shift;
                    index += cleared;
                    continue;
                }
            }
            match self.format.decode(self.entries.load(table, index, Ordering::Acquire), level) {
                Decoded::Empty => return false,
                Decoded::Leaf { shift: page_shift, .. } => {
                    let size = 1u64 << page_shift;
                    if range.at() & (size - 1) != 0 {
                        return false;
                    }
                    let slots = 1usize << (page_shift - shift);
                    if slots == 1 {
                        self.entries.store(table, index, 0, Ordering::Relaxed);
                    } else {
                        self.entries.fill(table, index, slots, 0);
                    }
                    self.wrote(table, index, slots);
                    // All 2^64 bytes of the largest table are one more than can be said.
                    range.done = range.done.saturating_add(size);
                    index += slots;
                }
                Decoded::Table(below) => {
                    let span = 1u64 << shift;
                    let covered = range.at() & (span - 1) == 0 && range.len - range.done >= span;
                    if !self.unmap_below(below, level - 1, range) {
                        return false;
                    }
                    // Only the caller's own range is below it, and all of that is gone.
                    if covered {
                        self.entries.store(table, index, 0, Ordering::Relaxed);
                        self.wrote(table, index, 1);
                        range.tables += 1;
                        let window = self.entries.window();
                        // SAFETY: the page is out of the tree, and came from these frames with this size.
                        unsafe { range.gather.add_table(window, below, Self::TABLE_BYTES) };
                    }
                    index += 1;
                }
            }
        }
        true
    }
}
