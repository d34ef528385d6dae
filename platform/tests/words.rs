//! Bulk work on words does what a loop over them does: any length, any alignment, and not a word more.

#![cfg(not(loom))]

use std::sync::atomic::{AtomicU64, Ordering};

use platform::sync::words;

const OUTSIDE: u64 = 0x5555_aaaa_0f0f_f0f0;

/// An array with two words that nobody may touch at each end, and every slice of its inside.
fn each_slice(check: impl Fn(&[AtomicU64])) {
    for offset in 0..4 {
        for len in (0..40).chain([255, 256, 257]) {
            let array: Vec<AtomicU64> = (0..len + offset + 4).map(|_| AtomicU64::new(OUTSIDE)).collect();
            check(&array[offset + 2..offset + 2 + len]);
            let (front, back) = (&array[..offset + 2], &array[offset + 2 + len..]);
            assert!(front.iter().chain(back).all(|word| word.load(Ordering::Relaxed) == OUTSIDE));
        }
    }
}

fn values(words: &[AtomicU64]) -> Vec<u64> {
    words.iter().map(|word| word.load(Ordering::Relaxed)).collect()
}

#[test]
fn all_zero_finds_each_bit() {
    each_slice(|slice| {
        words::fill(slice, 0);
        assert!(words::all_zero(slice));
        for (index, word) in slice.iter().enumerate() {
            word.store(1 << (index % 64), Ordering::Relaxed);
            assert!(!words::all_zero(slice), "word {index} of {}", slice.len());
            word.store(0, Ordering::Relaxed);
        }
    });
}

#[test]
fn fill_reaches_each_word() {
    each_slice(|slice| {
        words::fill(slice, 0x0123_4567_89ab_cdef);
        assert_eq!(values(slice), vec![0x0123_4567_89ab_cdef; slice.len()]);
    });
}

#[test]
fn store_rising_counts() {
    for step in [0, 1, 0x1000, 0x0123_4567_89ab_cdef, u64::MAX] {
        each_slice(|slice| {
            words::store_rising(slice, u64::MAX - 5, step);
            let expected: Vec<u64> =
                (0..slice.len() as u64).map(|n| (u64::MAX - 5).wrapping_add(n.wrapping_mul(step))).collect();
            assert_eq!(values(slice), expected, "step {step:#x}");
        });
    }
}

#[test]
fn store_rising_if_zero_stops_at_the_first_other_word() {
    for step in [0, 1, 0x0123_4567_89ab_cdef_u64] {
        let value = |n: usize| (u64::MAX - 5).wrapping_add(step.wrapping_mul(n as u64));
        each_slice(|slice| {
            words::fill(slice, 0);
            assert_eq!(words::store_rising_if_zero(slice, value(0), step), slice.len());
            assert_eq!(values(slice), (0..slice.len()).map(value).collect::<Vec<_>>());
            for stop in 0..slice.len() {
                words::fill(slice, 0);
                slice[stop].store(1 << (stop % 64), Ordering::Relaxed);
                assert_eq!(words::store_rising_if_zero(slice, value(0), step), stop);
                let left = values(slice);
                assert_eq!(left[..stop], (0..stop).map(value).collect::<Vec<_>>());
                assert_eq!(left[stop], 1 << (stop % 64));
                assert!(left[stop + 1..].iter().all(|word| *word == 0));
            }
        });
    }
}

#[test]
fn clear_matching_stops_at_the_first_other_word() {
    let (mask, value) = (0x8000_0001_0000_0801, 0x8000_0000_0000_0001);
    each_slice(|slice| {
        words::fill(slice, value | !mask);
        assert_eq!(words::clear_matching(slice, mask, value), slice.len());
        assert!(words::all_zero(slice));
        for stop in 0..slice.len() {
            // A word in which one bit is another: in the lower half, and in the upper.
            for other in [value ^ 0x800, value ^ 1 << 63] {
                words::store_rising(slice, value, 2);
                slice[stop].store(other, Ordering::Relaxed);
                assert_eq!(words::clear_matching(slice, 0x8000_0001_0000_0801 & !0x7fe, value), stop);
                let left = values(slice);
                assert!(left[..stop].iter().all(|word| *word == 0));
                assert_eq!(left.get(stop), Some(&other));
                let behind = (stop + 1..slice.len()).map(|n| value + 2 * n as u64);
                assert_eq!(left[stop + 1..], behind.collect::<Vec<_>>());
            }
        }
    });
}
