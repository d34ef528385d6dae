//! State that each CPU has for itself, as long as nobody takes it away.

use alloc::boxed::Box;
use core::fmt;

use crossbeam_utils::CachePadded;

use super::{CpuLock, CpuLockGuard};
use crate::cpu;

/// One `T` per CPU, each behind a lock of its own on cache lines of its own.
pub struct PerCpu<T> {
    slots: Box<[CachePadded<CpuLock<T>>]>,
}

impl<T> PerCpu<T> {
    /// `cpus` slots, rounded up to a power of two and at least 1, each made by `make` from its number.
    pub fn new(cpus: usize, make: impl FnMut(usize) -> T) -> Self {
        let cpus = cpus.clamp(1, 1 << 16).next_power_of_two();
        Self { slots: (0..cpus).map(make).map(|value| CachePadded::new(CpuLock::new(value))).collect() }
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Never: there is at least one slot.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// This CPU's slot if it is free, else the next free one, else `None`.
    #[inline]
    pub fn try_lock(&self) -> Option<CpuLockGuard<'_, T>> {
        let mask = self.slots.len() - 1;
        let here = cpu::current();
        if let Some(guard) = self.slots[here & mask].try_lock() {
            return Some(guard);
        }
        (1..=mask).find_map(|step| self.slots[here.wrapping_add(step) & mask].try_lock())
    }

    /// This CPU's slot if it is free, else the next free one; waits for its own when none is.
    #[inline]
    pub fn lock(&self) -> CpuLockGuard<'_, T> {
        match self.try_lock() {
            Some(guard) => guard,
            None => self.slots[cpu::current() & (self.slots.len() - 1)].lock(),
        }
    }

    /// Every slot in turn, waiting for each: for sums and for draining.
    pub fn iter(&self) -> impl Iterator<Item = CpuLockGuard<'_, T>> {
        self.slots.iter().map(|slot| slot.lock())
    }
}

impl<T> fmt::Debug for PerCpu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpu").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}
