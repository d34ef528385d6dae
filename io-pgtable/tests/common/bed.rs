//! A table with nobody else at it, so that maps and unmaps are plain calls.

use std::sync::Arc;

use io_pgtable::{AmdV1, IoPageTable, PageTable};
use platform::{DmaAddr, IotlbGather, LeakCounter, MapError, PhysAddr, Prot};

use super::Arena;
use super::walker::{self, Page, Tree};

/// Read and write.
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A page table, its frames, and nothing that walks it but tests.
pub(crate) struct Bed {
    pub(crate) arena: Arc<Arena>,
    pub(crate) table: PageTable<AmdV1>,
    pub(crate) leaks: LeakCounter,
}

#[allow(dead_code, reason = "not every test asks for everything")]
impl Bed {
    /// A table of `levels` levels on a machine of `frames` frames.
    pub(crate) fn new(levels: u32, frames: usize) -> Self {
        let arena = Arc::new(Arena::new(frames));
        let table = PageTable::new(arena.clone(), levels).expect("a frame for the top");
        Self { arena, table, leaks: LeakCounter::new() }
    }

    pub(crate) fn map(
        &self,
        iova: u64,
        phys: u64,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        // SAFETY: nothing walks the table, and each bed is used by one thread.
        unsafe { self.table.map_pages(DmaAddr::new(iova), PhysAddr::new(phys), page_size, count, prot) }
    }

    /// Maps pages that nothing keeps from being mapped.
    pub(crate) fn must_map(&self, iova: u64, phys: u64, page_size: u64, count: usize) {
        assert_eq!(self.map(iova, phys, page_size, count, RW), (page_size * count as u64, Ok(())));
    }

    pub(crate) fn gather(&self) -> IotlbGather<'_> {
        IotlbGather::new(&self.leaks)
    }

    pub(crate) fn unmap_into(&self, iova: u64, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        // SAFETY: as for `map`.
        unsafe { self.table.unmap(DmaAddr::new(iova), len, gather) }
    }

    pub(crate) fn flush(&self, gather: IotlbGather<'_>) {
        // SAFETY: there is no IOMMU that could remember anything.
        let _flushed = unsafe { gather.flushed(&*self.arena) };
    }

    /// Unmaps, and gives emptied tables back at once.
    pub(crate) fn unmap(&self, iova: u64, len: u64) -> u64 {
        let mut gather = self.gather();
        let unmapped = self.unmap_into(iova, len, &mut gather);
        self.flush(gather);
        unmapped
    }

    pub(crate) fn levels(&self) -> u32 {
        self.table.root().level
    }

    /// What hardware finds for one address.
    pub(crate) fn walk(&self, iova: u64) -> Option<(Page, u64)> {
        walker::walk(&self.arena, self.table.root().phys.get(), self.levels(), iova)
    }

    /// Where hardware goes for one address.
    pub(crate) fn phys(&self, iova: u64) -> Option<u64> {
        self.walk(iova).map(|(_, phys)| phys)
    }

    /// All that hardware can find.
    pub(crate) fn tree(&self) -> Tree {
        walker::tree(&self.arena, self.table.root().phys.get(), self.levels())
    }
}
