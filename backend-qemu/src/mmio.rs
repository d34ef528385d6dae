//! Registers of QEMU's devices.

use std::fmt;
use std::sync::Arc;

use platform::Mmio;

use crate::qtest::{Qtest, Width};

/// A region of registers, each access of which is a command to QEMU.
pub(crate) struct QtestMmio {
    pub(crate) qtest: Arc<Qtest>,
    pub(crate) base: u64,
    pub(crate) len: usize,
}

impl QtestMmio {
    /// The address of an access that is aligned and within the region.
    fn at(&self, offset: usize, width: usize) -> Option<u64> {
        let fits =
            offset.is_multiple_of(width) && offset.checked_add(width).is_some_and(|end| end <= self.len);
        fits.then(|| self.base + offset as u64)
    }

    fn read(&self, offset: usize, bytes: usize, width: Width) -> u64 {
        self.at(offset, bytes).map_or(u64::MAX, |at| self.qtest.read(width, at))
    }

    fn write(&self, offset: usize, bytes: usize, width: Width, value: u64) {
        if let Some(at) = self.at(offset, bytes) {
            self.qtest.write(width, at, value);
        }
    }
}

// SAFETY: QEMU makes the accesses, to the device's registers; no memory of this process is behind the region. A command is a
// system call, which no store passes.
unsafe impl Mmio for QtestMmio {
    fn len(&self) -> usize {
        self.len
    }

    fn read8(&self, offset: usize) -> u8 {
        self.read(offset, 1, Width::Byte) as u8
    }

    fn write8(&self, offset: usize, value: u8) {
        self.write(offset, 1, Width::Byte, value.into());
    }

    fn read16(&self, offset: usize) -> u16 {
        self.read(offset, 2, Width::Word) as u16
    }

    fn write16(&self, offset: usize, value: u16) {
        self.write(offset, 2, Width::Word, value.into());
    }

    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, 4, Width::Long) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, 4, Width::Long, value.into());
    }

    fn read64(&self, offset: usize) -> u64 {
        self.read(offset, 8, Width::Quad)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write(offset, 8, Width::Quad, value);
    }
}

impl fmt::Debug for QtestMmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QtestMmio({:#x} bytes at {:#x})", self.len, self.base)
    }
}
