//! Zero-copy buffers: pages from the platform, used like a `Vec`.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use platform::{FrameRequest, PhysAddr, Platform};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Device, DmaError};

/// Elements in page frames of the machine: physically contiguous, so that a map is one piece and nothing is bounced.
pub struct DmaBuffer<T> {
    at: NonNull<T>,
    len: usize,
    phys: PhysAddr,
    bytes: usize,
    platform: Arc<dyn Platform>,
    _elements: PhantomData<T>,
}

// SAFETY: the buffer owns its frames, like a box.
unsafe impl<T: Send> Send for DmaBuffer<T> {}
// SAFETY: a shared buffer gives out shared references only.
unsafe impl<T: Sync> Sync for DmaBuffer<T> {}

impl<T: FromBytes + IntoBytes> DmaBuffer<T> {
    /// `len` zeroed elements (at least one, of a type that has a size), anywhere in memory.
    ///
    /// # Errors
    /// [`DmaError::InvalidLength`] when there would be no bytes or too many, [`DmaError::InvalidAlignment`] when an
    /// element wants more than a page, [`DmaError::OutOfMemory`].
    pub fn zeroed(device: &Device, len: usize) -> Result<Self, DmaError> {
        Self::zeroed_in(device.platform(), len)
    }

    /// The same without a device.
    ///
    /// # Errors
    /// As [`DmaBuffer::zeroed`].
    pub fn zeroed_in(platform: &Arc<dyn Platform>, len: usize) -> Result<Self, DmaError> {
        let bytes =
            len.checked_mul(size_of::<T>()).filter(|&bytes| bytes != 0 && bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or(DmaError::InvalidLength(len))?;
        if align_of::<T>() > platform::frames::FRAME_SIZE {
            return Err(DmaError::InvalidAlignment(align_of::<T>()));
        }
        let phys = platform.alloc(FrameRequest::anywhere(bytes)).map_err(|_| DmaError::OutOfMemory)?;
        let at = platform.window().ptr(phys).cast::<T>();
        let Some(at) = NonNull::new(at) else {
            // SAFETY: it was taken just now, and nobody has seen it.
            unsafe { platform.free(phys, bytes) };
            return Err(DmaError::OutOfMemory);
        };
        Ok(Self { at, len, phys, bytes, platform: Arc::clone(platform), _elements: PhantomData })
    }
}

impl<T> DmaBuffer<T> {
    /// The physical address of the first element.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    pub(crate) fn raw_parts(&self) -> (NonNull<T>, usize) {
        (self.at, self.len)
    }
}

impl<T> Deref for DmaBuffer<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the frames are this buffer's own and hold `len` elements, valid since they were made from zeros.
        unsafe { core::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for DmaBuffer<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the buffer is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T> Drop for DmaBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: the frames came from this platform in one piece and are freed once; `T` has no destructor, since it can
        // be made from any bytes.
        unsafe { self.platform.free(self.phys, self.bytes) };
    }
}

impl<T> fmt::Debug for DmaBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuffer({} elements at {})", self.len, self.phys)
    }
}
