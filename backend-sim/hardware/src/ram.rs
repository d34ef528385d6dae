//! Memory: several physical ranges in one sparse mapping, so that physical to virtual is one addition.

use std::fmt;
use std::sync::Arc;

use platform::device_memory::{copy_in, copy_out};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A range is empty, not made of pages, or overlaps another.
    #[error("the memory range of {len:#x} bytes at {start:#x} is empty, unaligned, or overlaps another")]
    BadRange {
        /// Physical address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host refused.
    #[error("the host gives no memory: {0}")]
    Host(#[from] rustix::io::Errno),
}

/// An address that is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:#x} is no memory")]
pub struct NotRam(pub u64);

/// The machine's memory. Devices touch it by relaxed atomics in pieces of 8 bytes, as hardware moves words.
pub struct Ram {
    base: *mut u8,
    span: usize,
    ranges: Vec<(u64, u64)>,
}

// SAFETY: the memory is reached only atomically, or by whoever the frame allocator gave it to.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Memory at the given physical ranges (start and length in bytes, multiples of 4 KiB), all zeros. Only what is touched
    /// takes memory of the host.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn new(ranges: &[(u64, u64)]) -> Result<Arc<Self>, RamError> {
        let mut ranges = ranges.to_vec();
        ranges.sort_unstable();
        let mut top = 0u64;
        for &(start, len) in &ranges {
            let bad = RamError::BadRange { start, len };
            if len == 0 || (start | len) % 4096 != 0 || start < top {
                return Err(bad);
            }
            top = start.checked_add(len).ok_or(bad)?;
        }
        let span = usize::try_from(top).unwrap_or(usize::MAX).max(4096);
        // SAFETY: a new mapping of its own, of no memory yet.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                span,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let ram = Self { base: base.cast(), span, ranges };
        for &(start, len) in &ram.ranges {
            // SAFETY: the range is within the mapping, which nobody uses yet.
            unsafe {
                mprotect(
                    ram.base.add(start as usize).cast(),
                    len as usize,
                    MprotectFlags::READ | MprotectFlags::WRITE,
                )
            }?;
        }
        ram.base.expose_provenance();
        Ok(Arc::new(ram))
    }

    /// The ranges, in order: start and length in bytes.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// What to add to a physical address to get the host's.
    pub fn window_offset(&self) -> usize {
        self.base.addr()
    }

    /// Where `len` bytes at a physical address are on the host.
    fn place(&self, phys: u64, len: usize) -> Result<*mut u8, NotRam> {
        let holds = |&&(start, range_len): &&(u64, u64)| {
            phys >= start && phys - start < range_len && range_len - (phys - start) >= len as u64
        };
        self.ranges.iter().find(holds).ok_or(NotRam(phys))?;
        // SAFETY: the address is within the mapping.
        Ok(unsafe { self.base.add(phys as usize) })
    }

    /// Reads bytes, all in one range.
    ///
    /// # Errors
    /// [`NotRam`]; nothing is read.
    pub fn read(&self, phys: u64, into: &mut [u8]) -> Result<(), NotRam> {
        let from = self.place(phys, into.len())?;
        // SAFETY: the place is readable; what others do there meanwhile they do atomically.
        unsafe { copy_out(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Writes bytes, all in one range. The last piece of 8 bytes is a release: who sees it sees the rest.
    ///
    /// # Errors
    /// [`NotRam`]; nothing is written.
    pub fn write(&self, phys: u64, from: &[u8]) -> Result<(), NotRam> {
        let into = self.place(phys, from.len())?;
        let last = if phys.is_multiple_of(8) && from.len().is_multiple_of(8) && !from.is_empty() {
            from.len() - 8
        } else {
            from.len()
        };
        // SAFETY: the place is writable; what others do there meanwhile they do atomically.
        unsafe { copy_in(from.as_ptr(), into, last) };
        if let Some(word) = from.get(last..last + 8).and_then(|word| word.try_into().ok()) {
            self.write64(phys + last as u64, u64::from_le_bytes(word))?;
        } else {
            std::sync::atomic::fence(Ordering::Release);
        }
        Ok(())
    }

    fn word(&self, phys: u64) -> Result<&AtomicU64, NotRam> {
        if !phys.is_multiple_of(8) {
            return Err(NotRam(phys));
        }
        let at = self.place(phys, 8)?;
        // SAFETY: an aligned word of the mapping, which lives as long as `self`; everybody accesses it atomically.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// Reads an aligned word, as an acquire.
    ///
    /// # Errors
    /// [`NotRam`], for an unaligned address too.
    pub fn read64(&self, phys: u64) -> Result<u64, NotRam> {
        Ok(self.word(phys)?.load(Ordering::Acquire))
    }

    /// Replaces an aligned word in one step, if it is `old`; whether it was.
    ///
    /// # Errors
    /// [`NotRam`], for an unaligned address too.
    pub fn replace64(&self, phys: u64, old: u64, new: u64) -> Result<bool, NotRam> {
        let word = self.word(phys)?;
        Ok(word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok())
    }

    /// Writes an aligned word, as a release.
    ///
    /// # Errors
    /// [`NotRam`], for an unaligned address too.
    pub fn write64(&self, phys: u64, value: u64) -> Result<(), NotRam> {
        self.word(phys)?.store(value, Ordering::Release);
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has it any more. The host cannot refuse to take it back.
        let _ = unsafe { munmap(self.base.cast(), self.span) };
    }
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ram({:x?})", self.ranges)
    }
}
