//! What every I/O page table can do.

use core::fmt;

use platform::{DmaAddr, Extent, Flushed, IotlbGather, MapError, PageSizes, PhysAddr, Prot};

use crate::registers::Registers;

/// Where an I/O address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical address of this very byte.
    pub phys: PhysAddr,
    /// Bytes in the page that holds it.
    pub page_size: u64,
    /// What a device may do there.
    pub prot: Prot,
}

/// The top of a table, as hardware is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Physical address of the top table.
    pub phys: PhysAddr,
    /// Its level; the lowest is 1.
    pub level: u32,
}

/// An entry on the way to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalkEntry {
    /// The level of the table that holds it; the lowest is 1.
    pub level: u32,
    /// Where it is in memory.
    pub at: PhysAddr,
    /// The entry, as the format says.
    pub entry: u64,
}

/// What became of a page that was to be split.
#[derive(Debug)]
#[must_use = "a broken page is not mapped until it is mended"]
pub enum Split {
    /// Smaller pages are in its place. It was mapped all the time.
    Done,
    /// It is unmapped, since the format needs a break between the large page and the small ones. After the flush
    /// [`IoPageTable::mend`] maps the small ones.
    Broken(Broken),
}

/// A page between its two halves of a split.
#[derive(Debug)]
pub struct Broken {
    /// The first address of the page.
    pub iova: DmaAddr,
    /// The page, by its first address.
    pub page: Translation,
    /// Bytes in the pages that take its place.
    pub page_size: u64,
    /// Whether hardware has marked it as written. Then they are marked too.
    pub written: bool,
}

/// Why a page was not split.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// Nothing is mapped there.
    #[error("nothing is mapped at {0}")]
    NotMapped(DmaAddr),
    /// The table has no pages of this size, or the page is not larger.
    #[error("the page at {0} cannot be split into such pages")]
    NoPageSize(DmaAddr),
    /// There is no page frame for a table.
    #[error("out of memory for page tables")]
    OutOfMemory,
}

/// Hardware of this format does not mark what it wrote (Linux: `-EOPNOTSUPP`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the page-table format has no dirty marks")]
pub struct NoDirtyMarks;

/// An I/O page table (Linux: `struct io_pgtable_ops`).
///
/// Disjoint ranges may be mapped and unmapped at the same time by any number of threads.
///
/// # Safety
/// Domains rely on it: hardware that walks the table from [`IoPageTable::root`] finds exactly what is mapped, and table
/// pages that an unmap gives to the gather are not reached from it any more.
#[doc(alias = "io_pgtable_ops")]
pub unsafe trait IoPageTable: Send + Sync + fmt::Debug {
    /// Maps `count` pages of `page_size` bytes (Linux: `map_pages`). Returns the bytes that were mapped beside the error,
    /// which are the caller's to undo. What is mapped already is never overwritten. Where unmaps have emptied tables and left
    /// them, a large page is written as smaller ones.
    ///
    /// # Errors
    /// [`MapError::NoAccess`] without read and write; [`MapError::NoPageSize`] for a size that the format lacks or an address
    /// that is not aligned to it; [`MapError::OutOfRange`] beyond the table's or memory's last address, and for no pages at
    /// all; [`MapError::InUse`] and [`MapError::OutOfMemory`] also half-way.
    ///
    /// # Safety
    /// The memory stays valid until it is unmapped, and nobody else touches this range of I/O addresses meanwhile.
    unsafe fn map_pages(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> (u64, Result<(), MapError>);

    /// Maps a range of any length by the largest pages that the alignment of both addresses allows (Linux: `map_range` of
    /// `pt_iommu_ops`). Otherwise as [`IoPageTable::map_pages`].
    ///
    /// # Errors
    /// As [`IoPageTable::map_pages`]; [`MapError::NoPageSize`] where not even the smallest page fits, also half-way.
    ///
    /// # Safety
    /// As [`IoPageTable::map_pages`].
    unsafe fn map_range(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>);

    /// Maps extents of memory one behind the other, in one walk (Linux: `iommu_map_sg`). Extents that follow each other in memory
    /// may share a page.
    ///
    /// # Errors
    /// As [`IoPageTable::map_range`].
    ///
    /// # Safety
    /// As [`IoPageTable::map_pages`].
    unsafe fn map_sg(&self, iova: DmaAddr, list: &[Extent], prot: Prot) -> (u64, Result<(), MapError>);

    /// Unmaps a range of any length and collects what must be invalidated (Linux: `unmap_range` of `pt_iommu_ops`). Returns the
    /// bytes unmapped: it stops at a hole and at a page that begins before the range, and takes a page whole that ends behind
    /// it.
    ///
    /// # Safety
    /// Nobody else touches this range of I/O addresses meanwhile.
    unsafe fn unmap_range(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64;

    /// The same by page size and count (Linux: `unmap_pages`). What is unmapped is what is there, of whatever size.
    ///
    /// # Safety
    /// As [`IoPageTable::unmap_range`].
    #[inline]
    unsafe fn unmap_pages(
        &self,
        iova: DmaAddr,
        page_size: u64,
        count: usize,
        gather: &mut IotlbGather<'_>,
    ) -> u64 {
        let len = page_size.saturating_mul(count as u64);
        // SAFETY: the caller's promise.
        unsafe { self.unmap_range(iova, len, gather) }
    }

    /// Where an I/O address leads (Linux: `iova_to_phys`).
    fn iova_to_phys(&self, iova: DmaAddr) -> Option<Translation>;

    /// Shows the entries on the way to an address, from the top: to the page, or to where nothing is (Linux: `pgtable_walk`).
    fn walk(&self, iova: DmaAddr, visit: &mut dyn FnMut(WalkEntry));

    /// Shows every page of a range, also those that are only partly in it, from its first address on. For a dump.
    ///
    /// # Safety
    /// Nobody unmaps any of the range meanwhile.
    unsafe fn for_each_page(&self, iova: DmaAddr, len: u64, visit: &mut dyn FnMut(DmaAddr, Translation));

    /// Shows each page of a range that hardware has marked as written, by its first address and its size, and takes the mark
    /// away if `clear` (Linux: `read_and_clear_dirty`, `IOMMU_DIRTY_NO_CLEAR`). Marks that were taken away are in the gather: until
    /// that is flushed hardware need not set them again. A page of several entries is written when any of them says so.
    ///
    /// # Errors
    /// [`NoDirtyMarks`] when the format has none.
    ///
    /// # Safety
    /// Nobody unmaps any of the range meanwhile.
    unsafe fn read_and_clear_dirty(
        &self,
        iova: DmaAddr,
        len: u64,
        clear: bool,
        gather: &mut IotlbGather<'_>,
        visit: &mut dyn FnMut(DmaAddr, u64),
    ) -> Result<(), NoDirtyMarks>;

    /// Splits the page that holds an address into pages of `page_size` bytes; an unmap never does. The gather has what must be
    /// invalidated. Where the format lets a table take the place of a page that is in use, and one table holds the small pages,
    /// they are there at once; else the page is unmapped, and mapped again by [`IoPageTable::mend`] after the flush.
    ///
    /// # Errors
    /// [`SplitError`]; nothing is changed then.
    ///
    /// # Safety
    /// Nobody else touches the page meanwhile; and until it is mended, if it is broken.
    unsafe fn split(
        &self,
        iova: DmaAddr,
        page_size: u64,
        gather: &mut IotlbGather<'_>,
    ) -> Result<Split, SplitError>;

    /// Maps the small pages of a broken one. Returns as [`IoPageTable::map_pages`]; after an error it may be asked for the rest.
    ///
    /// # Errors
    /// [`MapError::OutOfMemory`].
    ///
    /// # Safety
    /// `flushed` is of the gather of the split. Otherwise as [`IoPageTable::map_pages`].
    unsafe fn mend(&self, broken: &mut Broken, flushed: &Flushed) -> Result<(), MapError>;

    /// The page sizes of the table.
    fn page_sizes(&self) -> PageSizes;

    /// First and last I/O address that can be mapped.
    fn aperture(&self) -> (DmaAddr, DmaAddr);

    /// The top of the table.
    fn root(&self) -> Root;

    /// What hardware is told of the table.
    fn registers(&self) -> Registers;

    /// Page frames that the table takes, its top included.
    fn table_pages(&self) -> usize;
}
