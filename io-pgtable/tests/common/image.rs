//! Tables word by word: mappings in order, and all words that memory holds after them.

use io_pgtable::{Format, IoPageTable, IoPgtableCfg};
use platform::{DmaAddr, PhysAddr, Prot};

use super::{Arena, Bed};
use crate::walkers::{Walk, sound};

/// A mapping of one page, and the words that it adds.
pub(crate) struct Case {
    pub(crate) iova: u64,
    pub(crate) phys: u64,
    pub(crate) size: u64,
    /// See [`prot`].
    pub(crate) prot: &'static str,
    pub(crate) words: &'static [Word],
}

/// Entries of one table that differ by a constant, the first being at an index.
pub(crate) struct Word {
    pub(crate) table: u64,
    pub(crate) index: u64,
    pub(crate) entry: u64,
    pub(crate) count: u64,
    pub(crate) step: u64,
}

/// Rights by a letter each: R, W, C (cached), N (no execution), M (MMIO), P (privileged).
pub(crate) fn prot(letters: &str) -> Prot {
    let flag = |letter| match letter {
        'R' => Prot::READ,
        'W' => Prot::WRITE,
        'C' => Prot::CACHE,
        'N' => Prot::NOEXEC,
        'M' => Prot::MMIO,
        'P' => Prot::PRIV,
        _ => panic!("{letter} is no right"),
    };
    letters.chars().map(flag).collect()
}

/// One entry.
pub(crate) const fn word(table: u64, index: u64, entry: u64) -> Word {
    Word { table, index, entry, count: 1, step: 0 }
}

/// `count` entries, `step` between them.
pub(crate) const fn words(table: u64, index: u64, entry: u64, count: u64, step: u64) -> Word {
    Word { table, index, entry, count, step }
}

/// Maps each case in order in memory that begins at `base`, and compares all memory with the words of the cases so far;
/// then looks each mapping up again.
pub(crate) fn check<F: Format>(base: u64, cfg: &IoPgtableCfg, cases: &[Case]) {
    let bed = Bed::<F>::on(Arena::at(base, 256), cfg);
    let mut expected = Vec::new();
    for case in cases {
        assert_eq!(
            bed.map(case.iova, case.phys, case.size, 1, prot(case.prot)),
            (case.size, Ok(())),
            "{:#x}",
            case.iova
        );
        for word in case.words {
            expected.extend((0..word.count).map(|n| {
                let at = word.table + F::ENTRY_BYTES as u64 * (word.index + n);
                (at, word.entry.wrapping_add(n.wrapping_mul(word.step)))
            }));
        }
        expected.sort_unstable();
        assert_same(&found::<F>(&bed.arena), &expected, case.iova);
    }
    for case in cases {
        for offset in [0, case.size / 2 + 1, case.size - 1] {
            let found = bed.table.iova_to_phys(DmaAddr::new(case.iova + offset));
            let found = found.map(|found| (found.phys, found.page_size));
            assert_eq!(found, Some((PhysAddr::new(case.phys + offset), case.size)), "{:#x}", case.iova);
        }
    }
}

fn found<F: Format>(arena: &Arena) -> Vec<(u64, u64)> {
    let words = arena.non_zero();
    if F::ENTRY_BYTES == 8 {
        return words;
    }
    let halves = words.into_iter().flat_map(|(at, word)| [(at, word & 0xffff_ffff), (at + 4, word >> 32)]);
    halves.filter(|(_, half)| *half != 0).collect()
}

fn assert_same(found: &[(u64, u64)], expected: &[(u64, u64)], iova: u64) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "after {iova:#x}: found {found:#x?}, expected {expected:#x?}");
    }
    assert_eq!(found.len(), expected.len(), "after {iova:#x}: words too many or too few");
}

/// An entry that somebody changes, and what hardware makes of it.
pub(crate) struct Altered {
    /// An address below the entry.
    pub(crate) iova: u64,
    /// Where the entry is.
    pub(crate) table: u64,
    pub(crate) index: u64,
    pub(crate) before: u64,
    pub(crate) after: u64,
    /// What faults then: r, w, x. Nothing else changes.
    pub(crate) faults: &'static str,
}

/// Maps the cases, then changes one entry at a time, and walks as hardware that is configured by `hardware`.
pub(crate) fn check_altered<F: Format>(
    cfg: &IoPgtableCfg,
    cases: &[Case],
    walk: Walk,
    hardware: &IoPgtableCfg,
    altered: &[Altered],
) {
    let bed = Bed::<F>::on(Arena::at(super::BASE, 256), cfg);
    for case in cases {
        let (done, result) = bed.map(case.iova, case.phys, case.size, 1, prot(case.prot));
        assert_eq!((done, result), (case.size, Ok(())));
    }
    let root = bed.table.root();
    for Altered { iova, table, index, before, after, faults } in altered {
        let at = table + F::ENTRY_BYTES as u64 * index;
        let shift = 8 * (at & 7);
        let (word, mask) = (bed.arena.read(at & !7), u64::MAX >> (64 - 8 * F::ENTRY_BYTES) << shift);
        assert_eq!((word & mask) >> shift, *before, "the entry at {at:#x}");
        let as_mapped = sound(walk(&bed.arena, root, cfg, *iova)).expect("a page");
        bed.arena.write(at & !7, word & !mask | after << shift);
        let found = walk(&bed.arena, root, hardware, *iova);
        let goes = |letter, mapped, may: Option<bool>| {
            assert_eq!(may.unwrap_or(false), mapped && !faults.contains(letter), "{letter} with {after:#x}");
        };
        goes('r', as_mapped.read, found.ok().map(|found| found.read));
        goes('w', as_mapped.write, found.ok().map(|found| found.write));
        goes('x', as_mapped.execute, found.ok().map(|found| found.execute));
        if let Ok(found) = found {
            assert_eq!(found.phys, as_mapped.phys, "with {after:#x}");
        }
        bed.arena.write(at & !7, word);
    }
}
