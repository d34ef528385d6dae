//! Sets of page sizes, and the choice among them.

use core::fmt;

/// A set of page sizes, each a power of two in bytes: bit n stands for 2^n (Linux: `pgsize_bitmap`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageSizes(u64);

/// A run of pages of one size that [`PageSizes::pick`] chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Bytes in a page.
    pub page_size: u64,
    /// How many pages, at least 1.
    pub count: usize,
}

impl PageSizes {
    /// The set whose bit n says that pages of 2^n bytes exist.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bitmap.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether pages of `size` bytes are in the set.
    pub const fn contains(self, size: u64) -> bool {
        size.is_power_of_two() && self.0 & size != 0
    }

    /// The sizes in both sets.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The smallest page in bytes, 0 for the empty set. Linux calls it the granule of a domain.
    #[inline]
    pub const fn smallest(self) -> u64 {
        self.0 & self.0.wrapping_neg()
    }

    /// The largest run of one page size at the start of a range: the largest size that the joint alignment of both
    /// addresses and the length allow, and as many pages of it as come before the next larger size fits
    /// (Linux: `iommu_pgsize`). `None` when not even the smallest page fits.
    #[inline]
    pub const fn pick(self, iova: u64, phys: u64, len: u64) -> Option<Run> {
        if len == 0 {
            return None;
        }
        let addresses = iova | phys;
        // By far the most common range: one page.
        if len == self.smallest() && addresses & (len - 1) == 0 {
            return Some(Run { page_size: len, count: 1 });
        }
        // All sizes that are no longer than the range, then of those the ones that both addresses are aligned to.
        let fitting = self.0 & (u64::MAX >> len.leading_zeros());
        let aligned =
            if addresses == 0 { fitting } else { fitting & (u64::MAX >> (63 - addresses.trailing_zeros())) };
        if aligned == 0 {
            return None;
        }
        let page_size = 1u64 << (63 - aligned.leading_zeros());
        let larger = self.0 & !(page_size | (page_size - 1));
        let mut span = len;
        if larger != 0 {
            let next = larger & larger.wrapping_neg();
            // A larger page can only follow when both addresses have the same offset in it.
            if (iova ^ phys) & (next - 1) == 0 {
                let until_next = next - (iova & (next - 1));
                if until_next <= len && len - until_next >= next {
                    span = until_next;
                }
            }
        }
        Some(Run { page_size, count: (span / page_size) as usize })
    }
}

impl fmt::Debug for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSizes({:#x})", self.0)
    }
}
