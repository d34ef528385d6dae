//! Which CPU this is: a hint for choosing per-CPU state, never relied on.

/// A small number for the CPU that runs this code. It may change at any moment, so it only spreads work.
///
/// With `std` each thread gets a number of its own, in the order of their first calls. Without, it is what the kernel
/// installed with [`crate::sync::irq::install`], or 0.
#[inline]
pub fn current() -> usize {
    imp::current()
}

#[cfg(all(feature = "std", not(loom)))]
mod imp {
    use core::cell::Cell;
    use core::sync::atomic::{AtomicUsize, Ordering};

    const UNSET: usize = usize::MAX;

    std::thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(UNSET) };
    }

    #[inline]
    pub(super) fn current() -> usize {
        let number = NUMBER.get();
        if number == UNSET { assign() } else { number }
    }

    #[cold]
    fn assign() -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        NUMBER.set(number);
        number
    }
}

#[cfg(all(not(feature = "std"), not(loom)))]
mod imp {
    #[inline]
    pub(super) fn current() -> usize {
        crate::sync::irq::cpu()
    }
}

#[cfg(loom)]
mod imp {
    use core::cell::Cell;

    // In the order of first calls, numbers would depend on the schedule: a model's thread says its own.
    loom::thread_local! {
        static NUMBER: Cell<usize> = Cell::new(0);
    }

    pub(super) fn current() -> usize {
        NUMBER.with(Cell::get)
    }

    pub(super) fn set(number: usize) {
        NUMBER.with(|cell| cell.set(number));
    }
}

/// Makes the calling thread of a model CPU `number`.
#[cfg(loom)]
pub fn set(number: usize) {
    imp::set(number);
}
