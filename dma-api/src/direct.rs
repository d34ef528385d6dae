//! DMA without translation or copies: a device's address is the physical one, or lies at a constant distance from it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use platform::{DmaAddr, FrameRequest, PhysAddr, Platform, Window, trace};

use crate::{Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, Quarantined};

/// Memory that a bus shows to its devices in one piece, at a constant distance (Linux: `struct bus_dma_region`; a
/// `dma-ranges` entry of a device tree).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusRange {
    /// Where it begins in memory.
    pub phys: PhysAddr,
    /// Where it begins for a device.
    pub dma: DmaAddr,
    /// Bytes in it.
    pub size: u64,
}

impl BusRange {
    /// All of memory but its last byte, at the addresses that it has.
    const IDENTITY: Self = Self { phys: PhysAddr::new(0), dma: DmaAddr::new(0), size: u64::MAX };

    /// The last address for a device, of a range that has been checked.
    fn last_dma(&self) -> DmaAddr {
        self.dma.wrapping_add(self.size - 1)
    }

    /// The last physical address that a device with this mask reaches.
    fn last_phys(&self, mask: u64) -> Option<PhysAddr> {
        let span = mask.checked_sub(self.dma.get())?;
        Some(self.phys.wrapping_add(span.min(self.size - 1)))
    }
}

/// What a bus shows to its devices (Linux: `dev->dma_range_map`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BusRanges(Box<[BusRange]>);

/// A range without bytes, one that leaves the 64-bit space, or one that has device addresses of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the bus cannot show {} bytes of memory at {} as {}", .0.size, .0.phys, .0.dma)]
pub struct InvalidBusRange(pub BusRange);

impl BusRanges {
    /// Memory at its physical addresses, as on most machines.
    pub fn identity() -> Self {
        Self(Box::new([BusRange::IDENTITY]))
    }

    /// Several ranges. Memory that is in more than one is mapped through the first.
    ///
    /// # Errors
    /// [`InvalidBusRange`] with the first range that cannot be.
    pub fn new(ranges: impl Into<Box<[BusRange]>>) -> Result<Self, InvalidBusRange> {
        let ranges = ranges.into();
        for (index, range) in ranges.iter().enumerate() {
            let last = range.phys.last_of(range.size).and(range.dma.last_of(range.size));
            let last = last.ok_or(InvalidBusRange(*range))?;
            // Otherwise an address would not say which memory it leads to.
            if ranges[..index].iter().any(|other| other.dma <= last && range.dma <= other.last_dma()) {
                return Err(InvalidBusRange(*range));
            }
        }
        Ok(Self(ranges))
    }

    /// Where a device finds a range of memory that ends at `last`, when one of the bus's ranges holds all of it.
    #[inline]
    fn to_dma(&self, phys: PhysAddr, last: PhysAddr) -> Option<DmaAddr> {
        self.0.iter().find_map(|range| {
            let offset = phys.get().checked_sub(range.phys.get())?;
            (last.get() - range.phys.get() < range.size).then(|| range.dma.wrapping_add(offset))
        })
    }

    #[inline]
    fn to_phys(&self, address: DmaAddr) -> Option<PhysAddr> {
        self.0.iter().find_map(|range| {
            let offset = address.get().checked_sub(range.dma.get())?;
            (offset < range.size).then(|| range.phys.wrapping_add(offset))
        })
    }
}

/// `DmaMapOps` that map memory where it is (Linux: dma-direct). What the device does not reach is refused; `swiotlb` has ops
/// that copy it instead.
///
/// Nothing confines the device: see [`DmaDirect::new`].
pub struct DmaDirect<G = ()> {
    platform: Arc<dyn Platform>,
    window: Window,
    ranges: BusRanges,
    bus_limit: u64,
    // Whatever must live as long as these ops do.
    _guard: G,
}

impl<G: Send + Sync> DmaDirect<G> {
    /// Ops for devices behind a bus with these ranges. `guard` is dropped with them.
    ///
    /// # Safety
    /// The bus has these ranges. The caller trusts every device that gets these ops, and its driver, to touch only memory
    /// that they were given, and to stop before it is given back: no hardware enforces it.
    pub unsafe fn new(platform: Arc<dyn Platform>, ranges: BusRanges, guard: G) -> Self {
        let window = platform.window();
        Self { platform, window, ranges, bus_limit: u64::MAX, _guard: guard }
    }

    /// The same behind a bus that lets only addresses up to `limit` through, whatever a device's own mask (Linux:
    /// `bus_dma_limit`).
    #[must_use]
    pub fn limited_to(mut self, limit: u64) -> Self {
        self.bus_limit = limit;
        self
    }

    /// Where a device with this mask finds `len` bytes of RAM (Linux: `phys_to_dma` and `dma_capable`).
    ///
    /// # Errors
    /// [`DmaError::NotOnBus`] when no range of the bus holds all of it, [`DmaError::MaskNotReachable`] when the mask or the
    /// bus's limit is too narrow, [`DmaError::InvalidLength`].
    #[doc(alias = "dma_capable")]
    #[inline]
    pub fn phys_to_dma(&self, mask: u64, phys: PhysAddr, len: usize) -> Result<DmaAddr, DmaError> {
        let last = phys.last_of(len as u64).ok_or(DmaError::InvalidLength(len))?;
        let address = self.ranges.to_dma(phys, last).ok_or(DmaError::NotOnBus { address: phys })?;
        self.check_mask(mask, phys, address, len)
    }

    /// The memory at a device's address (Linux: `dma_to_phys`).
    #[inline]
    pub fn dma_to_phys(&self, address: DmaAddr) -> Option<PhysAddr> {
        self.ranges.to_phys(address)
    }

    #[inline]
    fn check_mask(
        &self,
        mask: u64,
        phys: PhysAddr,
        address: DmaAddr,
        len: usize,
    ) -> Result<DmaAddr, DmaError> {
        let mask = mask.min(self.bus_limit);
        let reached = address.last_of(len as u64).is_some_and(|last| last.get() <= mask);
        if reached { Ok(address) } else { Err(DmaError::MaskNotReachable { address: phys, mask }) }
    }

    /// Frames that a device with this mask reaches, and where it finds them.
    fn frames(&self, mask: u64, size: usize) -> Result<(PhysAddr, DmaAddr), DmaError> {
        let reached = mask.min(self.bus_limit);
        let mut error = DmaError::OutOfMemory;
        // A request has an upper limit only, so what comes may be in the gap below a range.
        for limit in self.ranges.0.iter().filter_map(|range| range.last_phys(reached)) {
            let request = FrameRequest { limit, ..FrameRequest::anywhere(size) };
            let Ok(phys) = self.platform.alloc(request) else { continue };
            match self.phys_to_dma(mask, phys, size) {
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
            && let Some(phys) = self.dma_to_phys(address)
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
        let (phys, dma) = self.frames(parms.coherent_mask(), size)?;
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
            return self.check_mask(parms.streaming_mask(), phys, DmaAddr::new(phys.get()), len);
        }
        let address = self.phys_to_dma(parms.streaming_mask(), phys, len)?;
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
        if let Some(phys) = self.dma_to_phys(address) {
            self.clean(parms, phys, len);
        }
    }

    /// Whether the device reaches the beginning of a range.
    fn dma_supported(&self, mask: u64) -> bool {
        let mask = mask.min(self.bus_limit);
        self.ranges.0.iter().any(|range| range.dma.get() <= mask)
    }

    /// What reaches the ends of all ranges: all ones when the memory is at its physical addresses, since nothing here says
    /// where it ends.
    fn required_mask(&self) -> u64 {
        let last = self.ranges.0.iter().map(|range| range.last_dma().get()).max().unwrap_or(0);
        u64::MAX.checked_shr(last.min(self.bus_limit).leading_zeros()).unwrap_or(0)
    }
}

impl<G> fmt::Debug for DmaDirect<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaDirect").field("ranges", &self.ranges.0).finish_non_exhaustive()
    }
}
