//! What every I/O page table can do.

use core::fmt;

use platform::{DmaAddr, Extent, IotlbGather, MapError, PageSizes, PhysAddr, Prot};

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

    /// The page sizes of the format.
    fn page_sizes(&self) -> PageSizes;

    /// First and last I/O address that can be mapped.
    fn aperture(&self) -> (DmaAddr, DmaAddr);

    /// The top of the table.
    fn root(&self) -> Root;

    /// Page frames that the table takes, its top included.
    fn table_pages(&self) -> usize;
}
