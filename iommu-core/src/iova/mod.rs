//! I/O virtual addresses: which are taken (Linux: `struct iova_domain`, drivers/iommu/iova.c).
//!
//! In front of the tree each CPU has magazines of recently freed ranges of 1 to 32 pages, in one slot behind one lock that
//! is taken by one compare-and-swap; full ones go to a depot (Linux: `iova_rcache`).

mod magazine;
mod tree;

use platform::sync::{CpuLock, PerCpu};
use platform::{DmaAddr, Flushed};

pub use self::magazine::Counts;
use self::magazine::{Cache, Depot, ORDERS};
use self::tree::Tree;

/// The sizes that the magazines hold: up to this many pages, rounded up to a power of two.
const LARGEST_CACHED: u64 = 1 << (ORDERS - 1);

/// The I/O addresses of one domain: which are taken. Any number of CPUs use it at once.
///
/// ```
/// use iommu_core::iova::IovaDomain;
/// use platform::{DmaAddr, Flushed};
///
/// // Pages of 4 KiB below 1 TiB, for two CPUs.
/// let iovas = IovaDomain::new(4096, DmaAddr::new(0), DmaAddr::new((1 << 40) - 1), 2);
/// iovas.reserve(DmaAddr::new(0xfee0_0000), DmaAddr::new(0xfeef_ffff));
/// let at = iovas.alloc(3 * 4096, DmaAddr::new(u32::MAX.into())).expect("there are addresses");
/// assert_eq!(at.get(), 0xffff_c000, "aligned to four pages, as high as they go");
/// // SAFETY: nothing was ever mapped there.
/// iovas.free(at, 3 * 4096, &unsafe { Flushed::assert() });
/// ```
#[doc(alias = "iova_domain")]
#[derive(Debug)]
pub struct IovaDomain {
    /// log2 of the granule: everything here counts in granules.
    shift: u32,
    last: u64,
    caches: PerCpu<Cache>,
    depot: CpuLock<Depot>,
    tree: CpuLock<Tree>,
}

impl IovaDomain {
    /// Addresses from `first` to `last` (inclusive) in units of `granule` bytes, a power of two, with magazines for `cpus`
    /// CPUs; more share them (Linux: `init_iova_domain`, `iova_domain_init_rcaches`). Page 0 is never handed out, so that
    /// no valid address is 0.
    #[doc(alias = "init_iova_domain")]
    pub fn new(granule: u64, first: DmaAddr, last: DmaAddr, cpus: usize) -> Self {
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
    pub fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// The longest range that is served from the magazines, in bytes (Linux: `iova_rcache_range`).
    pub fn cached_range(&self) -> u64 {
        LARGEST_CACHED << self.shift
    }

    /// Takes what is free from `first` to `last` (inclusive) out for ever (Linux: `reserve_iova`). Such ranges may overlap.
    #[doc(alias = "reserve_iova")]
    pub fn reserve(&self, first: DmaAddr, last: DmaAddr) {
        self.tree.lock().reserve(first.get() >> self.shift, (last.get() >> self.shift).saturating_add(1));
    }

    /// Takes `len` bytes (a multiple of the granule), aligned to their length rounded up to a power of two, with the last
    /// byte not above `limit` (Linux: `alloc_iova_fast`). `None` when there are none, not even in the magazines of all
    /// CPUs.
    #[doc(alias = "alloc_iova_fast")]
    #[inline]
    pub fn alloc(&self, len: u64, limit: DmaAddr) -> Option<DmaAddr> {
        self.try_alloc(len, limit).or_else(|| self.alloc_drained(len, limit))
    }

    /// The same without emptying other CPUs' magazines when the tree has none: for a first try where a second one is wider
    /// (Linux: `alloc_iova_fast` without `flush_rcache`).
    #[inline]
    pub fn try_alloc(&self, len: u64, limit: DmaAddr) -> Option<DmaAddr> {
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
        self.take_from_tree(if cached { 1 << order } else { pages }, limit)
    }

    #[cold]
    fn alloc_drained(&self, len: u64, limit: DmaAddr) -> Option<DmaAddr> {
        self.drain();
        self.try_alloc(len, limit)
    }

    #[cold]
    fn take_from_tree(&self, pages: u64, limit: u64) -> Option<DmaAddr> {
        let mut tree = self.tree.lock();
        let page = tree.take(pages, limit).ok().flatten()?;
        let live = tree.taken();
        drop(tree);
        self.depot.lock().make_room(live);
        if let Some(mut cache) = self.caches.try_lock() {
            cache.counts.taken += 1;
        }
        Some(DmaAddr::new(page << self.shift))
    }

    /// Gives a range back that [`IovaDomain::alloc`] returned for `len` bytes (Linux: `free_iova_fast`). Allocates nothing.
    /// Whoever gives back what he did not take may be given what another has.
    #[doc(alias = "free_iova_fast")]
    #[inline]
    pub fn free(&self, at: DmaAddr, len: u64, _flushed: &Flushed) {
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
    pub fn counts(&self) -> Counts {
        self.caches.iter().fold(Counts::default(), |sum, cache| Counts {
            taken: sum.taken + cache.counts.taken,
            given_back: sum.given_back + cache.counts.given_back,
            hits: sum.hits + cache.counts.hits,
        })
    }

    /// Empties all magazines into the tree (Linux: `free_cpu_cached_iovas`, `free_global_cached_iovas`).
    #[doc(alias = "free_cpu_cached_iovas")]
    pub fn drain(&self) {
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
