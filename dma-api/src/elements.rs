//! Elements that a device may be using, read and written by value.

use core::ptr::NonNull;

use zerocopy::{FromBytes, IntoBytes};

use crate::volatile;

/// Elements of a mapped buffer while it is the CPU's turn. A device that does not keep to its turn may change them at any
/// moment.
#[derive(Clone, Copy)]
pub(crate) struct Elements<T> {
    at: NonNull<T>,
    len: usize,
}

impl<T> Elements<T> {
    /// # Safety
    /// For as long as this is used the elements are there, and nobody writes them but a device, atomically.
    pub(crate) unsafe fn new(at: NonNull<T>, len: usize) -> Self {
        Self { at, len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A part of them; panics when they are not so many, as a slice does.
    pub(crate) fn part(&self, first: usize, count: usize) -> Self {
        assert!(
            first <= self.len && count <= self.len - first,
            "elements {first}.. of {}, {count} of them",
            self.len
        );
        // SAFETY: the element is among these, or one past their end.
        Self { at: unsafe { self.at.add(first) }, len: count }
    }

    pub(crate) fn read(&self, index: usize) -> T
    where
        T: FromBytes,
    {
        // SAFETY: as `new` was promised; any bytes are an element.
        unsafe { volatile::read(self.part(index, 1).at.as_ptr()) }
    }

    pub(crate) fn copy_to_slice(&self, first: usize, into: &mut [T])
    where
        T: FromBytes,
    {
        let from = self.part(first, into.len()).at;
        // SAFETY: as `new` was promised; any bytes are an element.
        unsafe { volatile::copy_out(from.as_ptr().cast(), into.as_mut_ptr().cast(), size_of_val(into)) };
    }

    /// # Safety
    /// Nobody has a reference to the elements.
    pub(crate) unsafe fn write(&self, index: usize, value: T)
    where
        T: IntoBytes,
    {
        // SAFETY: as `new` was promised, and nobody but a device, atomically, looks.
        unsafe { volatile::write(self.part(index, 1).at.as_ptr(), value) };
    }

    /// # Safety
    /// Nobody has a reference to the elements.
    pub(crate) unsafe fn copy_from_slice(&self, first: usize, from: &[T])
    where
        T: IntoBytes,
    {
        let into = self.part(first, from.len()).at;
        // SAFETY: as above; they have no padding.
        unsafe { volatile::copy_in(from.as_ptr().cast(), into.as_ptr().cast(), size_of_val(from)) };
    }
}
