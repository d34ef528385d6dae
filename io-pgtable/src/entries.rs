//! The words of tables, for formats of 8- and 4-byte entries.

use core::marker::PhantomData;

use platform::sync::atomic::{AtomicU64, Ordering};
use platform::sync::words;
use platform::{PhysAddr, Window};

use crate::format::Format;

/// The way to the entries of tables of format `F`.
///
/// Each table named to it is one of a tree's, in memory that lives until the tree is dropped, or until the only caller whose
/// range covers the whole table takes it out; hardware and other threads access entries atomically. Each index is one of the
/// table's.
pub(crate) struct Entries<F> {
    window: Window,
    _format: PhantomData<fn() -> F>,
}

impl<F> Clone for Entries<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Entries<F> {}

impl<F: Format> Entries<F> {
    pub(crate) fn new(window: Window) -> Self {
        const { assert!(F::ENTRY_BYTES == 8 || F::ENTRY_BYTES == 4) };
        Self { window, _format: PhantomData }
    }

    pub(crate) fn window(self) -> Window {
        self.window
    }

    /// Where an entry is.
    #[inline]
    pub(crate) fn at(self, table: PhysAddr, index: usize) -> PhysAddr {
        table.wrapping_add((F::ENTRY_BYTES * index) as u64)
    }

    #[inline]
    fn word<'a>(self, table: PhysAddr, index: usize) -> &'a AtomicU64 {
        // SAFETY: see the type.
        unsafe { self.window.word(self.at(table, index)) }
    }

    #[inline]
    fn words<'a>(self, table: PhysAddr, index: usize, count: usize) -> &'a [AtomicU64] {
        // SAFETY: see the type.
        unsafe { self.window.words(self.at(table, index), count) }
    }

    #[cfg(not(loom))]
    #[inline]
    fn half_word<'a>(self, table: PhysAddr, index: usize) -> &'a platform::sync::atomic::AtomicU32 {
        // SAFETY: see the type.
        unsafe { self.window.half_word(self.at(table, index)) }
    }

    #[inline]
    pub(crate) fn load(self, table: PhysAddr, index: usize, order: Ordering) -> u64 {
        #[cfg(not(loom))]
        if F::ENTRY_BYTES == 4 {
            return u64::from(self.half_word(table, index).load(order));
        }
        self.word(table, index).load(order)
    }

    #[inline]
    pub(crate) fn store(self, table: PhysAddr, index: usize, entry: u64, order: Ordering) {
        #[cfg(not(loom))]
        if F::ENTRY_BYTES == 4 {
            return self.half_word(table, index).store(entry as u32, order);
        }
        self.word(table, index).store(entry, order);
    }

    /// Puts `new` where `current` is, or says what is there. Acquire and release.
    #[inline]
    pub(crate) fn replace(self, table: PhysAddr, index: usize, current: u64, new: u64) -> Result<(), u64> {
        const OK: Ordering = Ordering::AcqRel;
        const FAILED: Ordering = Ordering::Acquire;
        #[cfg(not(loom))]
        if F::ENTRY_BYTES == 4 {
            let word = self.half_word(table, index);
            return match word.compare_exchange(current as u32, new as u32, OK, FAILED) {
                Ok(_) => Ok(()),
                Err(found) => Err(u64::from(found)),
            };
        }
        self.word(table, index).compare_exchange(current, new, OK, FAILED).map(drop)
    }

    /// Whether `count` entries are all zero.
    #[inline]
    pub(crate) fn all_zero(self, table: PhysAddr, index: usize, count: usize) -> bool {
        #[cfg(not(loom))]
        if F::ENTRY_BYTES == 4 {
            return (index..index + count).all(|index| self.load(table, index, Ordering::Relaxed) == 0);
        }
        words::all_zero(self.words(table, index, count))
    }

    /// Stores `first`, `first + step` and so on to `count` entries. Relaxed: a release fence stands before it.
    #[inline]
    pub(crate) fn store_rising(self, table: PhysAddr, index: usize, count: usize, first: u64, step: u64) {
        #[cfg(not(loom))]
        if F::ENTRY_BYTES == 4 {
            for n in 0..count {
                let entry = first.wrapping_add(step.wrapping_mul(n as u64));
                self.store(table, index + n, entry, Ordering::Relaxed);
            }
            return;
        }
        words::store_rising(self.words(table, index, count), first, step);
    }

    /// The same until an entry comes that is not empty, and says how many that are.
    #[inline]
    pub(crate) fn store_rising_if_zero(
        self,
        table: PhysAddr,
        index: usize,
        count: usize,
        first: u64,
        step: u64,
    ) -> usize {
        #[cfg(not(loom))]
        if F::ENTRY_BYTES == 4 {
            let empty = |n: &usize| self.load(table, index + n, Ordering::Relaxed) == 0;
            let count = (0..count).take_while(empty).count();
            self.store_rising(table, index, count, first, step);
            return count;
        }
        words::store_rising_if_zero(self.words(table, index, count), first, step)
    }

    /// Stores one entry `count` times. Relaxed, as `store_rising`.
    #[inline]
    pub(crate) fn fill(self, table: PhysAddr, index: usize, count: usize, entry: u64) {
        #[cfg(not(loom))]
        if F::ENTRY_BYTES == 4 {
            return self.store_rising(table, index, count, entry, 0);
        }
        words::fill(self.words(table, index, count), entry);
    }

    /// Clears entries until one comes whose bits under `mask` are not `value`, and says how many that are. Relaxed: the owner
    /// of the table invalidates before anything of it is used again.
    #[inline]
    pub(crate) fn clear_matching(
        self,
        table: PhysAddr,
        index: usize,
        count: usize,
        (mask, value): (u64, u64),
    ) -> usize {
        if F::ENTRY_BYTES == 4 || count == 1 {
            let matches = |n: &usize| self.load(table, index + n, Ordering::Relaxed) & mask == value;
            let cleared = (0..count).take_while(|n| {
                let found = matches(n);
                if found {
                    self.store(table, index + n, 0, Ordering::Relaxed);
                }
                found
            });
            return cleared.count();
        }
        words::clear_matching(self.words(table, index, count), mask, value)
    }
}
