//! A device as its driver's DMA sees it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use platform::{DmaAddr, Extent, PhysAddr, Platform, Window, trace};

use crate::{
    Attrs, BusRanges, Checked, CoherentMemory, DeviceFault, DeviceParms, Direction, DmaDebug, DmaError,
    DmaMapOps, FaultQueue, PageMemory, Quarantined, SgEntry,
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
    bus: (BusRanges, u64),
    faults: Option<Arc<FaultQueue>>,
}

impl DeviceBuilder {
    /// A coherent, trusted device called `name` in messages (a PCI address, mostly).
    pub fn new(name: impl Into<Box<str>>) -> Self {
        let bus = (BusRanges::identity(), u64::MAX);
        Self { name: name.into(), coherent: true, untrusted: false, bus, faults: None }
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

    /// Behind a bus that shows memory in `ranges` when no IOMMU translates, and lets only addresses up to `limit` through,
    /// whatever the device's masks (Linux: `dev->dma_range_map`, `dev->bus_dma_limit`).
    #[must_use]
    pub fn behind_bus(mut self, ranges: BusRanges, limit: u64) -> Self {
        self.bus = (ranges, limit);
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
        let (ranges, limit) = self.bus;
        Device {
            name: self.name,
            parms: DeviceParms::new(self.coherent, self.untrusted).behind_bus(ranges, limit),
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

    /// The same device, with a decorator around its operations. Nothing may be mapped yet.
    ///
    /// # Errors
    /// What `decorate` says; the device has then been given back.
    pub fn decorated<E>(
        self,
        decorate: impl FnOnce(Arc<dyn DmaMapOps>) -> Result<Arc<dyn DmaMapOps>, E>,
    ) -> Result<Self, E> {
        let ops = decorate(self.ops)?;
        Ok(Self { ops, ..self })
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

    /// The smallest mask that reaches all that a map may lead to (Linux: `dma_get_required_mask`): a device that can do more
    /// may still use short descriptors.
    #[doc(alias = "dma_get_required_mask")]
    pub fn required_mask(&self) -> u64 {
        self.ops.required_mask(&self.parms)
    }

    /// Whether the device's mask, or its bus, reaches less than that, so that buffers may be bounced or refused (Linux:
    /// `dma_addressing_limited`).
    #[doc(alias = "dma_addressing_limited")]
    pub fn addressing_limited(&self) -> bool {
        self.parms.streaming_limit() < self.required_mask()
    }

    /// The mask of the granule in which neighbours of a scatter list can be joined; 0 when they cannot (Linux:
    /// `dma_get_merge_boundary`).
    #[doc(alias = "dma_get_merge_boundary")]
    pub fn merge_boundary(&self) -> u64 {
        self.ops.merge_boundary()
    }

    /// Whether syncs do anything for this device (Linux: `dma_dev_need_sync`).
    #[doc(alias = "dma_need_sync")]
    #[inline]
    pub fn need_sync(&self) -> bool {
        self.parms.needs_sync()
    }

    /// # Errors
    /// [`DmaError::NotCoherent`] when caches would have to be maintained for a mapping that must be coherent.
    #[inline]
    pub(crate) fn check_coherent(&self, attrs: Attrs) -> Result<(), DmaError> {
        let refused = attrs.contains(Attrs::REQUIRE_COHERENT) && !self.parms.is_coherent();
        if refused { Err(DmaError::NotCoherent) } else { Ok(()) }
    }

    fn check_mask(&self, mask: u64) -> Result<(), DmaError> {
        let all_ones = mask != 0 && mask & mask.wrapping_add(1) == 0;
        if all_ones && self.ops.dma_supported(&self.parms, mask) {
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
        self.check_coherent(attrs)?;
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

    /// Maps `len` bytes of physical memory (Linux: `dma_map_phys`).
    ///
    /// # Errors
    /// As [`Device::map_single`].
    ///
    /// # Safety
    /// As [`DmaMapOps::map_phys`].
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
        self.check_coherent(attrs)?;
        // SAFETY: the caller's promise.
        unsafe { self.ops.map_phys(&self.parms, phys, len, dir, attrs) }
    }

    /// Maps a part of a page, `offset` bytes into it (Linux: `dma_map_page`).
    ///
    /// # Errors
    /// As [`Device::map_phys`].
    ///
    /// # Safety
    /// As [`Device::map_phys`].
    #[doc(alias = "dma_map_page")]
    #[track_caller]
    pub unsafe fn map_page(
        &self,
        page: PhysAddr,
        offset: usize,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        let phys = page.checked_add(offset as u64).ok_or(DmaError::InvalidLength(len))?;
        // SAFETY: the caller's promise.
        unsafe { self.map_phys(phys, len, dir, attrs) }
    }

    /// Maps registers or memory of another device (Linux: `dma_map_resource`): [`Device::map_phys`] with [`Attrs::MMIO`],
    /// and unmapped with it.
    ///
    /// # Errors
    /// As [`Device::map_phys`].
    ///
    /// # Safety
    /// As [`Device::map_phys`]; what the device does to the other one is the caller's to answer for.
    #[doc(alias = "dma_map_resource")]
    #[track_caller]
    pub unsafe fn map_resource(
        &self,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        // SAFETY: the caller's promise.
        unsafe { self.map_phys(phys, len, dir, attrs | Attrs::MMIO) }
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
        self.check_coherent(attrs)?;
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

    /// Hands a part of a mapping to the CPU (Linux: `dma_sync_single_for_cpu`, `dma_sync_single_range_for_cpu`).
    ///
    /// # Safety
    /// The range lies in one live mapping of this device, made with `dir`.
    #[doc(alias = "dma_sync_single_for_cpu")]
    #[doc(alias = "dma_sync_single_range_for_cpu")]
    pub unsafe fn sync_single_for_cpu(&self, address: DmaAddr, len: usize, dir: Direction) {
        if self.need_sync() {
            // SAFETY: the caller's promise.
            unsafe { self.ops.sync_for_cpu(&self.parms, address, len, dir) };
        }
    }

    /// Hands a part of a mapping to the device (Linux: `dma_sync_single_for_device`, `dma_sync_single_range_for_device`).
    ///
    /// # Safety
    /// The range lies in one live mapping of this device, made with `dir`.
    #[doc(alias = "dma_sync_single_for_device")]
    #[doc(alias = "dma_sync_single_range_for_device")]
    pub unsafe fn sync_single_for_device(&self, address: DmaAddr, len: usize, dir: Direction) {
        if self.need_sync() {
            // SAFETY: the caller's promise.
            unsafe { self.ops.sync_for_device(&self.parms, address, len, dir) };
        }
    }

    /// Hands a mapped list to the CPU (Linux: `dma_sync_sg_for_cpu`).
    ///
    /// # Safety
    /// The list is as [`Device::map_sg`] left it, still mapped, with the same direction.
    #[doc(alias = "dma_sync_sg_for_cpu")]
    #[doc(alias = "dma_sync_sgtable_for_cpu")]
    pub unsafe fn sync_sg_for_cpu(&self, list: &[SgEntry], dir: Direction) {
        if self.need_sync() {
            // SAFETY: the caller's promise.
            unsafe { self.ops.sync_sg_for_cpu(&self.parms, list, dir) };
        }
    }

    /// Hands a mapped list to the device (Linux: `dma_sync_sg_for_device`).
    ///
    /// # Safety
    /// As [`Device::sync_sg_for_cpu`].
    #[doc(alias = "dma_sync_sg_for_device")]
    #[doc(alias = "dma_sync_sgtable_for_device")]
    pub unsafe fn sync_sg_for_device(&self, list: &[SgEntry], dir: Direction) {
        if self.need_sync() {
            // SAFETY: the caller's promise.
            unsafe { self.ops.sync_sg_for_device(&self.parms, list, dir) };
        }
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

    /// Allocates zeroed pages that CPU and device use in turns, in one piece for the device and, with
    /// [`Attrs::FORCE_CONTIGUOUS`], in memory too (Linux: `dma_alloc_noncontiguous`, `dma_alloc_pages`). Before the device's
    /// first turn they are synced. [`crate::DmaPages`] is the safe way.
    ///
    /// # Errors
    /// [`DmaError`] with the reason.
    #[doc(alias = "dma_alloc_pages")]
    #[doc(alias = "dma_alloc_noncoherent")]
    #[doc(alias = "dma_alloc_noncontiguous")]
    #[track_caller]
    pub fn alloc_pages(&self, size: usize, dir: Direction, attrs: Attrs) -> Result<PageMemory, DmaError> {
        trace::event("dma_alloc_pages", 0, size as u64);
        if size == 0 {
            return Err(DmaError::InvalidLength(size));
        }
        self.check_coherent(attrs)?;
        self.ops.alloc_pages(&self.parms, size, dir, attrs)
    }

    /// Frees them (Linux: `dma_free_noncontiguous`, `dma_free_pages`).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory: it is kept and never reused.
    ///
    /// # Safety
    /// The arguments are those of one [`Device::alloc_pages`] of this device, freed once.
    #[doc(alias = "dma_free_pages")]
    #[doc(alias = "dma_free_noncontiguous")]
    pub unsafe fn free_pages(
        &self,
        memory: PageMemory,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_free_pages", memory.dma.get(), memory.size as u64);
        // SAFETY: the caller's promise.
        unsafe { self.ops.free_pages(&self.parms, memory, dir, attrs) }
    }

    /// Coherent memory as a scatter list, for another device to map (Linux: `dma_get_sgtable`): where it is in RAM, and where
    /// this device finds it.
    ///
    /// # Errors
    /// [`DmaError::NotRam`] when the platform cannot tell where it is.
    #[doc(alias = "dma_get_sgtable")]
    pub fn sg_table(&self, memory: CoherentMemory) -> Result<Vec<SgEntry>, DmaError> {
        let mut list = Vec::new();
        let mut done = 0;
        while done < memory.size {
            let at = memory.cpu.as_ptr().wrapping_add(done);
            let extent = self.platform.translate(at, memory.size - done).filter(|extent| extent.len != 0);
            let Extent { phys, len } = extent.ok_or(DmaError::NotRam)?;
            let dma_address = memory.dma.wrapping_add(done as u64);
            list.push(SgEntry { phys, len, dma_address, dma_len: len });
            done += len;
        }
        Ok(list)
    }
}
