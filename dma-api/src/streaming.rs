//! Streaming maps: a buffer is the device's for a while, and then comes back.

use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;

use platform::DmaAddr;
use zerocopy::{FromBytes, IntoBytes};

use crate::elements::Elements;
use crate::stable::{BufferFor, ExclusiveBuffer, MapDirection};
use crate::{Attrs, Device, DmaError, Quarantined};

/// A buffer that is mapped, and the device's (Linux: `dma_map_single` and its neighbours).
///
/// It owns the buffer, so that nobody else touches it, and borrows its device. [`Streaming::unmap`] gives the buffer back.
/// Dropped, it is unmapped and the buffer freed; when an unmap fails, the buffer is leaked, since the device may still
/// reach it. Forgotten, it stays mapped for ever, and the buffer with it.
///
/// While it is mapped there is no way to the buffer, and the mapping does not outlive its device. Elements are what may be
/// read as bytes, and written with any bytes where the device writes; what others hold is mapped to the device alone. All of
/// that is the types' to say: a mistake does not compile.
///
/// ```
/// # fn example(device: &dma_api::Device) -> Result<(), Box<dyn std::error::Error>> {
/// use dma_api::{FromDevice, Streaming, ToDevice};
///
/// let mapped = Streaming::<_, FromDevice>::map(device, vec![0u8; 512])?;
/// let owned = mapped.sync_for_cpu();
/// let first = owned.read(0);
/// let mut buffer = owned.unmap()?;
/// buffer[0] = first + 1;
/// let shared: std::sync::Arc<[u8]> = buffer.into();
/// Streaming::<_, ToDevice>::map(device, shared)?.unmap()?;
/// Streaming::<_, ToDevice>::map(device, vec![true; 512])?.unmap()?;
/// # Ok(()) }
/// ```
#[must_use = "a mapping that is dropped at once is unmapped at once"]
pub struct Streaming<'d, B: BufferFor<D>, D: MapDirection> {
    // Taken by `unmap` and by drop.
    raw: ManuallyDrop<B::Raw>,
    address: DmaAddr,
    bytes: usize,
    device: &'d Device,
    _direction: PhantomData<D>,
}

// SAFETY: the mapping owns its buffer; where the buffer may go, so may the mapping. Its memory is reached only by value.
unsafe impl<B: BufferFor<D> + Send, D: MapDirection> Send for Streaming<'_, B, D> {}
// SAFETY: through a shared mapping only its address and length can be read.
unsafe impl<B: BufferFor<D> + Sync, D: MapDirection> Sync for Streaming<'_, B, D> {}

/// A buffer that could not be mapped, and why.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct MapFailed<B> {
    /// Why.
    pub error: DmaError,
    /// The buffer, as it was.
    pub buffer: B,
}

impl<B> fmt::Debug for MapFailed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MapFailed({:?})", self.error)
    }
}

impl<'d, B: BufferFor<D>, D: MapDirection> Streaming<'d, B, D> {
    /// Maps the whole of `buffer` for `device`.
    ///
    /// # Errors
    /// [`MapFailed`], with the buffer.
    #[doc(alias = "dma_map_single")]
    #[inline]
    #[track_caller]
    pub fn map(device: &'d Device, buffer: B) -> Result<Self, MapFailed<B>> {
        // Not dropped when the ops panic: nobody knows then whether the device has the buffer.
        let raw = ManuallyDrop::new(buffer.into_raw());
        let (at, len) = B::raw_slice(&raw);
        let bytes = len * size_of::<B::Item>();
        // SAFETY: the buffer's elements stay where they are and nobody has a reference to them (or only shared ones, and
        // then the device only reads) until they come back from `raw`; their types say that they are initialised.
        match unsafe { device.map_single(at.cast(), bytes, D::DIRECTION, Attrs::empty()) } {
            Ok(address) => Ok(Self { raw, address, bytes, device, _direction: PhantomData }),
            Err(error) => {
                // SAFETY: nothing was mapped, so the buffer is as it was.
                Err(MapFailed { error, buffer: unsafe { B::from_raw(ManuallyDrop::into_inner(raw)) } })
            }
        }
    }

    /// Where the device finds the buffer.
    #[inline]
    pub fn dma_address(&self) -> DmaAddr {
        self.address
    }

    /// The buffer's length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: an empty buffer cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Ends the mapping and gives the buffer back, with what the device wrote.
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the buffer, which is then leaked.
    #[doc(alias = "dma_unmap_single")]
    #[inline]
    pub fn unmap(self) -> Result<B, Quarantined> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is forgotten, so its drop does not take the buffer again.
        unsafe { this.take(Attrs::empty()) }
    }

    /// Hands the buffer to the CPU, without ending the mapping (Linux: `dma_sync_single_for_cpu`).
    #[doc(alias = "dma_sync_single_for_cpu")]
    pub fn sync_for_cpu(self) -> CpuOwned<'d, B, D> {
        // SAFETY: this is the whole of a live mapping, with its direction.
        unsafe { self.device.sync_single_for_cpu(self.address, self.bytes, D::DIRECTION) };
        CpuOwned(self)
    }

    /// Hands `count` elements from `first` on to the CPU, until what this returns is dropped (Linux:
    /// `dma_sync_single_range_for_cpu`).
    ///
    /// # Panics
    /// When there are no such elements, as a slice does.
    #[doc(alias = "dma_sync_single_range_for_cpu")]
    pub fn sync_range_for_cpu(&mut self, first: usize, count: usize) -> CpuPart<'_, 'd, B, D> {
        let elements = self.elements().part(first, count);
        let address = self.address.wrapping_add((first * size_of::<B::Item>()) as u64);
        let part = CpuPart { elements, address, mapping: self };
        // SAFETY: this is a part of a live mapping, with its direction.
        unsafe { part.mapping.device.sync_single_for_cpu(address, part.bytes(), D::DIRECTION) };
        part
    }

    fn elements(&self) -> Elements<B::Item> {
        let (at, len) = B::raw_slice(&self.raw);
        // SAFETY: the elements are in the buffer, which is given up: nobody writes them but a device.
        unsafe { Elements::new(at, len) }
    }

    /// Unmaps and takes the buffer.
    ///
    /// # Safety
    /// Called once; the mapping is not used after it.
    #[inline]
    unsafe fn take(&mut self, attrs: Attrs) -> Result<B, Quarantined> {
        // SAFETY: this is the mapping that `map` made, ended once.
        unsafe { self.device.unmap_single(self.address, self.bytes, D::DIRECTION, attrs) }?;
        // SAFETY: taken once, and the device does not reach the elements any more.
        Ok(unsafe { B::from_raw(ManuallyDrop::take(&mut self.raw)) })
    }
}

impl<B: BufferFor<D>, D: MapDirection> Drop for Streaming<'_, B, D> {
    fn drop(&mut self) {
        // SAFETY: this is the end. When the device may still reach the buffer, it is leaked.
        drop(unsafe { self.take(Attrs::empty()) });
    }
}

impl<B: BufferFor<D>, D: MapDirection> fmt::Debug for Streaming<'_, B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Streaming({} bytes at {}, {:?})", self.bytes, self.address, D::DIRECTION)
    }
}

/// A buffer that is mapped, but the CPU's for now. It is read and written by value, since a device that does not keep to
/// its turn may change it at any moment; only [`CpuOwned::unmap`] gives a slice.
///
/// What others can read (an `Arc`) is not written.
#[must_use = "a mapping that is dropped at once is unmapped at once"]
#[derive(Debug)]
pub struct CpuOwned<'d, B: BufferFor<D>, D: MapDirection>(Streaming<'d, B, D>);

impl<'d, B: BufferFor<D>, D: MapDirection> CpuOwned<'d, B, D> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.0.elements().len()
    }

    /// Never: an empty buffer cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands the buffer to the device again (Linux: `dma_sync_single_for_device`).
    #[doc(alias = "dma_sync_single_for_device")]
    pub fn sync_for_device(self) -> Streaming<'d, B, D> {
        // SAFETY: this is the whole of a live mapping, with its direction.
        unsafe { self.0.device.sync_single_for_device(self.0.address, self.0.bytes, D::DIRECTION) };
        self.0
    }

    /// Ends the mapping and gives the buffer back, as the CPU has it now.
    ///
    /// # Errors
    /// [`Quarantined`] when the device may still reach the buffer, which is then leaked.
    pub fn unmap(self) -> Result<B, Quarantined> {
        let mut mapping = ManuallyDrop::new(self.0);
        // SAFETY: it is forgotten, so its drop does not take the buffer again. What the device wrote is here since
        // `sync_for_cpu`; handing over again would put its copy, or stale memory, over what the CPU has written.
        unsafe { mapping.take(Attrs::SKIP_CPU_SYNC) }
    }
}

impl<B: BufferFor<D>, D: MapDirection> CpuOwned<'_, B, D>
where
    B::Item: FromBytes,
{
    /// Reads element `index`.
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    pub fn read(&self, index: usize) -> B::Item {
        self.0.elements().read(index)
    }

    /// Copies elements out, from `first` on, as many as `into` holds.
    ///
    /// # Panics
    /// When there are not so many, as a slice does.
    pub fn copy_to_slice(&self, first: usize, into: &mut [B::Item]) {
        self.0.elements().copy_to_slice(first, into);
    }
}

impl<B: BufferFor<D> + ExclusiveBuffer, D: MapDirection> CpuOwned<'_, B, D>
where
    B::Item: IntoBytes,
{
    /// Writes element `index`.
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    pub fn write(&mut self, index: usize, value: B::Item) {
        // SAFETY: the buffer is exclusive.
        unsafe { self.0.elements().write(index, value) };
    }

    /// Copies elements in, from `first` on.
    ///
    /// # Panics
    /// When there are not so many, as a slice does.
    pub fn copy_from_slice(&mut self, first: usize, from: &[B::Item]) {
        // SAFETY: the buffer is exclusive.
        unsafe { self.0.elements().copy_from_slice(first, from) };
    }
}

/// A part of a mapped buffer that is the CPU's for now; the rest stays the device's. Dropped, the part is the device's again
/// (Linux: `dma_sync_single_range_for_device`).
#[must_use = "what is dropped at once is the device's again"]
#[doc(alias = "dma_sync_single_range_for_device")]
pub struct CpuPart<'m, 'd, B: BufferFor<D>, D: MapDirection> {
    elements: Elements<B::Item>,
    address: DmaAddr,
    mapping: &'m mut Streaming<'d, B, D>,
}

impl<B: BufferFor<D>, D: MapDirection> CpuPart<'_, '_, B, D> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bytes(&self) -> usize {
        self.len() * size_of::<B::Item>()
    }
}

impl<B: BufferFor<D>, D: MapDirection> CpuPart<'_, '_, B, D>
where
    B::Item: FromBytes,
{
    /// Copies elements out, from `first` of the part on, as many as `into` holds.
    ///
    /// # Panics
    /// When there are not so many, as a slice does.
    pub fn copy_to_slice(&self, first: usize, into: &mut [B::Item]) {
        self.elements.copy_to_slice(first, into);
    }
}

impl<B: BufferFor<D> + ExclusiveBuffer, D: MapDirection> CpuPart<'_, '_, B, D>
where
    B::Item: IntoBytes,
{
    /// Copies elements in, from `first` of the part on.
    ///
    /// # Panics
    /// When there are not so many, as a slice does.
    pub fn copy_from_slice(&mut self, first: usize, from: &[B::Item]) {
        // SAFETY: the buffer is exclusive.
        unsafe { self.elements.copy_from_slice(first, from) };
    }
}

impl<B: BufferFor<D>, D: MapDirection> Drop for CpuPart<'_, '_, B, D> {
    fn drop(&mut self) {
        // SAFETY: this is a part of a live mapping, with its direction.
        unsafe { self.mapping.device.sync_single_for_device(self.address, self.bytes(), D::DIRECTION) };
    }
}

impl<B: BufferFor<D>, D: MapDirection> fmt::Debug for CpuPart<'_, '_, B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuPart({} bytes at {}, {:?})", self.bytes(), self.address, D::DIRECTION)
    }
}
