//! Maps of borrowed memory, for as long as a closure runs.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use platform::{DmaAddr, trace};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::stable::MapDirection;
use crate::{Attrs, Bidirectional, Device, DmaError, FromDevice, Quarantined, ToDevice};

/// A borrowed slice that may be mapped in direction `D`: a `&mut [T]` in each, a `&[T]` to the device.
///
/// # Safety
/// The bytes that `into_bytes` returns are initialised, none is padding, and they may be read for as long as the borrow lasts.
/// In a direction in which the device writes, they may be written too, by nobody else, and any bytes are a value of them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be mapped `{D}`",
    note = "for `ToDevice` it is a `&[T]` or `&mut [T]` with `T: IntoBytes + Immutable`",
    note = "for `FromDevice` and `Bidirectional` it is a `&mut [T]` with `T: FromBytes + IntoBytes`"
)]
pub unsafe trait BorrowedFor<D: MapDirection> {
    /// Where the bytes are, and how many.
    fn into_bytes(self) -> (NonNull<u8>, usize);
}

// SAFETY: `IntoBytes` has no padding; others may read with us.
#[diagnostic::do_not_recommend]
unsafe impl<T: IntoBytes + Immutable> BorrowedFor<ToDevice> for &[T] {
    fn into_bytes(self) -> (NonNull<u8>, usize) {
        (NonNull::from(self).cast(), size_of_val(self))
    }
}

macro_rules! borrowed_for {
    ($direction:ty, $($bound:tt)*) => {
        // SAFETY: `IntoBytes` has no padding, and a type that the device writes is `FromBytes`; the borrow is exclusive.
        #[diagnostic::do_not_recommend]
        unsafe impl<T: $($bound)*> BorrowedFor<$direction> for &mut [T] {
            fn into_bytes(self) -> (NonNull<u8>, usize) {
                let len = size_of_val(self);
                (NonNull::from(self).cast(), len)
            }
        }
    };
}

borrowed_for!(ToDevice, IntoBytes + Immutable);
borrowed_for!(FromDevice, FromBytes + IntoBytes);
borrowed_for!(Bidirectional, FromBytes + IntoBytes);

/// Why a scoped map did not do what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScopedError {
    /// The slice could not be mapped, and the closure was not called.
    #[error(transparent)]
    Map(#[from] DmaError),
    /// The closure was called, but the device may still reach the copy, which is given up. The slice is as it was.
    #[error(transparent)]
    Unmap(#[from] Quarantined),
}

/// A borrowed slice while it is mapped: see [`Device::map_scoped`].
#[derive(Debug)]
pub struct Scoped<'d, D: MapDirection> {
    address: DmaAddr,
    len: usize,
    device: &'d Device,
    _direction: PhantomData<D>,
}

impl<D: MapDirection> Scoped<'_, D> {
    /// Where the device finds the copy.
    pub fn dma_address(&self) -> DmaAddr {
        self.address
    }

    /// The slice's length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty slice cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// # Safety
    /// Called once, while the slice that was mapped is still borrowed.
    unsafe fn end(&mut self) -> Result<(), Quarantined> {
        // SAFETY: this is the mapping that `map_scoped` made, ended once.
        unsafe { self.device.unmap_single(self.address, self.len, D::DIRECTION, Attrs::empty()) }
    }
}

impl<D: MapDirection> Drop for Scoped<'_, D> {
    fn drop(&mut self) {
        // SAFETY: the closure panicked: `map_scoped` unwinds and holds the borrow. When the device may still reach the copy,
        // the ops keep and count it.
        let _ = unsafe { self.end() };
    }
}

impl Device {
    /// Maps a borrowed slice in direction `D` while `body` runs, and returns what it returns.
    ///
    /// The device gets a copy from the bounce pool, never the slice itself: what it writes is copied back after `body`, also
    /// when that panics. So nothing rests on `body` returning: a device that goes on writing, or an unmap that fails, costs a
    /// place in the pool, and borrowed memory stays as its owner sees it.
    ///
    /// ```
    /// # fn example(device: &dma_api::Device, start: impl Fn(u64), wait: impl Fn()) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut block = [0u32; 128];
    /// device.map_scoped::<dma_api::FromDevice, _, _>(&mut block[..], |mapped| {
    ///     start(mapped.dma_address().get());
    ///     wait();
    /// })?;
    /// let first = block[0];
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ScopedError`]: among others [`DmaError::NotRam`] when there is no pool, [`DmaError::TooLargeForBounce`] and
    /// [`DmaError::BouncePoolFull`].
    pub fn map_scoped<D: MapDirection, S: BorrowedFor<D>, R>(
        &self,
        slice: S,
        body: impl FnOnce(&Scoped<'_, D>) -> R,
    ) -> Result<R, ScopedError> {
        let (at, len) = slice.into_bytes();
        trace::event("dma_map_scoped", at.as_ptr().addr() as u64, len as u64);
        if len == 0 {
            return Err(DmaError::InvalidLength(len).into());
        }
        // SAFETY: the caller's borrow lasts until this returns or unwinds, and by then the mapping has ended; nobody writes
        // the slice meanwhile, nor reads it when the device writes. `BorrowedFor` says that it is initialised.
        let address = unsafe { self.ops().map_foreign(self.parms(), at, len, D::DIRECTION, Attrs::empty()) }?;
        let mapped = Scoped { address, len, device: self, _direction: PhantomData };
        let result = body(&mapped);
        // SAFETY: ended here and not by the drop; the slice is still borrowed.
        unsafe { ManuallyDrop::new(mapped).end() }?;
        Ok(result)
    }
}
