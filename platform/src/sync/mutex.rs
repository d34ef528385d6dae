//! The lock for slow paths.

use core::fmt;
use core::ops::{Deref, DerefMut};

#[cfg(loom)]
use loom::sync as imp;
#[cfg(all(feature = "std", not(loom)))]
use parking_lot as imp;
#[cfg(all(not(feature = "std"), not(loom)))]
use spin as imp;

use super::irq;

/// Mutual exclusion for slow paths. A holder that panics does not poison it.
pub struct Mutex<T: ?Sized> {
    inner: imp::Mutex<T>,
}

/// The lock, held; without `std` interrupts are masked meanwhile.
pub struct MutexGuard<'a, T: ?Sized> {
    // Dropped by hand, since the lock must be free before interrupts come back.
    inner: core::mem::ManuallyDrop<imp::MutexGuard<'a, T>>,
    interrupts: usize,
}

impl<T> Mutex<T> {
    /// A free lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self { inner: imp::Mutex::new(value) }
    }

    /// A free lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { inner: imp::Mutex::new(value) }
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock, waiting for it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let interrupts = irq::mask();
        let inner = self.inner.lock();
        #[cfg(loom)]
        let inner = inner.unwrap_or_else(|poisoned| poisoned.into_inner());
        MutexGuard { inner: core::mem::ManuallyDrop::new(inner), interrupts }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: nothing uses the inner guard after this, the only place that drops it.
        unsafe { core::mem::ManuallyDrop::drop(&mut self.inner) };
        irq::restore(self.interrupts);
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
