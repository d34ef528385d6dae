//! Magazines of freed ranges, per CPU, and the depot behind them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use platform::sync::CpuLock;

/// Sizes of 2^0 to 2^5 pages are cached.
pub(super) const ORDERS: usize = 6;
/// Ranges in a magazine: with its count it fills 1 KiB. A model's is full with one, so that few steps reach the depot.
const CAPACITY: usize = if cfg!(loom) { 1 } else { 127 };
/// Full magazines that the depot holds of each size at most; more go back to the tree.
const DEPOT: usize = if cfg!(loom) { 1 } else { 32 };

/// First pages of free ranges of one size.
#[derive(Debug)]
pub(super) struct Magazine {
    len: usize,
    pages: [u64; CAPACITY],
}

impl Default for Magazine {
    fn default() -> Self {
        Self { len: 0, pages: [0; CAPACITY] }
    }
}

impl Magazine {
    /// Takes the newest range whose pages are all at or below `limit`.
    #[inline]
    fn pop(&mut self, order: usize, limit: u64) -> Option<u64> {
        let span = (1 << order) - 1;
        let index = self.pages[..self.len].iter().rposition(|&page| page + span <= limit)?;
        let page = self.pages[index];
        self.len -= 1;
        self.pages[index] = self.pages[self.len];
        Some(page)
    }

    #[inline]
    fn push(&mut self, page: u64) -> bool {
        let room = self.len < CAPACITY;
        if room {
            self.pages[self.len] = page;
            self.len += 1;
        }
        room
    }

    /// Empties it and says what was in it.
    pub(super) fn drain(&mut self) -> &[u64] {
        let len = core::mem::take(&mut self.len);
        &self.pages[..len]
    }
}

/// The two magazines of each size that a CPU has.
#[derive(Debug, Default)]
pub(super) struct Cache {
    loaded: [Box<Magazine>; ORDERS],
    previous: [Box<Magazine>; ORDERS],
    pub(super) counts: Counts,
}

/// What was done with the addresses of a domain. Each CPU writes its own, under the lock that it holds anyway.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Ranges taken.
    pub taken: u64,
    /// Ranges given back.
    pub given_back: u64,
    /// Ranges taken from a magazine.
    pub hits: u64,
}

impl Cache {
    /// Takes a range of 2^`order` pages at or below `limit`.
    #[inline]
    pub(super) fn pop(&mut self, order: usize, limit: u64, depot: &CpuLock<Depot>) -> Option<u64> {
        if let Some(page) = self.loaded[order].pop(order, limit) {
            return Some(page);
        }
        self.pop_slow(order, limit, depot)
    }

    #[cold]
    fn pop_slow(&mut self, order: usize, limit: u64, depot: &CpuLock<Depot>) -> Option<u64> {
        core::mem::swap(&mut self.loaded[order], &mut self.previous[order]);
        if self.loaded[order].len == 0 {
            depot.lock().exchange_empty(order, &mut self.loaded[order]);
        }
        self.loaded[order].pop(order, limit)
    }

    /// Keeps a range, or returns false when there is no room.
    #[inline]
    pub(super) fn push(&mut self, order: usize, page: u64, depot: &CpuLock<Depot>) -> bool {
        self.loaded[order].push(page) || self.push_slow(order, page, depot)
    }

    #[cold]
    fn push_slow(&mut self, order: usize, page: u64, depot: &CpuLock<Depot>) -> bool {
        core::mem::swap(&mut self.loaded[order], &mut self.previous[order]);
        if self.loaded[order].len == CAPACITY {
            depot.lock().exchange_full(order, &mut self.loaded[order]);
        }
        self.loaded[order].push(page)
    }

    pub(super) fn drain(&mut self, mut give_back: impl FnMut(usize, &[u64])) {
        for magazines in [&mut self.loaded, &mut self.previous] {
            for (order, magazine) in magazines.iter_mut().enumerate() {
                give_back(order, magazine.drain());
            }
        }
    }
}

/// Full magazines of all CPUs, and empty ones to exchange them for: made when ranges are taken, so that giving one back
/// allocates nothing.
#[derive(Debug, Default)]
// Boxed, since magazines are exchanged with those of a CPU by their pointers.
#[expect(clippy::vec_box)]
pub(super) struct Depot {
    full: [Vec<Box<Magazine>>; ORDERS],
    empty: Vec<Box<Magazine>>,
}

impl Depot {
    /// Room is made for so many ranges at once.
    pub(super) const STEP: usize = CAPACITY;

    /// Makes room for what may come back, when up to `live` ranges are taken from the tree.
    pub(super) fn make_room(&mut self, live: usize) {
        const SPARE: usize = 2;
        const MOST: usize = ORDERS * DEPOT + SPARE;
        if self.empty.capacity() == 0 {
            self.empty.reserve(MOST);
            for full in &mut self.full {
                full.reserve(DEPOT);
            }
        }
        let there = self.empty.len() + self.full.iter().map(Vec::len).sum::<usize>();
        let wanted = (live / CAPACITY + SPARE).min(MOST);
        self.empty.extend((there..wanted).map(|_| Box::default()));
    }

    /// Exchanges a full magazine for an empty one, if there is room.
    fn exchange_full(&mut self, order: usize, magazine: &mut Box<Magazine>) {
        if self.full[order].len() < DEPOT.min(self.full[order].capacity())
            && let Some(empty) = self.empty.pop()
        {
            self.full[order].push(core::mem::replace(magazine, empty));
        }
    }

    /// Exchanges an empty magazine for a full one, if there is one.
    fn exchange_empty(&mut self, order: usize, magazine: &mut Box<Magazine>) {
        if let Some(full) = self.full[order].pop() {
            let empty = core::mem::replace(magazine, full);
            self.put_empty(empty);
        }
    }

    /// Takes a full magazine out, if there are more than `keep`.
    pub(super) fn take_surplus(&mut self, order: usize, keep: usize) -> Option<Box<Magazine>> {
        if self.full[order].len() > keep { self.full[order].pop() } else { None }
    }

    /// Keeps an empty magazine for when one is wanted.
    pub(super) fn put_empty(&mut self, magazine: Box<Magazine>) {
        if self.empty.len() < self.empty.capacity() {
            self.empty.push(magazine);
        }
    }

    pub(super) fn drain(&mut self, mut give_back: impl FnMut(usize, &[u64])) {
        for order in 0..ORDERS {
            while let Some(mut magazine) = self.take_surplus(order, 0) {
                give_back(order, magazine.drain());
                self.put_empty(magazine);
            }
        }
    }
}
