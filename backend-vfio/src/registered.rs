//! Memory that a device has for as long as it is bound (SPDK: registered memory).

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use dma_api::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, IovaOps, Quarantined, SgEntry,
};
use platform::frames::FRAME_SIZE;
use platform::{DmaAddr, FrameRequest, Frames, PhysAddr, Window};
use swiotlb::Swiotlb;

use crate::memory::ProcessPlatform;

/// Ops that map the platform's arena once, when they are made, and unmap it when they are dropped. Coherent memory comes from
/// there; a streaming map of a buffer that lies in it is a lookup.
///
/// Such a map has no permission of its own: whatever its direction, the device may read and write the buffer. And it does not
/// end with its unmap: the device reaches the buffer, and everything else in the arena, until it is given back. Nothing but the
/// device itself keeps it from memory that the program uses again, so this takes trust: [`crate::Vfio::trust_registered`].
///
/// A buffer elsewhere is copied through a slot of the bounce pool, which lies in the arena, when it is no longer than
/// [`Registered::COPY_MAX`]; a longer one, and one that the device's mask or its segments keep from the arena, is mapped as
/// without these ops: with its permission, until its unmap.
pub struct Registered<O: DmaMapOps> {
    ops: O,
    /// Those with which the arena was mapped.
    parms: DeviceParms,
    platform: Arc<ProcessPlatform>,
    window: Window,
    copies: Arc<Swiotlb>,
    start: PhysAddr,
    len: u64,
    dma: DmaAddr,
}

impl<O: DmaMapOps> Registered<O> {
    /// The longest buffer outside of the arena that is copied, in bytes: a fifth of the length at which the two copies cost as much
    /// as the kernel's map and unmap in the guest of `cargo xtask vfio`, where the kernel's calls are slowed more than copies are.
    /// The guest checks that copying this much is the cheaper way.
    pub const COPY_MAX: usize = 16 << 10;

    /// Maps the platform's arena through `ops`; short buffers elsewhere are copied through `copies`.
    ///
    /// # Errors
    /// [`DmaError::NotRam`] when the platform has no arena; what the map says.
    ///
    /// # Safety
    /// The caller trusts the device to touch of the arena only what it was given, and to stop before that is given back.
    pub unsafe fn new(
        ops: O,
        platform: Arc<ProcessPlatform>,
        copies: Arc<Swiotlb>,
    ) -> Result<Self, DmaError> {
        let (start, len) = platform.arena().ok_or(DmaError::NotRam)?;
        let parms = DeviceParms::new(true, false);
        // SAFETY: the arena stays as long as the platform, which this value holds until it has unmapped it; the rest is the
        // caller's trust.
        let dma = unsafe { ops.map_phys(&parms, start, len, Direction::Bidirectional, Attrs::empty()) }?;
        let window = platform.window();
        Ok(Self { ops, parms, platform, window, copies, start, len: len as u64, dma })
    }

    /// Where a buffer of the arena is for the device, if it can use it there.
    #[inline]
    fn lookup(&self, dev: &DeviceParms, limit: u64, phys: PhysAddr, len: usize) -> Option<DmaAddr> {
        let offset = phys.get().wrapping_sub(self.start.get());
        if offset >= self.len || len as u64 > self.len - offset {
            return None;
        }
        let address = self.dma.wrapping_add(offset);
        let last = address.last_of(len as u64)?;
        let one_segment = (address.get() ^ last.get()) & !dev.segment_boundary() == 0;
        let kept = dev.min_align_mask() < FRAME_SIZE as u64;
        (last.get() <= limit && one_segment && kept).then_some(address)
    }

    /// Where in the arena an address of the device's leads.
    #[inline]
    fn inside(&self, address: DmaAddr) -> Option<PhysAddr> {
        let offset = address.get().wrapping_sub(self.dma.get());
        (offset < self.len).then(|| self.start.wrapping_add(offset))
    }

    /// Whether an address in the arena is of a copy.
    #[inline]
    fn is_copy(&self, dev: &DeviceParms, phys: PhysAddr) -> bool {
        dev.needs_sync() && self.copies.contains(phys)
    }

    /// Copies a short buffer into the arena; `None` when that cannot be.
    ///
    /// # Safety
    /// As `DmaMapOps::map_phys`.
    #[cold]
    unsafe fn copy(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Option<DmaAddr> {
        if len > Self::COPY_MAX || attrs.intersects(Attrs::REQUIRE_COHERENT | Attrs::MMIO) {
            return None;
        }
        let original = NonNull::new(self.window.ptr(phys))?;
        dev.set_needs_sync();
        // SAFETY: the caller's promise.
        let copy = unsafe { self.copies.map(dev, original, len, 0, dir, attrs) }.ok()?;
        let address = self.lookup(dev, dev.streaming_limit(), copy, len);
        if address.is_none() {
            // SAFETY: the copy was made just now, and no device has seen it.
            unsafe { self.copies.unmap(copy, len, dir, attrs | Attrs::SKIP_CPU_SYNC) };
        }
        address
    }
}

impl<O: DmaMapOps> Drop for Registered<O> {
    fn drop(&mut self) {
        let (len, dir) = (self.len as usize, Direction::Bidirectional);
        // SAFETY: it was mapped by `new`. When that fails the core counts it; the device was trusted, and is given back.
        let _ = unsafe { self.ops.unmap_phys(&self.parms, self.dma, len, dir, Attrs::empty()) };
    }
}

impl<O: DmaMapOps> fmt::Debug for Registered<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registered({} bytes at {}, {:?})", self.len, self.dma, self.ops)
    }
}

// SAFETY: memory from `alloc` is the arena's frames, zeroed and mapped until the device is given back; a map in the arena leads
// to the given memory, or to a copy in a slot that is this mapping's until its unmap. That the device reaches the arena after an
// unmap is what `new` takes trust for. The rest is the inner ops'.
unsafe impl<O: DmaMapOps> DmaMapOps for Registered<O> {
    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        let request = FrameRequest::anywhere(size);
        let Some(at) = (size != 0).then(|| self.platform.alloc_in_arena(request)).flatten() else {
            return self.ops.alloc(dev, size, attrs);
        };
        let cpu = NonNull::new(self.window.ptr(at));
        match self.lookup(dev, dev.coherent_limit(), at, size).zip(cpu) {
            Some((dma, cpu)) => Ok(CoherentMemory { cpu, dma, size }),
            None => {
                // SAFETY: it was taken just now, and nobody has seen it.
                unsafe { self.platform.free(at, size) };
                self.ops.alloc(dev, size, attrs)
            }
        }
    }

    unsafe fn free(
        &self,
        dev: &DeviceParms,
        memory: CoherentMemory,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        match self.inside(memory.dma) {
            Some(phys) => {
                // SAFETY: the caller's promise: memory of `alloc`, which took it from the arena.
                unsafe { self.platform.free(phys, memory.size) };
                Ok(())
            }
            // SAFETY: the caller's promise: memory of the inner ops.
            None => unsafe { self.ops.free(dev, memory, attrs) },
        }
    }

    #[inline]
    unsafe fn map_phys(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        if let Some(address) = self.lookup(dev, dev.streaming_limit(), phys, len) {
            return Ok(address);
        }
        // SAFETY: the caller's promise.
        match unsafe { self.copy(dev, phys, len, dir, attrs) } {
            Some(address) => Ok(address),
            // SAFETY: the caller's promise.
            None => unsafe { self.ops.map_phys(dev, phys, len, dir, attrs) },
        }
    }

    #[inline]
    unsafe fn unmap_phys(
        &self,
        dev: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let Some(phys) = self.inside(address) else {
            // SAFETY: the caller's promise: a mapping of the inner ops, whose addresses are never the arena's.
            return unsafe { self.ops.unmap_phys(dev, address, len, dir, attrs) };
        };
        if self.is_copy(dev, phys) {
            // SAFETY: the caller's promise: a copy of `map_phys`, ended once; the device is trusted to be done with it.
            unsafe { self.copies.unmap(phys, len, dir, attrs) };
        }
        Ok(())
    }

    unsafe fn map_foreign(
        &self,
        dev: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        // SAFETY: the caller's promise.
        unsafe { self.ops.map_foreign(dev, cpu, len, dir, attrs) }
    }

    unsafe fn map_sg(
        &self,
        dev: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        let find = |entry: &SgEntry| self.lookup(dev, dev.streaming_limit(), entry.phys, entry.len);
        if list.is_empty() || !list.iter().all(|entry| find(entry).is_some()) {
            // Together: what lies side by side becomes one call of the kernel.
            // SAFETY: the caller's promise.
            return unsafe { self.ops.map_sg(dev, list, dir, attrs) };
        }
        for entry in &mut *list {
            entry.dma_address = find(entry).unwrap_or(entry.dma_address);
            entry.dma_len = entry.len;
        }
        Ok(list.len())
    }

    unsafe fn unmap_sg(
        &self,
        dev: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        if list.first().is_some_and(|entry| self.inside(entry.dma_address).is_some()) {
            return Ok(());
        }
        // SAFETY: the caller's promise: a list is of the arena as a whole or not at all.
        unsafe { self.ops.unmap_sg(dev, list, dir, attrs) }
    }

    unsafe fn sync_for_cpu(&self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        match self.inside(address) {
            // SAFETY: the caller's promise: part of a live copy.
            Some(phys) if self.is_copy(dev, phys) => unsafe { self.copies.sync_for_cpu(phys, len, dir) },
            Some(_) => {}
            // SAFETY: the caller's promise: part of a mapping of the inner ops.
            None => unsafe { self.ops.sync_for_cpu(dev, address, len, dir) },
        }
    }

    unsafe fn sync_for_device(&self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        match self.inside(address) {
            // SAFETY: the caller's promise: part of a live copy.
            Some(phys) if self.is_copy(dev, phys) => unsafe { self.copies.sync_for_device(phys, len, dir) },
            Some(_) => {}
            // SAFETY: the caller's promise: part of a mapping of the inner ops.
            None => unsafe { self.ops.sync_for_device(dev, address, len, dir) },
        }
    }

    fn iova_ops(&self) -> Option<Box<dyn IovaOps + '_>> {
        self.ops.iova_ops()
    }

    fn dma_supported(&self, dev: &DeviceParms, mask: u64) -> bool {
        self.ops.dma_supported(dev, mask)
    }

    fn required_mask(&self, dev: &DeviceParms) -> u64 {
        self.ops.required_mask(dev)
    }

    fn max_mapping_size(&self, dev: &DeviceParms) -> usize {
        self.ops.max_mapping_size(dev)
    }
}
