//! Page frames: a bit for each, and memory that is seen where it is.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use platform::frames::FRAME_SIZE;
use platform::sync::Mutex;
use platform::{Extent, FrameRequest, OutOfFrames, PhysAddr, Window};

const FRAME: u64 = FRAME_SIZE as u64;

/// A range of RAM in frames.
pub(super) struct PageFrames {
    first: u64,
    count: usize,
    window: Window,
    state: Mutex<State>,
}

struct State {
    /// A bit for each frame: whether it is somebody's.
    taken: Vec<u64>,
    /// Where the last search ended.
    next: usize,
}

impl PageFrames {
    /// The frames at or above `free`, of a stretch of RAM all of which is seen at its physical address.
    ///
    /// # Safety
    /// From `free` on it is nobody else's, for ever.
    pub(super) unsafe fn new(ram: Range<u64>, free: u64) -> Self {
        let first = free.next_multiple_of(FRAME);
        let count = (ram.end.saturating_sub(first) / FRAME) as usize;
        // SAFETY: the first 4 GiB are mapped as they are, and the range is RAM.
        let window =
            unsafe { Window::new(0).with_ram(PhysAddr::new(ram.start), (ram.end - ram.start) as usize) };
        let state = State { taken: vec![0; count.div_ceil(64)], next: 0 };
        Self { first, count, window, state: Mutex::new(state) }
    }

    /// As `Frames::alloc`.
    pub(super) fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let error = OutOfFrames(request);
        let frames = request.size.max(1).div_ceil(FRAME_SIZE);
        let align = (request.align as u64).max(FRAME);
        let fits = |at: usize| {
            let start = self.first + at as u64 * FRAME;
            let last = start.checked_add((frames as u64 * FRAME) - 1)?;
            (at + frames <= self.count && start.is_multiple_of(align) && last <= request.limit.get())
                .then_some(start)
        };
        let mut state = self.state.lock();
        let State { taken, next } = &mut *state;
        let search = |range: Range<usize>| {
            let mut at = range.start;
            while at < range.end {
                match (at..at + frames).rev().find(|&frame| frame >= self.count || is_set(taken, frame)) {
                    Some(taken) => at = taken + 1,
                    None if fits(at).is_some() => return Some(at),
                    None => at += 1,
                }
            }
            None
        };
        let at = search(*next..self.count).or_else(|| search(0..self.count)).ok_or(error)?;
        let start = fits(at).ok_or(error)?;
        (at..at + frames).for_each(|frame| taken[frame / 64] |= 1 << (frame % 64));
        *next = at + frames;
        drop(state);
        let memory = self.window.ptr(PhysAddr::new(start));
        // SAFETY: RAM that was free and is now whoever asked's.
        unsafe { memory.write_bytes(0, frames * FRAME_SIZE) };
        Ok(PhysAddr::new(start))
    }

    /// As `Frames::free`.
    pub(super) fn free(&self, at: PhysAddr, size: usize) {
        let first = ((at.get() - self.first) / FRAME) as usize;
        let mut state = self.state.lock();
        for frame in first..first + size.max(1).div_ceil(FRAME_SIZE) {
            state.taken[frame / 64] &= !(1 << (frame % 64));
        }
    }

    /// As `Frames::window`. It knows all of RAM, so [`PageFrames::translate`] has nothing to add.
    pub(super) fn window(&self) -> Window {
        self.window
    }

    /// As `Frames::translate`.
    pub(super) fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }

    /// As `Frames::last`.
    pub(super) fn last(&self) -> PhysAddr {
        PhysAddr::new(self.first + self.count as u64 * FRAME - 1)
    }

    /// How many frames are somebody's.
    pub(super) fn in_use(&self) -> u32 {
        self.state.lock().taken.iter().map(|word| word.count_ones()).sum()
    }
}

fn is_set(bits: &[u64], index: usize) -> bool {
    bits[index / 64] >> (index % 64) & 1 != 0
}

impl fmt::Debug for PageFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageFrames({} in use)", self.in_use())
    }
}
