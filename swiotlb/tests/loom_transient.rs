//! Transient pools come and go while others look addresses up without a lock: each finds its own copy's original, and memory
//! that was given back is never taken for a copy.

#![cfg(loom)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use dma_api::{Attrs, DeviceParms, Direction};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Platform, Window,
};
use swiotlb::{Config, Swiotlb};

const SEGMENT: usize = 256 << 10;
const PAGE: usize = 4096;
const PAGES: usize = 2;

/// A segment for the default pool, and two pages. Physical addresses are pointers.
#[derive(Debug)]
struct Machine {
    ram: NonNull<u8>,
    taken: [AtomicBool; PAGES],
}

// SAFETY: the pointer is the start of RAM, which is reached only by whoever holds the frame.
unsafe impl Send for Machine {}
// SAFETY: as above.
unsafe impl Sync for Machine {}

impl Machine {
    const LAYOUT: Layout = match Layout::from_size_align(SEGMENT + PAGES * PAGE, SEGMENT) {
        Ok(layout) => layout,
        Err(_) => panic!(),
    };

    fn new() -> Self {
        // SAFETY: the layout has a size.
        let ram = NonNull::new(unsafe { alloc_zeroed(Self::LAYOUT) }).expect("memory for RAM");
        ram.as_ptr().expose_provenance();
        Self { ram, taken: [(); PAGES].map(|()| AtomicBool::new(false)) }
    }

    fn page(&self, number: usize) -> PhysAddr {
        PhysAddr::new((self.ram.addr().get() + SEGMENT + number * PAGE) as u64)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and whoever held a frame held the machine.
        unsafe { dealloc(self.ram.as_ptr(), Machine::LAYOUT) };
    }
}

// SAFETY: each frame is handed out once until it is given back, and never moves.
unsafe impl Frames for Machine {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        if request.size == SEGMENT {
            return Ok(PhysAddr::new(self.ram.addr().get() as u64));
        }
        assert_eq!(request.size, PAGE);
        let free = |page: &AtomicBool| {
            page.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        self.taken.iter().position(free).map(|number| self.page(number)).ok_or(OutOfFrames(request))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        if size == PAGE {
            let number = (at.get() - self.page(0).get()) as usize / PAGE;
            self.taken[number].store(false, Ordering::Release);
        }
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are pointers here.
        unsafe { Window::new(0) }
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl CacheMaintenance for Machine {
    fn clean(&self, _at: *const u8, _len: usize) {}
    fn invalidate(&self, _at: *const u8, _len: usize) {}
}

impl Clock for Machine {
    fn now(&self) -> Instant {
        Instant::NEVER
    }
    fn relax(&self) {
        thread::yield_now();
    }
}

/// A pool without a free slot that may have two pages more.
fn full() -> (std::sync::Arc<Machine>, std::sync::Arc<Swiotlb>) {
    let machine = std::sync::Arc::new(Machine::new());
    let platform: std::sync::Arc<dyn Platform> = machine.clone();
    let config = Config {
        size: SEGMENT,
        max_size: SEGMENT + PAGES * PAGE,
        limit: PhysAddr::new(u64::MAX),
        ..Config::default()
    };
    let swiotlb = Swiotlb::new(&platform, &config).unwrap();
    let original: &'static [u8] = &[0; SEGMENT];
    // SAFETY: the device only reads, and the original is never written.
    unsafe {
        let parms = DeviceParms::new(true, false);
        swiotlb.map(&parms, NonNull::from(original).cast(), SEGMENT, 0, Direction::ToDevice, Attrs::empty())
    }
    .unwrap();
    (machine, std::sync::Arc::new(swiotlb))
}

/// A mapping that a device writes to.
fn use_one(swiotlb: &Swiotlb, byte: u8) {
    let parms = DeviceParms::new(true, false);
    let original = NonNull::from(Box::leak(Box::new(0_u64))).cast::<u8>();
    let (dir, attrs) = (Direction::FromDevice, Attrs::empty());
    // SAFETY: the original is freed after the mapping's end.
    let copy = unsafe { swiotlb.map(&parms, original, 8, 0, dir, attrs) }.expect("there are pages for all");
    assert!(swiotlb.contains(copy));
    // SAFETY: the copy is this device's.
    unsafe {
        platform::device_memory::copy_in(
            [byte; 8].as_ptr(),
            std::ptr::with_exposed_provenance_mut(copy.get() as usize),
            8,
        );
    }
    // SAFETY: a live mapping, ended once.
    unsafe { swiotlb.unmap(copy, 8, dir, attrs) };
    // SAFETY: made above, and nobody else's any more.
    let original = unsafe { Box::from_raw(original.cast::<u64>().as_ptr()) };
    assert_eq!(*original, u64::from_ne_bytes([byte; 8]), "copied to somebody else's original");
}

#[test]
fn each_mapping_finds_its_own_original() {
    loom::model(|| {
        let (machine, swiotlb) = full();
        let other = {
            let swiotlb = swiotlb.clone();
            thread::spawn(move || use_one(&swiotlb, 1))
        };
        use_one(&swiotlb, 2);
        other.join().unwrap();
        assert_eq!((swiotlb.statistics().transient_slots, swiotlb.statistics().clamped), (0, 0));
        assert!(machine.taken.iter().all(|taken| !taken.load(Ordering::Relaxed)));
    });
}

#[test]
fn memory_that_was_given_back_is_no_copy() {
    loom::model(|| {
        let (machine, swiotlb) = full();
        let other = {
            let swiotlb = swiotlb.clone();
            thread::spawn(move || use_one(&swiotlb, 1))
        };
        // A driver's own page, which it may map where it is: maybe one that a transient pool has just given back.
        if let Ok(mine) = machine.alloc(FrameRequest::ONE) {
            assert!(!swiotlb.contains(mine), "a sync of it would copy");
        }
        other.join().unwrap();
    });
}
