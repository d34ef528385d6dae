//! Any sequence of maps, unmaps, splits and hardware's writes against a plain map of pages, for each format. After each step the
//! model, the format's walker, the engine's lookup and its dump agree; at the end nothing is left.

mod common;
mod mock2k;
mod walkers;

use std::collections::BTreeMap;

use common::{Bed, RW};
use io_pgtable::{
    AmdV1, Arm32LpaeS1, Arm32LpaeS2, ArmLpa2S1, ArmLpaeS1, ArmLpaeS2, ArmV7s, Dart1, Dart2, Format,
    IoPageTable, IoPgtableCfg, MaliLpae, Quirks, RiscV, RiscV32, Split, VtdSs, X86_64,
};
use mock2k::Mock2k;
use platform::{DmaAddr, MapError, Prot};
use proptest::prelude::*;
use walkers::{Walk, amdv1, arm_lpae, arm_v7s, dart, mali_lpae, riscv, sound, vtdss, x86_64};

/// A step. Sizes are by their place among the table's, pages by their number from either end of the aperture.
#[derive(Clone, Debug)]
enum Step {
    Map {
        size: prop::sample::Index,
        from_end: bool,
        page: u64,
        count: usize,
        phys: u64,
        prot: Prot,
    },
    /// From the start of a mapped page on, so many bytes.
    Unmap {
        page: prop::sample::Index,
        len: u64,
    },
    /// Wherever that is.
    UnmapAny {
        size: prop::sample::Index,
        from_end: bool,
        page: u64,
        count: u64,
    },
    /// A mapped page, in pages of another size.
    Split {
        page: prop::sample::Index,
        size: prop::sample::Index,
    },
    /// A device writes to a byte of a mapped page.
    Write {
        page: prop::sample::Index,
        offset: u64,
    },
    /// Reads what was written of all; forgets it or not.
    Dirty {
        clear: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let prot = prop::sample::select(vec![
        RW,
        Prot::READ,
        Prot::WRITE,
        RW.union(Prot::CACHE),
        RW.union(Prot::NOEXEC),
        Prot::READ.union(Prot::MMIO),
    ]);
    let count = prop_oneof![4 => 1..5usize, 1 => 30..40usize];
    let map = (index(), any::<bool>(), 0..6u64, count, any::<u64>(), prot).prop_map(
        |(size, from_end, page, count, phys, prot)| Step::Map { size, from_end, page, count, phys, prot },
    );
    let unmap = (index(), 1..0x100_0000u64).prop_map(|(page, len)| Step::Unmap { page, len });
    let unmap_any = (index(), any::<bool>(), 0..6u64, 1..40u64)
        .prop_map(|(size, from_end, page, count)| Step::UnmapAny { size, from_end, page, count });
    let split = (index(), index()).prop_map(|(page, size)| Step::Split { page, size });
    let write = (index(), any::<u64>()).prop_map(|(page, offset)| Step::Write { page, offset });
    let dirty = any::<bool>().prop_map(|clear| Step::Dirty { clear });
    prop::collection::vec(
        prop_oneof![4 => map, 3 => unmap, 1 => unmap_any, 1 => split, 2 => write, 1 => dirty],
        1..20,
    )
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    phys: u64,
    size: u64,
    prot: Prot,
    /// Whether a device has written since that was last forgotten.
    written: bool,
}

/// What a unit that marks pages does to an entry when it writes.
type Mark = Option<fn(u64) -> u64>;

struct Model<F: Format> {
    bed: Bed<F>,
    cfg: IoPgtableCfg,
    walk: Walk,
    mark: Mark,
    pages: BTreeMap<u64, Page>,
}

impl<F: Format> Model<F> {
    fn new(cfg: &IoPgtableCfg, walk: Walk, mark: Mark) -> Self {
        // Of the largest tables 256.
        let frames = (F::ENTRY_BYTES << F::INDEX_BITS).div_ceil(4096) * 256;
        Self { bed: Bed::of(cfg, frames), cfg: *cfg, walk, mark, pages: BTreeMap::new() }
    }

    fn run(mut self, steps: Vec<Step>) {
        for step in steps {
            let page = |index: prop::sample::Index| {
                (!self.pages.is_empty())
                    .then(|| index.index(self.pages.len()))
                    .and_then(|n| self.pages.iter().nth(n).map(|(first, page)| (*first, *page)))
            };
            match step {
                Step::Map { size, from_end, page, count, phys, prot } => {
                    let (iova, size) = self.place(size, from_end, page);
                    self.map(iova, size, count, phys, prot);
                }
                Step::UnmapAny { size, from_end, page, count } => {
                    let (iova, size) = self.place(size, from_end, page);
                    self.unmap(iova, size.saturating_mul(count));
                }
                Step::Unmap { page: index, len } => {
                    if let Some((first, _)) = page(index) {
                        self.unmap(first, len);
                    }
                }
                Step::Split { page: index, size } => {
                    if let Some((first, page)) = page(index) {
                        let sizes = self.sizes();
                        self.split(first, page, sizes[size.index(sizes.len())]);
                    }
                }
                Step::Write { page: index, offset } => {
                    if let Some((first, page)) = page(index) {
                        self.write(first, first + offset % page.size);
                    }
                }
                Step::Dirty { clear } => self.dirty(clear),
            }
            self.check();
        }
        while let Some((first, page)) = self.pages.first_key_value().map(|(first, page)| (*first, *page)) {
            self.unmap(first, page.size);
        }
        self.check();
        let (arena, leaks) = (self.bed.arena.clone(), self.bed.leaks.get());
        drop(self.bed);
        assert_eq!((arena.live_bytes(), leaks), (0, 0));
    }

    fn sizes(&self) -> Vec<u64> {
        let bits = self.bed.table.page_sizes().bits();
        (0..64).map(|bit| bits & 1 << bit).filter(|size| *size != 0).collect()
    }

    /// An address and a size.
    fn place(&self, size: prop::sample::Index, from_end: bool, page: u64) -> (u64, u64) {
        let sizes = self.sizes();
        let size = sizes[size.index(sizes.len())];
        let (first, last) = self.ends();
        let span = page.min((last - first) / size) * size;
        (if from_end { (last - span) & !(size - 1) } else { first + span }, size)
    }

    fn ends(&self) -> (u64, u64) {
        let (first, last) = self.bed.table.aperture();
        (first.get(), last.get())
    }

    fn at(&self, iova: u64) -> Option<(u64, Page)> {
        let (first, page) = self.pages.range(..=iova).next_back()?;
        (iova - first < page.size).then_some((*first, *page))
    }

    /// What the engine shows of a range.
    fn dump(&self, iova: u64, len: u64) -> Vec<(u64, u64, u64, Prot)> {
        let mut pages = Vec::new();
        // SAFETY: one thread.
        unsafe {
            self.bed.table.for_each_page(iova.into(), len, &mut |at, found| {
                pages.push((at.get(), found.phys.get(), found.page_size, found.prot));
            });
        }
        pages
    }

    fn map(&mut self, iova: u64, size: u64, count: usize, phys: u64, prot: Prot) {
        let output_bits = F::OUTPUT_BITS.min(self.cfg.oas);
        let phys = phys >> (65 - output_bits) & !(size - 1);
        let len = size * count as u64;
        let (done, result) = self.bed.map(iova, phys, size, count, prot);
        match result {
            Ok(()) => assert_eq!(done, len),
            Err(MapError::InUse(at)) => {
                assert_eq!(at.get(), iova + done);
                let meets = self.at(at.get()).is_some()
                    || self.pages.range(at.get()..=at.get() | (size - 1)).next().is_some();
                assert!(meets, "{at} is free");
            }
            Err(error @ (MapError::OutOfRange(_) | MapError::OutOfMemory)) => {
                // All of a run that leaves the table is refused.
                let leaves = iova.checked_add(len - 1).is_none_or(|end| end > self.ends().1);
                let leaves = leaves || (phys + (len - 1)) >> output_bits != 0;
                assert_eq!(matches!(error, MapError::OutOfRange(_)), leaves, "{error}");
                assert!(done == 0 || !leaves);
            }
            Err(error) => panic!("{error}"),
        }
        // Smaller pages where an emptied table was; which, the table says. That they are right is checked by the walker.
        let mut tiled = 0;
        for (at, base, part, rights) in self.dump(iova, done) {
            assert_eq!((at, base), (iova + tiled, phys + tiled));
            assert!(part <= size && self.at(at).is_none(), "{at:#x} was mapped already");
            // A format may let more be done than was asked, and not know of kinds.
            assert!(rights.contains(prot & RW), "{rights:?} for {prot:?}");
            let marked = self.marked(at, part);
            self.pages.insert(at, Page { phys: base, size: part, prot: rights, written: marked });
            tiled += part;
        }
        assert_eq!(tiled, done);
    }

    /// Formats may say that a page is written from the start.
    fn marked(&self, iova: u64, len: u64) -> bool {
        let mut marked = false;
        let mut gather = self.bed.gather();
        // SAFETY: one thread.
        let _unmarked = unsafe {
            self.bed
                .table
                .read_and_clear_dirty(iova.into(), len, false, &mut gather, &mut |_, _| marked = true)
        };
        assert_eq!(gather.range(), None);
        self.bed.flush(gather);
        marked
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        let mut expected = 0;
        if iova.checked_add(len - 1).is_some_and(|end| end <= self.ends().1) {
            while expected < len {
                let Some(page) = iova.checked_add(expected).and_then(|at| self.pages.remove(&at)) else {
                    break;
                };
                expected += page.size;
            }
        }
        let mut gather = self.bed.gather();
        let before = self.bed.arena.live_bytes();
        assert_eq!(self.bed.unmap_into(iova, len, &mut gather), expected);
        let range = gather.range().map(|(first, last)| (first.get(), last.get()));
        assert_eq!(range, (expected > 0).then(|| (iova, iova + (expected - 1))));
        // What the gather holds is still there.
        assert_eq!(self.bed.arena.live_bytes(), before);
        let has_tables = gather.has_tables();
        self.bed.flush(gather);
        assert_eq!(has_tables, self.bed.arena.live_bytes() < before);
    }

    fn split(&mut self, first: u64, page: Page, size: u64) {
        let inside = DmaAddr::new(first + page.size / 2);
        // Small pages of a large one would fill the machine.
        let tables = page.size >> F::level_shift(F::leaf_level(size.trailing_zeros()) + 1);
        if page.size / size > 4096 || tables > 16 {
            return;
        }
        let mut gather = self.bed.gather();
        // SAFETY: one thread.
        let split = unsafe { self.bed.table.split(inside, size, &mut gather) };
        match split {
            Ok(Split::Done) => self.bed.flush(gather),
            Ok(Split::Broken(mut broken)) => {
                // SAFETY: there is no IOMMU that could remember anything.
                let flushed = unsafe { gather.flushed(&*self.bed.arena) };
                // SAFETY: one thread.
                assert_eq!(unsafe { self.bed.table.mend(&mut broken, &flushed) }, Ok(()));
            }
            Err(error) => {
                assert!(size >= page.size, "{error}");
                return self.bed.flush(gather);
            }
        }
        assert!(size < page.size);
        self.pages.remove(&first);
        for offset in (0..page.size).step_by(size as usize) {
            let marked = self.marked(first + offset, size);
            assert!(marked || !page.written, "a mark is lost at {:#x}", first + offset);
            let part = Page { phys: page.phys + offset, size, written: marked, ..page };
            self.pages.insert(first + offset, part);
        }
    }

    /// A device writes, if it may.
    fn write(&mut self, first: u64, iova: u64) {
        let found = self.look(iova).expect("a page");
        let Some(mark) = self.mark.filter(|_| found.write) else { return };
        let mut last = None;
        self.bed.table.walk(iova.into(), &mut |entry| last = Some(entry));
        let last = last.expect("an entry");
        self.bed.arena.write(last.at.get(), mark(last.entry));
        self.pages.get_mut(&first).expect("a page").written = true;
    }

    fn dirty(&mut self, clear: bool) {
        let (first, last) = self.ends();
        let mut written = Vec::new();
        let mut gather = self.bed.gather();
        let len = (last - first).saturating_add(1);
        let mut visit = |at: DmaAddr, size| written.push((at.get(), size));
        // SAFETY: one thread.
        let result =
            unsafe { self.bed.table.read_and_clear_dirty(first.into(), len, clear, &mut gather, &mut visit) };
        self.bed.flush(gather);
        assert_eq!(result.is_ok(), self.mark.is_some());
        let expected = self.pages.iter().filter(|(_, page)| page.written);
        assert_eq!(written, expected.map(|(at, page)| (*at, page.size)).collect::<Vec<_>>());
        if clear {
            self.pages.values_mut().for_each(|page| page.written = false);
        }
    }

    fn look(&self, iova: u64) -> Option<walkers::Found> {
        sound((self.walk)(&self.bed.arena, self.bed.table.root(), &self.cfg, iova))
    }

    fn check(&self) {
        let (first, last) = self.ends();
        let shown = self.dump(first, (last - first).saturating_add(1));
        let expected = self.pages.iter().map(|(at, page)| (*at, page.phys, page.size, page.prot));
        assert_eq!(shown, expected.collect::<Vec<_>>());
        let edges = self.pages.iter().flat_map(|(first, page)| {
            let last = first + (page.size - 1);
            [first.wrapping_sub(1), *first, first + page.size / 2, last, last.wrapping_add(1)]
        });
        for iova in edges.take(100).chain([0, u64::MAX, first, last]) {
            let expected = self.at(iova).map(|(first, page)| {
                let phys = page.phys + (iova - first);
                (phys, page.size, page.prot.contains(Prot::READ), page.prot.contains(Prot::WRITE))
            });
            let walked = self.look(iova).map(|found| (found.phys, found.size, found.read, found.write));
            assert_eq!(walked, expected, "the walker at {iova:#x}");
            let found = self.bed.table.iova_to_phys(DmaAddr::new(iova)).map(|found| {
                let prot = found.prot;
                (found.phys.get(), found.page_size, prot.contains(Prot::READ), prot.contains(Prot::WRITE))
            });
            assert_eq!(found, expected, "the engine at {iova:#x}");
        }
    }
}

/// Fills all that a few entries of the second level stand for, however the pages lie; one unmap leaves what was there before.
fn filled<F: Format>(cfg: &IoPgtableCfg, entries: u64, choices: &[prop::sample::Index]) {
    let bed = Bed::<F>::of(cfg, (F::ENTRY_BYTES << F::INDEX_BITS).div_ceil(4096) * 16 + 16);
    let (first, _) = bed.table.aperture();
    let span = 1u64 << F::level_shift(2);
    // The tables above are there before.
    let first = first.get() + 4 * span;
    let small = 1u64 << F::GRANULE_SHIFT;
    bed.must_map(first + entries * span, 0, small, 1);
    let before = (bed.table.table_pages(), bed.arena.live_bytes());
    let sizes = bed.table.page_sizes();
    let len = entries * span;
    let mut choices = choices.iter().cycle();
    let mut done = 0;
    while done < len {
        let fitting: Vec<u64> = (0..64)
            .map(|bit| 1u64 << bit)
            .filter(|size| sizes.contains(*size) && *size <= len - done)
            .filter(|size| (first + done).is_multiple_of(*size))
            .collect();
        let size = fitting[choices.next().expect("a cycle").index(fitting.len())];
        // A run of small pages, so that it does not take all day.
        let count = if size == small { ((span - done % span) / small).min(64) } else { 1 };
        bed.must_map(first + done, done, size, count as usize);
        done += size * count;
    }
    assert_eq!(bed.unmap(first, len), len);
    assert_eq!((bed.table.table_pages(), bed.arena.live_bytes()), before);
}

macro_rules! model {
    ($($name:ident, $format:ty, $cfg:expr, $walk:expr, $mark:expr;)*) => {$(
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

                #[test]
                fn all_readings_agree(steps in steps()) {
                    Model::<$format>::new(&$cfg, $walk, $mark).run(steps);
                }

                #[test]
                fn a_covered_range_takes_its_tables_along(
                    entries in 1..4u64,
                    choices in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
                ) {
                    filled::<$format>(&$cfg, entries, &choices);
                }
            }
        }
    )*};
}

fn of(bits: u32) -> IoPgtableCfg {
    IoPgtableCfg { oas: bits, ..IoPgtableCfg::new(bits) }
}

model! {
    amd_v1_2_levels, AmdV1, common::amdv1_cfg(2), amdv1::walk_byte, Some(|entry| entry | 1 << 6);
    amd_v1_4_levels, AmdV1, common::amdv1_cfg(4), amdv1::walk_byte, Some(|entry| entry | 1 << 6);
    amd_v1_5_levels, AmdV1, common::amdv1_cfg(5), amdv1::walk_byte, Some(|entry| entry | 1 << 6);
    amd_v1_6_levels, AmdV1, common::amdv1_cfg(6), amdv1::walk_byte, Some(|entry| entry | 1 << 6);
    x86, X86_64, IoPgtableCfg::new(48), x86_64::walk, None;
    vtd_second_stage, VtdSs, IoPgtableCfg::new(39), vtdss::look, Some(|entry| entry | 1 << 9);
    risc_v, RiscV, IoPgtableCfg::new(39), riscv::walk, None;
    risc_v_sv32, RiscV32, IoPgtableCfg::new(32), riscv::sv32, None;
    arm_s1_4k, ArmLpaeS1<12>, IoPgtableCfg::new(39), arm_lpae::stage1::<12>, None;
    arm_s1_4k_upper, ArmLpaeS1<12>, IoPgtableCfg::new(36).with_quirks(Quirks::ARM_TTBR1), arm_lpae::stage1::<12>, None;
    arm_s1_4k_lpa2, ArmLpa2S1<12>, IoPgtableCfg::new(52), arm_lpae::stage1_lpa2::<12>, None;
    arm_s1_16k, ArmLpaeS1<14>, IoPgtableCfg::new(40), arm_lpae::stage1::<14>, None;
    // A write clears AP[2] of a page that can be clean.
    arm_s1_64k_dirty, ArmLpaeS1<16>, IoPgtableCfg::new(52).with_quirks(Quirks::ARM_HD), arm_lpae::stage1::<16>,
        Some(|entry| entry & !(1 << 7));
    arm_s1_of_32_bits, Arm32LpaeS1, IoPgtableCfg::new(32), arm_lpae::stage1_of_32, None;
    arm_s2_4k, ArmLpaeS2<12>, of(40), arm_lpae::stage2::<12>, None;
    arm_s2_16k, ArmLpaeS2<14>, of(48), arm_lpae::stage2::<14>, None;
    arm_s2_64k, ArmLpaeS2<16>, of(42), arm_lpae::stage2::<16>, None;
    arm_s2_of_32_bits, Arm32LpaeS2, IoPgtableCfg::new(40), arm_lpae::stage2_of_32, None;
    arm_v7, ArmV7s, of(32), arm_v7s::look, None;
    arm_v7_mediatek, ArmV7s, of(34).with_quirks(Quirks::NO_PERMS.union(Quirks::ARM_MTK_EXT)), arm_v7s::look, None;
    mali, MaliLpae, IoPgtableCfg::new(40), mali_lpae::look, None;
    mock, Mock2k, IoPgtableCfg::new(44), walkers::mock2k::look, Some(|entry| entry | 1 << 9);
    dart_1_4k, Dart1<12>, IoPgtableCfg::new(32), dart::t8020_4k, None;
    dart_1_16k, Dart1<14>, IoPgtableCfg::new(32), dart::t8020_16k, None;
    dart_2, Dart2, IoPgtableCfg::new(42), dart::t8110, None;
}
