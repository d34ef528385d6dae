//! Access by value to memory that a device may be using.

use core::mem::MaybeUninit;

pub(crate) use platform::device_memory::{copy_in, copy_out};
use zerocopy::{FromBytes, IntoBytes};

/// Reads a value out of device-visible memory. One of 1, 2, 4 or 8 bytes, aligned to its size, is read at once; a longer
/// one in pieces, so that it may be torn.
///
/// # Safety
/// As [`copy_out`], for the size of `T`.
#[inline]
pub(crate) unsafe fn read<T: FromBytes>(at: *const T) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the caller's promise; every byte of `value` is written, and any bytes are a `T`.
    unsafe {
        copy_out(at.cast(), value.as_mut_ptr().cast(), size_of::<T>());
        value.assume_init()
    }
}

/// Writes a value into device-visible memory, as [`read`] reads it.
///
/// # Safety
/// As [`copy_in`], for the size of `T`.
#[inline]
pub(crate) unsafe fn write<T: IntoBytes>(at: *mut T, value: T) {
    // SAFETY: the caller's promise; `T` has no padding, so all its bytes can be read.
    unsafe { copy_in((&raw const value).cast(), at.cast(), size_of::<T>()) };
}
