//! Coherent memory of frames that lie anywhere, which the CPU sees in one piece (Linux: `iommu_dma_alloc_remap`).

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{Knobs, NIC, Toy, endpoint, topology};
use dma_api::{Attrs, CoherentSlice, Device, DmaError};
use iommu_core::{Iommu, Settings};
use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Platform, Window,
};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

const PAGE: usize = 4096;
const PAGES: usize = 64;
/// What the first page calls itself.
const FIRST: u64 = 0x10_0000;

/// Memory of which no two free pages are neighbours: a file, so that a page can be seen in two places.
#[derive(Debug)]
struct Scattered {
    file: File,
    base: usize,
    free: Mutex<Vec<u64>>,
    again: Mutex<BTreeMap<usize, Vec<u64>>>,
    /// No memory is shown in one piece.
    apart: AtomicBool,
    clock: StdClock,
}

impl Scattered {
    fn new() -> Self {
        let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len((PAGES * PAGE) as u64).unwrap();
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice, which stays as long as the process.
        let base = unsafe { mmap(std::ptr::null_mut(), PAGES * PAGE, prot, flags, &file, 0) }.unwrap();
        let free = (0..PAGES as u64).step_by(2).map(|page| FIRST + page * PAGE as u64).collect();
        Self {
            file,
            base: base.expose_provenance(),
            free: Mutex::new(free),
            again: Mutex::default(),
            apart: AtomicBool::new(false),
            clock: StdClock::new(),
        }
    }

    fn free_pages(&self) -> usize {
        self.free.lock().unwrap().len()
    }
}

// SAFETY: each page is handed out once, zeroed, and seen at the window's distance.
unsafe impl Frames for Scattered {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let page = if request.size > PAGE { None } else { self.free.lock().unwrap().pop() };
        let phys = page.map(PhysAddr::new).ok_or(OutOfFrames(request))?;
        // SAFETY: the page is nobody's.
        unsafe { self.window().ptr(phys).write_bytes(0, PAGE) };
        Ok(phys)
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        assert!(size <= PAGE);
        self.free.lock().unwrap().push(at.get());
    }

    fn window(&self) -> Window {
        // SAFETY: the mapping stays, with its address exposed.
        unsafe { Window::new(self.base - FIRST as usize) }
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        let again = self.again.lock().unwrap();
        if let Some((base, pages)) = again.range(..=at.addr()).next_back()
            && let Some(page) = pages.get((at.addr() - base) / PAGE)
        {
            let offset = at.addr() % PAGE;
            return Some(Extent { phys: PhysAddr::new(page + offset as u64), len: len.min(PAGE - offset) });
        }
        let offset = at.addr().checked_sub(self.base).filter(|offset| *offset < PAGES * PAGE)?;
        Some(Extent { phys: PhysAddr::new(FIRST + offset as u64), len: len.min(PAGES * PAGE - offset) })
    }

    unsafe fn vmap(&self, pieces: &[(PhysAddr, usize)]) -> Option<NonNull<u8>> {
        if self.apart.load(Ordering::Relaxed) {
            return None;
        }
        let len = pieces.len() * PAGE;
        // SAFETY: new addresses of the kernel's choice.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE) };
        let base = base.unwrap();
        for (index, (phys, len)) in pieces.iter().enumerate() {
            assert_eq!(*len, PAGE);
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
            let at = base.wrapping_byte_add(index * PAGE);
            // SAFETY: in the addresses that were taken just now.
            unsafe { mmap(at, PAGE, prot, flags, &self.file, phys.get() - FIRST) }.unwrap();
        }
        let pages = pieces.iter().map(|(phys, _)| phys.get()).collect();
        self.again.lock().unwrap().insert(base.expose_provenance(), pages);
        NonNull::new(base.cast())
    }

    unsafe fn vunmap(&self, at: NonNull<u8>, size: usize) {
        let pages = self.again.lock().unwrap().remove(&at.addr().get()).expect("ended once");
        assert_eq!(size, pages.len() * PAGE);
        // SAFETY: the caller's promise: nobody uses it any more.
        unsafe { munmap(at.as_ptr().cast(), size) }.unwrap();
    }
}

impl CacheMaintenance for Scattered {}

impl Clock for Scattered {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}

/// A device on a machine without two free pages side by side, and its group's domain asked where an address leads.
fn boot(settings: Settings) -> (Arc<Scattered>, Arc<Toy>, Iommu, Arc<Device>) {
    let memory = Arc::new(Scattered::new());
    let platform: Arc<dyn Platform> = memory.clone();
    let toy = Arc::new(Toy::new(Knobs::default()));
    let iommu = Iommu::new(platform, settings, None);
    iommu.register(toy.clone());
    iommu.probe(&topology([endpoint(NIC)]), |_| false).unwrap();
    let group = iommu.group_of(NIC).unwrap();
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    let device = unsafe { group.bind_trusted(NIC) }.unwrap();
    (memory, toy, iommu, Arc::new(device))
}

#[test]
fn scattered_pages_are_one_piece_for_the_cpu_and_for_the_device() {
    for lazy in [false, true] {
        let (memory, _toy, iommu, device) = boot(Settings { lazy, ..Settings::default() });
        let free = memory.free_pages();
        let ring = CoherentSlice::<u64>::zeroed(&device, 2048).unwrap();
        assert_eq!(memory.free_pages(), free - 4, "page by page");
        for index in [0, 511, 512, 1024, 2047] {
            ring.write(index, 0x1000 + index as u64);
            let domain = iommu.group_of(NIC).unwrap().domain().unwrap();
            let phys = domain.iova_to_phys(ring.dma_address().wrapping_add(8 * index as u64)).unwrap();
            // SAFETY: the device's way to a word of the ring, which nobody writes meanwhile.
            let word = unsafe { memory.window().ptr(phys).cast::<u64>().read_volatile() };
            assert_eq!(word, 0x1000 + index as u64);
        }
        let pieces = ring.sg_table().unwrap();
        let domain = iommu.group_of(NIC).unwrap().domain().unwrap();
        let at = ring.dma_address();
        let pages = (0..4).map(|page| domain.iova_to_phys(at.wrapping_add(page * PAGE as u64)).unwrap());
        assert_eq!(pieces.iter().map(|piece| piece.phys).collect::<Vec<_>>(), pages.collect::<Vec<_>>());
        drop(ring);
        assert_eq!(iommu.group_of(NIC).unwrap().domain().unwrap().iova_to_phys(at), None);
        assert_eq!(memory.free_pages(), free, "each page came back");
        assert!(memory.again.lock().unwrap().is_empty(), "the CPU sees them no more");
    }
}

#[test]
fn without_a_way_to_show_them_or_where_they_must_be_contiguous_nothing_is_taken() {
    let (memory, _toy, _iommu, device) = boot(Settings::default());
    let free = memory.free_pages();
    assert_eq!(device.alloc_coherent(4 * PAGE, Attrs::FORCE_CONTIGUOUS).unwrap_err(), DmaError::OutOfMemory);
    assert_eq!(device.alloc_coherent((PAGES + 1) * PAGE, Attrs::empty()).unwrap_err(), DmaError::OutOfMemory);
    memory.apart.store(true, Ordering::Relaxed);
    assert_eq!(device.alloc_coherent(4 * PAGE, Attrs::empty()).unwrap_err(), DmaError::OutOfMemory);
    assert_eq!(memory.free_pages(), free);
}
