//! A table with nobody else at it, so that maps and unmaps are plain calls.

use std::sync::Arc;

use io_pgtable::{AmdV1, Format, IoPageTable, IoPgtableCfg, PageTable};
use platform::{DmaAddr, IotlbGather, LeakCounter, MapError, PhysAddr, Prot};

use super::Arena;
use crate::walkers::amdv1::{self, Page, Tree};

/// Read and write.
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A page table, its frames, and nothing that walks it but tests.
pub(crate) struct Bed<F: Format = AmdV1> {
    pub(crate) arena: Arc<Arena>,
    pub(crate) table: PageTable<F>,
    pub(crate) leaks: LeakCounter,
}

#[allow(dead_code, reason = "not every test asks for everything")]
impl<F: Format> Bed<F> {
    /// A table of a configuration on a machine of `frames` frames.
    pub(crate) fn of(cfg: &IoPgtableCfg, frames: usize) -> Self {
        Self::on(Arena::new(frames), cfg)
    }

    pub(crate) fn on(arena: Arena, cfg: &IoPgtableCfg) -> Self {
        let arena = Arc::new(arena);
        let table = PageTable::new(arena.clone(), cfg).expect("a table of this configuration");
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
        unsafe { self.table.unmap_range(DmaAddr::new(iova), len, gather) }
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

    pub(crate) fn root(&self) -> u64 {
        self.table.root().phys.get()
    }
}

#[allow(dead_code, reason = "not every test asks for everything")]
impl Bed {
    /// AMD's table of `levels` levels on a machine of `frames` frames.
    pub(crate) fn new(levels: u32, frames: usize) -> Self {
        Self::of(&amdv1_cfg(levels), frames)
    }

    /// What hardware finds for one address.
    pub(crate) fn walk(&self, iova: u64) -> Option<(Page, u64)> {
        amdv1::walk(&self.arena, self.root(), self.levels(), iova)
    }

    /// Where hardware goes for one address.
    pub(crate) fn phys(&self, iova: u64) -> Option<u64> {
        self.walk(iova).map(|(_, phys)| phys)
    }

    /// All that hardware can find.
    pub(crate) fn tree(&self) -> Tree {
        amdv1::tree(&self.arena, self.root(), self.levels())
    }
}

/// AMD v1 of so many levels.
pub(crate) fn amdv1_cfg(levels: u32) -> IoPgtableCfg {
    IoPgtableCfg::new((12 + 9 * levels).min(64))
}
