//! Looking: one address, the way to it, the pages of a range, and what hardware wrote.

use platform::sync::atomic::Ordering;
use platform::{DmaAddr, IotlbGather, PhysAddr, Prot};

use super::PageTable;
use crate::format::{Decoded, Format};
use crate::table::{IoPageTable, NoDirtyMarks, Root, Translation, WalkEntry};

/// A page, and where its entries are.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) table: PhysAddr,
    pub(super) level: u32,
    /// The first of its entries, and how many there are.
    pub(super) index: usize,
    pub(super) slots: usize,
    /// The bits of its first address that are looked up.
    pub(super) iova: u64,
    pub(super) phys: PhysAddr,
    pub(super) shift: u32,
    pub(super) prot: Prot,
}

impl<F: Format> PageTable<F> {
    fn page(
        table: PhysAddr,
        level: u32,
        index: usize,
        iova: u64,
        (phys, shift, prot): (PhysAddr, u32, Prot),
    ) -> Page {
        let slots = 1usize << (shift - F::level_shift(level));
        let iova = iova & !((1 << shift) - 1);
        Page { table, level, index: index & !(slots - 1), slots, iova, phys, shift, prot }
    }

    /// The page that holds an address, by the bits that are looked up. `visit` sees each entry on the way.
    #[inline]
    pub(super) fn page_at(&self, root: Root, iova: u64, mut visit: impl FnMut(WalkEntry)) -> Option<Page> {
        let (mut table, mut level) = (root.phys, root.level);
        let mut index = (iova >> F::level_shift(level)) as usize;
        loop {
            let entry = self.entries.load(table, index, Ordering::Acquire);
            visit(WalkEntry { level, at: self.entries.at(table, index), entry });
            match self.format.decode(entry, level) {
                Decoded::Table(below) if level > 1 => (table, level) = (below, level - 1),
                Decoded::Empty | Decoded::Table(_) => return None,
                Decoded::Leaf { phys, shift, prot } => {
                    return Some(Self::page(table, level, index, iova, (phys, shift, prot)));
                }
            }
            index = Self::index(iova, level);
        }
    }

    #[inline]
    pub(super) fn translate(&self, iova: DmaAddr) -> Option<Translation> {
        let root = self.root();
        let address = self.looked_up(root, iova.get(), 0)?;
        // Copies: each acquire would read them again.
        let (entries, format) = (self.entries, self.format);
        let (mut table, mut level) = (root.phys, root.level);
        let (mut index, mut turned) = Self::indices(address, level);
        let mut entry = entries.load(table, index, Ordering::Acquire);
        while level > 1
            && let Some(next) = format.table(entry, level)
        {
            (table, level) = (next, level - 1);
            (index, turned) = Self::next_index(turned);
            entry = entries.load(table, index, Ordering::Acquire);
        }
        let Decoded::Leaf { phys, shift, prot } = format.decode(entry, level) else { return None };
        let page_size = 1u64 << shift;
        Some(Translation { phys: phys.wrapping_add(iova.offset_in(page_size)), page_size, prot })
    }

    /// Shows every page that a range meets, in order.
    pub(super) fn pages_of(&self, iova: DmaAddr, len: u64, visit: &mut dyn FnMut(Root, Page)) {
        let root = self.root();
        let Some(span) = len.checked_sub(1) else { return };
        let Some(first) = self.looked_up(root, iova.get(), span) else { return };
        self.pages_below(root, (root.phys, root.level), (first, first + span), visit);
    }

    fn pages_below(
        &self,
        root: Root,
        (table, level): (PhysAddr, u32),
        (first, last): (u64, u64),
        visit: &mut dyn FnMut(Root, Page),
    ) {
        let shift = F::level_shift(level);
        let mut index = Self::index_below(root, first, level);
        let end = Self::index_below(root, last, level);
        let mut at = first;
        while index <= end {
            // The last address of this entry.
            let mut entry_last = at | ((1 << shift) - 1);
            let mut next = index + 1;
            match self.format.decode(self.entries.load(table, index, Ordering::Acquire), level) {
                Decoded::Empty => {}
                Decoded::Table(below) if level > 1 => {
                    self.pages_below(root, (below, level - 1), (at, entry_last.min(last)), visit);
                }
                Decoded::Table(_) => {}
                Decoded::Leaf { phys, shift, prot } => {
                    let page = Self::page(table, level, index, at, (phys, shift, prot));
                    entry_last = page.iova + ((1 << shift) - 1);
                    next = page.index + page.slots;
                    visit(root, page);
                }
            }
            index = next;
            at = entry_last.wrapping_add(1);
        }
    }

    /// See [`IoPageTable::read_and_clear_dirty`].
    pub(super) fn dirty(
        &self,
        iova: DmaAddr,
        len: u64,
        clear: bool,
        gather: &mut IotlbGather<'_>,
        visit: &mut dyn FnMut(DmaAddr, u64),
    ) -> Result<(), NoDirtyMarks> {
        if !self.format.marks_dirty() {
            return Err(NoDirtyMarks);
        }
        self.pages_of(iova, len, &mut |root, page| {
            let mut dirty = false;
            for slot in page.index..page.index + page.slots {
                let mut entry = self.entries.load(page.table, slot, Ordering::Relaxed);
                while self.format.is_dirty(entry) {
                    dirty = true;
                    // Hardware may mark the entry as used meanwhile.
                    let clean = self.format.set_dirty(entry, false);
                    match clear.then(|| self.entries.replace(page.table, slot, entry, clean)) {
                        Some(Err(found)) => entry = found,
                        Some(Ok(())) | None => break,
                    }
                }
            }
            if dirty {
                let (at, size) = (self.address(root, page.iova), 1 << page.shift);
                if clear {
                    self.wrote(page.table, page.index, page.slots);
                    gather.add_range(at, size);
                }
                visit(at, size);
            }
        });
        Ok(())
    }
}
