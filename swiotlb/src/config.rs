//! What a pool is to be, and Linux's boot option for it.

use alloc::string::String;
use core::num::IntErrorKind;

use platform::PhysAddr;

use crate::{SEGMENT_SLOTS, SLOT_SIZE};

/// What a [`crate::Swiotlb`] is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Bytes of the default pool, rounded down to whole segments of each area.
    pub size: usize,
    /// Areas with a lock each: as many as CPUs, rounded up to a power of two, if there are that many segments.
    pub areas: usize,
    /// The highest physical address of the pools' memory. `PhysAddr::new(u64::MAX)` is Linux's `SWIOTLB_ANY`: for devices
    /// behind an IOMMU, or whose masks reach all memory.
    #[doc(alias = "SWIOTLB_ANY")]
    pub limit: PhysAddr,
    /// The most bytes of all pools together. With more than `size`, a pool that is full serves from transient pools and asks
    /// for further ones, see [`crate::Swiotlb::grow`] (Linux: `CONFIG_SWIOTLB_DYNAMIC`).
    #[doc(alias = "CONFIG_SWIOTLB_DYNAMIC")]
    pub max_size: usize,
    /// Whether [`crate::SwiotlbDma`] bounces everything, what the device reaches too: to test drivers and syncs. Behind an
    /// IOMMU it means nothing, as in Linux.
    pub force: bool,
}

impl Default for Config {
    /// Linux's 64 MiB below 4 GiB, in one area, that do not grow.
    fn default() -> Self {
        Self { size: 64 << 20, areas: 1, limit: PhysAddr::new(0xffff_ffff), max_size: 0, force: false }
    }
}

/// What is wrong with a `swiotlb=` option.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// This word is no number, or one word too many.
    #[error("swiotlb=slots[,areas][,force|noforce]: `{0}` is not expected there")]
    Unexpected(String),
    /// No pool has this many slots or areas.
    #[error("swiotlb=slots[,areas][,force|noforce]: {0} is out of range")]
    OutOfRange(String),
}

impl Config {
    /// This configuration with what Linux's boot option `swiotlb=slots[,areas][,force|noforce]` says; `None` for `noforce`:
    /// there is to be no pool, and what a device does not reach is refused. Slots are of 2 KiB and rounded up to a whole
    /// segment; numbers are decimal, hexadecimal after `0x`, or octal after `0`.
    ///
    /// # Errors
    /// [`OptionError`] with the word that is wrong.
    #[doc(alias = "setup_io_tlb_npages")]
    pub fn with_option(mut self, option: &str) -> Result<Option<Self>, OptionError> {
        let (numbers, mode) = match option.rsplit_once(',') {
            None if is_mode(option) => (None, Some(option)),
            Some((numbers, mode)) if is_mode(mode) => (Some(numbers), Some(mode)),
            _ => (Some(option), None),
        };
        let mut numbers = numbers.into_iter().flat_map(|numbers| numbers.split(','));
        if let Some(word) = numbers.next() {
            let slots = number(word)?.checked_next_multiple_of(SEGMENT_SLOTS);
            let size = slots.and_then(|slots| slots.checked_mul(SLOT_SIZE));
            self.size = size.ok_or_else(|| OptionError::OutOfRange(word.into()))?;
        }
        if let Some(word) = numbers.next() {
            self.areas = number(word)?;
        }
        if let Some(word) = numbers.next() {
            return Err(OptionError::Unexpected(word.into()));
        }
        self.force |= mode == Some("force");
        Ok((mode != Some("noforce")).then_some(self))
    }
}

fn is_mode(word: &str) -> bool {
    matches!(word, "force" | "noforce")
}

/// A number of something, as C writes it.
fn number(word: &str) -> Result<usize, OptionError> {
    let (digits, radix) = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if word.starts_with('0') => (word, 8),
        None => (word, 10),
    };
    if digits.starts_with('+') {
        return Err(OptionError::Unexpected(word.into()));
    }
    match usize::from_str_radix(digits, radix) {
        Ok(0) => Err(OptionError::OutOfRange(word.into())),
        Ok(number) => Ok(number),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => Err(OptionError::OutOfRange(word.into())),
        Err(_) => Err(OptionError::Unexpected(word.into())),
    }
}
