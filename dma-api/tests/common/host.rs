//! A machine's memory: 64 MiB at physical addresses on both sides of 2 GiB, so that a mask of 31 bits reaches half of it. The
//! process's heap is not part of it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};

pub const BASE: u64 = 0x7e00_0000;
pub const SIZE: u64 = 64 << 20;
/// Reaches the lower half of the memory.
pub const LOW: u64 = 0x7fff_ffff;

const PAGE: u64 = 4096;
/// What freed memory is filled with.
const FREED: u8 = 0xf4;

/// What was asked of the caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    Clean { phys: u64, len: usize },
    Invalidate { phys: u64, len: usize },
}

#[derive(Debug)]
pub struct Host {
    memory: NonNull<u8>,
    clock: StdClock,
    /// Physical start and bytes of what is handed out.
    live: Mutex<BTreeMap<u64, u64>>,
    /// No more memory for anybody.
    pub exhausted: AtomicBool,
    /// Translations end at pages, as if memory were contiguous no further.
    pub scattered: AtomicBool,
    cache: Mutex<Vec<Cache>>,
}

// SAFETY: the pointer is to memory of this value's own, which is reached atomically or by whoever was handed it.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

fn layout() -> Layout {
    Layout::from_size_align(SIZE as usize, 1 << 20).unwrap()
}

impl Host {
    pub fn new() -> Self {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout()) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout()));
        memory.as_ptr().expose_provenance();
        Self {
            memory,
            clock: StdClock::new(),
            live: Mutex::default(),
            exhausted: AtomicBool::new(false),
            scattered: AtomicBool::new(false),
            cache: Mutex::default(),
        }
    }

    /// Bytes handed out.
    pub fn live(&self) -> u64 {
        self.live.lock().unwrap().values().sum()
    }

    /// What was asked of the caches since the last call.
    pub fn take_cache(&self) -> Vec<Cache> {
        std::mem::take(&mut self.cache.lock().unwrap())
    }

    /// What a device does at a physical address.
    pub fn device_write(&self, at: PhysAddr, bytes: &[u8]) {
        assert!(
            at.get() >= BASE && at.get() + bytes.len() as u64 <= BASE + SIZE,
            "a device wrote beside RAM"
        );
        // SAFETY: the range is in this machine's memory; tests write only where nothing holds a reference.
        unsafe { platform::device_memory::copy_in(bytes.as_ptr(), self.window().ptr(at), bytes.len()) };
    }

    /// What a device finds at a physical address.
    pub fn device_read(&self, at: PhysAddr, len: usize) -> Vec<u8> {
        assert!(at.get() >= BASE && at.get() + len as u64 <= BASE + SIZE, "a device read beside RAM");
        let mut bytes = vec![0; len];
        // SAFETY: the range is in this machine's memory; tests read only where nobody writes.
        unsafe { platform::device_memory::copy_out(self.window().ptr(at), bytes.as_mut_ptr(), len) };
        bytes
    }
}

// SAFETY: a range is handed out once at a time, zeroed, of memory that lives as long as `self` at the window's distance.
unsafe impl Frames for Host {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let size = (request.size.max(1) as u64).next_multiple_of(PAGE);
        let align = (request.align as u64).max(PAGE);
        let mut live = self.live.lock().unwrap();
        let mut top = request.limit.get().saturating_add(1).min(BASE + SIZE);
        let mut found = None;
        // The highest that fits, so that low memory stays for devices that need it.
        for end in live.iter().rev().map(|(start, len)| (*start, start + len)).chain([(0, BASE)]) {
            let at = top.saturating_sub(size) & !(align - 1);
            if at >= end.1 {
                found = Some(at);
                break;
            }
            top = top.min(end.0);
        }
        match found {
            Some(at) if !self.exhausted.load(Ordering::Relaxed) => {
                live.insert(at, size);
                // SAFETY: the range is memory that nobody has.
                unsafe { self.window().ptr(PhysAddr::new(at)).write_bytes(0, size as usize) };
                Ok(PhysAddr::new(at))
            }
            _ => Err(OutOfFrames(request)),
        }
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let size = (size.max(1) as u64).next_multiple_of(PAGE);
        // SAFETY: the caller gives the range back.
        unsafe { self.window().ptr(at).write_bytes(FREED, size as usize) };
        assert_eq!(
            self.live.lock().unwrap().remove(&at.get()),
            Some(size),
            "freed once, as it was allocated"
        );
    }

    fn window(&self) -> Window {
        // SAFETY: all memory is one allocation at this distance, with its address exposed.
        unsafe { Window::new(self.memory.as_ptr().addr().wrapping_sub(BASE as usize)) }
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        let phys = self.window().phys(at);
        let left = (BASE + SIZE).checked_sub(phys.get()).filter(|&left| left != 0 && left <= SIZE)?;
        let page = if self.scattered.load(Ordering::Relaxed) { PAGE - phys.offset_in(PAGE) } else { left };
        Some(Extent { phys, len: len.min(left.min(page) as usize) })
    }

    fn last(&self) -> PhysAddr {
        PhysAddr::new(BASE + SIZE - 1)
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

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; whoever has a part of it holds this value.
        unsafe { dealloc(self.memory.as_ptr(), layout()) };
    }
}
