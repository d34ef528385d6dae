//! The memory of this process as the machine's RAM.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;

use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};

/// How far above its physical address the CPU sees memory, so that neither address works as the other.
const WINDOW: usize = 0x10_0000_0000;
const FRAME: usize = 4096;

#[derive(Debug)]
pub struct Memory {
    clock: StdClock,
    /// Physical start and size of each allocation.
    live: Mutex<BTreeMap<u64, usize>>,
}

impl Memory {
    pub fn new() -> Self {
        Self { clock: StdClock::new(), live: Mutex::default() }
    }

    /// Bytes handed out.
    pub fn live(&self) -> usize {
        self.live.lock().unwrap().values().sum()
    }

    /// Whether all of a range lies in one allocation.
    pub fn has(&self, at: PhysAddr, len: usize) -> bool {
        let live = self.live.lock().unwrap();
        let found = live.range(..=at.get()).next_back();
        found.is_some_and(|(start, size)| at.get() + len as u64 <= start + *size as u64)
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size.next_multiple_of(FRAME), FRAME).unwrap()
    }
}

// SAFETY: every allocation is zeroed heap memory of its own with exposed provenance, at the window's distance from its
// physical address; memory of this process is where it says that it is.
unsafe impl Frames for Memory {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        assert!(request.align <= FRAME);
        let layout = Self::layout(request.size);
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        let phys = (memory.expose_provenance() - WINDOW) as u64;
        self.live.lock().unwrap().insert(phys, layout.size());
        Ok(PhysAddr::new(phys))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let layout = Self::layout(size);
        let freed = self.live.lock().unwrap().remove(&at.get());
        assert_eq!(freed, Some(layout.size()), "freed once, as it was allocated");
        // SAFETY: the block came from `alloc` with this layout, and is not in the map any more.
        unsafe { dealloc(self.window().ptr(at), layout) };
    }

    fn window(&self) -> Window {
        // SAFETY: `alloc` makes physical addresses at this distance.
        unsafe { Window::new(WINDOW) }
    }

    /// The heap is RAM, as a kernel's is.
    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        at.expose_provenance();
        Some(Extent { phys: self.window().phys(at), len })
    }
}

impl CacheMaintenance for Memory {}

impl Clock for Memory {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}
