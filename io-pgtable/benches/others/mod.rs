//! Page tables of other crates, each with the operations that it has. They are a CPU's: one owner at a time, no table freed by an
//! unmap, and the formats are theirs.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::{NonNull, with_exposed_provenance_mut};

use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes};
use aarch64_paging::paging::{Constraints, MemoryRegion, PageTable, RootTable, Stage2, Translation};
use page_table_multiarch::x86_64::X64PageTable;
use page_table_multiarch::{MappingFlags, PageSize, PagingHandler};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTableFlags, PhysFrame, Size4KiB,
};

use crate::{KIB4, PHYS, Subject};

const FRAME: Layout = match Layout::from_size_align(4096, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a frame's layout"),
};

/// A zeroed frame, whose physical address is its pointer.
fn frame() -> usize {
    // SAFETY: a frame is not empty.
    let at = unsafe { alloc_zeroed(FRAME) };
    assert!(!at.is_null());
    at.expose_provenance()
}

/// # Safety
/// The frame came from [`frame`], and nobody uses it.
unsafe fn free(at: usize) {
    // SAFETY: the caller's promise.
    unsafe { dealloc(with_exposed_provenance_mut(at), FRAME) };
}

pub(crate) struct Multiarch(X64PageTable<Heap>);

struct Heap;

impl PagingHandler for Heap {
    fn alloc_frames(num: usize, _align: usize) -> Option<memory_addr::PhysAddr> {
        (num == 1).then(|| frame().into())
    }

    fn dealloc_frames(at: memory_addr::PhysAddr, _num: usize) {
        // SAFETY: the table gives back what it got.
        unsafe { free(at.as_usize()) };
    }

    fn phys_to_virt(at: memory_addr::PhysAddr) -> memory_addr::VirtAddr {
        at.as_usize().into()
    }
}

impl Multiarch {
    pub(crate) fn new() -> Self {
        Self(X64PageTable::try_new().expect("memory"))
    }
}

impl Subject for Multiarch {
    fn map(&mut self, iova: u64, page_size: u64, count: usize) {
        assert_eq!(page_size, KIB4);
        let (at, flags) = ((iova as usize).into(), MappingFlags::READ | MappingFlags::WRITE);
        let phys = |page: memory_addr::VirtAddr| (page.as_usize() - iova as usize + PHYS as usize).into();
        let mut cursor = self.0.cursor();
        let result = if count == 1 {
            cursor.map(at, phys(at), PageSize::Size4K, flags)
        } else {
            cursor.map_region(at, phys, count << 12, flags, false)
        };
        assert_eq!(result, Ok(()));
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        let at = (iova as usize).into();
        let mut cursor = self.0.cursor();
        if len == KIB4 {
            assert!(cursor.unmap(at).is_ok());
        } else {
            assert_eq!(cursor.unmap_region(at, len as usize), Ok(()));
        }
    }
}

/// One page a call.
pub(crate) struct X86(OffsetPageTable<'static>);

struct HeapFrames;

// SAFETY: each frame is handed out once.
unsafe impl FrameAllocator<Size4KiB> for HeapFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        PhysFrame::from_start_address(x86_64::PhysAddr::new(frame() as u64)).ok()
    }
}

impl X86 {
    pub(crate) fn new() -> Self {
        // SAFETY: a zeroed frame is an empty table, and never freed.
        let top = unsafe { &mut *with_exposed_provenance_mut(frame()) };
        // SAFETY: physical addresses are pointers here.
        Self(unsafe { OffsetPageTable::new(top, x86_64::VirtAddr::zero()) })
    }

    fn page(iova: u64) -> Page<Size4KiB> {
        Page::from_start_address(x86_64::VirtAddr::new(iova)).expect("a page's address")
    }
}

impl Subject for X86 {
    fn map(&mut self, iova: u64, page_size: u64, count: usize) {
        assert_eq!(page_size, KIB4);
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        for offset in (0..count as u64).map(|n| n * KIB4) {
            let frame = PhysFrame::from_start_address(x86_64::PhysAddr::new(PHYS + offset)).expect("aligned");
            // SAFETY: no processor uses the table.
            let mapped = unsafe { self.0.map_to(Self::page(iova + offset), frame, flags, &mut HeapFrames) };
            mapped.expect("not mapped before").ignore();
        }
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        for at in (iova..iova + len).step_by(4096) {
            self.0.unmap(Self::page(at)).expect("mapped before").1.ignore();
        }
    }
}

/// It overwrites what is there.
pub(crate) struct Aarch64(RootTable<Stage2, Identity>);

struct Identity;

impl Translation<Stage2Attributes> for Identity {
    fn allocate_table(&mut self) -> (NonNull<PageTable<Stage2Attributes>>, PhysicalAddress) {
        let at = frame();
        (self.physical_to_virtual(PhysicalAddress(at)), PhysicalAddress(at))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<Stage2Attributes>>) {
        // SAFETY: the table came from `allocate_table`.
        unsafe { free(table.addr().get()) };
    }

    fn physical_to_virtual(&self, at: PhysicalAddress) -> NonNull<PageTable<Stage2Attributes>> {
        NonNull::new(with_exposed_provenance_mut(at.0)).expect("a frame")
    }
}

impl Aarch64 {
    pub(crate) fn new() -> Self {
        Self(RootTable::new(Identity, 0, Stage2))
    }

    fn set(&mut self, iova: u64, len: u64, attributes: Stage2Attributes) {
        let region = MemoryRegion::new(iova as usize, (iova + len) as usize);
        let pages = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
        let result = self.0.map_range(&region, PhysicalAddress(PHYS as usize), attributes, pages);
        assert_eq!(result, Ok(()));
    }
}

impl Subject for Aarch64 {
    fn map(&mut self, iova: u64, page_size: u64, count: usize) {
        let attributes = Stage2Attributes::VALID
            | Stage2Attributes::S2AP_ACCESS_RW
            | Stage2Attributes::SH_INNER
            | Stage2Attributes::ACCESS_FLAG;
        self.set(iova, page_size * count as u64, attributes);
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        self.set(iova, len, Stage2Attributes::empty());
    }
}
