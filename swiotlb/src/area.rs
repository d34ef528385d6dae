//! One area of the pool: a run of segments behind a lock of its own (Linux: `struct io_tlb_area`).

use alloc::boxed::Box;

use crate::SEGMENT_SLOTS;

/// What the pool knows of a slot (Linux: `struct io_tlb_slot`).
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Free slots from here to the end of the segment; 0 while the slot is taken.
    free_run: usize,
    /// In each slot of a mapping: the CPU's address of the original for the slot's first byte of data.
    original: usize,
    /// In the first slot of the data: the bytes of data from here on, then fewer slot by slot.
    data: usize,
    /// In the first slot of the data: the slots of the whole run, and how many of them come before.
    run: usize,
    padding: usize,
    /// In the first slot of the data: how far into it the data begins.
    offset: usize,
}

/// Slots of an area, and where to look next.
#[derive(Debug)]
pub(crate) struct Area {
    slots: Box<[Slot]>,
    next: usize,
    /// Slots that are taken.
    pub(crate) used: usize,
    /// Runs that were ever taken.
    pub(crate) maps: u64,
}

/// What a run of slots must be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// How many slots.
    pub(crate) slots: usize,
    /// From one candidate to the next.
    pub(crate) stride: usize,
}

/// A mapping in an area.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// The CPU's address of the original of the byte asked about.
    pub(crate) original: usize,
    /// Bytes of the mapping from there on.
    pub(crate) len: usize,
}

impl Area {
    /// `slots` free slots, a multiple of a segment.
    pub(crate) fn new(slots: usize) -> Self {
        let slot = |index| Slot {
            free_run: SEGMENT_SLOTS - index % SEGMENT_SLOTS,
            original: 0,
            data: 0,
            run: 0,
            padding: 0,
            offset: 0,
        };
        Self { slots: (0..slots).map(slot).collect(), next: 0, used: 0, maps: 0 }
    }

    /// Takes a run of slots, searching from where the last one ended. `fits` says whether a run may begin at a slot.
    pub(crate) fn take(&mut self, wanted: Wanted, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let len = self.slots.len();
        if wanted.slots > len - self.used {
            return None;
        }
        let mut index = self.next;
        let mut looked_at = 0;
        while looked_at < len {
            if !fits(index) {
                (index, looked_at) = ((index + 1) % len, looked_at + 1);
                continue;
            }
            if self.slots[index].free_run >= wanted.slots {
                self.mark_taken(index, wanted.slots);
                self.next = (index + wanted.slots) % len;
                self.used += wanted.slots;
                self.maps += 1;
                return Some(index);
            }
            let step = wanted.stride.max(1);
            (index, looked_at) = ((index + step) % len, looked_at + step);
        }
        None
    }

    fn mark_taken(&mut self, first: usize, count: usize) {
        for slot in &mut self.slots[first..first + count] {
            slot.free_run = 0;
        }
        // The free slots before it end here now.
        let segment = first - first % SEGMENT_SLOTS;
        for (run, index) in (segment..first).rev().enumerate() {
            if self.slots[index].free_run == 0 {
                break;
            }
            self.slots[index].free_run = run + 1;
        }
    }

    /// Notes what a run is for: `len` bytes of `original`, which begin `offset` bytes into slot `first + padding`.
    pub(crate) fn describe(
        &mut self,
        first: usize,
        run: usize,
        padding: usize,
        original: usize,
        len: usize,
        offset: usize,
    ) {
        let mut done = 0;
        for (number, slot) in self.slots[first + padding..first + run].iter_mut().enumerate() {
            slot.original = original.wrapping_add(done);
            slot.data = len - done;
            slot.run = if number == 0 { run } else { 0 };
            slot.padding = padding;
            slot.offset = if number == 0 { offset } else { 0 };
            let room = crate::SLOT_SIZE - slot.offset;
            done = (done + room).min(len);
        }
    }

    /// The original of the byte `within` bytes into a slot. `None` when that is no part of a mapping.
    pub(crate) fn lookup(&self, index: usize, within: usize) -> Option<Mapping> {
        let slot = self.slots.get(index).filter(|slot| slot.free_run == 0)?;
        let skipped = within.checked_sub(slot.offset)?;
        let len = slot.data.checked_sub(skipped).filter(|&len| len != 0)?;
        Some(Mapping { original: slot.original.wrapping_add(skipped), len })
    }

    /// Gives the run back whose data begins in slot `index`, and says how many slots it had. Free runs grow together within
    /// the segment.
    pub(crate) fn give_back(&mut self, index: usize) -> usize {
        let Slot { run, padding, .. } = self.slots[index];
        if run == 0 {
            return 0;
        }
        let first = index - padding;
        let end = first + run;
        let mut free_run = if end.is_multiple_of(SEGMENT_SLOTS) { 0 } else { self.slots[end].free_run };
        for slot in self.slots[first..end].iter_mut().rev() {
            free_run += 1;
            *slot = Slot { free_run, original: 0, data: 0, run: 0, padding: 0, offset: 0 };
        }
        let segment = first - first % SEGMENT_SLOTS;
        for slot in self.slots[segment..first].iter_mut().rev() {
            if slot.free_run == 0 {
                break;
            }
            free_run += 1;
            slot.free_run = free_run;
        }
        self.used -= run;
        run
    }

    /// Whether every free-run count is what counting anew gives.
    pub(crate) fn is_consistent(&self) -> bool {
        self.slots.chunks(SEGMENT_SLOTS).all(|segment| {
            let mut run = 0;
            segment.iter().rev().all(|slot| {
                run = if slot.free_run == 0 { 0 } else { run + 1 };
                slot.free_run == run
            })
        })
    }
}
