//! The lock of fast paths: one compare-and-swap to take, one store to release.

use core::fmt;
use core::ops::{Deref, DerefMut};

#[cfg(not(loom))]
use core::cell::UnsafeCell;
#[cfg(loom)]
use loom::cell::UnsafeCell;

use super::atomic::{AtomicBool, Ordering};
use super::irq;

/// A lock for state that belongs to a CPU, or that an unmap takes. Meant to be *tried*: who fails goes to the next
/// CPU's. Held for a few dozen instructions at most, never across a wait.
pub struct CpuLock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the flag lets one thread at a time at the value, with acquire and release between them.
unsafe impl<T: Send> Send for CpuLock<T> {}
// SAFETY: as above: sharing the lock only ever moves access to the value from thread to thread.
unsafe impl<T: Send> Sync for CpuLock<T> {}

/// The lock, held; without `std` interrupts are masked meanwhile.
pub struct CpuLockGuard<'a, T> {
    lock: &'a CpuLock<T>,
    interrupts: usize,
    // Loom's record of the access: it finds a second one at the same time.
    #[cfg(loom)]
    access: Option<loom::cell::MutPtr<T>>,
    // Interrupts are restored on the CPU that masked them, so a guard stays on its thread.
    _thread: core::marker::PhantomData<*mut ()>,
}

/// Orders everything before it against everything after it, where a lock of this kind has just been taken (Linux:
/// `smp_mb__after_spinlock`). On x86-64 taking the lock has done that already, so there this keeps the compiler in order alone.
#[doc(alias = "smp_mb__after_spinlock")]
#[inline(always)]
pub fn fence_after_lock() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    super::atomic::fence(Ordering::SeqCst);
}

impl<T> CpuLock<T> {
    /// A free lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// A free lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<CpuLockGuard<'_, T>> {
        let interrupts = irq::mask();
        if self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            Some(CpuLockGuard {
                lock: self,
                interrupts,
                #[cfg(loom)]
                access: Some(self.value.get_mut()),
                _thread: core::marker::PhantomData,
            })
        } else {
            irq::restore(interrupts);
            None
        }
    }

    /// Takes the lock, spinning until its holder is done.
    #[inline]
    pub fn lock(&self) -> CpuLockGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        {
            // In a process the holder may have lost its CPU; then only yielding helps.
            for _ in 0..100 {
                if !self.held.load(Ordering::Relaxed) {
                    return;
                }
                core::hint::spin_loop();
            }
            #[cfg(feature = "std")]
            std::thread::yield_now();
        }
    }
}

impl<T: Default> Default for CpuLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> fmt::Debug for CpuLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuLock").finish_non_exhaustive()
    }
}

impl<T> Deref for CpuLockGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock, so nobody else is at the value; the reference lives no longer than the guard.
        #[cfg(not(loom))]
        unsafe {
            &*self.lock.value.get()
        }
        // SAFETY: as above.
        #[cfg(loom)]
        unsafe {
            self.access.as_ref().expect("held until drop").deref()
        }
    }
}

impl<T> DerefMut for CpuLockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock and is borrowed mutably, so this is the only reference to the value.
        #[cfg(not(loom))]
        unsafe {
            &mut *self.lock.value.get()
        }
        // SAFETY: as above.
        #[cfg(loom)]
        unsafe {
            self.access.as_ref().expect("held until drop").deref()
        }
    }
}

impl<T> Drop for CpuLockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(loom)]
        drop(self.access.take());
        self.lock.held.store(false, Ordering::Release);
        irq::restore(self.interrupts);
    }
}

impl<T: fmt::Debug> fmt::Debug for CpuLockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
