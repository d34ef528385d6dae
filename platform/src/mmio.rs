//! Device registers.

/// A region of device registers, little-endian as the CPU sees it.
///
/// Offsets are in bytes from the region's start. An access that is not aligned to its width or leaves the region reads
/// all ones and writes nothing, as on a bus where nobody answers. A write is a release: what the CPU stored before is
/// visible to the device when the write arrives.
///
/// # Safety
/// Safe types rely on the region staying where it is: an implementation keeps the mapping alive as long as it lives,
/// and an access touches nothing but the device's registers.
pub unsafe trait Mmio: Send + Sync + core::fmt::Debug {
    /// The region's length in bytes.
    fn len(&self) -> usize;

    /// Whether the region has no registers at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads 8 bits. A region without registers of this width, which is the default, answers as nobody does.
    fn read8(&self, offset: usize) -> u8 {
        let _ = offset;
        u8::MAX
    }

    /// Writes 8 bits. A region without registers of this width, which is the default, drops them.
    fn write8(&self, offset: usize, value: u8) {
        let _ = (offset, value);
    }

    /// Reads 16 bits; as [`Mmio::read8`] by default.
    fn read16(&self, offset: usize) -> u16 {
        let _ = offset;
        u16::MAX
    }

    /// Writes 16 bits; as [`Mmio::write8`] by default.
    fn write16(&self, offset: usize, value: u16) {
        let _ = (offset, value);
    }

    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;

    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);

    /// Reads 64 bits.
    fn read64(&self, offset: usize) -> u64;

    /// Writes 64 bits.
    fn write64(&self, offset: usize, value: u64);
}
