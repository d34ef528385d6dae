//! RAM from the heap, seen through a window that is not the identity: an address taken for the other kind does not work.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};

/// How far above its physical address the CPU sees memory.
const WINDOW: usize = 0x10_0000_0000;

#[derive(Debug)]
pub struct Host {
    clock: StdClock,
    /// Physical start of what is handed out, and how it was allocated.
    live: Mutex<BTreeMap<u64, Layout>>,
    /// No more memory for anybody.
    pub exhausted: AtomicBool,
    /// The longest piece of contiguous memory that there is.
    pub longest: AtomicUsize,
    cache: Mutex<Vec<Cache>>,
}

/// What was asked of the caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    Clean { phys: u64, len: usize },
    Invalidate { phys: u64, len: usize },
}

impl Host {
    pub fn new() -> Self {
        Self {
            clock: StdClock::new(),
            live: Mutex::default(),
            exhausted: AtomicBool::new(false),
            longest: AtomicUsize::new(usize::MAX),
            cache: Mutex::default(),
        }
    }

    /// What was asked of the caches since the last call.
    pub fn take_cache(&self) -> Vec<Cache> {
        std::mem::take(&mut self.cache.lock().unwrap())
    }

    /// Bytes handed out.
    pub fn live(&self) -> usize {
        self.live.lock().unwrap().values().map(Layout::size).sum()
    }

    /// Page-aligned RAM for a test.
    pub fn memory(self: &std::sync::Arc<Self>, len: usize) -> Memory {
        let phys = self.alloc(FrameRequest::anywhere(len)).unwrap();
        Memory { host: self.clone(), phys, len }
    }

    /// What a device does when its IOMMU leads it here.
    pub fn device_write(&self, at: u64, bytes: &[u8]) {
        // SAFETY: tests write only to memory that they hold or that the stack has mapped for them.
        unsafe {
            let to = self.window().ptr(PhysAddr::new(at));
            platform::device_memory::copy_in(bytes.as_ptr(), to, bytes.len());
        }
    }

    pub fn device_read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: as in `device_write`.
        unsafe {
            let from = self.window().ptr(PhysAddr::new(at));
            platform::device_memory::copy_out(from, bytes.as_mut_ptr(), len);
        }
        bytes
    }
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size.next_multiple_of(4096), align.max(4096)).unwrap()
}

// SAFETY: every allocation is zeroed heap memory of its own with exposed provenance, at the window's distance from its
// physical address.
unsafe impl Frames for Host {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        if self.exhausted.load(Ordering::Relaxed) || request.size > self.longest.load(Ordering::Relaxed) {
            return Err(OutOfFrames(request));
        }
        let layout = layout(request.size, request.align);
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        let phys = (memory.expose_provenance() - WINDOW) as u64;
        self.live.lock().unwrap().insert(phys, layout);
        Ok(PhysAddr::new(phys))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let layout = self.live.lock().unwrap().remove(&at.get()).expect("freed once");
        assert_eq!(layout.size(), size.next_multiple_of(4096), "freed as it was allocated");
        // SAFETY: the block came from `alloc` with this layout, and is not in the map any more.
        unsafe { dealloc(self.window().ptr(at), layout) };
    }

    fn window(&self) -> Window {
        // SAFETY: `alloc` makes physical addresses at this distance.
        unsafe { Window::new(WINDOW) }
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        let phys = self.window().phys(at);
        let live = self.live.lock().unwrap();
        let (start, layout) = live.range(..=phys.get()).next_back()?;
        let left = (start + layout.size() as u64).checked_sub(phys.get()).filter(|&left| left != 0)?;
        Some(Extent { phys, len: len.min(left as usize) })
    }
}

impl CacheMaintenance for Host {
    fn clean(&self, at: *const u8, len: usize) {
        let phys = self.window().phys(at).get();
        self.cache.lock().unwrap().push(Cache::Clean { phys, len });
    }

    fn invalidate(&self, at: *const u8, len: usize) {
        let phys = self.window().phys(at).get();
        self.cache.lock().unwrap().push(Cache::Invalidate { phys, len });
    }
}

impl Clock for Host {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}

/// RAM of a test, given back when dropped.
#[derive(Debug)]
pub struct Memory {
    host: std::sync::Arc<Host>,
    phys: PhysAddr,
    len: usize,
}

impl Memory {
    pub fn phys(&self) -> u64 {
        self.phys.get()
    }

    pub fn ptr(&self) -> std::ptr::NonNull<u8> {
        std::ptr::NonNull::new(self.host.window().ptr(self.phys)).unwrap()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: taken by `memory`, freed once; the test ended its mappings.
        unsafe { self.host.free(self.phys, self.len) };
    }
}
