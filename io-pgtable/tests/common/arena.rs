//! Memory at physical addresses from 1 GiB on, handed out from the lowest, in units of 1 KiB: what is smaller than a page
//! frame and not of that size takes a frame, as in the images of other implementations. Free memory holds a pattern, so that
//! a write to it, and a table that leads to it, is found.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use platform::{Extent, FrameRequest, Frames, OutOfFrames, PhysAddr, Window};

const FRAME: usize = 4096;
const UNIT: usize = 1024;
/// Where an arena begins, unless it is told.
pub(crate) const BASE: u64 = 0x4000_0000;
/// What free memory holds.
const POISON: u64 = 0xdead_dead_dead_dead;

/// A machine with so many page frames and nothing else.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: *mut u8,
    base: u64,
    units: usize,
    /// Whether each unit is in use.
    used: Mutex<Vec<bool>>,
}

// SAFETY: the memory is only reached as atomic words.
unsafe impl Send for Arena {}
// SAFETY: as above; what is free is behind a lock.
unsafe impl Sync for Arena {}

#[allow(dead_code, reason = "not every test asks for everything")]
impl Arena {
    pub(crate) fn new(frames: usize) -> Self {
        Self::at(BASE, frames)
    }

    /// An arena whose memory begins at a physical address, a multiple of 64 KiB.
    pub(crate) fn at(base: u64, frames: usize) -> Self {
        let units = frames * FRAME / UNIT;
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout(units)) };
        assert!(!memory.is_null());
        memory.expose_provenance();
        let arena = Self { memory, base, units, used: Mutex::new(vec![false; units]) };
        arena.fill(0, units, POISON);
        arena
    }

    /// Memory as a unit sees it that does not snoop: all of it in use, and full of what was there before.
    pub(crate) fn stale(base: u64, frames: usize) -> Self {
        let arena = Self::at(base, frames);
        arena.used.lock().unwrap().fill(true);
        arena.fill(0, arena.units, u64::MAX);
        arena
    }

    fn units_of(size: usize) -> usize {
        if size == UNIT { 1 } else { size.next_multiple_of(FRAME) / UNIT }
    }

    /// Page frames handed out, or begun.
    pub(crate) fn live(&self) -> usize {
        self.used.lock().unwrap().chunks(FRAME / UNIT).filter(|frame| frame.contains(&true)).count()
    }

    /// Bytes handed out.
    pub(crate) fn live_bytes(&self) -> usize {
        self.used.lock().unwrap().iter().filter(|used| **used).count() * UNIT
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        let offset = at.checked_sub(self.base).expect("an address of the arena") as usize;
        assert!(offset < self.units * UNIT, "{at:#x} is not in the arena");
        &self.words(offset / UNIT, 1)[offset % UNIT / 8]
    }

    /// The word at a physical address, as hardware reads it. Panics where nothing is handed out.
    pub(crate) fn read(&self, at: u64) -> u64 {
        assert!(at.is_multiple_of(8), "{at:#x} is no word");
        let word = self.word(at).load(Ordering::Acquire);
        assert_ne!(word, POISON, "{at:#x} is in free memory");
        word
    }

    /// The 32-bit word at a physical address.
    pub(crate) fn read_half(&self, at: u64) -> u32 {
        assert!(at.is_multiple_of(4), "{at:#x} is no half word");
        (self.read(at & !7) >> (8 * (at & 4))) as u32
    }

    /// Writes a word, as hardware that marks an entry does.
    pub(crate) fn write(&self, at: u64, value: u64) {
        self.read(at);
        self.word(at).store(value, Ordering::Release);
    }

    /// Copies memory that another arena's CPU has written back.
    pub(crate) fn copy_from(&self, other: &Self, at: *const u8, len: usize) {
        let first = other.window().phys(at).get();
        for at in (first..first + len as u64).step_by(4) {
            let (word, shift) = (other.word(at & !7).load(Ordering::Relaxed), 8 * (at & 4));
            let half = 0xffff_ffff << shift;
            let old = self.word(at & !7).load(Ordering::Relaxed);
            self.word(at & !7).store(old & !half | word & half, Ordering::Relaxed);
        }
    }

    /// Every word of the memory in use that is not zero, by address.
    pub(crate) fn non_zero(&self) -> Vec<(u64, u64)> {
        self.all().into_iter().filter(|(_, word)| *word != 0).collect()
    }

    /// Every word of the memory in use, by address.
    pub(crate) fn all(&self) -> Vec<(u64, u64)> {
        let used = self.used.lock().unwrap();
        let units = (0..used.len()).filter(|unit| used[*unit]);
        let words = units.flat_map(|unit| {
            let at = self.base + (unit * UNIT) as u64;
            (at..).step_by(8).zip(self.words(unit, 1)).map(|(at, word)| (at, word.load(Ordering::Acquire)))
        });
        words.collect()
    }

    fn words(&self, unit: usize, count: usize) -> &[AtomicU64] {
        // SAFETY: the callers stay in the arena's memory, which lives as long as `self`, and everybody uses atomics.
        unsafe { std::slice::from_raw_parts(self.memory.add(unit * UNIT).cast(), count * UNIT / 8) }
    }

    fn fill(&self, unit: usize, count: usize, value: u64) {
        self.words(unit, count).iter().for_each(|word| word.store(value, Ordering::Relaxed));
    }

    fn assert_poisoned(&self, unit: usize, count: usize) {
        let untouched = self.words(unit, count).iter().all(|word| word.load(Ordering::Relaxed) == POISON);
        assert!(untouched, "memory was written while it was free");
    }
}

fn layout(units: usize) -> Layout {
    Layout::from_size_align(units * UNIT, FRAME).expect("a layout of whole units")
}

// SAFETY: what is handed out is marked as used, zeroed, and inside memory that lives as long as the arena.
unsafe impl Frames for Arena {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let count = Self::units_of(request.size);
        let mut used = self.used.lock().unwrap();
        let step = (request.align / UNIT).max(1).max(count.min(FRAME / UNIT));
        let unit = (0..used.len())
            .step_by(step)
            .find(|unit| used.get(*unit..unit + count).is_some_and(|run| !run.contains(&true)))
            .ok_or(OutOfFrames(request))?;
        let at = self.base + (unit * UNIT) as u64;
        assert!(at + request.size as u64 - 1 <= request.limit.get(), "the arena is beyond the table's reach");
        used[unit..unit + count].fill(true);
        self.assert_poisoned(unit, count);
        self.fill(unit, count, 0);
        Ok(PhysAddr::new(at))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let (unit, count) = ((at.get() - self.base) as usize / UNIT, Self::units_of(size));
        self.fill(unit, count, POISON);
        let mut used = self.used.lock().unwrap();
        assert!(used[unit..unit + count].iter().all(|used| *used), "{at} is freed twice");
        used[unit..unit + count].fill(false);
    }

    fn window(&self) -> Window {
        // SAFETY: what is at `base + n` is at `memory + n`.
        unsafe { Window::new(self.memory.addr().wrapping_sub(self.base as usize)) }
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let used = self.used.get_mut().unwrap();
        let units = self.units;
        if !std::thread::panicking() {
            let free: Vec<usize> = (0..units).filter(|unit| !used[*unit]).collect();
            free.into_iter().for_each(|unit| self.assert_poisoned(unit, 1));
        }
        // SAFETY: `at` made it with this layout, and nobody holds memory of an arena that is gone.
        unsafe { dealloc(self.memory, layout(units)) };
    }
}
