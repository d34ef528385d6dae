//! Two words of a table that change at once for hardware that reads sixteen bytes at once.

use super::atomic::AtomicU64;

/// Whether [`store`] does anything here: on x86-64 processors with CMPXCHG16B, which are all that have an IOMMU beside them; not
/// elsewhere, nor where assembly is not seen through (models, Miri, and `--cfg sanitize_words`).
pub fn is_available() -> bool {
    imp::is_available()
}

/// Stores both words at once; whoever reads sixteen bytes at once sees the old pair or the new one. Everything that was stored
/// before is visible to who sees the new one.
///
/// Returns false, and stores nothing, when the machine has no such store ([`is_available`]) or `pair` is not aligned to sixteen
/// bytes.
#[must_use = "it may have stored nothing"]
pub fn store(pair: &[AtomicU64; 2], value: [u64; 2]) -> bool {
    is_available() && pair.as_ptr().addr().is_multiple_of(16) && {
        imp::store(pair, value);
        true
    }
}

#[cfg(all(target_arch = "x86_64", not(any(loom, miri, sanitize_words))))]
mod imp {
    use core::arch::asm;
    use core::arch::x86_64::__cpuid;

    use super::super::atomic::{AtomicU64, Ordering};

    pub(super) fn is_available() -> bool {
        const CMPXCHG16B: u32 = 1 << 13;
        #[allow(unused_unsafe, reason = "newer compilers have it as a safe function")]
        // SAFETY: every x86-64 processor has the instruction, and leaf 1.
        let leaf = unsafe { __cpuid(1) };
        leaf.ecx & CMPXCHG16B != 0
    }

    /// `pair` is aligned and the processor has the instruction.
    pub(super) fn store(pair: &[AtomicU64; 2], value: [u64; 2]) {
        let old = pair.each_ref().map(|word| word.load(Ordering::Relaxed));
        // SAFETY: the sixteen bytes are this reference's, aligned, and atomic. RBX, which is the compiler's, is put back; the
        // pointer and the value are in registers that are not RBX.
        unsafe {
            asm!(
                "xchg rsi, rbx",
                "2:",
                "lock cmpxchg16b [rdi]",
                "jne 2b",
                "mov rbx, rsi",
                in("rdi") pair.as_ptr(),
                inout("rsi") value[0] => _,
                in("rcx") value[1],
                inout("rax") old[0] => _,
                inout("rdx") old[1] => _,
                options(nostack),
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(any(loom, miri, sanitize_words)))))]
mod imp {
    use super::super::atomic::AtomicU64;

    pub(super) const fn is_available() -> bool {
        false
    }

    pub(super) fn store(_pair: &[AtomicU64; 2], _value: [u64; 2]) {}
}
