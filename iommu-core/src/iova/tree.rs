//! The free I/O addresses of a domain, in pages: a treap of free extents in which each node knows the largest aligned block
//! in its subtree. So the highest block below a limit is found in O(log n), whatever the pattern of what is taken.
//!
//! Nodes live in an arena that grows when addresses are taken: there is never one extent more than ranges taken and holes
//! made, so giving back allocates nothing.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

type Index = u32;
const NONE: Index = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    start: u64,
    /// One past the last page.
    end: u64,
    priority: u64,
    left: Index,
    right: Index,
    /// The largest k such that an extent of this subtree holds 2^k pages aligned to their size.
    largest: u32,
}

/// Free extents.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: Index,
    /// Unused nodes, linked by `left`.
    unused: Index,
    unused_count: usize,
    /// Ranges that will come back: each may need a node.
    taken: usize,
    random: u64,
}

/// The largest k such that [start, end) holds 2^k pages aligned to their size.
fn largest_block(start: u64, end: u64) -> u32 {
    let mut order = 63 - (end - start).leading_zeros();
    // A block of at most half the length fits wherever the extent starts.
    while order > 0 && !fits(start, end, order) {
        order -= 1;
    }
    order
}

fn fits(start: u64, end: u64, order: u32) -> bool {
    let size = 1u64 << order;
    start.checked_next_multiple_of(size).and_then(|at| at.checked_add(size)).is_some_and(|last| last <= end)
}

impl Tree {
    /// All pages of [start, end) free.
    pub(super) fn new(start: u64, end: u64) -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            root: NONE,
            unused: NONE,
            unused_count: 0,
            taken: 0,
            random: 0x2545_f491_4f6c_dd1d,
        };
        if start < end {
            tree.insert(start, end);
        }
        tree
    }

    /// Takes `pages` pages, aligned to their number rounded up to a power of two, as high as they go with the last page
    /// not above `limit`.
    pub(super) fn take(&mut self, pages: u64, limit: u64) -> Result<Option<u64>, TryReserveError> {
        let Some(size) = pages.checked_next_power_of_two().filter(|_| pages != 0) else { return Ok(None) };
        // The extent is split into two at most, and what is taken comes back as one.
        let wanted = self.taken + 3;
        if self.unused_count < wanted {
            self.nodes.try_reserve(wanted - self.unused_count)?;
        }
        let Some((at, start, end)) = self.find(self.root, size, limit.saturating_add(1)) else {
            return Ok(None);
        };
        self.remove(start);
        if start < at {
            self.insert(start, at);
        }
        if at + pages < end {
            self.insert(at + pages, end);
        }
        self.taken += 1;
        Ok(Some(at))
    }

    /// How many ranges are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Gives pages back that were taken in one piece.
    pub(super) fn give_back(&mut self, at: u64, pages: u64) {
        self.taken = self.taken.saturating_sub(1);
        let (mut start, mut end) = (at, at + pages);
        if let Some((before, before_end)) = self.last_before(at)
            && before_end == at
        {
            self.remove(before);
            start = before;
        }
        if let Some((after, after_end)) = self.extent_at(end) {
            self.remove(after);
            end = after_end;
        }
        self.insert(start, end);
    }

    /// Takes what is free of [start, end) out for ever.
    pub(super) fn reserve(&mut self, start: u64, end: u64) {
        while let Some((extent, extent_end)) = self.last_before(end)
            && extent_end > start
        {
            self.remove(extent);
            if extent_end > end {
                self.insert(end, extent_end);
            }
            if extent < start {
                self.insert(extent, start);
            }
        }
    }

    /// The highest place for an aligned block of `size` pages below `end`, with its extent.
    fn find(&self, at: Index, size: u64, end: u64) -> Option<(u64, u64, u64)> {
        let node = self.node(at)?;
        if 1 << node.largest < size {
            return None;
        }
        // Only one extent can lie across the limit; all others that are large enough succeed, so this is O(depth).
        if node.start < end {
            if let Some(found) = self.find(node.right, size, end) {
                return Some(found);
            }
            let place = node.end.min(end).checked_sub(size).map(|highest| highest & !(size - 1));
            if let Some(place) = place
                && place >= node.start
            {
                return Some((place, node.start, node.end));
            }
        }
        self.find(node.left, size, end)
    }

    fn node(&self, at: Index) -> Option<&Node> {
        self.nodes.get(at as usize)
    }

    /// The last extent that starts before `page`.
    fn last_before(&self, page: u64) -> Option<(u64, u64)> {
        let (mut at, mut found) = (self.root, None);
        while let Some(node) = self.node(at) {
            at = if node.start < page {
                found = Some((node.start, node.end));
                node.right
            } else {
                node.left
            };
        }
        found
    }

    /// The extent that starts at `page`.
    fn extent_at(&self, page: u64) -> Option<(u64, u64)> {
        self.last_before(page.checked_add(1)?).filter(|&(start, _)| start == page)
    }

    fn insert(&mut self, start: u64, end: u64) {
        // Marsaglia's xorshift64.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let node = Node {
            start,
            end,
            priority: self.random,
            left: NONE,
            right: NONE,
            largest: largest_block(start, end),
        };
        let index = match self.nodes.get(self.unused as usize) {
            Some(unused) => {
                let index = self.unused;
                self.unused = unused.left;
                self.unused_count -= 1;
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as Index
            }
        };
        let (left, right) = self.split(self.root, start);
        let left = self.join(left, index);
        self.root = self.join(left, right);
    }

    /// Removes the extent that starts at `start`.
    fn remove(&mut self, start: u64) {
        let (left, rest) = self.split(self.root, start);
        let (removed, right) = self.split(rest, start + 1);
        if removed != NONE {
            self.nodes[removed as usize].left = self.unused;
            self.unused = removed;
            self.unused_count += 1;
        }
        self.root = self.join(left, right);
    }

    /// Splits a subtree into what starts before `page` and the rest.
    fn split(&mut self, at: Index, page: u64) -> (Index, Index) {
        let Some(&node) = self.node(at) else { return (NONE, NONE) };
        if node.start < page {
            let (left, right) = self.split(node.right, page);
            self.nodes[at as usize].right = left;
            self.update(at);
            (at, right)
        } else {
            let (left, right) = self.split(node.left, page);
            self.nodes[at as usize].left = right;
            self.update(at);
            (left, at)
        }
    }

    /// Joins two subtrees, all of `left` before all of `right`.
    fn join(&mut self, left: Index, right: Index) -> Index {
        let (Some(&l), Some(&r)) = (self.node(left), self.node(right)) else {
            return if left == NONE { right } else { left };
        };
        if l.priority > r.priority {
            let joined = self.join(l.right, right);
            self.nodes[left as usize].right = joined;
            self.update(left);
            left
        } else {
            let joined = self.join(left, r.left);
            self.nodes[right as usize].left = joined;
            self.update(right);
            right
        }
    }

    fn update(&mut self, at: Index) {
        let node = self.nodes[at as usize];
        let of = |child: Index| self.node(child).map_or(0, |node| node.largest);
        let largest = largest_block(node.start, node.end).max(of(node.left)).max(of(node.right));
        self.nodes[at as usize].largest = largest;
    }
}
