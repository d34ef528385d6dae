//! Pages that CPU and device use in turns.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use platform::DmaAddr;

use crate::elements::Elements;
use crate::stable::MapDirection;
use crate::{Attrs, Device, DmaError, PageMemory};

/// Pages and whose they are.
struct Pages<D: MapDirection> {
    memory: PageMemory,
    attrs: Attrs,
    device: Arc<Device>,
    _direction: PhantomData<D>,
}

impl<D: MapDirection> Drop for Pages<D> {
    fn drop(&mut self) {
        let kept = PageMemory { pieces: Box::default(), ..self.memory };
        let memory = core::mem::replace(&mut self.memory, kept);
        // SAFETY: they were allocated by this device with these arguments, and nobody can use them any more. When the device
        // may still reach them, the ops keep and count them.
        let _ = unsafe { self.device.free_pages(memory, D::DIRECTION, self.attrs) };
    }
}

impl<D: MapDirection> fmt::Debug for Pages<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PageMemory { dma, size, pieces } = &self.memory;
        write!(f, "{size} bytes at {dma} in {} pieces, {:?}", pieces.len(), D::DIRECTION)
    }
}

/// Pages while they are the device's (Linux: `dma_alloc_pages`, `dma_alloc_noncontiguous`).
///
/// Unlike [`Coherent`](crate::Coherent) memory they go through the caches also where a device does not see these, so CPU and
/// device take turns; unlike a [`Streaming`](crate::Streaming) map they stay mapped from the start, and they may be long, since
/// behind an IOMMU they need not be in one piece of memory.
///
/// ```
/// # fn example(device: &std::sync::Arc<dma_api::Device>, start: impl Fn(u64), wait: impl Fn()) -> Result<(), dma_api::DmaError> {
/// let mut pages = dma_api::CpuPages::<dma_api::Bidirectional>::zeroed(device, 1 << 20)?;
/// pages.copy_from_slice(0, b"request");
/// let theirs = pages.sync_for_device();
/// start(theirs.dma_address().get());
/// wait();
/// let pages = theirs.sync_for_cpu();
/// let mut answer = [0; 16];
/// pages.copy_to_slice(0, &mut answer);
/// # Ok(()) }
/// ```
///
/// The CPU has no way to them meanwhile:
///
/// ```compile_fail,E0599
/// # fn example(pages: dma_api::DmaPages<dma_api::Bidirectional>) {
/// pages.copy_to_slice(0, &mut [0; 16]);
/// # }
/// ```
#[derive(Debug)]
pub struct DmaPages<D: MapDirection>(Pages<D>);

impl<D: MapDirection> DmaPages<D> {
    /// Where the device finds the first byte.
    pub fn dma_address(&self) -> DmaAddr {
        self.0.memory.dma
    }

    /// Hands the pages to the CPU.
    pub fn sync_for_cpu(self) -> CpuPages<D> {
        let Pages { memory, device, .. } = &self.0;
        // SAFETY: this is the whole of a live allocation in this direction.
        unsafe { device.sync_single_for_cpu(memory.dma, memory.size, D::DIRECTION) };
        CpuPages(self.0)
    }
}

/// Pages while they are the CPU's, as they are at first. They are read and written by value, since a device that does not keep
/// to its turn may change them at any moment.
#[derive(Debug)]
pub struct CpuPages<D: MapDirection>(Pages<D>);

impl<D: MapDirection> CpuPages<D> {
    /// `size` zeroed bytes, in one run of addresses for the device (Linux: `dma_alloc_noncontiguous`).
    ///
    /// # Errors
    /// [`DmaError`] with the reason; [`DmaError::InvalidLength`] for no bytes.
    #[doc(alias = "dma_alloc_noncontiguous")]
    #[track_caller]
    pub fn zeroed(device: &Arc<Device>, size: usize) -> Result<Self, DmaError> {
        Self::alloc(device, size, Attrs::empty())
    }

    /// The same, in one piece of memory too (Linux: `dma_alloc_pages`).
    ///
    /// # Errors
    /// As [`CpuPages::zeroed`].
    #[doc(alias = "dma_alloc_pages")]
    #[doc(alias = "dma_alloc_noncoherent")]
    #[track_caller]
    pub fn contiguous(device: &Arc<Device>, size: usize) -> Result<Self, DmaError> {
        Self::alloc(device, size, Attrs::FORCE_CONTIGUOUS)
    }

    #[track_caller]
    fn alloc(device: &Arc<Device>, size: usize, attrs: Attrs) -> Result<Self, DmaError> {
        let memory = device.alloc_pages(size, D::DIRECTION, attrs)?;
        Ok(Self(Pages { memory, attrs, device: Arc::clone(device), _direction: PhantomData }))
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.memory.size
    }

    /// Never: there is at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands the pages to the device.
    pub fn sync_for_device(self) -> DmaPages<D> {
        let Pages { memory, device, .. } = &self.0;
        // SAFETY: this is the whole of a live allocation in this direction.
        unsafe { device.sync_single_for_device(memory.dma, memory.size, D::DIRECTION) };
        DmaPages(self.0)
    }

    /// Copies bytes out, from `first` on, as many as `into` holds.
    ///
    /// # Panics
    /// When there are not so many, as a slice does.
    pub fn copy_to_slice(&self, first: usize, into: &mut [u8]) {
        self.each_piece(first, into.len(), |elements, at| {
            elements.copy_to_slice(0, &mut into[at..at + elements.len()]);
        });
    }

    /// Copies bytes in, from `first` on.
    ///
    /// # Panics
    /// When there are not so many, as a slice does.
    pub fn copy_from_slice(&mut self, first: usize, from: &[u8]) {
        self.each_piece(first, from.len(), |elements, at| {
            // SAFETY: the pages are this value's own, which gives out no reference.
            unsafe { elements.copy_from_slice(0, &from[at..at + elements.len()]) };
        });
    }

    /// Calls `body` with each piece of a range of bytes, and where in the range it begins.
    fn each_piece(&self, first: usize, count: usize, mut body: impl FnMut(Elements<u8>, usize)) {
        let size = self.len();
        assert!(first <= size && count <= size - first, "bytes {first}.. of {size}, {count} of them");
        let (mut skip, mut done) = (first, 0);
        for piece in &self.0.memory.pieces {
            let from = skip.min(piece.len);
            let len = (piece.len - from).min(count - done);
            if len != 0 {
                // SAFETY: the piece is this value's own memory, which nobody writes but a device, atomically.
                body(unsafe { Elements::new(piece.cpu, piece.len) }.part(from, len), done);
            }
            skip -= from;
            done += len;
        }
    }
}
