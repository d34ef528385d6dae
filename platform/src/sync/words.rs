//! Bulk work on the words of tables that hardware reads meanwhile.

use super::atomic::{AtomicU64, Ordering};

/// Whether every word is zero.
pub fn all_zero(words: &[AtomicU64]) -> bool {
    words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
}

/// Stores `value` to every word, in rising order.
pub fn fill(words: &[AtomicU64], value: u64) {
    for word in words {
        word.store(value, Ordering::Relaxed);
    }
}

/// Stores `first`, `first + step`, `first + 2 * step` and so on, wrapping, in rising order.
pub fn store_rising(words: &[AtomicU64], first: u64, step: u64) {
    let mut value = first;
    for word in words {
        word.store(value, Ordering::Relaxed);
        value = value.wrapping_add(step);
    }
}
