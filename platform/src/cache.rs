//! Cache maintenance, for machines whose devices do not snoop the CPU's caches.

/// Makes memory agree with the CPU's caches around a device's access (Linux: `arch_sync_dma_for_device` and its
/// neighbours). The defaults do nothing, which is right on every machine whose devices snoop.
pub trait CacheMaintenance: Send + Sync {
    /// Writes dirty lines of `len` bytes at `at` back, so that a device reads what the CPU wrote.
    fn clean(&self, at: *const u8, len: usize) {
        let _ = (at, len);
    }

    /// Drops the lines of `len` bytes at `at`, so that the CPU reads what a device wrote. Lines that the range shares
    /// with other data are written back first.
    fn invalidate(&self, at: *const u8, len: usize) {
        let _ = (at, len);
    }
}
