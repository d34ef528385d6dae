//! What an unmap leaves to be done: ranges to invalidate, and table pages that wait for it.
//!
//! An I/O address or a table page may be used again only after the IOMMU has forgotten it. The types here make that
//! order hard to miss: unmaps collect into an [`IotlbGather`], the domain's sync consumes it and returns a [`Flushed`]
//! token, and giving back an I/O address takes that token.

use core::fmt;

use crate::frames::{Frames, Window};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::{DmaAddr, PhysAddr};

/// Table pages on their way back to the allocator, as a list through the pages themselves: the first word of each holds the
/// next one's address, which every page-table format reads as "not present". So collecting them allocates nothing. All pages
/// of a list have one size, since a domain's tables have.
///
/// Dropping a list leaks its pages.
#[must_use = "dropping the list leaks its frames"]
pub struct FrameList {
    first: PhysAddr,
    last: PhysAddr,
    // Both narrow, since a flush queue has one of these in each entry: tables of a domain do not fill 16 TiB.
    len: u32,
    /// Bytes in each.
    size: u32,
}

impl FrameList {
    /// A list of nothing.
    pub const fn new() -> Self {
        Self { first: PhysAddr::new(0), last: PhysAddr::new(0), len: 0, size: 0 }
    }

    /// How many frames are in the list.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `frame` at the front.
    ///
    /// # Safety
    /// The frame came from the allocator that `window` belongs to, as one of `size` bytes, like all that are in the list; the
    /// CPU does not use it any more. A device's IOMMU may still read it.
    pub unsafe fn push(&mut self, window: Window, frame: PhysAddr, size: usize) {
        debug_assert!(self.len == 0 || self.size as usize == size);
        self.size = size as u32;
        let next = if self.len == 0 { 0 } else { self.first.get() };
        // SAFETY: the caller promises a live frame of this window.
        unsafe { window.word(frame) }.store(next, Ordering::Relaxed);
        if self.len == 0 {
            self.last = frame;
        }
        self.first = frame;
        self.len += 1;
    }

    /// Puts all of `other` in front.
    ///
    /// # Safety
    /// Both lists are of frames of `window`, of one size.
    pub unsafe fn append(&mut self, window: Window, other: FrameList) {
        if other.len == 0 {
            return;
        }
        if self.len == 0 {
            *self = other;
            return;
        }
        // SAFETY: `other.last` is a live frame of this window, since it is in a list.
        unsafe { window.word(other.last) }.store(self.first.get(), Ordering::Relaxed);
        self.first = other.first;
        self.len += other.len;
    }

    /// Gives every frame back.
    ///
    /// # Safety
    /// The frames came from `frames`, and nothing reads them any more: not the CPU, not an IOMMU.
    pub unsafe fn free(self, frames: &(impl Frames + ?Sized)) {
        let window = frames.window();
        let mut frame = self.first;
        for _ in 0..self.len {
            // SAFETY: the frame is in the list, so it is live until freed below.
            let next = unsafe { window.word(frame) }.load(Ordering::Relaxed);
            // SAFETY: the caller promises that nobody uses it; it came from this allocator with this size.
            unsafe { frames.free(frame, self.size as usize) };
            frame = PhysAddr::new(next);
        }
    }
}

impl Default for FrameList {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FrameList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameList({} frames)", self.len)
    }
}

/// Counts what was given up because nobody could say that the IOMMU had forgotten it. The count is the number of table
/// pages and ranges that will never be used again.
#[derive(Debug, Default)]
pub struct LeakCounter(AtomicU64);

impl LeakCounter {
    /// Nothing leaked so far.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Nothing leaked so far.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// How many were leaked.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

/// What unmaps of one domain have removed and the IOMMU may still remember (Linux: `struct iommu_iotlb_gather`).
///
/// Dropped without a sync it leaks the table pages in it, and counts them.
#[must_use = "a gather that is not synced leaks what it holds"]
#[derive(Debug)]
pub struct IotlbGather<'a> {
    /// First address, and the last one (inclusive); nothing gathered while first > last.
    first: u64,
    last: u64,
    tables: FrameList,
    leaks: &'a LeakCounter,
}

impl<'a> IotlbGather<'a> {
    /// An empty gather. What it has to give up is added to `leaks`.
    pub const fn new(leaks: &'a LeakCounter) -> Self {
        Self { first: u64::MAX, last: 0, tables: FrameList::new(), leaks }
    }

    /// Adds a range of `len` bytes that has been unmapped (Linux: `iommu_iotlb_gather_add_range`). The gather is one
    /// interval: what lies between two ranges is invalidated too.
    #[inline]
    pub fn add_range(&mut self, iova: DmaAddr, len: u64) {
        if let Some(last) = iova.last_of(len) {
            self.first = self.first.min(iova.get());
            self.last = self.last.max(last.get());
        }
    }

    /// Adds a table page of `size` bytes that the unmap has taken out of the tree.
    ///
    /// # Safety
    /// As for [`FrameList::push`], and the page table does not reach the page any more.
    pub unsafe fn add_table(&mut self, window: Window, page: PhysAddr, size: usize) {
        // SAFETY: handed on.
        unsafe { self.tables.push(window, page, size) };
    }

    /// First and last address (inclusive) of what was unmapped, or `None` when nothing was.
    #[inline]
    pub fn range(&self) -> Option<(DmaAddr, DmaAddr)> {
        (self.first <= self.last).then_some((DmaAddr::new(self.first), DmaAddr::new(self.last)))
    }

    /// Whether table pages wait here, so that cached table pointers must go as well as leaves.
    #[inline]
    pub fn has_tables(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Takes the table pages out, for a queue that will flush later (Linux: a flush-queue entry's `freelist`).
    pub fn take_tables(&mut self) -> FrameList {
        core::mem::take(&mut self.tables)
    }

    /// Ends the gather after its invalidation: table pages go back to `frames`.
    ///
    /// # Safety
    /// Every IOMMU that serves the domain has finished an invalidation of the whole range, table pointers included when
    /// [`IotlbGather::has_tables`], that began after the last unmap; no CPU looks up an address of the range any more, when there are
    /// tables; and the table pages came from `frames`.
    #[inline]
    pub unsafe fn flushed(mut self, frames: &(impl Frames + ?Sized)) -> Flushed {
        if self.has_tables() {
            let tables = self.take_tables();
            // SAFETY: the caller promises that no IOMMU remembers the pages.
            unsafe { tables.free(frames) };
        }
        // SAFETY: the caller's promise is the token's.
        unsafe { Flushed::assert() }
    }
}

impl Drop for IotlbGather<'_> {
    fn drop(&mut self) {
        if !self.tables.is_empty() {
            self.leaks.add(self.tables.len() as u64);
        }
    }
}

/// Proof that the IOMMU has forgotten what was unmapped. Giving back an I/O address takes one.
#[must_use]
#[derive(Debug)]
pub struct Flushed(());

impl Flushed {
    /// Says that an invalidation has finished.
    ///
    /// # Safety
    /// It has, on every IOMMU of the domain, for every range that the token is shown for, and it began after their unmap.
    #[inline]
    pub const unsafe fn assert() -> Self {
        Self(())
    }
}
