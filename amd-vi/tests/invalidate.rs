//! Covers of ranges: they contain the range, are no larger than need be, and say so in the specification's encoding.

use amd_vi::invalidate::{Cover, MOST_BLOCKS, split};
use proptest::prelude::*;

/// The range that a command's address field means, read as the specification says: the lowest zero bit at or above bit 12
/// gives the size.
fn decode(field: u64) -> (u64, u64) {
    if field & 1 == 0 {
        return (field & !0xfff, field | 0xfff);
    }
    let z = (12..64).find(|bit| field >> bit & 1 == 0).unwrap();
    if z >= 51 {
        return (0, u64::MAX);
    }
    let size = 1u64 << (z + 1);
    (field & !(size - 1), field | (size - 1))
}

/// Two addresses whose distance is of any magnitude.
fn ranges() -> impl Strategy<Value = (u64, u64)> {
    (any::<u64>(), any::<u64>(), 0u32..64)
        .prop_map(|(first, distance, shift)| (first, first.saturating_add(distance >> shift)))
}

proptest! {
    #[test]
    fn a_cover_contains_its_range_and_is_the_smallest((first, last) in ranges()) {
        let cover = Cover::containing(first, last);
        let (from, to) = cover.range();
        prop_assert!(from <= first && last <= to);
        let size = (u128::from(to) + 1) - u128::from(from);
        prop_assert!(size.is_power_of_two() && u128::from(from) % size == 0);
        if size > 4096 && !cover.is_all() {
            // Neither half would do.
            prop_assert!((first ^ last) & (size as u64 / 2) != 0);
        }
        if cover.is_all() {
            prop_assert!((first ^ last) >> 51 != 0);
        }
    }

    #[test]
    fn the_encoding_says_what_the_cover_is((first, last) in ranges()) {
        let cover = Cover::containing(first, last);
        let field = cover.encode();
        prop_assert_eq!(field & 0xffe, 0);
        prop_assert_eq!(decode(field), cover.range());
        // All ones has no zero bit, so it means nothing.
        prop_assert_ne!(field | 0xfff, u64::MAX);
    }

    #[test]
    fn a_split_is_exactly_the_pages_of_the_range((first, last) in ranges()) {
        let blocks: Vec<Cover> = split(first, last).collect();
        prop_assert!(blocks.len() <= MOST_BLOCKS);
        if blocks[0].is_all() {
            prop_assert_eq!(blocks.len(), 1);
            prop_assert!(last - first >= (1 << 51) - 2 * 4095);
        } else {
            prop_assert_eq!(blocks[0].range().0, first & !0xfff);
            prop_assert_eq!(blocks[blocks.len() - 1].range().1, last | 0xfff);
            for pair in blocks.windows(2) {
                prop_assert_eq!(pair[0].range().1 + 1, pair[1].range().0);
            }
        }
    }
}

#[test]
fn a_split_uses_the_largest_blocks() {
    let blocks: Vec<_> = split(0x1000, 0x7fff).map(Cover::range).collect();
    assert_eq!(blocks, [(0x1000, 0x1fff), (0x2000, 0x3fff), (0x4000, 0x7fff)]);
    assert_eq!(split(0x4000, 0xffff_ffff).count(), 18);
}

#[test]
fn the_extremes() {
    assert!(Cover::containing(0, u64::MAX).is_all());
    assert_eq!(split(0, u64::MAX).map(Cover::range).collect::<Vec<_>>(), [(0, u64::MAX)]);
    assert_eq!(Cover::containing(u64::MAX, u64::MAX).range(), (u64::MAX - 0xfff, u64::MAX));
    assert_eq!(split(u64::MAX, u64::MAX).count(), 1);
    assert_eq!(split(1, 0).count(), 0);
    // The largest size that is not everything.
    assert_eq!(Cover::containing(0, (1 << 51) - 1).range(), (0, (1 << 51) - 1));
    assert!(Cover::containing(0, 1 << 51).is_all());
}
