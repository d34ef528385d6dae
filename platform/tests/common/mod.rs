//! Frames from the process's heap: physical addresses are pointers.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicUsize, Ordering};

use platform::{Extent, FrameRequest, Frames, OutOfFrames, PhysAddr, Window};

/// A frame allocator over the heap that counts what is out.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    live: AtomicUsize,
}

impl Heap {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size.next_multiple_of(4096), 4096).expect("a page-aligned layout")
}

// SAFETY: every frame is zeroed heap memory of its own, with its address exposed; the window is the identity.
unsafe impl Frames for Heap {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        if request.align > 4096 {
            return Err(OutOfFrames(request));
        }
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc_zeroed(layout(request.size.max(1))) };
        if at.is_null() {
            return Err(OutOfFrames(request));
        }
        self.live.fetch_add(1, Ordering::SeqCst);
        Ok(PhysAddr::new(at.expose_provenance() as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        self.live.fetch_sub(1, Ordering::SeqCst);
        // SAFETY: the caller gives back what `alloc` made, with its size.
        unsafe { dealloc(self.window().ptr(at), layout(size.max(1))) };
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are pointers.
        unsafe { Window::new(0) }
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        Some(Extent { phys: PhysAddr::new(at.addr() as u64), len })
    }
}
