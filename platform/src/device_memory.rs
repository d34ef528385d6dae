//! Copies between memory that a device may be using and memory that it may not: relaxed atomic loads and stores of 1, 2, 4
//! or 8 bytes on the device's side.
//!
//! On x86-64 these are the same moves as volatile ones; but against a device that is a thread, volatile is a data race.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// The largest power of two, at most 8, that `at`, `other` and `left` allow for the next piece.
#[inline]
fn piece(at: usize, other: usize, left: usize) -> usize {
    let aligned = 1usize << (at | other | 8).trailing_zeros();
    let fits = if left >= 8 { 8 } else { 1 << (usize::BITS - 1 - left.leading_zeros()) };
    aligned.min(fits)
}

/// Copies `len` bytes out of device-visible memory, in pieces in rising order.
///
/// # Safety
/// `from` is valid for reads of `len` bytes which others access only atomically; `into` for writes, and is nobody else's.
pub unsafe fn copy_out(from: *const u8, into: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done < len`, so both stay in their ranges.
        let (source, target) = unsafe { (from.add(done), into.add(done)) };
        let step = piece(source.addr(), target.addr(), len - done);
        // SAFETY: both are aligned to `step` and have so many bytes left; the source is accessed atomically by everybody.
        unsafe {
            match step {
                8 => target
                    .cast::<u64>()
                    .write(AtomicU64::from_ptr(source.cast_mut().cast()).load(Ordering::Relaxed)),
                4 => target
                    .cast::<u32>()
                    .write(AtomicU32::from_ptr(source.cast_mut().cast()).load(Ordering::Relaxed)),
                2 => target
                    .cast::<u16>()
                    .write(AtomicU16::from_ptr(source.cast_mut().cast()).load(Ordering::Relaxed)),
                _ => target.write(AtomicU8::from_ptr(source.cast_mut()).load(Ordering::Relaxed)),
            }
        }
        done += step;
    }
}

/// Copies `len` bytes into device-visible memory, in pieces in rising order.
///
/// # Safety
/// `into` is valid for writes of `len` bytes which others access only atomically; `from` for reads, and nobody writes it.
pub unsafe fn copy_in(from: *const u8, into: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done < len`, so both stay in their ranges.
        let (source, target) = unsafe { (from.add(done), into.add(done)) };
        let step = piece(source.addr(), target.addr(), len - done);
        // SAFETY: both are aligned to `step` and have so many bytes left; the target is accessed atomically by everybody.
        unsafe {
            match step {
                8 => AtomicU64::from_ptr(target.cast()).store(source.cast::<u64>().read(), Ordering::Relaxed),
                4 => AtomicU32::from_ptr(target.cast()).store(source.cast::<u32>().read(), Ordering::Relaxed),
                2 => AtomicU16::from_ptr(target.cast()).store(source.cast::<u16>().read(), Ordering::Relaxed),
                _ => AtomicU8::from_ptr(target).store(source.read(), Ordering::Relaxed),
            }
        }
        done += step;
    }
}
