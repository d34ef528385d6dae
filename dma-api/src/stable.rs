//! Buffers that stay where they are while they are mapped.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Direction, DmaBuffer};

mod private {
    pub trait Sealed {}
}

/// A direction as a type (Linux: `enum dma_data_direction`).
pub trait MapDirection: private::Sealed + 'static {
    /// The direction as a value.
    const DIRECTION: Direction;
}

macro_rules! direction {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl private::Sealed for $name {}
        impl MapDirection for $name {
            const DIRECTION: Direction = Direction::$name;
        }
    };
}

direction! {
    /// The device reads.
    ToDevice
}
direction! {
    /// The device writes.
    FromDevice
}
direction! {
    /// Both ways.
    Bidirectional
}

/// A buffer that owns its elements at an address of their own, so that moving the buffer does not move them.
///
/// # Safety
/// `into_raw` gives up every reference to the elements and returns where they are; they stay there, valid and untouched,
/// until `from_raw`. What `raw_slice` returns is what was given up.
pub unsafe trait StableBuffer: Sized {
    /// The element.
    type Item;
    /// The buffer without its references.
    type Raw;

    /// Gives the buffer up, for as long as a device has it.
    fn into_raw(self) -> Self::Raw;

    /// Where the elements are, and how many.
    fn raw_slice(raw: &Self::Raw) -> (NonNull<Self::Item>, usize);

    /// Takes the buffer back.
    ///
    /// # Safety
    /// `raw` came from `into_raw`, once; no device reaches the elements any more.
    unsafe fn from_raw(raw: Self::Raw) -> Self;
}

/// A buffer whose elements nobody else sees, so that a device, or the CPU between two turns of the device, may write them.
///
/// # Safety
/// While the buffer is given up there is no reference to its elements.
pub unsafe trait ExclusiveBuffer: StableBuffer {}

/// A buffer that may be mapped in direction `D`.
///
/// # Safety
/// The elements have no padding and no uninitialised bytes, since they are read as bytes in every direction (a bounce copies
/// them first). In a direction in which the device writes, any bytes are a value of them, and nobody else sees them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be mapped `{D}`",
    note = "a buffer owns its elements: `Box<[T]>`, `Vec<T>`, `DmaBuffer<T>`, and for `ToDevice` alone `Arc<[T]>`",
    note = "for `ToDevice` its elements are `IntoBytes + Immutable`: initialised, without padding",
    note = "for `FromDevice` and `Bidirectional` they are `FromBytes + IntoBytes`: any bytes are a value"
)]
pub unsafe trait BufferFor<D: MapDirection>: StableBuffer {}

// SAFETY: a box owns its slice; `Box::into_raw` keeps it alive at its place.
unsafe impl<T> StableBuffer for Box<[T]> {
    type Item = T;
    type Raw = NonNull<[T]>;

    fn into_raw(self) -> NonNull<[T]> {
        // SAFETY: a box's pointer is not null.
        unsafe { NonNull::new_unchecked(Box::into_raw(self)) }
    }

    fn raw_slice(raw: &NonNull<[T]>) -> (NonNull<T>, usize) {
        (raw.cast(), raw.len())
    }

    unsafe fn from_raw(raw: NonNull<[T]>) -> Self {
        // SAFETY: the caller gives back what `into_raw` returned, once.
        unsafe { Box::from_raw(raw.as_ptr()) }
    }
}

// SAFETY: as `Box`; nobody else has the elements.
unsafe impl<T> ExclusiveBuffer for Box<[T]> {}

/// A `Vec` without its references.
#[derive(Debug)]
pub struct RawVec<T> {
    at: NonNull<T>,
    len: usize,
    capacity: usize,
}

// SAFETY: a vector owns its elements; they stay in their allocation while it is forgotten.
unsafe impl<T> StableBuffer for Vec<T> {
    type Item = T;
    type Raw = RawVec<T>;

    fn into_raw(self) -> RawVec<T> {
        let mut vec = ManuallyDrop::new(self);
        // SAFETY: a vector's pointer is not null.
        let at = unsafe { NonNull::new_unchecked(vec.as_mut_ptr()) };
        RawVec { at, len: vec.len(), capacity: vec.capacity() }
    }

    fn raw_slice(raw: &RawVec<T>) -> (NonNull<T>, usize) {
        (raw.at, raw.len)
    }

    unsafe fn from_raw(raw: RawVec<T>) -> Self {
        // SAFETY: the caller gives back what `into_raw` returned, once.
        unsafe { Vec::from_raw_parts(raw.at.as_ptr(), raw.len, raw.capacity) }
    }
}

// SAFETY: nobody else has a vector's elements.
unsafe impl<T> ExclusiveBuffer for Vec<T> {}

// SAFETY: the count that `into_raw` keeps holds the elements where they are; others only read them.
unsafe impl<T> StableBuffer for Arc<[T]> {
    type Item = T;
    type Raw = NonNull<[T]>;

    fn into_raw(self) -> NonNull<[T]> {
        // SAFETY: an `Arc`'s pointer is not null.
        unsafe { NonNull::new_unchecked(Arc::into_raw(self).cast_mut()) }
    }

    fn raw_slice(raw: &NonNull<[T]>) -> (NonNull<T>, usize) {
        (raw.cast(), raw.len())
    }

    unsafe fn from_raw(raw: NonNull<[T]>) -> Self {
        // SAFETY: the caller gives back what `into_raw` returned, once.
        unsafe { Arc::from_raw(raw.as_ptr()) }
    }
}

// SAFETY: the buffer's pages are its own and stay where they are; it holds a pointer to them, no reference.
unsafe impl<T> StableBuffer for DmaBuffer<T> {
    type Item = T;
    type Raw = Self;

    fn into_raw(self) -> Self {
        self
    }

    fn raw_slice(raw: &Self) -> (NonNull<T>, usize) {
        raw.raw_parts()
    }

    unsafe fn from_raw(raw: Self) -> Self {
        raw
    }
}

// SAFETY: nobody else has the pages.
unsafe impl<T> ExclusiveBuffer for DmaBuffer<T> {}

macro_rules! buffer_for {
    ($buffer:ty) => {
        // SAFETY: `IntoBytes` has no padding.
        #[diagnostic::do_not_recommend]
        unsafe impl<T: IntoBytes + Immutable> BufferFor<ToDevice> for $buffer {}
        // SAFETY: as above, and `FromBytes` takes any bytes; the buffer is exclusive.
        #[diagnostic::do_not_recommend]
        unsafe impl<T: FromBytes + IntoBytes> BufferFor<FromDevice> for $buffer {}
        // SAFETY: as above.
        #[diagnostic::do_not_recommend]
        unsafe impl<T: FromBytes + IntoBytes> BufferFor<Bidirectional> for $buffer {}
    };
}

buffer_for!(Box<[T]>);
buffer_for!(Vec<T>);
buffer_for!(DmaBuffer<T>);
// SAFETY: `IntoBytes` has no padding; the device only reads.
#[diagnostic::do_not_recommend]
unsafe impl<T: IntoBytes + Immutable> BufferFor<ToDevice> for Arc<[T]> {}
