//! Splitting a page into smaller ones.

use platform::sync::atomic::{Ordering, fence};
use platform::{DmaAddr, Flushed, IotlbGather, MapError, PhysAddr};

use super::PageTable;
use super::look::Page;
use super::map::Piece;
use crate::format::Format;
use crate::table::{Broken, IoPageTable, Split, SplitError, Translation};

impl<F: Format> PageTable<F> {
    pub(super) fn split_page(
        &self,
        iova: DmaAddr,
        page_size: u64,
        gather: &mut IotlbGather<'_>,
    ) -> Result<Split, SplitError> {
        let root = self.root();
        let page = self.looked_up(root, iova.get(), 0).and_then(|at| self.page_at(root, at, |_| ()));
        let page = page.ok_or(SplitError::NotMapped(iova))?;
        if !self.shape.page_sizes.contains(page_size) || page_size >= 1 << page.shift {
            return Err(SplitError::NoPageSize(iova));
        }
        let at = self.address(root, page.iova);
        gather.add_range(at, 1 << page.shift);
        let shift = page_size.trailing_zeros();
        if !F::BREAK_BEFORE_MAKE && page.slots == 1 && F::leaf_level(shift) + 1 == page.level {
            return self.replace_by_table(page, shift);
        }
        let mut written = false;
        for slot in page.index..page.index + page.slots {
            written |= self.format.is_dirty(self.change(page.table, slot, |_| 0));
        }
        self.wrote(page.table, page.index, page.slots);
        let page = Translation { phys: page.phys, page_size: 1 << page.shift, prot: page.prot };
        Ok(Split::Broken(Broken { iova: at, page, page_size, written }))
    }

    /// Changes an entry that hardware may mark meanwhile, and returns what it was.
    fn change(&self, table: PhysAddr, index: usize, new: impl Fn(u64) -> u64) -> u64 {
        let mut entry = self.entries.load(table, index, Ordering::Relaxed);
        while let Err(found) = self.entries.replace(table, index, entry, new(entry)) {
            entry = found;
        }
        entry
    }

    /// Puts a table with pages of 2^`shift` bytes where a page is.
    fn replace_by_table(&self, page: Page, shift: u32) -> Result<Split, SplitError> {
        let table = self.frames.alloc(self.table_request).map_err(|_| SplitError::OutOfMemory)?;
        let piece = Piece { iova: page.iova, phys: page.phys, len: 1 << page.shift, prot: page.prot };
        self.write_pages(table, 0, 1 << (page.shift - shift), piece, shift, true);
        let mut marked = false;
        let mut entry = self.entries.load(page.table, page.index, Ordering::Relaxed);
        loop {
            if self.format.is_dirty(entry) && !marked {
                // What hardware wrote to is written, in whatever pages.
                for index in 0..Self::TABLE_ENTRIES {
                    let leaf = self.entries.load(table, index, Ordering::Relaxed);
                    let leaf = self.format.set_dirty(leaf, true);
                    self.entries.store(table, index, leaf, Ordering::Relaxed);
                }
                marked = true;
            }
            self.wrote(table, 0, Self::TABLE_ENTRIES);
            fence(Ordering::Release);
            let pointer = self.format.pointer(table, page.level);
            match self.entries.replace(page.table, page.index, entry, pointer) {
                Ok(()) => break,
                Err(found) => entry = found,
            }
        }
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.wrote_pointer(page.table, page.index);
        Ok(Split::Done)
    }

    pub(super) fn mend_page(&self, broken: &mut Broken, _flushed: &Flushed) -> Result<(), MapError> {
        let Broken { iova, page, page_size, written } = broken;
        let count = (page.page_size / *page_size) as usize;
        let (done, result) = self.map_sized(*iova, page.phys, *page_size, count, page.prot);
        if *written {
            self.pages_of(*iova, done, &mut |_, page| {
                for slot in page.index..page.index + page.slots {
                    self.change(page.table, slot, |entry| self.format.set_dirty(entry, true));
                }
                self.wrote(page.table, page.index, page.slots);
            });
        }
        // What is left, should there be an error.
        *iova = iova.wrapping_add(done);
        page.phys = page.phys.wrapping_add(done);
        page.page_size -= done;
        result
    }
}
