//! Memory that the unit reads and writes: device tables, rings, completion words.

use alloc::sync::Arc;

use platform::frames::{FRAME_SIZE, WORDS_PER_FRAME};
use platform::sync::atomic::AtomicU64;
use platform::sync::pair;
use platform::{FrameRequest, OutOfFrames, PhysAddr, Platform, Window};

/// A run of frames whose size is a power of two.
///
/// Dropping it leaks the frames: only who knows that the unit does not reach them any more may free them.
#[derive(Debug)]
pub(crate) struct Region {
    platform: Arc<dyn Platform>,
    /// The platform's, kept here because asking for it is a dynamic call.
    window: Window,
    base: PhysAddr,
    size: u64,
}

impl Region {
    /// The highest address that a base register or a table entry can express.
    const LIMIT: PhysAddr = PhysAddr::new((1 << 52) - 1);

    /// Bytes in the smallest region: a frame's words, which are few in a model.
    const SMALLEST: u64 = 8 * WORDS_PER_FRAME as u64;

    /// Zeroed memory of `size` bytes at least.
    pub(crate) fn new(platform: &Arc<dyn Platform>, size: u64) -> Result<Self, OutOfFrames> {
        let size = size.max(Self::SMALLEST).next_power_of_two();
        let request = FrameRequest { size: size as usize, align: FRAME_SIZE, limit: Self::LIMIT };
        let base = platform.alloc(request)?;
        Ok(Self { platform: platform.clone(), window: platform.window(), base, size })
    }

    /// Where the unit finds it.
    #[inline]
    pub(crate) fn base(&self) -> PhysAddr {
        self.base
    }

    /// Bytes in it.
    #[inline]
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The word at byte `offset`, taken modulo the size and rounded down to a word.
    #[inline]
    pub(crate) fn word(&self, offset: u64) -> &AtomicU64 {
        let at = self.base.wrapping_add(offset & (self.size - 1) & !7);
        // SAFETY: the offset lies within the region, which stays allocated as long as `self` (only `free` gives it back, and
        // takes `self`); the driver and the unit access it by words alone.
        unsafe { self.window.word(at) }
    }

    /// Stores two words at byte `offset`, taken modulo the size and rounded down to 16 bytes, so that whoever reads 16 bytes sees
    /// both or none. Only where [`pair::is_available`] says so.
    pub(crate) fn store_pair(&self, offset: u64, value: [u64; 2]) {
        let at = offset & !15;
        let first: *const AtomicU64 = self.word(at);
        // SAFETY: the region is a multiple of 16 bytes, so both words are in it and follow each other; see `word`.
        let pair = unsafe { &*first.cast::<[AtomicU64; 2]>() };
        let _stored = pair::store(pair, value);
        debug_assert!(_stored, "frames are aligned");
    }

    /// Gives the frames back.
    ///
    /// # Safety
    /// The unit does not reach them any more.
    pub(crate) unsafe fn free(self) {
        // SAFETY: they came from one `alloc` of this size; the caller promises that nobody uses them.
        unsafe { self.platform.free(self.base, self.size as usize) };
    }
}
