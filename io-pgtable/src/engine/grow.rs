//! A top that grows.

use alloc::boxed::Box;
use core::fmt;

use platform::sync::Mutex;
use platform::sync::atomic::Ordering;
use platform::{DmaAddr, FrameRequest, MapError};

use super::PageTable;
use crate::format::Format;
use crate::table::{IoPageTable, Root};

/// Tells the owner of a table that its top is another one (Linux: `pt_iommu_driver_ops.change_top`). When this returns every
/// unit that uses the table walks from the new top, or from the old one but without remembering it: whatever is mapped from now
/// on may be below the new top alone. The old top is the first table below the new one, and stays.
#[doc(alias = "change_top")]
pub type ChangeTop = Box<dyn Fn(Root) + Send + Sync>;

/// What a table needs to grow.
pub(super) struct Growth {
    change_top: ChangeTop,
    /// One at a time.
    turn: Mutex<()>,
}

impl Growth {
    pub(super) fn new(change_top: ChangeTop) -> Self {
        Self { change_top, turn: Mutex::new(()) }
    }
}

impl fmt::Debug for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Growth")
    }
}

impl<F: Format> PageTable<F> {
    /// Puts tops on the top until it reaches an address and has pages of a level.
    #[cold]
    #[inline(never)]
    pub(super) fn grow(&self, iova: DmaAddr, last: u64, level: u32) -> Result<Root, MapError> {
        let out_of_range = MapError::OutOfRange(iova);
        let growth = self.growth.as_ref().ok_or(out_of_range)?;
        if last > super::low_bits(self.input_bits(F::MAX_LEVEL)) || level > F::MAX_LEVEL {
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
            (growth.change_top)(new);
            self.pages.fetch_add(1, Ordering::Relaxed);
            // Release: who sees the new top sees what is in it.
            self.root.store(super::root_word(new), Ordering::Release);
        }
    }
}
