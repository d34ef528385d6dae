//! A page-frame allocator for a machine's RAM, with a watch over the free frames.
//!
//! Free frames hold a known value: zero until they are first handed out, a pattern after they were given back. Both are
//! checked when a frame is handed out and at the end ([`FramePool::check_free`]), so that a device that writes into free
//! memory is found in every run.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::PhysAddr;
use crate::frames::{Extent, FRAME_SIZE, FrameRequest, Frames, OutOfFrames, WORDS_PER_FRAME, Window};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, words};

const FRAME: u64 = FRAME_SIZE as u64;
/// What free frames that have been in use are filled with.
const FREE_PATTERN: u64 = 0xf4ee_f4ee_f4ee_f4ee;

/// A free frame that was not as it was left: somebody wrote to memory that is not theirs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("free memory changed at {at}: {found:#018x}")]
pub struct FreeFrameChanged {
    /// Physical address of the word.
    pub at: PhysAddr,
    /// What it holds now.
    pub found: u64,
}

/// All RAM of a machine, to be handed out in frames: the highest that will do, so that low memory stays for devices that reach
/// no other.
pub struct FramePool {
    /// All of it: first address and length.
    ranges: Vec<(u64, u64)>,
    window: Window,
    state: Mutex<State>,
    in_use: AtomicU64,
}

struct State {
    /// Free memory: start to length, never two that touch.
    free: BTreeMap<u64, u64>,
    /// What was ever handed out. All other frames still hold zeros.
    touched: BTreeMap<u64, u64>,
    changed: Vec<FreeFrameChanged>,
}

impl FramePool {
    /// A pool of the RAM at `ranges` (first address and length in bytes, whole frames that do not overlap), everything free.
    ///
    /// # Safety
    /// All of it is RAM that nobody else uses, filled with zeros, which `window` shows; it stays so as long as the pool
    /// lives. Devices access it atomically.
    pub unsafe fn new(ranges: &[(PhysAddr, u64)], window: Window) -> Self {
        let ranges: Vec<_> = ranges.iter().map(|&(start, len)| (start.get(), len)).collect();
        let free = ranges.iter().copied().collect();
        // The range that frames come from first.
        let &(start, len) = ranges.iter().max().unwrap_or(&(0, 0));
        // SAFETY: all of the range is RAM, as long as the pool lives.
        let window = unsafe { window.with_ram(PhysAddr::new(start), len as usize) };
        let state = State { free, touched: BTreeMap::new(), changed: Vec::new() };
        Self { ranges, window, state: Mutex::new(state), in_use: AtomicU64::new(0) }
    }

    /// Bytes handed out now.
    pub fn bytes_in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Checks every free frame and returns what was found changed, now and earlier.
    pub fn check_free(&self) -> Vec<FreeFrameChanged> {
        let mut state = self.state.lock();
        let free: Vec<_> = state.free.iter().map(|(&start, &len)| (start, len)).collect();
        for (start, len) in free {
            self.check(&mut state, start, len);
        }
        state.changed.clone()
    }

    /// Compares free memory with what it was left as, and notes what differs.
    fn check(&self, state: &mut State, start: u64, len: u64) {
        for frame in (start..start + len).step_by(FRAME_SIZE) {
            let expected = if state.was_in_use(frame) { FREE_PATTERN } else { 0 };
            // SAFETY: the frame is RAM, as long as `self` lives; devices access it atomically.
            let frame_words = unsafe { self.window.words(PhysAddr::new(frame), WORDS_PER_FRAME) };
            for (index, word) in frame_words.iter().enumerate() {
                let found = word.load(Ordering::Relaxed);
                if found != expected {
                    let at = PhysAddr::new(frame + 8 * index as u64);
                    state.changed.push(FreeFrameChanged { at, found });
                    word.store(expected, Ordering::Relaxed);
                }
            }
        }
    }

    fn fill(&self, start: u64, len: u64, value: u64) {
        for frame in (start..start + len).step_by(FRAME_SIZE) {
            // SAFETY: as in `check`.
            words::fill(unsafe { self.window.words(PhysAddr::new(frame), WORDS_PER_FRAME) }, value);
        }
    }
}

impl State {
    /// Takes the highest free memory that satisfies the request, so that low memory stays for devices that need it.
    fn take(&mut self, size: u64, align: u64, limit: u64) -> Option<u64> {
        let (start, len, at) = self.free.iter().rev().find_map(|(&start, &len)| {
            let last = (start + len - 1).min(limit);
            let highest = last.checked_sub(size - 1)? & !(align - 1);
            (highest >= start).then_some((start, len, highest))
        })?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        let end = at + size;
        if end < start + len {
            self.free.insert(end, start + len - end);
        }
        Some(at)
    }

    fn give_back(&mut self, at: u64, size: u64) {
        insert_joined(&mut self.free, at, size);
    }

    fn was_in_use(&self, frame: u64) -> bool {
        self.touched.range(..=frame).next_back().is_some_and(|(&start, &len)| frame < start + len)
    }

    fn note_use(&mut self, at: u64, size: u64) {
        let mut at = at;
        let end = at + size;
        // Only what is new: ranges of the map must not overlap.
        while at < end {
            if let Some((&start, &len)) = self.touched.range(..=at).next_back()
                && at < start + len
            {
                at = start + len;
                continue;
            }
            let next = self.touched.range(at..end).next().map_or(end, |(&start, _)| start);
            insert_joined(&mut self.touched, at, next - at);
            at = next;
        }
    }
}

/// Adds a range to a map of ranges that do not touch, joining it with its neighbours.
fn insert_joined(ranges: &mut BTreeMap<u64, u64>, at: u64, size: u64) {
    let mut start = at;
    let mut len = size;
    if let Some((&before, &before_len)) = ranges.range(..at).next_back()
        && before + before_len == at
    {
        ranges.remove(&before);
        start = before;
        len += before_len;
    }
    if let Some(after_len) = ranges.remove(&(at + size)) {
        len += after_len;
    }
    ranges.insert(start, len);
}

// SAFETY: frames are RAM as long as this value lives; each is in at most one place of `free` or handed out, zeroed on the way
// out; nothing moves.
unsafe impl Frames for FramePool {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let size =
            (request.size.max(1) as u64).checked_next_multiple_of(FRAME).ok_or(OutOfFrames(request))?;
        let align = (request.align as u64).max(FRAME);
        if !align.is_power_of_two() {
            return Err(OutOfFrames(request));
        }
        let mut state = self.state.lock();
        let at = state.take(size, align, request.limit.get()).ok_or(OutOfFrames(request))?;
        self.check(&mut state, at, size);
        state.note_use(at, size);
        drop(state);
        self.fill(at, size, 0);
        self.in_use.fetch_add(size, Ordering::Relaxed);
        Ok(PhysAddr::new(at))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let size = (size.max(1) as u64).next_multiple_of(FRAME);
        self.fill(at.get(), size, FREE_PATTERN);
        self.in_use.fetch_sub(size, Ordering::Relaxed);
        self.state.lock().give_back(at.get(), size);
    }

    fn window(&self) -> Window {
        self.window
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        let phys = self.window.phys(at);
        let holds =
            |&&(start, range_len): &&(u64, u64)| phys.get() >= start && phys.get() - start < range_len;
        let &(start, range_len) = self.ranges.iter().find(holds)?;
        let left = range_len - (phys.get() - start);
        Some(Extent { phys, len: len.min(usize::try_from(left).unwrap_or(usize::MAX)) })
    }

    fn last(&self) -> PhysAddr {
        PhysAddr::new(self.ranges.iter().map(|&(start, len)| start + len - 1).max().unwrap_or(0))
    }
}

impl fmt::Debug for FramePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FramePool({} bytes in use)", self.bytes_in_use())
    }
}
