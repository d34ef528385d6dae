//! Page frames from the heap, given out again as soon as they are back, zeroed.

use std::alloc::{Layout, alloc, dealloc};
use std::sync::Mutex;

use platform::{Extent, FrameRequest, Frames, OutOfFrames, PhysAddr, Window};

/// Frames of one size wait here; others go to the heap at once.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<PhysAddr>>,
}

const FRAME: usize = 4096;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, size.next_power_of_two().max(FRAME)).expect("a frame's layout")
}

// SAFETY: frames are allocations of their own, aligned to their size and zeroed, and physical addresses are pointers.
unsafe impl Frames for Pool {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let waiting = if request.size == FRAME { self.free.lock().expect("no panics").pop() } else { None };
        let at = match waiting {
            Some(at) => self.window().ptr(at),
            // SAFETY: a frame is not empty.
            None => unsafe { alloc(layout(request.size)) },
        };
        assert!(!at.is_null());
        // SAFETY: the frame is ours alone.
        unsafe { at.write_bytes(0, request.size) };
        Ok(PhysAddr::new(at.expose_provenance() as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        if size == FRAME {
            self.free.lock().expect("no panics").push(at);
        } else {
            // SAFETY: the caller gives back what `alloc` returned, once.
            unsafe { dealloc(self.window().ptr(at), layout(size)) };
        }
    }

    fn window(&self) -> Window {
        window()
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for at in self.free.get_mut().expect("no panics").drain(..) {
            // SAFETY: nobody holds a free frame, and each was made with this layout.
            unsafe { dealloc(Window::ptr(window(), at), layout(FRAME)) };
        }
    }
}

fn window() -> Window {
    // SAFETY: physical addresses are pointers here.
    unsafe { Window::new(0) }
}
