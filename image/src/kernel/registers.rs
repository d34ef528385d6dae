//! Device registers, mapped where they are.

use core::sync::atomic::{Ordering, fence};

use platform::{Mmio, PhysAddr};

/// A region of registers below 4 GiB.
#[derive(Debug)]
pub(super) struct Registers {
    base: usize,
    len: usize,
}

impl Registers {
    /// The `len` bytes of registers at `base`.
    ///
    /// # Safety
    /// Registers are there and nothing else, and they are mapped at their address for ever.
    pub(super) unsafe fn new(base: PhysAddr, len: usize) -> Self {
        Self { base: base.get() as usize, len }
    }

    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let width = size_of::<T>();
        let fits =
            offset.is_multiple_of(width) && offset.checked_add(width).is_some_and(|end| end <= self.len);
        fits.then(|| core::ptr::with_exposed_provenance_mut(self.base + offset))
    }

    fn read<T>(&self, offset: usize, nobody: T) -> T {
        // SAFETY: an aligned access within the registers.
        self.at::<T>(offset).map_or(nobody, |at| unsafe { at.read_volatile() })
    }

    fn write<T>(&self, offset: usize, value: T) {
        // What was stored before is there when the device looks.
        fence(Ordering::Release);
        if let Some(at) = self.at::<T>(offset) {
            // SAFETY: as in `read`.
            unsafe { at.write_volatile(value) };
        }
    }
}

// SAFETY: the mapping stays, and all accesses are within the registers.
unsafe impl Mmio for Registers {
    fn len(&self) -> usize {
        self.len
    }

    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, u32::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.read(offset, u64::MAX)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write(offset, value);
    }
}
