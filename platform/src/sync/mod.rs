//! One face over parking_lot, spin and loom.
//!
//! [`Mutex`] is for slow paths: parking_lot's with `std`, a spinning one without. [`CpuLock`] is for per-CPU state and
//! everything that an unmap takes. Without `std` both mask interrupts through what a kernel installed in [`irq`].

mod cpu_lock;
pub mod irq;
mod mutex;
pub mod pair;
mod per_cpu;
pub mod words;

pub use cpu_lock::{CpuLock, CpuLockGuard, fence_after_lock};
pub use mutex::{Mutex, MutexGuard};
pub use per_cpu::PerCpu;

/// Atomics: core's in life, loom's in models.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(loom)]
    pub use loom::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// Loom's `Arc` in models, else alloc's.
#[cfg(not(loom))]
pub use alloc::sync::Arc;
#[cfg(loom)]
pub use loom::sync::Arc;
