//! A device as its driver's DMA sees it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::NonNull;

use platform::{DmaAddr, PhysAddr, Platform, Window, trace};

use crate::{
    Attrs, Checked, CoherentMemory, DeviceFault, DeviceParms, Direction, DmaDebug, DmaError, DmaMapOps,
    FaultQueue, Quarantined, SgEntry,
};

/// A device that can do DMA. It is made when a driver is bound (by whoever hands out devices) and
/// dropping it gives the device back; whoever made the ops decides what that means.
#[derive(Debug)]
pub struct Device {
    name: Box<str>,
    parms: DeviceParms,
    ops: Arc<dyn DmaMapOps>,
    platform: Arc<dyn Platform>,
    window: Window,
    faults: Arc<FaultQueue>,
    debug: Option<Arc<DmaDebug>>,
}

/// Makes a [`Device`].
#[derive(Debug)]
pub struct DeviceBuilder {
    name: Box<str>,
    coherent: bool,
    untrusted: bool,
    faults: Option<Arc<FaultQueue>>,
}

impl DeviceBuilder {
    /// A coherent, trusted device called `name` in messages (a PCI address, mostly).
    pub fn new(name: impl Into<Box<str>>) -> Self {
        Self { name: name.into(), coherent: true, untrusted: false, faults: None }
    }

    /// Whether the device's accesses agree with the CPU's caches.
    #[must_use]
    pub fn coherent(mut self, coherent: bool) -> Self {
        self.coherent = coherent;
        self
    }

    /// Whether the device may be hostile.
    #[must_use]
    pub fn untrusted(mut self, untrusted: bool) -> Self {
        self.untrusted = untrusted;
        self
    }

    /// Where the device's faults arrive.
    #[must_use]
    pub fn faults(mut self, faults: Arc<FaultQueue>) -> Self {
        self.faults = Some(faults);
        self
    }

    /// The device over `ops`, on `platform`.
    pub fn build(self, ops: Arc<dyn DmaMapOps>, platform: Arc<dyn Platform>) -> Device {
        Device {
            name: self.name,
            parms: DeviceParms::new(self.coherent, self.untrusted),
            window: platform.window(),
            ops,
            platform,
            faults: self.faults.unwrap_or_default(),
            debug: None,
        }
    }
}

impl Device {
    /// The same device, whose driver is [checked](crate::Checked) from now on, and so are its [pools](crate::DmaPool): reports
    /// go to `debug`.
    #[must_use]
    pub fn checked(self, debug: &Arc<DmaDebug>) -> Self {
        let ops = Arc::new(Checked::new(self.ops, self.name.clone(), debug));
        Self { ops, debug: Some(Arc::clone(debug)), ..self }
    }

    /// Who hears of the driver's mistakes, if it is checked.
    pub(crate) fn debug(&self) -> Option<&Arc<DmaDebug>> {
        self.debug.as_ref()
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its masks and limits.
    pub fn parms(&self) -> &DeviceParms {
        &self.parms
    }

    /// The operations behind it.
    pub fn ops(&self) -> &dyn DmaMapOps {
        &*self.ops
    }

    /// The machine it is in.
    pub fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    /// Where the CPU sees physical memory.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Takes the oldest fault of this device that the IOMMU has reported, if any.
    pub fn take_fault(&self) -> Option<DeviceFault> {
        self.faults.pop()
    }

    /// Says which addresses the device can put on the bus, for streaming and coherent memory (Linux:
    /// `dma_set_mask_and_coherent`). `mask` is all ones up to the highest bit.
    ///
    /// # Errors
    /// [`DmaError::MaskNotSupported`] when the backend cannot serve so narrow a device; the masks stay as they were.
    #[doc(alias = "dma_set_mask_and_coherent")]
    pub fn set_mask(&self, mask: u64) -> Result<(), DmaError> {
        self.set_streaming_mask(mask)?;
        self.parms.set_coherent_mask(mask);
        Ok(())
    }

    /// The same for streaming maps alone (Linux: `dma_set_mask`).
    ///
    /// # Errors
    /// As [`Device::set_mask`].
    #[doc(alias = "dma_set_mask")]
    pub fn set_streaming_mask(&self, mask: u64) -> Result<(), DmaError> {
        self.check_mask(mask)?;
        self.parms.set_streaming_mask(mask);
        Ok(())
    }

    /// The same for coherent memory alone (Linux: `dma_set_coherent_mask`).
    ///
    /// # Errors
    /// As [`Device::set_mask`].
    #[doc(alias = "dma_set_coherent_mask")]
    pub fn set_coherent_mask(&self, mask: u64) -> Result<(), DmaError> {
        self.check_mask(mask)?;
        self.parms.set_coherent_mask(mask);
        Ok(())
    }

    /// The longest buffer that can be mapped at once, in bytes (Linux: `dma_max_mapping_size`).
    #[doc(alias = "dma_max_mapping_size")]
    pub fn max_mapping_size(&self) -> usize {
        self.ops.max_mapping_size(&self.parms)
    }

    /// The longest buffer that is still mapped fast, in bytes (Linux: `dma_opt_mapping_size`).
    #[doc(alias = "dma_opt_mapping_size")]
    pub fn opt_mapping_size(&self) -> usize {
        self.ops.opt_mapping_size().min(self.max_mapping_size())
    }

    fn check_mask(&self, mask: u64) -> Result<(), DmaError> {
        let all_ones = mask != 0 && mask & mask.wrapping_add(1) == 0;
        if all_ones && self.ops.dma_supported(mask) {
            Ok(())
        } else {
            Err(DmaError::MaskNotSupported { mask })
        }
    }

    /// Maps `len` bytes at `cpu` (Linux: `dma_map_single`): RAM where it is, anything else through a bounce pool.
    ///
    /// # Errors
    /// [`DmaError`] with the reason; nothing stays mapped.
    ///
    /// # Safety
    /// As [`DmaMapOps::map_phys`], and the memory is initialised.
    #[doc(alias = "dma_map_single")]
    #[inline]
    #[track_caller]
    pub unsafe fn map_single(
        &self,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("dma_map_single", cpu.as_ptr().addr() as u64, len as u64);
        if len == 0 {
            return Err(DmaError::InvalidLength(len));
        }
        match self.window.translate(cpu.as_ptr(), len).or_else(|| self.translate(cpu, len)) {
            // SAFETY: the caller's promise; all of the memory is there.
            Some(phys) => unsafe { self.ops.map_phys(&self.parms, phys, len, dir, attrs) },
            // SAFETY: the caller's promise.
            None => unsafe { self.ops.map_foreign(&self.parms, cpu, len, dir, attrs) },
        }
    }

    /// Where memory is that is not in the window's RAM, if it is RAM in one piece.
    #[cold]
    fn translate(&self, cpu: NonNull<u8>, len: usize) -> Option<PhysAddr> {
        let extent = self.platform.translate(cpu.as_ptr(), len)?;
        (extent.len >= len).then_some(extent.phys)
    }

    /// Maps `len` bytes of physical memory (Linux: `dma_map_phys`; before 6.18 `dma_map_page`).
    ///
    /// # Errors
    /// As [`Device::map_single`].
    ///
    /// # Safety
    /// As [`DmaMapOps::map_phys`].
    #[doc(alias = "dma_map_page")]
    #[doc(alias = "dma_map_phys")]
    #[inline]
    #[track_caller]
    pub unsafe fn map_phys(
        &self,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("dma_map_phys", phys.get(), len as u64);
        if len == 0 {
            return Err(DmaError::InvalidLength(len));
        }
        // SAFETY: the caller's promise.
        unsafe { self.ops.map_phys(&self.parms, phys, len, dir, attrs) }
    }

    /// Ends a mapping of [`Device::map_single`] or [`Device::map_phys`] (Linux: `dma_unmap_single`, `dma_unmap_phys`).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory, which must then never be used again.
    ///
    /// # Safety
    /// The arguments are those of one map of this device, unmapped once.
    #[doc(alias = "dma_unmap_single")]
    #[doc(alias = "dma_unmap_page")]
    #[inline]
    pub unsafe fn unmap_single(
        &self,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_unmap_single", address.get(), len as u64);
        // SAFETY: the caller's promise.
        unsafe { self.ops.unmap_phys(&self.parms, address, len, dir, attrs) }
    }

    /// Maps a scatter list of RAM (Linux: `dma_map_sg`). [`crate::ScatterList`] is the safe way.
    ///
    /// # Errors
    /// As [`DmaMapOps::map_sg`].
    ///
    /// # Safety
    /// As [`DmaMapOps::map_sg`].
    #[doc(alias = "dma_map_sg")]
    #[track_caller]
    pub unsafe fn map_sg(
        &self,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        trace::event("dma_map_sg", 0, list.len() as u64);
        if list.iter().any(|entry| entry.len == 0) || list.is_empty() {
            return Err(DmaError::InvalidLength(0));
        }
        // SAFETY: the caller's promise.
        unsafe { self.ops.map_sg(&self.parms, list, dir, attrs) }
    }

    /// Ends a mapping of [`Device::map_sg`] (Linux: `dma_unmap_sg`).
    ///
    /// # Errors
    /// As [`DmaMapOps::unmap_sg`].
    ///
    /// # Safety
    /// As [`DmaMapOps::unmap_sg`].
    #[doc(alias = "dma_unmap_sg")]
    pub unsafe fn unmap_sg(&self, list: &[SgEntry], dir: Direction, attrs: Attrs) -> Result<(), Quarantined> {
        trace::event("dma_unmap_sg", 0, list.len() as u64);
        // SAFETY: the caller's promise.
        unsafe { self.ops.unmap_sg(&self.parms, list, dir, attrs) }
    }

    /// Allocates zeroed memory for CPU and device together (Linux: `dma_alloc_coherent`). [`crate::Coherent`] is the safe
    /// way.
    ///
    /// # Errors
    /// [`DmaError`] with the reason: [`DmaError::InvalidLength`] for none and for more than `isize::MAX` bytes, which no
    /// memory has.
    #[doc(alias = "dma_alloc_coherent")]
    #[track_caller]
    pub fn alloc_coherent(&self, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        trace::event("dma_alloc_coherent", 0, size as u64);
        if size == 0 || size > isize::MAX as usize {
            return Err(DmaError::InvalidLength(size));
        }
        self.ops.alloc(&self.parms, size, attrs)
    }

    /// Frees it (Linux: `dma_free_coherent`).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory: it is kept and never reused.
    ///
    /// # Safety
    /// `memory` and `attrs` are from one [`Device::alloc_coherent`] of this device, freed once.
    #[doc(alias = "dma_free_coherent")]
    pub unsafe fn free_coherent(&self, memory: CoherentMemory, attrs: Attrs) -> Result<(), Quarantined> {
        trace::event("dma_free_coherent", memory.dma.get(), memory.size as u64);
        // SAFETY: the caller's promise.
        unsafe { self.ops.free(&self.parms, memory, attrs) }
    }
}
