//! What an INVALIDATE_IOMMU_PAGES command can say: aligned powers of two, and how a range is covered by them.

/// A naturally aligned power-of-two range of I/O addresses, from one 4 KiB page to everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cover {
    base: u64,
    /// Logarithm of the size in bytes: 12 to 51, or 64 for everything.
    log2_size: u32,
}

/// Logarithm of the smallest size.
const LOG2_PAGE: u32 = 12;
/// Logarithm of the largest size that is not everything: the lowest zero bit that encodes it is bit 50; a first zero at bit
/// 51 or above already means the whole space.
const LOG2_LARGEST: u32 = 51;
/// S: the address carries its size.
const S: u64 = 1;
/// What says "everything" with S set.
const ALL_PAGES: u64 = 0x7fff_ffff_ffff_f000;

impl Cover {
    /// The whole space (Linux: `CMD_INV_IOMMU_ALL_PAGES_ADDRESS`).
    #[doc(alias = "CMD_INV_IOMMU_ALL_PAGES_ADDRESS")]
    pub const ALL: Self = Self { base: 0, log2_size: 64 };

    /// The smallest cover that contains `first` and `last` (inclusive), in either order (Linux: `build_inv_address`).
    #[doc(alias = "build_inv_address")]
    #[inline]
    pub const fn containing(first: u64, last: u64) -> Self {
        // The highest bit in which the two differ decides the size.
        let differing = (first ^ last) >> LOG2_PAGE;
        let log2_size = LOG2_PAGE + (64 - differing.leading_zeros());
        if log2_size > LOG2_LARGEST {
            return Self::ALL;
        }
        Self { base: first & !((1u64 << log2_size) - 1), log2_size }
    }

    /// First and last address (inclusive).
    pub const fn range(self) -> (u64, u64) {
        if self.log2_size >= 64 {
            return (0, u64::MAX);
        }
        (self.base, self.base | ((1u64 << self.log2_size) - 1))
    }

    /// Whether it is the whole space.
    pub const fn is_all(self) -> bool {
        self.log2_size >= 64
    }

    /// The address field of the command with its S bit: the bits below the size are ones but the highest, whose zero marks
    /// the size.
    #[inline]
    pub const fn encode(self) -> u64 {
        if self.log2_size >= 64 {
            ALL_PAGES | S
        } else if self.log2_size == LOG2_PAGE {
            self.base
        } else {
            let ones = ((1u64 << (self.log2_size - 1)) - 1) & !((1u64 << LOG2_PAGE) - 1);
            self.base | ones | S
        }
    }
}

/// Splits a range into naturally aligned covers that contain nothing else than its pages, from low to high.
///
/// Hypervisors that say NpCache work through every page of a command, so for them a range is split where others take one
/// generous cover (Linux: the NpCache branch of `amd_iommu_domain_flush_pages`).
///
/// A range longer than the largest block that a command can name becomes everything.
pub const fn split(first: u64, last: u64) -> Split {
    let mask = (1u64 << LOG2_PAGE) - 1;
    if first > last {
        return Split { next: 0, last: 0, state: State::Done };
    }
    let (first, last) = (first & !mask, last | mask);
    let state = if last - first >= 1 << LOG2_LARGEST { State::All } else { State::Blocks };
    Split { next: first, last, state }
}

/// The most blocks that [`split`] makes: at most two of each size.
pub const MOST_BLOCKS: usize = 2 * (LOG2_LARGEST - LOG2_PAGE + 1) as usize;

#[derive(Clone, Copy, Debug)]
enum State {
    Blocks,
    All,
    Done,
}

/// The covers of [`split`].
#[derive(Clone, Debug)]
pub struct Split {
    next: u64,
    last: u64,
    state: State,
}

impl Iterator for Split {
    type Item = Cover;

    fn next(&mut self) -> Option<Cover> {
        match self.state {
            State::Done => None,
            State::All => {
                self.state = State::Done;
                Some(Cover::ALL)
            }
            State::Blocks => {
                // The largest block that starts here: limited by the alignment of its start and by what is left.
                let aligned = self.next.trailing_zeros();
                let fits = (self.last - self.next + 1).ilog2();
                let log2_size = aligned.min(fits).min(LOG2_LARGEST);
                let cover = Cover { base: self.next, log2_size };
                let (_, end) = cover.range();
                if end >= self.last {
                    self.state = State::Done;
                }
                self.next = end.wrapping_add(1);
                Some(cover)
            }
        }
    }
}
