//! The two-step interface (Linux: `dma_iova_link` and its neighbours): I/O addresses first, then memory piece by piece.

use core::ptr::NonNull;

use dma_api::{Attrs, DeviceParms, Direction, DmaError, IovaOps, IovaPart, IovaRange, Quarantined};
use platform::sync::atomic::Ordering;
use platform::{DmaAddr, PhysAddr, trace};

use super::{IommuDma, dma_error, dma_info_to_prot};

/// The ops of a bound device, seen as two steps.
#[derive(Debug)]
pub(super) struct TwoStep<'a>(pub(super) &'a IommuDma);

/// What a failed unlink or undo gives up: the whole range.
fn given_up(range: IovaRange) -> Quarantined {
    Quarantined { address: range.address, len: range.size }
}

/// A copy in the bounce pool.
type Bounced = Option<(PhysAddr, usize)>;

impl TwoStep<'_> {
    fn granule(&self) -> u64 {
        self.0.granule
    }

    /// The granules of a range: where they begin, and their length.
    fn block(&self, range: IovaRange) -> (DmaAddr, u64) {
        self.0.granules(range.address, range.size)
    }

    /// The granules of a part.
    fn granules(&self, part: IovaPart) -> (DmaAddr, u64) {
        self.0.granules(part.address(), part.len)
    }

    /// Leads whole granules from `at` on to those of memory at `phys`, not yet for the device to see.
    ///
    /// # Errors
    /// What the domain says, beside the bytes that were mapped.
    ///
    /// # Safety
    /// As `IovaOps::link`.
    unsafe fn map(
        &self,
        parms: &DeviceParms,
        at: DmaAddr,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), DmaError> {
        let (iova, size) = self.0.granules(at, len);
        let phys = phys.align_down(self.granule());
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        // SAFETY: the caller's promise.
        let (done, result) = unsafe { self.0.domain.map_nosync(iova, phys, size, prot) };
        let Err(error) = result else { return Ok(()) };
        if done != 0 {
            let mut gather = self.0.domain.gather();
            // SAFETY: it was mapped just now; the device has not been told.
            unsafe { self.0.domain.unmap(iova, done, &mut gather) };
            if self.0.domain.sync(gather).is_err() {
                return Err(DmaError::NotUndone(Quarantined { address: at, len }));
            }
        }
        Err(dma_error(error))
    }

    /// Leads a part of a granule to a copy, which has the same place in it.
    ///
    /// # Safety
    /// As `IovaOps::link`.
    unsafe fn bounce_and_link(
        &self,
        parms: &DeviceParms,
        at: DmaAddr,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), DmaError> {
        if attrs.contains(Attrs::MMIO) {
            return Err(DmaError::NotRam);
        }
        let cpu = NonNull::new(self.0.window.ptr(phys)).ok_or(DmaError::NotRam)?;
        let in_place = parms.keeping(self.granule() - 1);
        // SAFETY: the caller's promise: RAM that stays valid, seen through the window.
        let (pool, copy) = unsafe { self.0.bounce(parms, &in_place, cpu, len, dir, attrs) }?;
        // SAFETY: the copy stays the device's until it is unlinked.
        let mapped = unsafe { self.map(parms, at, copy, len, dir, attrs) };
        match mapped {
            Ok(()) => {
                self.0.cookie().bounces.fetch_add(1, Ordering::Relaxed);
            }
            // The device may still reach it: the slot stays taken for ever.
            Err(DmaError::NotUndone(_)) => {}
            // SAFETY: the copy was made just now, and no device has seen it.
            Err(_) => unsafe { pool.unmap(copy, len, dir, attrs | Attrs::SKIP_CPU_SYNC) },
        }
        mapped
    }

    /// Links the head, the middle and the tail of a part of which an untrusted device may not see all granules, and says how
    /// much is linked.
    ///
    /// # Safety
    /// As `IovaOps::link`.
    unsafe fn link_bounced(
        &self,
        parms: &DeviceParms,
        part: IovaPart,
        phys: PhysAddr,
        dir: Direction,
        attrs: Attrs,
    ) -> (usize, Result<(), DmaError>) {
        let granule = self.granule();
        let head = match phys.offset_in(granule) {
            0 => 0,
            offset => (granule - offset).min(part.len as u64) as usize,
        };
        let tail = ((part.len - head) as u64 % granule) as usize;
        let middle = part.len - head - tail;
        let mut done = 0;
        for (len, bounced) in [(head, true), (middle, false), (tail, true)] {
            if len == 0 {
                continue;
            }
            let (at, from) = (part.address().wrapping_add(done as u64), phys.wrapping_add(done as u64));
            // SAFETY: the caller's promise, for this piece.
            let linked = unsafe {
                if bounced {
                    self.bounce_and_link(parms, at, from, len, dir, attrs)
                } else {
                    self.link_directly(parms, at, from, len, dir, attrs)
                }
            };
            if let Err(error) = linked {
                return (done, Err(error));
            }
            done += len;
        }
        (done, Ok(()))
    }

    /// # Safety
    /// As `IovaOps::link`.
    unsafe fn link_directly(
        &self,
        parms: &DeviceParms,
        at: DmaAddr,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), DmaError> {
        if !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO) {
            self.0.clean(parms, phys, len);
        }
        // SAFETY: the caller's promise.
        unsafe { self.map(parms, at, phys, len, dir, attrs) }
    }

    /// Unlinks strictly: when this returns `Ok` the device is out, and what was bounced is copied back.
    ///
    /// # Safety
    /// As `IovaOps::unlink`.
    unsafe fn unlink_strictly(
        &self,
        parms: &DeviceParms,
        part: IovaPart,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let end = part.address().wrapping_add(part.len as u64);
        let mut at = part.address();
        while at < end {
            // A link has two copies at most: one wait is enough for it.
            let mut copies: [Bounced; 2] = [None; 2];
            // SAFETY: the caller's promise.
            let run = unsafe { self.run(parms, at, end, dir, attrs, &mut copies) };
            let (iova, size) = self.block(IovaRange { address: at, size: run });
            let mut gather = self.0.domain.gather();
            // SAFETY: the caller's promise: whole links, ended once.
            let whole = unsafe { self.0.domain.unmap(iova, size, &mut gather) } >= size;
            if self.0.domain.sync(gather).is_err() || !whole {
                self.0.cookie().quarantine(self.block(part.range).1);
                return Err(given_up(part.range));
            }
            for (copy, len) in copies.into_iter().flatten() {
                if let Some(pool) = self.0.pool_of(copy) {
                    // SAFETY: the copy was linked, and the device's turn is over.
                    unsafe { pool.unmap(copy, len, dir, attrs) };
                }
            }
            at = at.wrapping_add(run as u64);
        }
        Ok(())
    }

    /// The bytes from `at` on that can be unlinked together, with the copies among them; what the device wrote is dropped from
    /// the caches.
    ///
    /// # Safety
    /// The range is the caller's own, as `IovaOps::unlink` says.
    unsafe fn run(
        &self,
        parms: &DeviceParms,
        at: DmaAddr,
        end: DmaAddr,
        dir: Direction,
        attrs: Attrs,
        copies: &mut [Bounced; 2],
    ) -> usize {
        let len = (end.get() - at.get()) as usize;
        if !parms.needs_sync() {
            return len;
        }
        let (mut run, mut found) = (0, 0);
        let mut full = false;
        let visit = |phys, len| {
            let bounced = parms.is_untrusted() && self.0.pool_of(phys).is_some();
            full |= bounced && found == copies.len();
            if full {
                return;
            }
            if bounced {
                copies[found] = Some((phys, len));
                found += 1;
            }
            if !attrs.intersects(Attrs::SKIP_CPU_SYNC | Attrs::MMIO) {
                self.0.invalidate(parms, phys, len, dir);
            }
            run += len;
        };
        // SAFETY: the caller's promise.
        unsafe { self.0.each_granule(at, len, visit) };
        // Granules without memory are no link's, and end it.
        if full { run } else { len }
    }
}

// SAFETY: `link` leads a part to its memory or its copies with the direction's permission; an unlink returns Ok after the
// domain's invalidation, a destroy too or, in a lazy domain, which takes trust to be bound to, leaves it to the flush queue.
unsafe impl IovaOps for TwoStep<'_> {
    fn try_alloc(&self, parms: &DeviceParms, phys: PhysAddr, size: usize) -> Result<IovaRange, DmaError> {
        trace::event("dma_iova_try_alloc", phys.get(), size as u64);
        self.0.check_alive()?;
        self.0.check_align(parms)?;
        if size == 0 {
            return Err(DmaError::InvalidLength(size));
        }
        let (iova, _, offset) = self.0.take_iova(parms.streaming_limit(), phys, size)?;
        Ok(IovaRange { address: iova.wrapping_add(offset), size })
    }

    unsafe fn link(
        &self,
        parms: &DeviceParms,
        part: IovaPart,
        phys: PhysAddr,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), DmaError> {
        trace::event("dma_iova_link", part.address().get(), part.len as u64);
        self.0.check_alive()?;
        let granule = self.granule();
        let offset = phys.offset_in(granule);
        if part.address().offset_in(granule) != offset || part.offset != 0 && offset != 0 {
            return Err(DmaError::InvalidAlignment(offset as usize));
        }
        let (linked, result) = if parms.is_untrusted() && (phys.get() | part.len as u64) & (granule - 1) != 0
        {
            // SAFETY: the caller's promise.
            unsafe { self.link_bounced(parms, part, phys, dir, attrs) }
        } else {
            // SAFETY: the caller's promise.
            (0, unsafe { self.link_directly(parms, part.address(), phys, part.len, dir, attrs) })
        };
        let Err(error) = result else { return Ok(()) };
        if let DmaError::NotUndone(_) = error {
            self.0.cookie().quarantine(self.block(part.range).1);
            return Err(DmaError::NotUndone(given_up(part.range)));
        }
        let linked = IovaPart { len: linked, ..part };
        // SAFETY: these pieces were linked just now.
        unsafe { self.unlink_strictly(parms, linked, dir, attrs | Attrs::SKIP_CPU_SYNC) }
            .map_err(DmaError::NotUndone)?;
        Err(error)
    }

    fn sync(&self, _parms: &DeviceParms, part: IovaPart) -> Result<(), DmaError> {
        trace::event("dma_iova_sync", part.address().get(), part.len as u64);
        let (iova, len) = self.granules(part);
        self.0.domain.sync_map(iova, len).map_err(dma_error)
    }

    unsafe fn unlink(
        &self,
        parms: &DeviceParms,
        part: IovaPart,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_iova_unlink", part.address().get(), part.len as u64);
        // SAFETY: the caller's promise.
        unsafe { self.unlink_strictly(parms, part, dir, attrs) }
    }

    unsafe fn destroy(
        &self,
        parms: &DeviceParms,
        range: IovaRange,
        linked: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        trace::event("dma_iova_destroy", range.address.get(), linked as u64);
        let part = IovaPart { range, offset: 0, len: linked };
        let mut gather = self.0.domain.gather();
        let mut whole = true;
        if parms.is_untrusted() {
            // Copies may be among it, whose slots are free only when the device is out.
            // SAFETY: the caller's promise.
            unsafe { self.unlink_strictly(parms, part, dir, attrs) }?;
        } else if linked != 0 {
            let end = range.address.wrapping_add(linked as u64);
            // SAFETY: the caller's promise.
            unsafe { self.run(parms, range.address, end, dir, attrs, &mut [None; 2]) };
            let (iova, len) = self.granules(part);
            // SAFETY: the caller's promise: whole links, ended once.
            whole = unsafe { self.0.domain.unmap(iova, len, &mut gather) } >= len;
        }
        let (iova, size) = self.block(range);
        self.0.end_unmap(iova, size, whole, &mut gather).map_err(|_| given_up(range))
    }
}
