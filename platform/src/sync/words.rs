//! Bulk work on the words of tables that hardware reads meanwhile.
//!
//! Compilers do not vectorise atomics, so on x86-64 this is assembly of 16 bytes at a time: each aligned half of such an access
//! is one access for whoever reads a word (with AVX the whole is; without, processors split it into its halves). Elsewhere, in
//! models, under Miri, and with `--cfg sanitize_words` (for builds with a sanitizer, which does not see into assembly) it is
//! relaxed atomics. Orders are the caller's, by fences.
//!
//! Not more than 16 bytes at a time: how a processor cuts a longer access nobody promises, and a kernel that has saved the
//! registers of SSE may not have saved more. On a core that stores one vector or two words in a cycle it is no loss.

use super::atomic::{AtomicU64, Ordering};

#[cfg(not(all(target_arch = "x86_64", target_feature = "sse2", not(any(loom, miri, sanitize_words)))))]
use one_by_one as bulk;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(any(loom, miri, sanitize_words))))]
use sse2 as bulk;

/// Whether every word is zero.
#[inline]
pub fn all_zero(words: &[AtomicU64]) -> bool {
    bulk::all_zero(words)
}

/// Stores `value` to every word.
#[inline]
pub fn fill(words: &[AtomicU64], value: u64) {
    bulk::store_rising(words, value, 0);
}

/// Stores `first`, `first + step`, `first + 2 * step` and so on, wrapping.
#[inline]
pub fn store_rising(words: &[AtomicU64], first: u64, step: u64) {
    bulk::store_rising(words, first, step);
}

/// The same until a word comes that is not zero, and says how many were stored.
#[inline]
pub fn store_rising_if_zero(words: &[AtomicU64], first: u64, step: u64) -> usize {
    bulk::store_rising_if_zero(words, first, step)
}

/// Stores zero to each word until one comes whose bits under `mask` are not `value`, and says how many that are.
#[inline]
pub fn clear_matching(words: &[AtomicU64], mask: u64, value: u64) -> usize {
    bulk::clear_matching(words, mask, value)
}

/// Word by word.
#[cfg_attr(
    all(target_arch = "x86_64", target_feature = "sse2", not(any(loom, miri, sanitize_words))),
    allow(dead_code, reason = "the assembly uses a part, for the ends")
)]
mod one_by_one {
    use super::{AtomicU64, Ordering};

    #[inline]
    pub(super) fn all_zero(words: &[AtomicU64]) -> bool {
        words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    #[inline]
    pub(super) fn store_rising(words: &[AtomicU64], first: u64, step: u64) {
        let mut value = first;
        for word in words {
            word.store(value, Ordering::Relaxed);
            value = value.wrapping_add(step);
        }
    }

    #[inline]
    pub(super) fn store_rising_if_zero(words: &[AtomicU64], first: u64, step: u64) -> usize {
        let mut value = first;
        for (index, word) in words.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                return index;
            }
            word.store(value, Ordering::Relaxed);
            value = value.wrapping_add(step);
        }
        words.len()
    }

    #[inline]
    pub(super) fn clear_matching(words: &[AtomicU64], mask: u64, value: u64) -> usize {
        for (index, word) in words.iter().enumerate() {
            if word.load(Ordering::Relaxed) & mask != value {
                return index;
            }
            word.store(0, Ordering::Relaxed);
        }
        words.len()
    }
}

/// Sixteen bytes at a time.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(any(loom, miri, sanitize_words))))]
mod sse2 {
    use core::arch::asm;

    use super::{AtomicU64, one_by_one};

    /// Words before the first that is aligned to 16 bytes, whole blocks of so many words, and the rest.
    #[inline]
    fn parts<const BLOCK: usize>(words: &[AtomicU64]) -> (&[AtomicU64], &[AtomicU64], &[AtomicU64]) {
        let head = (words.as_ptr().addr() / size_of::<u64>() % 2).min(words.len());
        let (head, rest) = words.split_at(head);
        let (blocks, tail) = rest.split_at(rest.len() / BLOCK * BLOCK);
        (head, blocks, tail)
    }

    #[inline]
    pub(super) fn all_zero(words: &[AtomicU64]) -> bool {
        let (head, blocks, tail) = parts::<8>(words);
        if !one_by_one::all_zero(head) || !one_by_one::all_zero(tail) {
            return false;
        }
        if blocks.is_empty() {
            return true;
        }
        let equal: u32;
        // SAFETY: reads the words of `blocks`, which are a multiple of 64 bytes, more than none, aligned to 16 bytes. Others
        // write them atomically, and each aligned half of a 16-byte load is one access.
        unsafe {
            asm!(
                "pxor {any0}, {any0}",
                "pxor {any1}, {any1}",
                "2:",
                "por {any0}, xmmword ptr [{at}]",
                "por {any1}, xmmword ptr [{at} + 16]",
                "por {any0}, xmmword ptr [{at} + 32]",
                "por {any1}, xmmword ptr [{at} + 48]",
                "add {at}, 64",
                "cmp {at}, {end}",
                "jne 2b",
                "por {any0}, {any1}",
                "pxor {any1}, {any1}",
                "pcmpeqb {any0}, {any1}",
                "pmovmskb {equal:e}, {any0}",
                at = inout(reg) blocks.as_ptr() => _,
                end = in(reg) blocks.as_ptr_range().end,
                any0 = out(xmm_reg) _,
                any1 = out(xmm_reg) _,
                equal = out(reg) equal,
                options(nostack, readonly),
            );
        }
        equal == 0xffff
    }

    #[inline]
    pub(super) fn store_rising(words: &[AtomicU64], first: u64, step: u64) {
        let (head, blocks, tail) = parts::<8>(words);
        one_by_one::store_rising(head, first, step);
        let mut value = first.wrapping_add(step.wrapping_mul(head.len() as u64));
        if !blocks.is_empty() {
            // SAFETY: writes the words of `blocks`, which are a multiple of 64 bytes, more than none, aligned to 16 bytes. They are
            // atomics, so they may change behind a shared reference, and each aligned half of a 16-byte store is one access.
            unsafe {
                asm!(
                    // The first two values, the next two, and four steps twice.
                    "movq {v0}, {value}",
                    "movq {by}, {step}",
                    "punpcklqdq {v0}, {v0}",
                    "punpcklqdq {by}, {by}",
                    "movdqa {v1}, {by}",
                    "pslldq {v1}, 8",
                    "paddq {v0}, {v1}",
                    "paddq {by}, {by}",
                    "movdqa {v1}, {v0}",
                    "paddq {v1}, {by}",
                    "paddq {by}, {by}",
                    "2:",
                    "movdqa xmmword ptr [{at}], {v0}",
                    "paddq {v0}, {by}",
                    "movdqa xmmword ptr [{at} + 16], {v1}",
                    "paddq {v1}, {by}",
                    "movdqa xmmword ptr [{at} + 32], {v0}",
                    "paddq {v0}, {by}",
                    "movdqa xmmword ptr [{at} + 48], {v1}",
                    "paddq {v1}, {by}",
                    "add {at}, 64",
                    "cmp {at}, {end}",
                    "jne 2b",
                    at = inout(reg) blocks.as_ptr() => _,
                    end = in(reg) blocks.as_ptr_range().end,
                    value = in(reg) value,
                    step = in(reg) step,
                    v0 = out(xmm_reg) _,
                    v1 = out(xmm_reg) _,
                    by = out(xmm_reg) _,
                    options(nostack),
                );
            }
            value = value.wrapping_add(step.wrapping_mul(blocks.len() as u64));
        }
        one_by_one::store_rising(tail, value, step);
    }

    #[inline]
    pub(super) fn store_rising_if_zero(words: &[AtomicU64], first: u64, step: u64) -> usize {
        let (head, blocks, tail) = parts::<8>(words);
        let mut stored = one_by_one::store_rising_if_zero(head, first, step);
        if stored < head.len() {
            return stored;
        }
        let value = |stored: usize| first.wrapping_add(step.wrapping_mul(stored as u64));
        if !blocks.is_empty() {
            let first = blocks.as_ptr();
            let stopped: *const AtomicU64;
            // SAFETY: reads and writes words of `blocks`, which are a multiple of 64 bytes, more than none, aligned to 16 bytes.
            // They are atomics, so they may change behind a shared reference, and each aligned half of a 16-byte access is one
            // access.
            unsafe {
                asm!(
                    // The first two values, the next two, and four steps twice.
                    "movq {v0}, {value}",
                    "movq {by}, {step}",
                    "punpcklqdq {v0}, {v0}",
                    "punpcklqdq {by}, {by}",
                    "movdqa {v1}, {by}",
                    "pslldq {v1}, 8",
                    "paddq {v0}, {v1}",
                    "paddq {by}, {by}",
                    "movdqa {v1}, {v0}",
                    "paddq {v1}, {by}",
                    "paddq {by}, {by}",
                    "pxor {zero}, {zero}",
                    "2:",
                    "movdqa {any}, xmmword ptr [{at}]",
                    "por {any}, xmmword ptr [{at} + 16]",
                    "por {any}, xmmword ptr [{at} + 32]",
                    "por {any}, xmmword ptr [{at} + 48]",
                    "pcmpeqb {any}, {zero}",
                    "pmovmskb {equal:e}, {any}",
                    "cmp {equal:e}, 0xffff",
                    "jne 3f",
                    "movdqa xmmword ptr [{at}], {v0}",
                    "paddq {v0}, {by}",
                    "movdqa xmmword ptr [{at} + 16], {v1}",
                    "paddq {v1}, {by}",
                    "movdqa xmmword ptr [{at} + 32], {v0}",
                    "paddq {v0}, {by}",
                    "movdqa xmmword ptr [{at} + 48], {v1}",
                    "paddq {v1}, {by}",
                    "add {at}, 64",
                    "cmp {at}, {end}",
                    "jne 2b",
                    "3:",
                    at = inout(reg) first => stopped,
                    end = in(reg) blocks.as_ptr_range().end,
                    value = in(reg) value(stored),
                    step = in(reg) step,
                    equal = out(reg) _,
                    v0 = out(xmm_reg) _,
                    v1 = out(xmm_reg) _,
                    by = out(xmm_reg) _,
                    any = out(xmm_reg) _,
                    zero = out(xmm_reg) _,
                    options(nostack),
                );
            }
            let done = (stopped.addr() - first.addr()) / size_of::<u64>();
            stored += done;
            if done < blocks.len() {
                return stored + one_by_one::store_rising_if_zero(&blocks[done..], value(stored), step);
            }
        }
        stored + one_by_one::store_rising_if_zero(tail, value(stored), step)
    }

    #[inline]
    pub(super) fn clear_matching(words: &[AtomicU64], mask: u64, value: u64) -> usize {
        let (head, blocks, tail) = parts::<16>(words);
        let mut cleared = one_by_one::clear_matching(head, mask, value);
        if cleared < head.len() {
            return cleared;
        }
        if !blocks.is_empty() {
            let first = blocks.as_ptr();
            let stopped: *const AtomicU64;
            // SAFETY: reads and writes words of `blocks`, which are a multiple of 128 bytes, more than none, aligned to 16 bytes.
            // They are atomics, so they may change behind a shared reference, and each aligned half of a 16-byte access is one
            // access.
            unsafe {
                asm!(
                    "movq {mask}, {mask64}",
                    "movq {value}, {value64}",
                    "punpcklqdq {mask}, {mask}",
                    "punpcklqdq {value}, {value}",
                    "pxor {zero}, {zero}",
                    "2:",
                    // Bits in which any word differs.
                    "movdqa {w0}, xmmword ptr [{at}]",
                    "pxor {w0}, {value}",
                    "movdqa {w1}, xmmword ptr [{at} + 16]",
                    "pxor {w1}, {value}",
                    "movdqa {w2}, xmmword ptr [{at} + 32]",
                    "pxor {w2}, {value}",
                    "por {w0}, {w2}",
                    "movdqa {w3}, xmmword ptr [{at} + 48]",
                    "pxor {w3}, {value}",
                    "por {w1}, {w3}",
                    "movdqa {w2}, xmmword ptr [{at} + 64]",
                    "pxor {w2}, {value}",
                    "por {w0}, {w2}",
                    "movdqa {w3}, xmmword ptr [{at} + 80]",
                    "pxor {w3}, {value}",
                    "por {w1}, {w3}",
                    "movdqa {w2}, xmmword ptr [{at} + 96]",
                    "pxor {w2}, {value}",
                    "por {w0}, {w2}",
                    "movdqa {w3}, xmmword ptr [{at} + 112]",
                    "pxor {w3}, {value}",
                    "por {w1}, {w3}",
                    "por {w0}, {w1}",
                    "pand {w0}, {mask}",
                    "pcmpeqb {w0}, {zero}",
                    "pmovmskb {equal:e}, {w0}",
                    "cmp {equal:e}, 0xffff",
                    "jne 3f",
                    "movdqa xmmword ptr [{at}], {zero}",
                    "movdqa xmmword ptr [{at} + 16], {zero}",
                    "movdqa xmmword ptr [{at} + 32], {zero}",
                    "movdqa xmmword ptr [{at} + 48], {zero}",
                    "movdqa xmmword ptr [{at} + 64], {zero}",
                    "movdqa xmmword ptr [{at} + 80], {zero}",
                    "movdqa xmmword ptr [{at} + 96], {zero}",
                    "movdqa xmmword ptr [{at} + 112], {zero}",
                    "add {at}, 128",
                    "cmp {at}, {end}",
                    "jne 2b",
                    "3:",
                    at = inout(reg) first => stopped,
                    end = in(reg) blocks.as_ptr_range().end,
                    mask64 = in(reg) mask,
                    value64 = in(reg) value,
                    equal = out(reg) _,
                    mask = out(xmm_reg) _,
                    value = out(xmm_reg) _,
                    zero = out(xmm_reg) _,
                    w0 = out(xmm_reg) _,
                    w1 = out(xmm_reg) _,
                    w2 = out(xmm_reg) _,
                    w3 = out(xmm_reg) _,
                    options(nostack),
                );
            }
            let done = (stopped.addr() - first.addr()) / size_of::<u64>();
            cleared += done;
            if done < blocks.len() {
                return cleared + one_by_one::clear_matching(&blocks[done..], mask, value);
            }
        }
        cleared + one_by_one::clear_matching(tail, mask, value)
    }
}
