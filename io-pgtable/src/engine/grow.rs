//! A top that grows.

use alloc::boxed::Box;
use core::fmt;

use platform::sync::Mutex;
use platform::sync::atomic::Ordering;
use platform::{DmaAddr, FrameRequest, MapError};

use super::PageTable;
use crate::format::Format;
use crate::table::{IoPageTable, Root};

/// The owner's answer to a new top (Linux: `pt_iommu_driver_ops.change_top`), and how far the table may grow.
///
/// When the answer is `Ok` every unit that uses the table walks from the new top, or from the old one but without remembering it:
/// whatever is mapped from now on may be below the new top alone. The old top is the first table below the new one, and stays.
/// When it is an error, what was to be mapped is not; the table has the new top all the same, since some units may know it, and
/// the owner answers for those that do not.
#[doc(alias = "change_top")]
pub struct ChangeTop {
    most_levels: u32,
    tell: Box<dyn Fn(Root) -> Result<(), MapError> + Send + Sync>,
}

impl ChangeTop {
    /// Lets a table grow to `most_levels`, or to what its format has if that is less; each new top is told to `tell`.
    pub fn new(
        most_levels: u32,
        tell: impl Fn(Root) -> Result<(), MapError> + Send + Sync + 'static,
    ) -> Self {
        Self { most_levels, tell: Box::new(tell) }
    }
}

impl fmt::Debug for ChangeTop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeTop").field("most_levels", &self.most_levels).finish_non_exhaustive()
    }
}

/// What a table needs to grow.
#[derive(Debug)]
pub(super) struct Growth {
    change_top: ChangeTop,
    /// One at a time.
    turn: Mutex<()>,
}

impl Growth {
    pub(super) fn new(change_top: ChangeTop) -> Self {
        Self { change_top, turn: Mutex::new(()) }
    }

    /// The highest level that a top of a format with so many levels may come to.
    pub(super) fn highest(&self, format_levels: u32) -> u32 {
        self.change_top.most_levels.min(format_levels)
    }
}

impl<F: Format> PageTable<F> {
    /// Puts tops on the top until it reaches an address and has pages of a level.
    #[cold]
    #[inline(never)]
    pub(super) fn grow(&self, iova: DmaAddr, last: u64, level: u32) -> Result<Root, MapError> {
        let out_of_range = MapError::OutOfRange(iova);
        let growth = self.growth.as_ref().ok_or(out_of_range)?;
        let highest = growth.highest(F::MAX_LEVEL);
        if last > super::low_bits(self.input_bits(highest)) || level > highest {
            return Err(out_of_range);
        }
        let _turn = growth.turn.lock();
        loop {
            let root = self.root();
            if last <= super::low_bits(self.input_bits(root.level)) && level <= root.level {
                return Ok(root);
            }
            let size = Self::top_bytes(self.shape.top_bits);
            let request = FrameRequest { size, align: size, ..self.table_request };
            let phys = self.frames.alloc(request).map_err(|_| MapError::OutOfMemory)?;
            let new = Root { phys, level: root.level + 1 };
            self.entries.store(phys, 0, self.format.pointer(root.phys, new.level), Ordering::Relaxed);
            self.wrote(phys, 0, size / F::ENTRY_BYTES);
            self.wrote_pointer(phys, 0);
            // Before anybody maps below the new top, every unit has to know it.
            let told = (growth.change_top.tell)(new);
            self.pages.fetch_add(1, Ordering::Relaxed);
            // Release: who sees the new top sees what is in it.
            self.root.store(super::root_word(new), Ordering::Release);
            told?;
        }
    }
}
