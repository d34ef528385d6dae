//! I/O virtual addresses: which are taken (Linux: `struct iova_domain`, drivers/iommu/iova.c).
//!
//! In front of the tree each CPU has magazines of recently freed ranges of 1 to 32 pages, in one slot behind one lock that
//! is taken by one compare-and-swap; full ones go to a depot (Linux: `iova_rcache`).

mod magazine;
mod tree;

use alloc::collections::TryReserveError;

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
/// let iovas = IovaDomain::new(4096, DmaAddr::new(0), DmaAddr::new((1 << 40) - 1), 2)?;
/// iovas.reserve(DmaAddr::new(0xfee0_0000), DmaAddr::new(0xfeef_ffff))?;
/// let at = iovas.alloc(3 * 4096, DmaAddr::new(u32::MAX.into())).expect("there are addresses");
/// assert_eq!(at.get(), 0xffff_c000, "aligned to four pages, as high as they go");
/// // SAFETY: nothing was ever mapped there.
/// iovas.free(at, 3 * 4096, &unsafe { Flushed::assert() });
/// # Ok::<(), std::collections::TryReserveError>(())
/// ```
#[doc(alias = "iova_domain")]
#[derive(Debug)]
pub struct IovaDomain {
    /// log2 of the granule: everything here counts in granules.
    shift: u32,
    last: u64,
    caches: PerCpu<Cache>,
    depot: CpuLock<Depot>,
    shared: CpuLock<Shared>,
}

/// What is behind all CPUs' magazines.
#[derive(Debug)]
struct Shared {
    tree: Tree,
    /// So many ranges find room in magazines when they come back.
    room: usize,
    counts: Counts,
}

impl IovaDomain {
    /// Addresses from `first` to `last` (inclusive) in units of `granule` bytes, a power of two, with magazines for `cpus`
    /// CPUs; more share them (Linux: `init_iova_domain`, `iova_domain_init_rcaches`). Page 0 is never handed out, so that
    /// no valid address is 0.
    ///
    /// # Errors
    /// When there is no memory.
    #[doc(alias = "init_iova_domain")]
    pub fn new(granule: u64, first: DmaAddr, last: DmaAddr, cpus: usize) -> Result<Self, TryReserveError> {
        let shift = granule.trailing_zeros();
        // The very last page of 2^64 is never handed out: its end has no number.
        let (first, last) = ((first.get() >> shift).max(1), (last.get() >> shift).min(u64::MAX - 1));
        let tree = Tree::new(first, last)?;
        Ok(Self {
            shift,
            last,
            caches: PerCpu::new(cpus, |_| Cache::default()),
            depot: CpuLock::default(),
            shared: CpuLock::new(Shared { tree, room: 0, counts: Counts::default() }),
        })
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
    ///
    /// # Errors
    /// When there is no memory; some of the range is free then.
    #[doc(alias = "reserve_iova")]
    pub fn reserve(&self, first: DmaAddr, last: DmaAddr) -> Result<(), TryReserveError> {
        // What is in a magazine is free, too.
        self.drain();
        self.shared.lock().tree.reserve(first.get() >> self.shift, last.get() >> self.shift)
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
        let mut shared = self.shared.lock();
        let page = shared.tree.take(pages, limit).ok().flatten()?;
        shared.counts.taken += 1;
        let live = shared.tree.taken();
        let room = (live > shared.room).then(|| {
            shared.room = live + Depot::STEP;
            shared.room
        });
        drop(shared);
        if let Some(ranges) = room {
            self.depot.lock().make_room(ranges);
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
        if cached
            && let Some(mut cache) = self.caches.try_lock()
            && cache.push(order, page, &self.depot)
        {
            cache.counts.given_back += 1;
            return;
        }
        let mut shared = self.shared.lock();
        shared.counts.given_back += 1;
        shared.tree.give_back(page, if cached { 1 << order } else { pages });
    }

    /// What was done so far, on all CPUs.
    pub fn counts(&self) -> Counts {
        let shared = self.shared.lock().counts;
        // What was taken came from the tree or from a magazine.
        self.caches.iter().fold(shared, |sum, cache| Counts {
            taken: sum.taken + cache.counts.hits,
            given_back: sum.given_back + cache.counts.given_back,
            hits: sum.hits + cache.counts.hits,
        })
    }

    /// Gives back a magazine of each size while the depot has more of them than there are CPUs: what a burst has left there
    /// serves other sizes again after a while (Linux: `iova_depot_work_func`). To be called now and then.
    #[doc(alias = "iova_depot_work_func")]
    pub fn trim(&self) {
        for order in 0..ORDERS {
            let surplus = self.depot.lock().take_surplus(order, self.caches.len());
            if let Some(mut magazine) = surplus {
                self.give_back_all(order, magazine.drain());
                self.depot.lock().put_empty(magazine);
            }
        }
    }

    /// Empties all magazines into the tree (Linux: `free_cpu_cached_iovas`, `free_global_cached_iovas`).
    #[doc(alias = "free_cpu_cached_iovas")]
    pub fn drain(&self) {
        for mut cache in self.caches.iter() {
            cache.drain(|order, pages| self.give_back_all(order, pages));
        }
        self.depot.lock().drain(|order, pages| self.give_back_all(order, pages));
    }

    fn give_back_all(&self, order: usize, pages: &[u64]) {
        let mut shared = self.shared.lock();
        pages.iter().for_each(|&page| shared.tree.give_back(page, 1 << order));
    }
}

/// log2 of the power of two that `pages` is rounded up to.
#[inline]
fn order_of(pages: u64) -> usize {
    pages.saturating_sub(1).checked_ilog2().map_or(0, |log| log as usize + 1)
}
