//! What a kernel brings for its locks: masking interrupts, and the number of the CPU.
//!
//! An unmap may run in an interrupt handler. If the handler interrupted the holder of the lock it needs, it would wait
//! forever, so locks mask interrupts while they are held. In a process there is nothing to mask.

/// What a kernel installs once, before it uses the stack.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Masks interrupts on this CPU and returns what [`Hooks::restore`] needs to undo it.
    pub mask: fn() -> usize,
    /// Puts back the state that `mask` returned.
    pub restore: fn(usize),
    /// A small number for this CPU.
    pub cpu: fn() -> usize,
}

#[cfg(all(not(feature = "std"), not(loom)))]
mod imp {
    use super::Hooks;
    use alloc::boxed::Box;
    use once_cell::race::OnceBox;

    static HOOKS: OnceBox<Hooks> = OnceBox::new();

    pub(super) fn install(hooks: Hooks) -> bool {
        HOOKS.set(Box::new(hooks)).is_ok()
    }

    #[inline]
    pub(super) fn mask() -> usize {
        HOOKS.get().map_or(0, |hooks| (hooks.mask)())
    }

    #[inline]
    pub(super) fn restore(state: usize) {
        if let Some(hooks) = HOOKS.get() {
            (hooks.restore)(state);
        }
    }

    #[inline]
    pub(super) fn cpu() -> usize {
        HOOKS.get().map_or(0, |hooks| (hooks.cpu)())
    }
}

#[cfg(any(feature = "std", loom))]
mod imp {
    pub(super) fn install(_hooks: super::Hooks) -> bool {
        true
    }

    #[inline(always)]
    pub(super) fn mask() -> usize {
        0
    }

    #[inline(always)]
    pub(super) fn restore(_state: usize) {}
}

/// Installs the kernel's functions, once and for all: the only state of this crate that is not in a value. Returns false
/// when some were installed before; those stay. In a process (`std`) there is nothing to install and this does nothing.
///
/// Interrupts must not be masked differently by old and new locks, so call this before the first lock is taken.
pub fn install(hooks: Hooks) -> bool {
    imp::install(hooks)
}

#[inline(always)]
pub(super) fn mask() -> usize {
    imp::mask()
}

#[inline(always)]
pub(super) fn restore(state: usize) {
    imp::restore(state);
}

#[cfg(all(not(feature = "std"), not(loom)))]
#[inline]
pub(crate) fn cpu() -> usize {
    imp::cpu()
}
