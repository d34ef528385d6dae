//! Copies between memory that a device may be using and memory that it may not: relaxed atomic loads and stores of 1, 2, 4
//! or 8 bytes on the device's side.
//!
//! On x86-64 these are the same moves as volatile ones; but against a device that is a thread, volatile is a data race.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// The largest power of two, at most 8, that the address on the device's side and the bytes left allow for the next piece.
#[inline]
fn piece(at: usize, left: usize) -> usize {
    let aligned = 1usize << (at | 8).trailing_zeros();
    let fits = if left >= 8 { 8 } else { 1 << (usize::BITS - 1 - left.leading_zeros()) };
    aligned.min(fits)
}

/// Copies `len` bytes out of device-visible memory, in pieces in rising order.
///
/// # Safety
/// `from` is valid for reads of `len` bytes which others access only atomically; `into` for writes, and is nobody else's.
#[inline]
pub unsafe fn copy_out(from: *const u8, into: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done < len`, so both stay in their ranges.
        let (source, target) = unsafe { (from.add(done).cast_mut(), into.add(done)) };
        let left = len - done;
        // SAFETY: both have so many bytes left, and the source is aligned to them; everybody accesses it atomically.
        done += unsafe {
            match piece(source.addr(), left) {
                8 => {
                    let (source, target) = (source.cast::<u64>(), target.cast::<u64>());
                    for word in 0..left / 8 {
                        let value = AtomicU64::from_ptr(source.add(word)).load(Ordering::Relaxed);
                        target.add(word).write_unaligned(value);
                    }
                    left / 8 * 8
                }
                4 => {
                    let value = AtomicU32::from_ptr(source.cast()).load(Ordering::Relaxed);
                    target.cast::<u32>().write_unaligned(value);
                    4
                }
                2 => {
                    let value = AtomicU16::from_ptr(source.cast()).load(Ordering::Relaxed);
                    target.cast::<u16>().write_unaligned(value);
                    2
                }
                _ => {
                    target.write(AtomicU8::from_ptr(source).load(Ordering::Relaxed));
                    1
                }
            }
        };
    }
}

/// Copies `len` bytes into device-visible memory, in pieces in rising order.
///
/// # Safety
/// `into` is valid for writes of `len` bytes which others access only atomically; `from` for reads, and nobody writes it.
#[inline]
pub unsafe fn copy_in(from: *const u8, into: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done < len`, so both stay in their ranges.
        let (source, target) = unsafe { (from.add(done), into.add(done)) };
        let left = len - done;
        // SAFETY: both have so many bytes left, and the target is aligned to them; everybody accesses it atomically.
        done += unsafe {
            match piece(target.addr(), left) {
                8 => {
                    let (source, target) = (source.cast::<u64>(), target.cast::<u64>());
                    for word in 0..left / 8 {
                        let value = source.add(word).read_unaligned();
                        AtomicU64::from_ptr(target.add(word)).store(value, Ordering::Relaxed);
                    }
                    left / 8 * 8
                }
                4 => {
                    let value = source.cast::<u32>().read_unaligned();
                    AtomicU32::from_ptr(target.cast()).store(value, Ordering::Relaxed);
                    4
                }
                2 => {
                    let value = source.cast::<u16>().read_unaligned();
                    AtomicU16::from_ptr(target.cast()).store(value, Ordering::Relaxed);
                    2
                }
                _ => {
                    AtomicU8::from_ptr(target).store(source.read(), Ordering::Relaxed);
                    1
                }
            }
        };
    }
}
