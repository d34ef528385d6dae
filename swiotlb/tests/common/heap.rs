//! A machine whose memory is the process's heap, as a kernel's is. Each run of frames is an allocation of its own, so that under
//! AddressSanitizer whoever touches a free one is found. Physical addresses are pointers.
// Each test file uses its part.
#![allow(dead_code, unreachable_pub)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use dma_api::{Device, DeviceBuilder};
use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, DmaAddr, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Platform,
    Window,
};
use swiotlb::{Config, Swiotlb, SwiotlbDma};

const FRAME: usize = 4096;

#[derive(Debug, Default)]
pub struct Heap {
    clock: StdClock,
    /// What is handed out.
    live: Mutex<BTreeMap<u64, Layout>>,
}

impl Heap {
    /// Whether an address is in frames that are handed out.
    pub fn is_live(&self, at: DmaAddr) -> bool {
        let live = self.live.lock().unwrap();
        let run = live.range(..=at.get()).next_back();
        run.is_some_and(|(start, layout)| at.get() - start < layout.size() as u64)
    }
}

/// A device that is trusted and reaches everything, with a pool for what must be copied.
pub fn device(heap: &Arc<Heap>) -> Arc<Device> {
    let platform: Arc<dyn Platform> = heap.clone();
    let config = Config { size: 256 << 10, limit: PhysAddr::new(u64::MAX), ..Config::default() };
    let pool = Swiotlb::new(&platform, &config).unwrap();
    // SAFETY: the device is a function of the test, which touches what it was given.
    let ops = unsafe { SwiotlbDma::new(platform.clone(), Some(Arc::new(pool)), ()) };
    let device = DeviceBuilder::new("0000:00:03.0").build(Arc::new(ops), platform);
    device.set_mask(u64::MAX).unwrap();
    Arc::new(device)
}

/// The word that a device finds at an address, aligned to 8 bytes.
///
/// # Safety
/// The device was given it, and everybody accesses it atomically.
pub unsafe fn device_word<'a>(at: DmaAddr) -> &'a AtomicU64 {
    // SAFETY: the caller's promise; frames are exposed as they are handed out, and the heap as it is translated.
    unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at.get() as usize)) }
}

// SAFETY: each run of frames is an allocation of its own, zeroed, at the address that is its physical one.
unsafe impl Frames for Heap {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let size = request.size.max(1).next_multiple_of(FRAME);
        let layout =
            Layout::from_size_align(size, request.align.max(FRAME)).map_err(|_| OutOfFrames(request))?;
        // SAFETY: the layout has a size.
        let at = unsafe { alloc_zeroed(layout) };
        if at.is_null() {
            return Err(OutOfFrames(request));
        }
        let phys = PhysAddr::new(at.expose_provenance() as u64);
        self.live.lock().unwrap().insert(phys.get(), layout);
        Ok(phys)
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let layout = self.live.lock().unwrap().remove(&at.get()).expect("freed once");
        assert_eq!(layout.size(), size.next_multiple_of(FRAME), "freed as it was allocated");
        // SAFETY: allocated with this layout, and the caller gives it back.
        unsafe { dealloc(self.window().ptr(at), layout) };
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are pointers here, and exposed.
        unsafe { Window::new(0) }
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        Some(Extent { phys: PhysAddr::new(at.expose_provenance() as u64), len })
    }
}

impl CacheMaintenance for Heap {}

impl Clock for Heap {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}
