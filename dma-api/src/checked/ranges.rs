//! Ranges that may overlap.

use alloc::collections::BTreeMap;

/// Which part of which record a range belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Owner {
    pub(super) id: u64,
    pub(super) part: usize,
}

const FIRST: Owner = Owner { id: 0, part: 0 };
const LAST: Owner = Owner { id: u64::MAX, part: usize::MAX };

/// Ranges in one space of addresses, by where they begin. In a direct mapping several may begin at one address.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Each with its last address.
    ranges: BTreeMap<(u64, Owner), u64>,
    /// From the first to the last address of the longest range that ever was: none reaches further.
    longest: u64,
}

impl Ranges {
    /// Adds `len` bytes; no range is empty.
    pub(super) fn insert(&mut self, start: u64, len: usize, owner: Owner) {
        let last = last(start, len);
        self.ranges.insert((start, owner), last);
        self.longest = self.longest.max(last - start);
    }

    pub(super) fn remove(&mut self, start: u64, owner: Owner) {
        self.ranges.remove(&(start, owner));
    }

    /// Whose ranges begin at `start`.
    pub(super) fn starting(&self, start: u64) -> impl Iterator<Item = Owner> + '_ {
        self.ranges.range((start, FIRST)..=(start, LAST)).map(|(&(_, owner), _)| owner)
    }

    /// Whose ranges share an address with `start` to `last`, and their first and last addresses.
    pub(super) fn overlapping(&self, start: u64, last: u64) -> impl Iterator<Item = (Owner, u64, u64)> + '_ {
        let lowest = start.saturating_sub(self.longest);
        let candidates = self.ranges.range((lowest, FIRST)..=(last, LAST));
        let found = candidates.filter(move |&(_, &end)| end >= start);
        found.map(|(&(first, owner), &last)| (owner, first, last))
    }
}

/// The last address of `len` bytes.
pub(super) fn last(start: u64, len: usize) -> u64 {
    start.saturating_add((len as u64).saturating_sub(1))
}
