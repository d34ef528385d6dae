//! A gate before a device's operations.

use core::fmt;
use core::ptr::NonNull;

use platform::{DmaAddr, PhysAddr};

use crate::forward::forward_members;
use crate::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, PageMemory, Quarantined, SgEntry,
};

/// Ops that ask `gate` before they hand out anything. What was handed out is synced and given back whatever it says.
pub struct Gated<O, G> {
    ops: O,
    gate: G,
}

impl<O: DmaMapOps, G: Fn() -> Result<(), DmaError> + Send + Sync> Gated<O, G> {
    /// Puts a gate before `ops`.
    pub const fn new(ops: O, gate: G) -> Self {
        Self { ops, gate }
    }
}

impl<O: fmt::Debug, G> fmt::Debug for Gated<O, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated").field("ops", &self.ops).finish_non_exhaustive()
    }
}

// SAFETY: what the inner ops hand out, or nothing.
unsafe impl<O: DmaMapOps, G: Fn() -> Result<(), DmaError> + Send + Sync> DmaMapOps for Gated<O, G> {
    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        (self.gate)()?;
        self.ops.alloc(dev, size, attrs)
    }

    unsafe fn map_phys(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        (self.gate)()?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.map_phys(dev, phys, len, dir, attrs) }
    }

    unsafe fn map_foreign(
        &self,
        dev: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        (self.gate)()?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.map_foreign(dev, cpu, len, dir, attrs) }
    }

    unsafe fn map_sg(
        &self,
        dev: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        (self.gate)()?;
        // SAFETY: the caller's promise, handed on.
        unsafe { self.ops.map_sg(dev, list, dir, attrs) }
    }

    fn alloc_pages(
        &self,
        dev: &DeviceParms,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        (self.gate)()?;
        self.ops.alloc_pages(dev, size, dir, attrs)
    }

    // No `iova_ops`: a range is mapped part by part, each through the gate.
    forward_members!(self => self.ops;
        free, free_pages, unmap_phys, unmap_sg, sync_for_cpu, sync_for_device, sync_sg_for_cpu, sync_sg_for_device,
        dma_supported, required_mask, max_mapping_size, opt_mapping_size, merge_boundary
    );
}
