//! What every format must show, by its own walker. A format gets all of it by one line of `conformance!`.

mod caches;
mod errors;
mod looks;
mod maps;
mod ranges;
mod splits;
mod tables;

pub(crate) use caches::*;
pub(crate) use errors::*;
pub(crate) use looks::*;
pub(crate) use maps::*;
pub(crate) use ranges::*;
pub(crate) use splits::*;
pub(crate) use tables::*;

use io_pgtable::{Format, IoPageTable, IoPgtableCfg};
use platform::DmaAddr;

use crate::common::Bed;
use crate::walkers::{Found, Walk, sound};

/// A format in a configuration, with a walker.
pub(crate) struct Subject<F: Format> {
    pub(crate) bed: Bed<F>,
    pub(crate) cfg: IoPgtableCfg,
    walk: Walk,
}

impl<F: Format> Subject<F> {
    /// With memory for as many tables as any check needs.
    pub(crate) fn new(cfg: IoPgtableCfg, walk: Walk) -> Self {
        // Of the largest tables 32.
        Self::with_frames(cfg, walk, if F::INDEX_BITS > 11 { 2048 } else { 512 })
    }

    /// The same without tables that earlier mappings have left: over those a large page is written as smaller ones.
    fn fresh(&self) -> Self {
        Self::new(self.cfg, self.walk)
    }

    fn with_frames(cfg: IoPgtableCfg, walk: Walk, frames: usize) -> Self {
        Self { bed: Bed::of(&cfg, frames), cfg, walk }
    }

    fn walk(&self, iova: u64) -> Option<Found> {
        sound((self.walk)(&self.bed.arena, self.bed.table.root(), &self.cfg, iova))
    }

    /// Bytes in each page size, from the smallest.
    fn sizes(&self) -> Vec<u64> {
        let bits = self.bed.table.page_sizes().bits();
        (0..64).map(|bit| bits & 1 << bit).filter(|size| *size != 0).collect()
    }

    /// Those of which two neighbours have more than one place.
    fn sizes_by_twos(&self) -> Vec<u64> {
        let (first, last) = self.ends();
        self.sizes().into_iter().filter(|size| (last - first) / 4 >= size - 1).collect()
    }

    fn smallest(&self) -> u64 {
        self.sizes()[0]
    }

    /// The second smallest page, or the only one, and a distance: that page's size, but more than the smallest's.
    fn larger(&self) -> (u64, u64) {
        let sizes = self.sizes();
        let page = sizes.get(1).copied().unwrap_or(sizes[0]);
        (page, page.max(2 * sizes[0]))
    }

    /// First and last I/O address.
    fn ends(&self) -> (u64, u64) {
        let (first, last) = self.bed.table.aperture();
        (first.get(), last.get())
    }

    /// The highest physical address.
    fn max_phys(&self) -> u64 {
        u64::MAX >> (64 - F::OUTPUT_BITS.min(self.cfg.oas))
    }

    /// Some place in memory for a page of a size, with as many address bits set as may be.
    fn place(&self, size: u64) -> u64 {
        (0xa5ab_cdef_7654_3210 & self.max_phys()) & !(size - 1)
    }

    /// Where pages of a size may lie: the first place, one with all kinds of indices, the last.
    fn homes(&self, size: u64) -> Vec<u64> {
        let (first, last) = self.ends();
        let inside = first + (0x1234_5678_9abc_def0 & (last - first));
        let mut homes = vec![first, inside & !(size - 1), last & !(size - 1)];
        homes.dedup();
        homes
    }

    /// Asserts that a page is what the engine and the walker find at its ends and in its middle, and nothing beside it.
    fn assert_page(&self, iova: u64, phys: u64, size: u64) {
        for offset in [0, size / 2 - 1, size / 2, size - 1] {
            let walked = self.walk(iova + offset);
            let walked = walked.map(|found| (found.phys, found.size));
            assert_eq!(walked, Some((phys + offset, size)), "the walker at {:#x}", iova + offset);
            let found = self.bed.table.iova_to_phys(DmaAddr::new(iova + offset));
            let found = found.map(|found| (found.phys.get(), found.page_size));
            assert_eq!(found, Some((phys + offset, size)), "the engine at {:#x}", iova + offset);
        }
    }

    fn assert_nothing(&self, iova: u64) {
        assert_eq!(self.walk(iova), None, "the walker at {iova:#x}");
        assert_eq!(self.bed.table.iova_to_phys(DmaAddr::new(iova)), None, "the engine at {iova:#x}");
    }
}

/// Runs the kit on a format: a name, the type, the configuration, and the walker.
macro_rules! conformance {
    ($name:ident, $format:ty, $cfg:expr, $walk:expr) => {
        mod $name {
            use super::*;

            conformance!(@ $format, $cfg, $walk;
                every_size_round_trips
                rights_are_what_was_asked
                runs_cross_levels
                the_ends_of_the_aperture_are_apart
                what_is_mapped_is_never_overwritten
                wrong_sizes_and_alignments_are_refused
                ranges_beyond_the_table_are_refused
                a_mapping_without_rights_is_refused
                without_memory_for_tables_nothing_is_lost
                an_unmap_stops_where_it_must
                a_covered_table_is_freed_after_the_flush
                a_dropped_table_gives_everything_back
                what_is_read_is_what_was_written
                ranges_take_the_largest_pages
                a_list_is_one_range
                every_page_is_shown_once
                written_pages_are_found_and_forgotten
                a_page_splits
                a_written_page_splits_into_written_ones
                what_cannot_be_split_stays
                units_that_do_not_snoop_see_every_change
            );
        }
    };
    (@ $format:ty, $cfg:expr, $walk:expr; $($check:ident)*) => {$(
        #[test]
        fn $check() {
            kit::$check(&kit::Subject::<$format>::new($cfg, $walk));
        }
    )*};
}
