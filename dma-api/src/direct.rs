//! DMA without translation or copies: a device's address is the physical one, or lies at a constant distance from it.

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use platform::{DmaAddr, FrameRequest, PhysAddr, Platform, Window, trace};

use crate::{Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, Quarantined};

/// `DmaMapOps` that map memory where it is (Linux: dma-direct). What the device does not reach is refused; `swiotlb` has ops
/// that copy it instead.
///
/// Nothing confines the device: see [`DmaDirect::new`].
pub struct DmaDirect<G = ()> {
    platform: Arc<dyn Platform>,
    window: Window,
    // Whatever must live as long as these ops do.
    _guard: G,
}

impl<G: Send + Sync> DmaDirect<G> {
    /// Ops for devices that reach memory directly. `guard` is dropped with them.
    ///
    /// # Safety
    /// Every device that gets these ops is behind a bus with the [ranges](DeviceParms::bus_ranges) that its `DeviceParms`
    /// tell. The caller trusts it, and its driver, to touch only memory that they were given, and to stop before it is given
    /// back: no hardware enforces it.
    pub unsafe fn new(platform: Arc<dyn Platform>, guard: G) -> Self {
        let window = platform.window();
        Self { platform, window, _guard: guard }
    }

    /// Where a device finds `len` bytes of RAM, if that is at or below `limit`, which is that of its streaming maps or of its
    /// coherent memory (Linux: `phys_to_dma` and `dma_capable`).
    ///
    /// # Errors
    /// [`DmaError::NotOnBus`] when no range of the bus holds all of it, [`DmaError::MaskNotReachable`] when it is above the
    /// limit, [`DmaError::InvalidLength`].
    #[doc(alias = "dma_capable")]
    #[inline]
    pub fn phys_to_dma(
        &self,
        parms: &DeviceParms,
        limit: u64,
        phys: PhysAddr,
        len: usize,
    ) -> Result<DmaAddr, DmaError> {
        let last = phys.last_of(len as u64).ok_or(DmaError::InvalidLength(len))?;
        let address = parms.bus_ranges().to_dma(phys, last).ok_or(DmaError::NotOnBus { address: phys })?;
        check_limit(limit, phys, address, len)
    }

    /// Frames that a device reaches for coherent memory, and where it finds them.
    fn frames(&self, parms: &DeviceParms, size: usize) -> Result<(PhysAddr, DmaAddr), DmaError> {
        let reached = parms.coherent_limit();
        let mut error = DmaError::OutOfMemory;
        // A request has an upper limit only, so what comes may be in the gap below a range.
        for limit in parms.bus_ranges().limits(reached) {
            let request = FrameRequest { limit, ..FrameRequest::anywhere(size) };
            let Ok(phys) = self.platform.alloc(request) else { continue };
            match self.phys_to_dma(parms, reached, phys, size) {
                Ok(address) => return Ok((phys, address)),
                Err(why) => error = why,
            }
            // SAFETY: they were taken just now, and nobody has seen them.
            unsafe { self.platform.free(phys, size) };
        }
        Err(error)
    }

    /// Before the device's turn: what the CPU wrote reaches memory (Linux: `arch_sync_dma_for_device`).
    #[inline]
    fn clean(&self, parms: &DeviceParms, phys: PhysAddr, len: usize) {
        if !parms.is_coherent() {
            self.platform.clean(self.window.ptr(phys), len);
        }
    }

    /// After the device's turn: the CPU sees what the device wrote (Linux: `arch_sync_dma_for_cpu`). Where the device only
    /// reads the CPU's lines are right, and may be newer than memory.
    #[inline]
    fn invalidate(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        if !parms.is_coherent()
            && dir.device_writes()
            && let Some(phys) = parms.bus_ranges().to_phys(address)
        {
            self.platform.invalidate(self.window.ptr(phys), len);
        }
    }
}

// SAFETY: memory from `alloc` is the platform's, zeroed, until `free`; maps return the address at which the bus shows the
// memory; what an unmap promises rests on the trust that `new` asks for.
unsafe impl<G: Send + Sync> DmaMapOps for DmaDirect<G> {
    fn alloc(&self, parms: &DeviceParms, size: usize, _attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        trace::event("dma_direct_alloc", 0, size as u64);
        if size == 0 {
            return Err(DmaError::InvalidLength(size));
        }
        let (phys, dma) = self.frames(parms, size)?;
        match NonNull::new(self.window.ptr(phys)) {
            Some(cpu) => Ok(CoherentMemory { cpu, dma, size }),
            None => {
                // SAFETY: they were taken just now, and nobody has seen them.
                unsafe { self.platform.free(phys, size) };
                Err(DmaError::OutOfMemory)
            }
        }
    }

    unsafe fn free(
        &self,
        _parms: &DeviceParms,
        memory: CoherentMemory,
        _attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_direct_free", memory.dma.get(), memory.size as u64);
        // SAFETY: the caller's promise: memory of `alloc`, freed once.
        unsafe { self.platform.free(self.window.phys(memory.cpu.as_ptr()), memory.size) };
        Ok(())
    }

    unsafe fn map_phys(
        &self,
        parms: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        _dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        trace::event("dma_direct_map_phys", phys.get(), len as u64);
        if attrs.contains(Attrs::MMIO) {
            // The ranges are memory's; another device's registers are where they are.
            return check_limit(parms.streaming_limit(), phys, DmaAddr::new(phys.get()), len);
        }
        let address = self.phys_to_dma(parms, parms.streaming_limit(), phys, len)?;
        if !attrs.contains(Attrs::SKIP_CPU_SYNC) {
            self.clean(parms, phys, len);
        }
        Ok(address)
    }

    unsafe fn unmap_phys(
        &self,
        parms: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_direct_unmap_phys", address.get(), len as u64);
        if !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO) {
            self.invalidate(parms, address, len, dir);
        }
        Ok(())
    }

    unsafe fn sync_for_cpu(&self, parms: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        trace::event("dma_direct_sync_single_for_cpu", address.get(), len as u64);
        self.invalidate(parms, address, len, dir);
    }

    unsafe fn sync_for_device(&self, parms: &DeviceParms, address: DmaAddr, len: usize, _dir: Direction) {
        trace::event("dma_direct_sync_single_for_device", address.get(), len as u64);
        if let Some(phys) = parms.bus_ranges().to_phys(address) {
            self.clean(parms, phys, len);
        }
    }

    /// Whether the device reaches the beginning of a range.
    fn dma_supported(&self, parms: &DeviceParms, mask: u64) -> bool {
        parms.bus_ranges().limits(mask.min(parms.bus_limit())).next().is_some()
    }

    /// What reaches the last of the RAM that the bus shows (Linux: `dma_direct_get_required_mask`).
    fn required_mask(&self, parms: &DeviceParms) -> u64 {
        let last = parms.bus_ranges().last_dma(self.platform.last()).map_or(0, DmaAddr::get);
        u64::MAX.checked_shr(last.leading_zeros()).unwrap_or(0)
    }
}

/// # Errors
/// [`DmaError::MaskNotReachable`] when memory at `phys` ends, for the device, above `mask`.
#[inline]
fn check_limit(mask: u64, phys: PhysAddr, address: DmaAddr, len: usize) -> Result<DmaAddr, DmaError> {
    let reached = address.last_of(len as u64).is_some_and(|last| last.get() <= mask);
    if reached { Ok(address) } else { Err(DmaError::MaskNotReachable { address: phys, mask }) }
}

impl<G> fmt::Debug for DmaDirect<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaDirect").finish_non_exhaustive()
    }
}
