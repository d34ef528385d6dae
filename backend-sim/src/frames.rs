//! The machine's page frames, and a watch over the free ones.
//!
//! Free frames hold a known value: zero until they are first handed out, a pattern after they were given back. Both are
//! checked when a frame is handed out and at the end ([`SimFrames::check_free`]), so that a device that writes into free
//! memory is found in every run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use platform::frames::{FRAME_SIZE, WORDS_PER_FRAME};
use platform::sync::words;
use platform::{Extent, FrameRequest, Frames, OutOfFrames, PhysAddr, Window};
use sim_hardware::ram::Ram;

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

/// The frame allocator of the simulated machine.
pub struct SimFrames {
    ram: Arc<Ram>,
    window: Window,
    state: Mutex<State>,
    in_use: AtomicU64,
}

struct State {
    /// Free memory: start to length, never two that touch.
    free: BTreeMap<u64, u64>,
    /// Below this address, within its range, nothing was ever handed out: the frames still hold zeros.
    touched: BTreeMap<u64, u64>,
    changed: Vec<FreeFrameChanged>,
}

impl SimFrames {
    /// An allocator over all of `ram`, everything free.
    pub fn new(ram: Arc<Ram>) -> Self {
        let free = ram.ranges().iter().map(|&(start, len)| (start, len)).collect();
        // SAFETY: all RAM is one mapping that lives as long as `ram`, at a constant distance, with its address exposed.
        let window = unsafe { Window::new(ram.window_offset()) };
        // Of the two ranges, the one that frames come from first.
        let &(start, len) = ram.ranges().last().unwrap_or(&(0, 0));
        // SAFETY: all of the range is RAM, for as long as `ram` lives.
        let window = unsafe { window.with_ram(PhysAddr::new(start), len as usize) };
        let state = State { free, touched: BTreeMap::new(), changed: Vec::new() };
        Self { ram, window, state: Mutex::new(state), in_use: AtomicU64::new(0) }
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
            // SAFETY: the frame is RAM of this machine, which lives as long as `self`; devices access it atomically.
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

// SAFETY: frames are RAM of the machine, which lives as long as this value; each is in at most one place of `free` or
// handed out, zeroed on the way out; nothing moves.
unsafe impl Frames for SimFrames {
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
        let &(start, range_len) = self.ram.ranges().iter().find(holds)?;
        let left = range_len - (phys.get() - start);
        Some(Extent { phys, len: len.min(usize::try_from(left).unwrap_or(usize::MAX)) })
    }

    fn last(&self) -> PhysAddr {
        PhysAddr::new(self.ram.ranges().iter().map(|&(start, len)| start + len - 1).max().unwrap_or(0))
    }
}

impl fmt::Debug for SimFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFrames({} bytes in use)", self.bytes_in_use())
    }
}
