//! Streaming maps of several buffers at once.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use platform::frames::FRAME_SIZE;
use platform::{DmaAddr, PhysAddr};
use zerocopy::{FromBytes, IntoBytes};

use crate::elements::Elements;
use crate::stable::{BufferFor, ExclusiveBuffer, MapDirection};
use crate::{Attrs, Device, Direction, DmaError, MapFailed, Quarantined, SgEntry};

/// A part of a mapped scatter list, in one piece for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where the device finds it (Linux: `sg_dma_address`).
    pub address: DmaAddr,
    /// Its length in bytes (Linux: `sg_dma_len`).
    pub len: usize,
}

/// Buffers that are mapped together, and the device's (Linux: `dma_map_sgtable`). The device sees them one after the other,
/// as [segments](ScatterList::segments) that keep the device's longest segment and its segment boundary.
///
/// Buffers in the machine's RAM are mapped as one list, whose neighbours the backend may join. When a part of any buffer is
/// not RAM, that part must be bounced, and then every part of the list is mapped for itself.
///
/// It owns the buffers, so that nobody else touches them, and borrows its device. [`ScatterList::unmap`] gives them back.
/// Dropped, the list is unmapped and the buffers freed; when an unmap fails, all of them are leaked, since the device may
/// still reach them. Forgotten, they stay mapped for ever.
#[must_use = "a list that is dropped at once is unmapped at once"]
pub struct ScatterList<'d, B: BufferFor<D>, D: MapDirection> {
    // Taken by `unmap` and by drop.
    raw: ManuallyDrop<Vec<B::Raw>>,
    entries: Vec<SgEntry>,
    segments: usize,
    mapped: Mapped,
    device: &'d Device,
    _direction: PhantomData<D>,
}

/// How a list was mapped, and so how it is unmapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mapped {
    Together,
    Singly,
}

// SAFETY: the list owns its buffers; where they may go, so may the list. Their memory is not reached through it.
unsafe impl<B: BufferFor<D> + Send, D: MapDirection> Send for ScatterList<'_, B, D> {}
// SAFETY: through a shared list only addresses and lengths can be read.
unsafe impl<B: BufferFor<D> + Sync, D: MapDirection> Sync for ScatterList<'_, B, D> {}

impl<'d, B: BufferFor<D>, D: MapDirection> ScatterList<'d, B, D> {
    /// Maps the whole of every buffer for `device`.
    ///
    /// # Errors
    /// [`MapFailed`], with the buffers in their order: [`DmaError::InvalidLength`] when there is no buffer or an empty one.
    /// With [`DmaError::NotUndone`] the buffers are leaked and the vector is empty.
    #[doc(alias = "dma_map_sg")]
    #[doc(alias = "dma_map_sgtable")]
    #[track_caller]
    pub fn map(device: &'d Device, buffers: Vec<B>) -> Result<Self, MapFailed<Vec<B>>> {
        // Not dropped when the ops panic: nobody knows then whether the device has the buffers.
        let raw: ManuallyDrop<Vec<B::Raw>> =
            ManuallyDrop::new(buffers.into_iter().map(B::into_raw).collect());
        // SAFETY: the buffers' elements stay where they are and nobody has a reference to them (or only shared ones, and
        // then the device only reads) until they come back from `raw`; their types say that they are initialised.
        match unsafe { map_all(device, raw.iter().map(range::<B>), D::DIRECTION) } {
            Ok((entries, segments, mapped)) => {
                Ok(Self { raw, entries, segments, mapped, device, _direction: PhantomData })
            }
            Err(error @ DmaError::NotUndone(_)) => Err(MapFailed { error, buffer: Vec::new() }),
            Err(error) => {
                // SAFETY: nothing is mapped, so the buffers are as they were.
                Err(MapFailed { error, buffer: unsafe { take_back(ManuallyDrop::into_inner(raw)) } })
            }
        }
    }

    /// Where the device finds the buffers: all their bytes, in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + '_ {
        let segments = self.entries.iter().take(self.segments);
        segments.map(|entry| Segment { address: entry.dma_address, len: entry.dma_len })
    }

    /// Ends the mapping and gives the buffers back in their order, with what the device wrote.
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach a part of them; then all are leaked.
    #[doc(alias = "dma_unmap_sg")]
    #[doc(alias = "dma_unmap_sgtable")]
    pub fn unmap(self) -> Result<Vec<B>, Quarantined> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is forgotten, so its drop does not take the buffers again.
        unsafe { this.take(Attrs::empty()) }
    }

    /// Hands the buffers to the CPU, without ending the mapping (Linux: `dma_sync_sgtable_for_cpu`).
    #[doc(alias = "dma_sync_sg_for_cpu")]
    #[doc(alias = "dma_sync_sgtable_for_cpu")]
    pub fn sync_for_cpu(self) -> CpuOwnedList<'d, B, D> {
        match self.mapped {
            // SAFETY: the list is as its map left it.
            Mapped::Together => unsafe { self.device.sync_sg_for_cpu(&self.entries, D::DIRECTION) },
            Mapped::Singly => self.entries.iter().for_each(|entry| {
                // SAFETY: each entry is a mapping of its own.
                unsafe { self.device.sync_single_for_cpu(entry.dma_address, entry.dma_len, D::DIRECTION) };
            }),
        }
        CpuOwnedList(self)
    }

    /// Unmaps and takes the buffers.
    ///
    /// # Safety
    /// Called once; the list is not used after it.
    unsafe fn take(&mut self, attrs: Attrs) -> Result<Vec<B>, Quarantined> {
        let entries = core::mem::take(&mut self.entries);
        match self.mapped {
            // SAFETY: the list is as its map left it, and is unmapped once.
            Mapped::Together => unsafe { self.device.unmap_sg(&entries, D::DIRECTION, attrs) },
            // SAFETY: each entry was mapped for itself, and is unmapped once.
            Mapped::Singly => unsafe { unmap_singly(self.device, &entries, D::DIRECTION, attrs) },
        }?;
        // SAFETY: taken once, and the device does not reach the elements any more.
        Ok(unsafe { take_back(ManuallyDrop::take(&mut self.raw)) })
    }
}

impl<B: BufferFor<D>, D: MapDirection> Drop for ScatterList<'_, B, D> {
    fn drop(&mut self) {
        // SAFETY: this is the end. When the device may still reach the buffers, they are leaked.
        drop(unsafe { self.take(Attrs::empty()) });
    }
}

impl<B: BufferFor<D>, D: MapDirection> fmt::Debug for ScatterList<'_, B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScatterList({} buffers in {} segments, {:?})", self.raw.len(), self.segments, D::DIRECTION)
    }
}

/// The buffers of a mapped list, but the CPU's for now: they are read and written by value, by their number in the list, since
/// a device that does not keep to its turn may change them at any moment.
#[must_use = "a list that is dropped at once is unmapped at once"]
#[derive(Debug)]
pub struct CpuOwnedList<'d, B: BufferFor<D>, D: MapDirection>(ScatterList<'d, B, D>);

impl<'d, B: BufferFor<D>, D: MapDirection> CpuOwnedList<'d, B, D> {
    /// How many elements a buffer has.
    ///
    /// # Panics
    /// When there is no such buffer, as a slice does.
    pub fn len_of(&self, buffer: usize) -> usize {
        self.elements(buffer).len()
    }

    /// Hands the buffers to the device again (Linux: `dma_sync_sgtable_for_device`).
    #[doc(alias = "dma_sync_sg_for_device")]
    #[doc(alias = "dma_sync_sgtable_for_device")]
    pub fn sync_for_device(self) -> ScatterList<'d, B, D> {
        let ScatterList { device, entries, mapped, .. } = &self.0;
        match mapped {
            // SAFETY: the list is as its map left it.
            Mapped::Together => unsafe { device.sync_sg_for_device(entries, D::DIRECTION) },
            Mapped::Singly => entries.iter().for_each(|entry| {
                // SAFETY: each entry is a mapping of its own.
                unsafe { device.sync_single_for_device(entry.dma_address, entry.dma_len, D::DIRECTION) };
            }),
        }
        self.0
    }

    /// Ends the mapping and gives the buffers back in their order, as the CPU has them now.
    ///
    /// # Errors
    /// As [`ScatterList::unmap`].
    pub fn unmap(self) -> Result<Vec<B>, Quarantined> {
        let mut list = ManuallyDrop::new(self.0);
        // SAFETY: it is forgotten, so its drop does not take the buffers again. What the device wrote is here already.
        unsafe { list.take(Attrs::SKIP_CPU_SYNC) }
    }

    fn elements(&self, buffer: usize) -> Elements<B::Item> {
        let (at, len) = B::raw_slice(&self.0.raw[buffer]);
        // SAFETY: the elements are in the buffer, which is given up: nobody writes them but a device.
        unsafe { Elements::new(at, len) }
    }
}

impl<B: BufferFor<D>, D: MapDirection> CpuOwnedList<'_, B, D>
where
    B::Item: FromBytes,
{
    /// Copies elements of a buffer out, from `first` on, as many as `into` holds.
    ///
    /// # Panics
    /// When there are not so many, or there is no such buffer, as a slice does.
    pub fn copy_to_slice(&self, buffer: usize, first: usize, into: &mut [B::Item]) {
        self.elements(buffer).copy_to_slice(first, into);
    }
}

impl<B: BufferFor<D> + ExclusiveBuffer, D: MapDirection> CpuOwnedList<'_, B, D>
where
    B::Item: IntoBytes,
{
    /// Copies elements into a buffer, from `first` on.
    ///
    /// # Panics
    /// When there are not so many, or there is no such buffer, as a slice does.
    pub fn copy_from_slice(&mut self, buffer: usize, first: usize, from: &[B::Item]) {
        // SAFETY: the buffer is exclusive.
        unsafe { self.elements(buffer).copy_from_slice(first, from) };
    }
}

/// # Safety
/// As `StableBuffer::from_raw`, for each.
unsafe fn take_back<B: crate::StableBuffer>(raw: Vec<B::Raw>) -> Vec<B> {
    // SAFETY: the caller's promise.
    raw.into_iter().map(|raw| unsafe { B::from_raw(raw) }).collect()
}

/// A buffer's bytes.
fn range<B: crate::StableBuffer>(raw: &B::Raw) -> (NonNull<u8>, usize) {
    let (at, len) = B::raw_slice(raw);
    (at.cast(), len * size_of::<B::Item>())
}

/// Maps ranges together where all of them are RAM, else part by part.
///
/// # Safety
/// As [`Device::map_single`], for each range.
#[track_caller]
unsafe fn map_all(
    device: &Device,
    ranges: impl ExactSizeIterator<Item = (NonNull<u8>, usize)>,
    dir: Direction,
) -> Result<(Vec<SgEntry>, usize, Mapped), DmaError> {
    if ranges.len() == 0 {
        return Err(DmaError::InvalidLength(0));
    }
    let mut parts = Vec::with_capacity(ranges.len());
    for (at, len) in ranges {
        if len == 0 {
            return Err(DmaError::InvalidLength(len));
        }
        split(device, at, len, &mut parts);
    }
    let entry = |part: &Part| part.phys.map(|phys| SgEntry::new(phys, part.len));
    let entries: Option<Vec<SgEntry>> = parts.iter().map(entry).collect();
    if let Some(mut entries) = entries {
        // SAFETY: the caller's promise; the entries are the ranges' RAM.
        let segments = unsafe { device.map_sg(&mut entries, dir, Attrs::empty()) }?;
        return Ok((entries, segments, Mapped::Together));
    }
    let mut entries = Vec::with_capacity(parts.len());
    for part in &parts {
        // SAFETY: the caller's promise; the part is of one of the ranges.
        match unsafe { device.map_single(part.cpu, part.len, dir, Attrs::empty()) } {
            Ok(dma_address) => {
                let phys = part.phys.unwrap_or_default();
                entries.push(SgEntry { phys, len: part.len, dma_address, dma_len: part.len });
            }
            Err(error) => {
                // SAFETY: these were mapped just now, each for itself.
                let undone = unsafe { unmap_singly(device, &entries, dir, Attrs::SKIP_CPU_SYNC) };
                return Err(undone.err().map_or(error, DmaError::NotUndone));
            }
        }
    }
    let segments = entries.len();
    Ok((entries, segments, Mapped::Singly))
}

/// Unmaps every entry, also after one that fails, and tells the first failure.
///
/// # Safety
/// Each entry was mapped for itself in this direction, and is unmapped once.
unsafe fn unmap_singly(
    device: &Device,
    entries: &[SgEntry],
    dir: Direction,
    attrs: Attrs,
) -> Result<(), Quarantined> {
    let mut result = Ok(());
    for entry in entries {
        // SAFETY: the caller's promise.
        let unmapped = unsafe { device.unmap_single(entry.dma_address, entry.dma_len, dir, attrs) };
        result = result.and(unmapped);
    }
    result
}

/// A part of a buffer that one segment can hold.
struct Part {
    cpu: NonNull<u8>,
    len: usize,
    /// `None` when it is not RAM, and must be bounced.
    phys: Option<PhysAddr>,
}

/// Splits a range where it is not contiguous, and where a segment of the device must end.
fn split(device: &Device, at: NonNull<u8>, len: usize, parts: &mut Vec<Part>) {
    let parms = device.parms();
    let boundary = parms.segment_boundary();
    let longest = usize::try_from(parms.max_segment_size().min(boundary.saturating_add(1)));
    let longest = longest.unwrap_or(usize::MAX).min(device.max_mapping_size()).max(1);
    let mut done = 0;
    while done < len {
        // SAFETY: the part begins within the range.
        let cpu = unsafe { at.add(done) };
        let left = len - done;
        let extent = device.platform().translate(cpu.as_ptr(), left).filter(|extent| extent.len != 0);
        let whole = extent.map_or(left, |extent| extent.len.min(left));
        let mut part = whole.min(longest);
        // What is not RAM gets its place in the pool, which keeps the boundary.
        let place = match extent {
            Some(extent) => {
                let to_boundary = (boundary - (extent.phys.get() & boundary)).saturating_add(1);
                part = part.min(usize::try_from(to_boundary).unwrap_or(usize::MAX));
                extent.phys.get() as usize
            }
            None => cpu.as_ptr().addr(),
        };
        // A cut is made at a page if possible, so that what follows is aligned, and neighbours can join.
        let over = place.wrapping_add(part) % FRAME_SIZE;
        if part < whole && over < part {
            part -= over;
        }
        parts.push(Part { cpu, len: part, phys: extent.map(|extent| extent.phys) });
        done += part;
    }
}
