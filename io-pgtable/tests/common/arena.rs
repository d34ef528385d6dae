//! Page frames at physical addresses from 1 GiB on, handed out from the lowest. Free frames hold a pattern, so that a write
//! to one, and a table that leads to one, is found.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use platform::{Extent, FrameRequest, Frames, OutOfFrames, PhysAddr, Window};

const FRAME: usize = 4096;
/// Physical address of the first frame.
pub(crate) const BASE: u64 = 0x4000_0000;
/// What free frames hold.
const POISON: u64 = 0xdead_dead_dead_dead;

/// A machine with `count` page frames and nothing else.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: *mut u8,
    count: usize,
    free: Mutex<BTreeSet<usize>>,
}

// SAFETY: the memory is only reached as atomic words.
unsafe impl Send for Arena {}
// SAFETY: as above; what is free is behind a lock.
unsafe impl Sync for Arena {}

#[allow(dead_code, reason = "not every test asks for everything")]
impl Arena {
    pub(crate) fn new(count: usize) -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout(count)) };
        assert!(!memory.is_null());
        memory.expose_provenance();
        let arena = Self { memory, count, free: Mutex::new((0..count).collect()) };
        (0..count).for_each(|frame| arena.fill(frame, POISON));
        arena
    }

    /// Frames handed out.
    pub(crate) fn live(&self) -> usize {
        self.count - self.free.lock().unwrap().len()
    }

    /// The word at a physical address, as hardware reads it. Panics where no frame is handed out.
    pub(crate) fn read(&self, at: u64) -> u64 {
        let frame = at.checked_sub(BASE).expect("an address of the arena") as usize / FRAME;
        assert!(frame < self.count && at.is_multiple_of(8), "{at:#x} is no word of the arena");
        let word = self.words(frame)[at as usize % FRAME / 8].load(Ordering::Acquire);
        assert_ne!(word, POISON, "{at:#x} is in a free frame");
        word
    }

    /// Every word of the frames in use that is not zero, by address.
    pub(crate) fn non_zero(&self) -> Vec<(u64, u64)> {
        let free = self.free.lock().unwrap();
        let used = (0..self.count).filter(|frame| !free.contains(frame));
        let words = used.flat_map(|frame| {
            let at = BASE + (frame * FRAME) as u64;
            (at..).step_by(8).zip(self.words(frame)).map(|(at, word)| (at, word.load(Ordering::Acquire)))
        });
        words.filter(|(_, word)| *word != 0).collect()
    }

    fn words(&self, frame: usize) -> &[AtomicU64] {
        assert!(frame < self.count);
        // SAFETY: the frame is in the arena's memory, which lives as long as `self`, and everybody uses atomics.
        unsafe { std::slice::from_raw_parts(self.memory.add(frame * FRAME).cast(), FRAME / 8) }
    }

    fn fill(&self, frame: usize, value: u64) {
        self.words(frame).iter().for_each(|word| word.store(value, Ordering::Relaxed));
    }

    fn assert_poisoned(&self, frame: usize) {
        let untouched = self.words(frame).iter().all(|word| word.load(Ordering::Relaxed) == POISON);
        assert!(untouched, "frame {frame} was written while it was free");
    }
}

fn layout(count: usize) -> Layout {
    Layout::from_size_align(count * FRAME, FRAME).expect("a layout of whole frames")
}

// SAFETY: a frame that is handed out is out of the free set, zeroed, and inside memory that lives as long as the arena.
unsafe impl Frames for Arena {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        assert_eq!(request, FrameRequest::ONE, "tables here are single frames");
        let frame = self.free.lock().unwrap().pop_first().ok_or(OutOfFrames(request))?;
        self.assert_poisoned(frame);
        self.fill(frame, 0);
        Ok(PhysAddr::new(BASE + (frame * FRAME) as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        assert_eq!(size, FRAME);
        let frame = (at.get() - BASE) as usize / FRAME;
        self.fill(frame, POISON);
        assert!(self.free.lock().unwrap().insert(frame), "{at} is freed twice");
    }

    fn window(&self) -> Window {
        // SAFETY: frame n is at `BASE + n * FRAME` and at `memory + n * FRAME`.
        unsafe { Window::new(self.memory.addr().wrapping_sub(BASE as usize)) }
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let free = self.free.lock().unwrap();
            free.iter().for_each(|frame| self.assert_poisoned(*frame));
        }
        // SAFETY: `new` made it with this layout, and nobody holds a frame of an arena that is gone.
        unsafe { dealloc(self.memory, layout(self.count)) };
    }
}
