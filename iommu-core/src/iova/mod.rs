//! I/O virtual addresses: which are taken (Linux: `struct iova_domain`).
//!
//! In front of the tree each CPU has magazines of recently freed ranges of 1 to 32 pages, in one slot behind one lock that
//! is taken by one compare-and-swap; full ones go to a depot (Linux: `iova_rcache`).

mod magazine;
mod tree;

use platform::sync::{CpuLock, PerCpu};
use platform::{DmaAddr, Flushed};

pub(crate) use self::magazine::Counts;
use self::magazine::{Cache, Depot, ORDERS};
use self::tree::Tree;

/// The sizes that the magazines hold: up to this many pages, rounded up to a power of two.
const LARGEST_CACHED: u64 = 1 << (ORDERS - 1);

/// The I/O addresses of one domain.
#[derive(Debug)]
pub(crate) struct IovaDomain {
    /// log2 of the granule: everything here counts in granules.
    shift: u32,
    last: u64,
    caches: PerCpu<Cache>,
    depot: CpuLock<Depot>,
    tree: CpuLock<Tree>,
}

impl IovaDomain {
    /// Addresses from `first` to `last` (inclusive) in units of `granule` bytes, a power of two. Page 0 is never handed
    /// out, so that no valid address is 0.
    pub(crate) fn new(granule: u64, first: DmaAddr, last: DmaAddr, cpus: usize) -> Self {
        let shift = granule.trailing_zeros();
        let first = (first.get() >> shift).max(1);
        let last = last.get() >> shift;
        Self {
            shift,
            last,
            caches: PerCpu::new(cpus, |_| Cache::default()),
            depot: CpuLock::default(),
            // The very last page of 2^64 addresses stays free: ends are exclusive.
            tree: CpuLock::new(Tree::new(first, last.saturating_add(1))),
        }
    }

    /// Bytes in a granule.
    #[inline]
    pub(crate) fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// The longest range that is served from the magazines, in bytes (Linux: `iova_rcache_range`).
    pub(crate) fn cached_range(&self) -> u64 {
        LARGEST_CACHED << self.shift
    }

    /// Takes a range out for ever (Linux: `reserve_iova`).
    pub(crate) fn reserve(&self, first: DmaAddr, last: DmaAddr) {
        self.tree.lock().reserve(first.get() >> self.shift, (last.get() >> self.shift).saturating_add(1));
    }

    /// Takes `len` bytes (a multiple of the granule), aligned to their length rounded up to a power of two, with the last
    /// byte not above `limit` (Linux: `alloc_iova_fast`). `None` when there are none.
    #[inline]
    pub(crate) fn alloc(&self, len: u64, limit: DmaAddr) -> Option<DmaAddr> {
        let pages = len >> self.shift;
        let limit = (limit.get() >> self.shift).min(self.last);
        let order = order_of(pages);
        let cached = order < ORDERS;
        if cached
            && let Some(mut cache) = self.caches.try_lock()
            && let Some(page) = cache.pop(order, limit, &self.depot)
        {
            cache.counts.taken += 1;
            cache.counts.hits += 1;
            return Some(DmaAddr::new(page << self.shift));
        }
        // A cached size is taken whole, so that it comes back to the same magazine.
        let taken = self.alloc_slow(if cached { 1 << order } else { pages }, limit)?;
        if let Some(mut cache) = self.caches.try_lock() {
            cache.counts.taken += 1;
        }
        Some(taken)
    }

    #[cold]
    fn alloc_slow(&self, pages: u64, limit: u64) -> Option<DmaAddr> {
        let mut page = self.take_from_tree(pages, limit);
        if page.is_none() {
            // What the magazines hold may be what is missing.
            self.drain();
            page = self.take_from_tree(pages, limit);
        }
        page.map(|page| DmaAddr::new(page << self.shift))
    }

    fn take_from_tree(&self, pages: u64, limit: u64) -> Option<u64> {
        let mut tree = self.tree.lock();
        let page = tree.take(pages, limit).ok().flatten()?;
        let live = tree.taken();
        drop(tree);
        self.depot.lock().make_room(live);
        Some(page)
    }

    /// Gives a range back that [`IovaDomain::alloc`] returned for `len` bytes (Linux: `free_iova_fast`). Allocates nothing.
    #[inline]
    pub(crate) fn free(&self, at: DmaAddr, len: u64, _flushed: &Flushed) {
        let page = at.get() >> self.shift;
        let pages = len >> self.shift;
        let order = order_of(pages);
        let cached = order < ORDERS;
        if let Some(mut cache) = self.caches.try_lock() {
            cache.counts.given_back += 1;
            if cached && cache.push(order, page, &self.depot) {
                return;
            }
        }
        self.tree.lock().give_back(page, if cached { 1 << order } else { pages });
    }

    /// What all CPUs did together. An operation that found all CPUs' locks taken is not counted.
    pub(crate) fn counts(&self) -> Counts {
        self.caches.iter().fold(Counts::default(), |sum, cache| Counts {
            taken: sum.taken + cache.counts.taken,
            given_back: sum.given_back + cache.counts.given_back,
            hits: sum.hits + cache.counts.hits,
        })
    }

    /// Empties all magazines into the tree (Linux: `free_cpu_cached_iovas`, `free_global_cached_iovas`).
    fn drain(&self) {
        for mut cache in self.caches.iter() {
            cache.drain(|order, page| self.tree.lock().give_back(page, 1 << order));
        }
        self.depot.lock().drain(|order, page| self.tree.lock().give_back(page, 1 << order));
    }
}

#[inline]
fn order_of(pages: u64) -> usize {
    pages.next_power_of_two().trailing_zeros() as usize
}
