//! What a backend brings to be checked.

use alloc::sync::Arc;
use core::fmt;

use dma_api::Device;
use platform::DmaAddr;

/// The device was told that its request failed. What counts is memory; this is only for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device's request was refused")
    }
}

/// A rule that a backend does not keep, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waiver {
    /// The name of the check.
    pub check: &'static str,
    /// Why it does not hold here.
    pub reason: &'static str,
}

/// A device that does as it is told.
pub trait Bench {
    /// The device, bound.
    fn device(&self) -> &Arc<Device>;

    /// Makes the device write `data` to `address`. What is refused in part is refused.
    ///
    /// # Errors
    /// [`Refused`] when the device is told so. Some hardware never tells.
    fn device_write(&self, address: DmaAddr, data: &[u8]) -> Result<(), Refused>;

    /// Makes the device read `address` and says what it found.
    ///
    /// # Errors
    /// As [`Bench::device_write`].
    fn device_read(&self, address: DmaAddr, into: &mut [u8]) -> Result<(), Refused>;

    /// What this backend does not keep.
    fn waivers(&self) -> &[Waiver];
}
