//! The free I/O addresses of a domain, in pages: a radix tree in which each node knows the largest aligned block that is free
//! below each of its 64 children. So the highest block below a limit is found by going down once, whatever the pattern of what
//! is taken: the cost grows with the logarithm of the address space (five nodes for 48 bits of 4 KiB pages), not with what is in
//! use.
//!
//! A child that is free as a whole, or taken as a whole by one range, has no node. Taking splits what was free, so it makes
//! nodes; giving back never does, and a node whose pages are all free again goes.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// log2 of a node's children.
const BITS: u32 = 6;
const CHILDREN: usize = 1 << BITS;
/// No node below this child; in a node of pages: all free.
const NONE: u64 = u64::MAX;
/// Nodes are allocated by so many, and never move: a tree that grows copies nothing.
const CHUNK: usize = 8;

/// 64 children, each of 2^`shift` pages, where `shift` is 6 in the lowest nodes and 6 more from level to level.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// Of each child, 1 + log2 of the largest aligned block of free pages in it; 0 if none is free.
    largest: [u8; CHILDREN],
    /// In a lowest node the free pages of each child, as bits; else the index of its node.
    slots: [u64; CHILDREN],
}

impl Node {
    /// All pages free.
    fn free(shift: u32) -> Self {
        Self { largest: [whole(shift); CHILDREN], slots: [NONE; CHILDREN] }
    }

    /// The children that have a block of 2^`order` free pages.
    #[inline]
    fn with_block(&self, order: u32) -> u64 {
        let (words, _) = self.largest.as_chunks::<8>();
        let mut mask = 0;
        for (index, word) in words.iter().enumerate() {
            // The product gathers the eight bits.
            mask |= ((larger(word, order) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * index);
        }
        mask
    }

    /// The highest of them that is not above `top`. Mostly it is not far below.
    #[inline]
    fn highest_with_block(&self, order: u32, top: u64) -> Option<u64> {
        let (words, _) = self.largest.as_chunks::<8>();
        let top = top.min(CHILDREN as u64 - 1);
        let mut within = u64::MAX >> (8 * (7 - top % 8));
        for index in (0..=top / 8).rev() {
            if let Some(bit) = (larger(&words[index as usize], order) & within).checked_ilog2() {
                return Some(8 * index + u64::from(bit / 8));
            }
            within = u64::MAX;
        }
        None
    }

    /// What a parent notes of this node.
    fn summary(&self, shift: u32) -> u8 {
        match self.largest.iter().copied().max() {
            Some(largest) if largest < whole(shift) => largest,
            _ => shift as u8 + largest_run(self.with_block(shift)),
        }
    }
}

/// The high bit of each of eight bytes that is larger than `order`. No byte has that bit itself.
#[inline]
fn larger(bytes: &[u8; 8], order: u32) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    ((u64::from_le_bytes(*bytes) | HIGH) - u64::from(order + 1) * ONES) & HIGH
}

/// What is noted of 2^`shift` free pages.
#[inline]
fn whole(shift: u32) -> u8 {
    shift as u8 + 1
}

/// Where aligned runs of 2^`order` set bits begin.
#[inline]
fn runs(bits: u64, order: u32) -> u64 {
    (0..order).fold(bits, pairs)
}

/// Of the aligned runs of 2^`half` bits, those that are followed by one and begin where twice as many may.
#[inline]
fn pairs(bits: u64, half: u32) -> u64 {
    const EVEN: [u64; BITS as usize] = [
        0x5555_5555_5555_5555,
        0x1111_1111_1111_1111,
        0x0101_0101_0101_0101,
        0x0001_0001_0001_0001,
        0x0000_0001_0000_0001,
        0x0000_0000_0000_0001,
    ];
    bits & (bits >> (1 << half)) & EVEN[half as usize]
}

/// 1 + log2 of the longest aligned run of set bits; 0 if none is set.
#[inline]
fn largest_run(bits: u64) -> u8 {
    let mut bits = bits;
    let mut largest = 0;
    while bits != 0 {
        largest += 1;
        bits = if u32::from(largest) <= BITS { pairs(bits, u32::from(largest) - 1) } else { 0 };
    }
    largest
}

/// The highest set bit at or below `top`.
#[inline]
fn highest(bits: u64, top: u64) -> Option<u64> {
    (bits & (u64::MAX >> (63 - top.min(63)))).checked_ilog2().map(u64::from)
}

/// The highest place for an aligned block of 2^`order` among units of 2^`shift`, of which `free` says those that are free, with
/// the last page not above `last`.
#[inline]
fn place(free: u64, shift: u32, order: u32, last: u64) -> Option<u64> {
    let top = ((last + 1) >> shift).checked_sub(1 << (order - shift))?;
    Some(highest(runs(free, order - shift), top)? << shift)
}

/// Free pages.
#[derive(Debug)]
pub(super) struct Tree {
    chunks: Vec<Vec<Node>>,
    /// Unused nodes, linked by their first slot.
    unused: u64,
    unused_count: usize,
    root: u64,
    /// The root's.
    shift: u32,
    /// What a parent would note of the root.
    largest: u8,
    last: u64,
    taken: usize,
}

impl Tree {
    /// All pages from `first` to `last` free. The latter is not 2^64 - 1.
    pub(super) fn new(first: u64, last: u64) -> Result<Self, TryReserveError> {
        let mut shift = BITS;
        while last >> shift >= CHILDREN as u64 {
            shift += BITS;
        }
        let mut tree = Self {
            chunks: Vec::new(),
            unused: NONE,
            unused_count: 0,
            root: NONE,
            shift,
            largest: 0,
            last,
            taken: 0,
        };
        tree.need(1)?;
        tree.root = tree.new_node(shift);
        let root = tree.node_mut(tree.root);
        let end = (last >> shift) as usize + 1;
        root.largest[end..].fill(0);
        if shift == BITS {
            root.slots[end..].fill(0);
        }
        let last_of_child = last | ((1 << shift) - 1);
        if last < last_of_child {
            tree.reserve(last + 1, last_of_child)?;
        }
        if let Some(before) = first.checked_sub(1) {
            tree.reserve(0, before.min(last))?;
        }
        Ok(tree)
    }

    /// Takes `pages` pages, aligned to their number rounded up to a power of two, as high as they go with the last page
    /// not above `limit`. The whole of such a block must be free; what is left of it stays so.
    pub(super) fn take(&mut self, pages: u64, limit: u64) -> Result<Option<u64>, TryReserveError> {
        let Some(size) = pages.checked_next_power_of_two() else { return Ok(None) };
        let order = size.trailing_zeros();
        if u32::from(self.largest) <= order {
            return Ok(None);
        }
        self.need(self.levels())?;
        let limit = limit.min(self.last);
        let Some((at, largest)) =
            self.take_in(self.root, self.shift, (order, pages.max(1)), limit, self.largest)
        else {
            return Ok(None);
        };
        self.largest = largest;
        self.taken += 1;
        Ok(Some(at))
    }

    /// How many ranges are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// Gives pages back that were taken in one piece. Allocates nothing.
    pub(super) fn give_back(&mut self, at: u64, pages: u64) {
        let Some(last) = at.checked_add(pages.max(1) - 1).filter(|last| *last <= self.last) else { return };
        self.taken = self.taken.saturating_sub(1);
        self.largest = self.mark(self.root, self.shift, (at, last), true, self.largest);
    }

    /// Takes what is free from `first` to `last` out for ever.
    pub(super) fn reserve(&mut self, first: u64, last: u64) -> Result<(), TryReserveError> {
        let all_of_root = self.last | ((1 << self.shift) - 1);
        if first <= last && first <= all_of_root {
            // A path to each end.
            self.need(2 * self.levels())?;
            self.largest =
                self.mark(self.root, self.shift, (first, last.min(all_of_root)), false, self.largest);
        }
        Ok(())
    }

    /// Takes `pages` of the highest aligned block of 2^`order` pages in a node, with the last page not above `last`. Returns the
    /// first and what the parent notes of the node, which `was` that before. Pages count from the node's first.
    fn take_in(
        &mut self,
        index: u64,
        shift: u32,
        (order, pages): (u32, u64),
        last: u64,
        was: u8,
    ) -> Option<(u64, u8)> {
        if order >= shift {
            let at = place(self.node(index).with_block(shift), shift, order, last)?;
            return Some((at, self.mark(index, shift, (at, at + pages - 1), false, was)));
        }
        let mut top = last >> shift;
        // Only the child that the limit lies in can have a block and yet none below it.
        while let Some(child) = self.node(index).highest_with_block(order, top) {
            let first = child << shift;
            let last = (last - first).min((1 << shift) - 1);
            let Node { largest, slots } = self.node(index);
            let found = match slots[child as usize] {
                bits if shift == BITS => place(bits, 0, order, last),
                NONE => (last + 1).checked_sub(1 << order).map(|at| at >> order << order),
                below => {
                    let before = largest[child as usize];
                    if let Some((at, after)) = self.take_in(below, shift - BITS, (order, pages), last, before)
                    {
                        let noted = if after == before { was } else { self.note(index, shift, child, after) };
                        return Some((first + at, noted));
                    }
                    None
                }
            };
            if let Some(at) = found {
                let at = first + at;
                return Some((at, self.mark(index, shift, (at, at + pages - 1), false, was)));
            }
            top = child.checked_sub(1)?;
        }
        None
    }

    /// Notes what changed of a child, and returns what the parent notes of the node.
    #[inline]
    fn note(&mut self, index: u64, shift: u32, child: u64, largest: u8) -> u8 {
        let node = self.node_mut(index);
        node.largest[child as usize] = largest;
        node.summary(shift)
    }

    /// Makes pages of a node free or taken and returns what its parent notes of it, which `was` that before. Pages count
    /// from the node's first. Of what is free or taken already, nothing changes.
    fn mark(&mut self, index: u64, shift: u32, (first, last): (u64, u64), free: bool, was: u8) -> u8 {
        let mut changed = false;
        for child in first >> shift..(last >> shift) + 1 {
            let (base, end) = (child << shift, (1 << shift) - 1);
            let part = (first.saturating_sub(base), (last - base).min(end));
            let at = child as usize;
            let Node { largest, slots } = self.node(index);
            let (before, slot) = (largest[at], slots[at]);
            let after = if shift == BITS {
                let bits = (u64::MAX >> (63 - part.1)) & (u64::MAX << part.0);
                let pages = if free { slot | bits } else { slot & !bits };
                self.node_mut(index).slots[at] = pages;
                largest_run(pages)
            } else if slot != NONE {
                self.mark_below(index, at, shift, part, free, before)
            } else if part == (0, end) {
                if free { whole(shift) } else { 0 }
            } else if !free && before != 0 {
                let new = self.new_node(shift - BITS);
                self.node_mut(index).slots[at] = new;
                self.mark_below(index, at, shift, part, free, before)
            } else {
                // Parts of what was taken as a whole come back together.
                before
            };
            if after != before {
                self.node_mut(index).largest[at] = after;
                changed = true;
            }
        }
        if changed { self.node(index).summary(shift) } else { was }
    }

    /// The same in a child's node, which goes when all of it is free.
    fn mark_below(
        &mut self,
        index: u64,
        child: usize,
        shift: u32,
        part: (u64, u64),
        free: bool,
        was: u8,
    ) -> u8 {
        let below = self.node(index).slots[child];
        let after = self.mark(below, shift - BITS, part, free, was);
        if after == whole(shift) {
            self.node_mut(index).slots[child] = NONE;
            self.node_mut(below).slots[0] = self.unused;
            self.unused = below;
            self.unused_count += 1;
        }
        after
    }

    fn levels(&self) -> usize {
        (self.shift / BITS) as usize
    }

    /// Makes room for so many more nodes.
    fn need(&mut self, count: usize) -> Result<(), TryReserveError> {
        while self.unused_count < count {
            self.chunks.try_reserve(1)?;
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(CHUNK)?;
            for _ in 0..CHUNK {
                let mut node = Node::free(BITS);
                node.slots[0] = self.unused;
                self.unused = (self.chunks.len() * CHUNK + chunk.len()) as u64;
                chunk.push(node);
            }
            self.chunks.push(chunk);
            self.unused_count += CHUNK;
        }
        Ok(())
    }

    /// A node that is all free. There is room for it.
    fn new_node(&mut self, shift: u32) -> u64 {
        let index = self.unused;
        self.unused = self.node(index).slots[0];
        self.unused_count -= 1;
        *self.node_mut(index) = Node::free(shift);
        index
    }

    #[inline]
    fn node(&self, index: u64) -> &Node {
        &self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }

    #[inline]
    fn node_mut(&mut self, index: u64) -> &mut Node {
        &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}
