//! The kernel's heap: blocks of powers of two, each size with a list of its free ones.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;

use platform::sync::Mutex;

const SMALLEST: usize = 16;
/// Larger blocks are aligned to this and no further.
const PAGE: usize = 4096;

struct Heap(Mutex<State>);

struct State {
    next: usize,
    end: usize,
    /// By the logarithm of the size: the first free block, whose first word is the address of the next, or 0.
    free: [usize; usize::BITS as usize],
}

#[global_allocator]
static HEAP: Heap = Heap(Mutex::new(State { next: 0, end: 0, free: [0; usize::BITS as usize] }));

/// Gives the heap its memory.
///
/// # Safety
/// The range is RAM and nobody else's, for ever.
pub(super) unsafe fn init(start: u64, len: u64) {
    let mut state = HEAP.0.lock();
    (state.next, state.end) = (start as usize, (start + len) as usize);
}

/// The size of the block for a layout.
fn block(layout: Layout) -> usize {
    layout.size().max(layout.align()).max(SMALLEST).next_power_of_two()
}

// SAFETY: a block is on one list or handed out, is as long as it must be, and is aligned to its size or to a page.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > PAGE {
            return null_mut();
        }
        let size = block(layout);
        let mut state = self.0.lock();
        let list = size.trailing_zeros() as usize;
        let first = state.free[list];
        if first != 0 {
            let first = core::ptr::with_exposed_provenance_mut::<usize>(first);
            // SAFETY: a free block, whose first word is this list's.
            state.free[list] = unsafe { first.read() };
            return first.cast();
        }
        let at = state.next.next_multiple_of(size.min(PAGE));
        if state.end.saturating_sub(at) < size {
            return null_mut();
        }
        state.next = at + size;
        core::ptr::with_exposed_provenance_mut(at)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let mut state = self.0.lock();
        let list = block(layout).trailing_zeros() as usize;
        // SAFETY: the block is this heap's again.
        unsafe { at.cast::<usize>().write(state.free[list]) };
        state.free[list] = at.expose_provenance();
    }
}
