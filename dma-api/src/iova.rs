//! Taking I/O addresses first, and linking memory to them piece by piece.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use platform::{DmaAddr, PhysAddr};

use crate::{Attrs, Device, DeviceParms, Direction, DmaError, Quarantined, Segment};

/// I/O addresses that were taken with nothing behind them (Linux: `struct dma_iova_state`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "dma_iova_state")]
pub struct IovaRange {
    /// The first, at the place in a granule of the memory that comes first.
    pub address: DmaAddr,
    /// How many bytes.
    pub size: usize,
}

/// A part of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaPart {
    /// The range.
    pub range: IovaRange,
    /// Where the part begins in it, in bytes.
    pub offset: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl IovaPart {
    /// Where the device finds it.
    pub fn address(&self) -> DmaAddr {
        self.range.address.wrapping_add(self.offset as u64)
    }
}

/// The two-step interface of [`DmaMapOps`](crate::DmaMapOps), behind an IOMMU. Drivers use [`DmaIova`].
///
/// # Safety
/// As `DmaMapOps`: after `link` the device reaches exactly that memory (or a copy that is copied back) in the part, and after
/// an `unlink` or a `destroy` that returns `Ok` it does not, to the extent that the backend's documentation promises.
pub unsafe trait IovaOps: Send + Sync + fmt::Debug {
    /// Takes I/O addresses for `size` bytes of memory, of which the first are at `phys`: only its place in a granule matters
    /// (Linux: `dma_iova_try_alloc`).
    ///
    /// # Errors
    /// [`DmaError`] with the reason.
    #[doc(alias = "dma_iova_try_alloc")]
    fn try_alloc(&self, dev: &DeviceParms, phys: PhysAddr, size: usize) -> Result<IovaRange, DmaError>;

    /// Leads a part to memory at `phys`; the device may use it after [`IovaOps::sync`] (Linux: `dma_iova_link`). Only a part
    /// at the very beginning may begin within a granule.
    ///
    /// # Errors
    /// [`DmaError`] with the reason; nothing of the part stays linked, but with [`DmaError::NotUndone`] the device may still
    /// reach the memory, and the whole range is given up: it is counted and must not be used any more.
    ///
    /// # Safety
    /// The range is live and of these ops, the part is within it and nothing of it is linked. The memory is as for
    /// [`DmaMapOps::map_phys`](crate::DmaMapOps::map_phys), until it is unlinked.
    #[doc(alias = "dma_iova_link")]
    #[track_caller]
    unsafe fn link(
        &self,
        dev: &DeviceParms,
        part: IovaPart,
        phys: PhysAddr,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), DmaError>;

    /// Makes what was linked in a part visible to the device; once, after the last link (Linux: `dma_iova_sync`).
    ///
    /// # Errors
    /// [`DmaError::IommuTimedOut`]; what was linked stays linked.
    #[doc(alias = "dma_iova_sync")]
    fn sync(&self, dev: &DeviceParms, part: IovaPart) -> Result<(), DmaError>;

    /// Takes memory away from the device, strictly: when this returns the device is out (Linux: `dma_iova_unlink`).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory; the whole range is then given up: it is counted and must
    /// not be used any more.
    ///
    /// # Safety
    /// The range is live and of these ops; the part is one or more whole links, made with `dir`, without a gap.
    #[doc(alias = "dma_iova_unlink")]
    unsafe fn unlink(
        &self,
        dev: &DeviceParms,
        part: IovaPart,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined>;

    /// Unlinks the first `linked` bytes, in a lazy domain without waiting for the IOMMU, and gives the I/O addresses back
    /// (Linux: `dma_iova_destroy`; `dma_iova_free` when nothing is linked).
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory; the range is then given up and counted.
    ///
    /// # Safety
    /// The range is live and of these ops, and is not used any more. Its first `linked` bytes are whole links, made with
    /// `dir`, without a gap, and nothing else of it is linked.
    #[doc(alias = "dma_iova_destroy")]
    #[doc(alias = "dma_iova_free")]
    unsafe fn destroy(
        &self,
        dev: &DeviceParms,
        range: IovaRange,
        linked: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined>;
}

/// Memory that is mapped piece by piece, in two steps (Linux: `dma_iova_try_alloc` and its neighbours): first I/O addresses for
/// all of it, then each piece. One address is found and one invalidation sent, however many pieces there are.
///
/// Where no IOMMU translates, or has no such run of addresses left, each piece is mapped for itself: the device then finds
/// them in as many [segments](Self::sync).
///
/// The pieces' memory is the caller's, so linking is unsafe; [`crate::ScatterList`] owns what it maps. Dropped, everything is
/// unlinked and the addresses given back; forgotten, it stays mapped for ever.
#[must_use = "what is dropped at once is unmapped at once"]
pub struct DmaIova<'d> {
    device: &'d Device,
    range: Option<Range<'d>>,
    size: usize,
    dir: Direction,
    attrs: Attrs,
    /// What is linked, by its offset. Links do not overlap.
    links: BTreeMap<usize, Segment>,
    /// Why nothing can be done any more: the range was given up.
    lost: Option<Quarantined>,
}

/// I/O addresses, and whose they are.
#[derive(Debug)]
struct Range<'d> {
    ops: Box<dyn IovaOps + 'd>,
    range: IovaRange,
}

impl Range<'_> {
    fn part(&self, offset: usize, len: usize) -> IovaPart {
        IovaPart { range: self.range, offset, len }
    }
}

impl<'d> DmaIova<'d> {
    /// Takes I/O addresses for `size` bytes of memory, the first of them at `phys`, that will be linked in this direction.
    ///
    /// # Errors
    /// [`DmaError::InvalidLength`] for no bytes, or more than half of the address space; [`DmaError::NotCoherent`];
    /// [`DmaError::Gone`]. A lack of addresses is none: see [`DmaIova::is_contiguous`].
    #[doc(alias = "dma_iova_try_alloc")]
    pub fn new(
        device: &'d Device,
        phys: PhysAddr,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<Self, DmaError> {
        if size == 0 || size as u64 >> 63 != 0 {
            return Err(DmaError::InvalidLength(size));
        }
        device.check_coherent(attrs)?;
        let range = match device.ops().iova_ops() {
            Some(ops) => match ops.try_alloc(device.parms(), phys, size) {
                Ok(range) => Some(Range { ops, range }),
                Err(DmaError::AddressSpaceExhausted { .. }) => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        Ok(Self { device, range, size, dir, attrs, links: BTreeMap::new(), lost: None })
    }

    /// Whether the device finds all pieces in one run of addresses (Linux: `dma_use_iova`).
    #[doc(alias = "dma_use_iova")]
    pub fn is_contiguous(&self) -> bool {
        self.range.is_some()
    }

    /// Links `len` bytes of memory at `phys`, `offset` bytes into the whole. Behind an IOMMU only the piece at offset 0 may
    /// begin within a page of it, and only one that nothing follows may end within one. The device may use it after
    /// [`DmaIova::sync`].
    ///
    /// # Errors
    /// [`DmaError::InvalidLength`] for no bytes, or when the piece is not within the whole or overlaps another;
    /// [`DmaError::InvalidAlignment`] when it begins within a page; others as [`Device::map_phys`]. Nothing of it stays linked,
    /// but with [`DmaError::NotUndone`] the device may still reach it, and all of it is given up.
    ///
    /// # Safety
    /// As [`DmaMapOps::map_phys`](crate::DmaMapOps::map_phys), until an [`DmaIova::unlink`] or [`DmaIova::destroy`] that
    /// returns `Ok`, or this value is dropped; and for ever when one fails.
    #[doc(alias = "dma_iova_link")]
    #[track_caller]
    pub unsafe fn link(&mut self, offset: usize, phys: PhysAddr, len: usize) -> Result<(), DmaError> {
        if let Some(lost) = self.lost {
            return Err(DmaError::NotUndone(lost));
        }
        let end = offset.checked_add(len).filter(|&end| len != 0 && end <= self.size);
        let end = end.ok_or(DmaError::InvalidLength(len))?;
        let before = self.links.range(..end).next_back();
        if before.is_some_and(|(start, link)| start + link.len > offset) {
            return Err(DmaError::InvalidLength(len));
        }
        let address = match &self.range {
            Some(range) => {
                let part = range.part(offset, len);
                // SAFETY: the caller's promise; the part is within the range, and nothing is linked there.
                let linked = unsafe { range.ops.link(self.device.parms(), part, phys, self.dir, self.attrs) };
                if let Err(DmaError::NotUndone(lost)) = linked {
                    self.lost = Some(lost);
                }
                linked.map(|()| part.address())
            }
            // SAFETY: the caller's promise.
            None => unsafe { self.device.map_phys(phys, len, self.dir, self.attrs) },
        }?;
        self.links.insert(offset, Segment { address, len });
        Ok(())
    }

    /// Ends the linking and tells where the device finds what is linked: pieces that follow each other for the device are one
    /// segment, whatever its longest segment. Linking more takes another sync.
    ///
    /// # Errors
    /// [`DmaError::IommuTimedOut`]; what was linked stays linked.
    #[doc(alias = "dma_iova_sync")]
    pub fn sync(&mut self) -> Result<Vec<Segment>, DmaError> {
        let mut segments: Vec<Segment> = Vec::new();
        for link in self.links.values() {
            match segments.last_mut() {
                Some(last) if last.address.wrapping_add(last.len as u64) == link.address => {
                    last.len += link.len;
                }
                _ => segments.push(*link),
            }
        }
        if let (Some(range), Some((last, link))) = (&self.range, self.links.last_key_value()) {
            range.ops.sync(self.device.parms(), range.part(0, last + link.len))?;
        }
        Ok(segments)
    }

    /// Takes the piece that was linked at `offset` away from the device, at once even in a lazy domain; false when there is
    /// none.
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the memory, which must then never be used again. Behind an IOMMU that
    /// goes for all pieces.
    #[doc(alias = "dma_iova_unlink")]
    pub fn unlink(&mut self, offset: usize) -> Result<bool, Quarantined> {
        if let Some(lost) = self.lost {
            return Err(lost);
        }
        let Some(link) = self.links.remove(&offset) else { return Ok(false) };
        let (dir, attrs) = (self.dir, self.attrs);
        match &self.range {
            Some(range) => {
                let part = range.part(offset, link.len);
                // SAFETY: it is one whole link, made in this direction.
                let unlinked = unsafe { range.ops.unlink(self.device.parms(), part, dir, attrs) };
                unlinked.inspect_err(|lost| self.lost = Some(*lost))
            }
            // SAFETY: it was mapped for itself.
            None => unsafe { self.device.unmap_single(link.address, link.len, dir, attrs) },
        }
        .map(|()| true)
    }

    /// Unlinks everything and gives the addresses back.
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach memory that was linked, none of which may be used again.
    #[doc(alias = "dma_iova_destroy")]
    pub fn destroy(mut self) -> Result<(), Quarantined> {
        self.end()
    }

    /// Does nothing the second time.
    fn end(&mut self) -> Result<(), Quarantined> {
        // Together, when they lie one after the other from the start; else one by one.
        let mut linked = 0;
        let follows = |(&offset, link): (&usize, &Segment)| {
            let follows = offset == linked;
            linked += link.len;
            follows
        };
        let together = self.links.iter().all(follows) && self.range.is_some();
        let mut result = self.lost.map_or(Ok(()), Err);
        if !together {
            linked = 0;
            while let Some((&offset, _)) = self.links.first_key_value()
                && self.lost.is_none()
            {
                result = result.and(self.unlink(offset).map(drop));
            }
        }
        if let (Some(Range { ops, range }), None) = (self.range.take(), self.lost) {
            // SAFETY: these are the links, each made in this direction, and the range is not used any more.
            let ended = unsafe { ops.destroy(self.device.parms(), range, linked, self.dir, self.attrs) };
            result = result.and(ended);
        }
        self.links.clear();
        result
    }
}

impl Drop for DmaIova<'_> {
    fn drop(&mut self) {
        // What the device may still reach, the ops keep and count.
        let _ = self.end();
    }
}

impl fmt::Debug for DmaIova<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let linked: usize = self.links.values().map(|link| link.len).sum();
        write!(f, "DmaIova({linked} of {} bytes in {} pieces, {:?})", self.size, self.links.len(), self.dir)
    }
}
