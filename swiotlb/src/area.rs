//! One area of the pool: segments behind a lock of their own (Linux: `struct io_tlb_area`).

use alloc::boxed::Box;

use crate::{SEGMENT_SLOTS, SLOT_SIZE};

/// A run of slots and what it is for (Linux keeps this for each slot, in `struct io_tlb_slot`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    /// The CPU's address of the original's first byte.
    pub(crate) original: usize,
    /// Bytes of the original.
    pub(crate) len: u32,
    /// Bytes of the run before the copy's first byte.
    pub(crate) before: u32,
    pub(crate) slots: u32,
}

/// Slots that no run leaves. One bit a slot in each word, so that a search looks at all of them at once.
// Neighbours may be of two areas: they share no cache line, nor the pair of lines that a CPU fetches.
#[derive(Debug)]
#[repr(align(128))]
struct Segment {
    free: u128,
    /// The first slot of each run.
    first: u128,
    /// Of each run, by its first slot.
    runs: [Run; SEGMENT_SLOTS],
}

impl Segment {
    fn new() -> Self {
        Self { free: u128::MAX, first: 0, runs: [Run::default(); SEGMENT_SLOTS] }
    }

    /// Where `slots` free slots begin.
    fn candidates(&self, slots: u32) -> u128 {
        let (mut begin, mut so_many) = (self.free, 1);
        while so_many < slots {
            let more = so_many.min(slots - so_many);
            begin &= begin >> more;
            so_many += more;
        }
        begin
    }

    /// The run that has a slot, and its first slot.
    fn run_at(&self, slot: usize) -> Option<(usize, &Run)> {
        let until = self.first & (u128::MAX >> (SEGMENT_SLOTS - 1 - slot));
        if until == 0 || self.free >> slot & 1 != 0 {
            return None;
        }
        let first = SEGMENT_SLOTS - 1 - until.leading_zeros() as usize;
        Some((first, &self.runs[first]))
    }

    /// Whether the runs and the free slots make up the segment, each slot once.
    fn is_consistent(&self) -> bool {
        let firsts = (0..SEGMENT_SLOTS).filter(|slot| self.first >> slot & 1 != 0);
        let taken = firsts.map(|slot| bits(slot, self.runs[slot].slots));
        let all = taken.chain([self.free]).try_fold(0, |all, some| (all & some == 0).then_some(all | some));
        all == Some(u128::MAX)
    }
}

/// The bits of a run, of one slot at least.
fn bits(first: usize, slots: u32) -> u128 {
    (u128::MAX >> (u128::BITS - slots)) << first
}

/// Slots of an area, by number, and where to look first.
#[derive(Debug)]
pub(crate) struct Area {
    segments: Box<[Segment]>,
    /// The segment in which a run was taken or given back last: caches still have it.
    hot: usize,
    /// Slots that are taken.
    pub(crate) used: usize,
    /// The most that ever were.
    pub(crate) high_water: usize,
    /// Runs that were ever taken.
    pub(crate) maps: u64,
}

/// A part of a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// The CPU's address of the original of the byte asked about.
    pub(crate) original: usize,
    /// Bytes of the mapping from there on.
    pub(crate) len: usize,
}

impl Area {
    /// Free slots.
    pub(crate) fn new(segments: usize) -> Self {
        let segments = (0..segments).map(|_| Segment::new()).collect();
        Self { segments, hot: 0, used: 0, high_water: 0, maps: 0 }
    }

    /// Takes the lowest free run of a segment, first of the segment used last, then of those after it. `fits` says whether
    /// a run may begin at a slot.
    ///
    /// Linux goes on where the last search ended; going back to the slots just given back finds them in the CPU's caches.
    #[inline]
    pub(crate) fn take(&mut self, run: Run, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let mut next = self.hot;
        for _ in 0..self.segments.len() {
            let number = next;
            next = if number + 1 == self.segments.len() { 0 } else { number + 1 };
            let segment = &mut self.segments[number];
            let mut candidates = segment.candidates(run.slots);
            while candidates != 0 {
                let first = candidates.trailing_zeros() as usize;
                let slot = number * SEGMENT_SLOTS + first;
                if fits(slot) {
                    segment.free &= !bits(first, run.slots);
                    segment.first |= 1 << first;
                    segment.runs[first] = run;
                    self.hot = number;
                    self.used += run.slots as usize;
                    self.high_water = self.high_water.max(self.used);
                    self.maps += 1;
                    return Some(slot);
                }
                candidates &= candidates - 1;
            }
        }
        None
    }

    /// The original of the byte `within` bytes into a slot. `None` when that is no part of a mapping.
    #[inline]
    pub(crate) fn lookup(&self, slot: usize, within: usize) -> Option<Mapping> {
        let in_segment = slot % SEGMENT_SLOTS;
        let (first, run) = self.segments.get(slot / SEGMENT_SLOTS)?.run_at(in_segment)?;
        let skipped = ((in_segment - first) * SLOT_SIZE + within).checked_sub(run.before as usize)?;
        let len = (run.len as usize).checked_sub(skipped).filter(|&len| len != 0)?;
        Some(Mapping { original: run.original.wrapping_add(skipped), len })
    }

    /// Gives the run back that has a slot, if there is one.
    #[inline]
    pub(crate) fn give_back(&mut self, slot: usize) {
        let number = slot / SEGMENT_SLOTS;
        let Some(segment) = self.segments.get_mut(number) else { return };
        let Some((first, &Run { slots, .. })) = segment.run_at(slot % SEGMENT_SLOTS) else { return };
        segment.free |= bits(first, slots);
        segment.first &= !(1 << first);
        self.hot = number;
        self.used -= slots as usize;
    }

    /// Whether each slot is either free or in one run, and the count of those in use is right.
    pub(crate) fn is_consistent(&self) -> bool {
        let free: usize = self.segments.iter().map(|segment| segment.free.count_ones() as usize).sum();
        free + self.used == self.segments.len() * SEGMENT_SLOTS
            && self.segments.iter().all(Segment::is_consistent)
    }
}
