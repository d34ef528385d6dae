//! The GCR3 table: which guest page table requests with a PASID use (specification, "Guest CR3 table").

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use platform::sync::atomic::{AtomicU64, Ordering};
use platform::{OutOfFrames, PhysAddr, Platform};

use crate::memory::Region;

const VALID: u64 = 1;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// PASID bits that a level looks up.
const INDEX_BITS: u32 = 9;
const TABLE_SIZE: u64 = 4096;

/// A device's GCR3 table, of one to three levels (Linux: `struct gcr3_tbl_info`). Lower tables are made when they are needed.
///
/// Dropping it leaks its memory: only who knows that no unit reads it any more may free it.
#[derive(Debug)]
pub(crate) struct Gcr3Table {
    top: Node,
    levels: u8,
    /// The tag of what units cache of all tables in it.
    tag: u16,
}

#[derive(Debug)]
struct Node {
    entries: Region,
    below: BTreeMap<u64, Node>,
}

impl Node {
    fn new(platform: &Arc<dyn Platform>) -> Result<Self, OutOfFrames> {
        Ok(Self { entries: Region::new(platform, TABLE_SIZE)?, below: BTreeMap::new() })
    }

    fn entry(&self, index: u64) -> &AtomicU64 {
        self.entries.word(8 * index)
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No unit reads it any more.
    unsafe fn free(self) {
        // SAFETY: the caller's promise, for all of it.
        unsafe {
            self.entries.free();
            self.below.into_values().for_each(|node| node.free());
        }
    }
}

impl Gcr3Table {
    /// The most levels that there are.
    pub(crate) const MOST_LEVELS: u8 = 3;

    /// A table without any PASID, for PASIDs below `pasids`.
    ///
    /// # Errors
    /// [`OutOfFrames`].
    pub(crate) fn new(platform: &Arc<dyn Platform>, pasids: u32, tag: u16) -> Result<Self, OutOfFrames> {
        let bits = u32::BITS - pasids.saturating_sub(1).leading_zeros();
        let levels = bits.div_ceil(INDEX_BITS).clamp(1, u32::from(Self::MOST_LEVELS)) as u8;
        let mut table = Self { top: Node::new(platform)?, levels, tag };
        // The way to PASID 0 is there from the start: requests without a PASID may use it.
        match table.set(platform, 0, Some(PhysAddr::new(0))).and_then(|()| table.set(platform, 0, None)) {
            Ok(()) => Ok(table),
            Err(error) => {
                // SAFETY: no unit has been told of it.
                unsafe { table.free() };
                Err(error)
            }
        }
    }

    /// Where it is.
    pub(crate) fn root(&self) -> PhysAddr {
        self.top.entries.base()
    }

    /// GLX of the device table entry: its levels less one.
    pub(crate) fn glx(&self) -> u8 {
        self.levels - 1
    }

    /// The tag of what units cache of all tables in it.
    pub(crate) fn tag(&self) -> u16 {
        self.tag
    }

    /// Gives a PASID the table at `root`, or none, in one step (Linux: `update_gcr3`). Units may remember the old one.
    ///
    /// # Errors
    /// [`OutOfFrames`]; nothing is changed then.
    #[doc(alias = "update_gcr3")]
    pub(crate) fn set(
        &mut self,
        platform: &Arc<dyn Platform>,
        pasid: u32,
        root: Option<PhysAddr>,
    ) -> Result<(), OutOfFrames> {
        let mut node = &mut self.top;
        for level in (1..u32::from(self.levels)).rev() {
            let index = u64::from(pasid) >> (INDEX_BITS * level) & 0x1ff;
            if !node.below.contains_key(&index) {
                let Some(_) = root else { return Ok(()) };
                let below = Node::new(platform)?;
                let entry = below.entries.base().get() & ADDRESS | VALID;
                // Release: whoever finds the table finds it empty.
                node.entry(index).store(entry, Ordering::Release);
                node.below.insert(index, below);
            }
            let Some(below) = node.below.get_mut(&index) else { return Ok(()) };
            node = below;
        }
        let entry = root.map_or(0, |root| root.get() & ADDRESS | VALID);
        node.entry(u64::from(pasid) & 0x1ff).store(entry, Ordering::Release);
        Ok(())
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No unit reads it any more.
    pub(crate) unsafe fn free(self) {
        // SAFETY: handed on.
        unsafe { self.top.free() };
    }
}
