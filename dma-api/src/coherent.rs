//! Memory that CPU and device share.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

use platform::DmaAddr;
use zerocopy::{FromBytes, IntoBytes};

use crate::{Attrs, CoherentMemory, Device, DmaError, SgEntry, volatile};

/// What the CPU reads after this was written no earlier than what it read before (Linux: `dma_rmb`). Between reading an
/// entry's "valid" flag and the rest of the entry.
#[inline]
pub fn dma_rmb() {
    fence(Ordering::Acquire);
}

/// What the CPU wrote before this is visible to the device no later than what it writes after (Linux: `dma_wmb`). Between
/// filling an entry and marking it valid.
#[inline]
pub fn dma_wmb() {
    fence(Ordering::Release);
}

/// Elements in coherent memory (Linux: `dma_alloc_coherent`), read and written by value: the device may change them at any
/// moment, so there are no references to them.
///
/// Elements of 1, 2, 4 or 8 bytes are read and written at once; longer ones in pieces of 8 bytes in rising order, which may
/// tear.
pub struct CoherentSlice<T> {
    memory: CoherentMemory,
    len: usize,
    device: Arc<Device>,
    _elements: PhantomData<T>,
}

// SAFETY: elements are moved in and out by value, atomically piece by piece.
unsafe impl<T: Send> Send for CoherentSlice<T> {}
// SAFETY: as above; concurrent reads and writes may tear between pieces and are no data race.
unsafe impl<T: Send> Sync for CoherentSlice<T> {}

impl<T: FromBytes + IntoBytes> CoherentSlice<T> {
    /// `len` zeroed elements, at least one, aligned to a page.
    ///
    /// # Errors
    /// [`DmaError`] with the reason.
    #[track_caller]
    pub fn zeroed(device: &Arc<Device>, len: usize) -> Result<Self, DmaError> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(DmaError::InvalidLength(len))?;
        if align_of::<T>() > platform::frames::FRAME_SIZE {
            return Err(DmaError::InvalidAlignment(align_of::<T>()));
        }
        let memory = device.alloc_coherent(bytes, Attrs::empty())?;
        Ok(Self { memory, len, device: Arc::clone(device), _elements: PhantomData })
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least one element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the device finds the first element.
    pub fn dma_address(&self) -> DmaAddr {
        self.memory.dma
    }

    /// Reads element `index`.
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    #[inline]
    pub fn read(&self, index: usize) -> T {
        // SAFETY: the element is in the memory, which devices access atomically; any bytes are a `T`.
        unsafe { volatile::read(self.at(index)) }
    }

    /// Writes element `index`.
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    #[inline]
    pub fn write(&self, index: usize, value: T) {
        // SAFETY: as in `read`.
        unsafe { volatile::write(self.at(index), value) }
    }

    /// The elements of `range` for others to share, who keep the memory alive (Linux: `dma_mmap_coherent`).
    ///
    /// # Panics
    /// When there are no such elements, as a slice does.
    #[doc(alias = "dma_mmap_coherent")]
    pub fn view(self: &Arc<Self>, range: Range<usize>) -> CoherentView<T> {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        CoherentView { slice: Arc::clone(self), range }
    }

    #[inline]
    fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: the element is within the memory.
        unsafe { self.memory.cpu.as_ptr().cast::<T>().add(index) }
    }
}

impl<T> CoherentSlice<T> {
    /// The memory as a scatter list, for another device to map (Linux: `dma_get_sgtable`).
    ///
    /// # Errors
    /// [`DmaError::NotRam`] when the platform cannot tell where it is.
    #[doc(alias = "dma_get_sgtable")]
    pub fn sg_table(&self) -> Result<Vec<SgEntry>, DmaError> {
        self.device.sg_table(self.memory)
    }
}

impl<T> Drop for CoherentSlice<T> {
    fn drop(&mut self) {
        // SAFETY: it was allocated by this device with these attributes, and nobody can use it any more. When the device
        // may still reach it, the ops keep and count it.
        let _ = unsafe { self.device.free_coherent(self.memory, Attrs::empty()) };
    }
}

impl<T> fmt::Debug for CoherentSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CoherentSlice({} elements at {})", self.len, self.memory.dma)
    }
}

/// Elements of a [`CoherentSlice`] that others share: what `mmap` of coherent memory means where there is no user space. The
/// memory lives as long as its last view.
pub struct CoherentView<T> {
    slice: Arc<CoherentSlice<T>>,
    range: Range<usize>,
}

impl<T> Clone for CoherentView<T> {
    fn clone(&self) -> Self {
        Self { slice: Arc::clone(&self.slice), range: self.range.clone() }
    }
}

impl<T: FromBytes + IntoBytes> CoherentView<T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Where the device finds the first element.
    pub fn dma_address(&self) -> DmaAddr {
        self.slice.dma_address().wrapping_add((self.range.start * size_of::<T>()) as u64)
    }

    /// Reads element `index` of the view.
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    pub fn read(&self, index: usize) -> T {
        self.slice.read(self.place(index))
    }

    /// Writes element `index` of the view.
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    pub fn write(&self, index: usize, value: T) {
        self.slice.write(self.place(index), value);
    }

    fn place(&self, index: usize) -> usize {
        assert!(index < self.range.len(), "element {index} of {}", self.range.len());
        self.range.start + index
    }
}

impl<T> fmt::Debug for CoherentView<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CoherentView({:?} of {:?})", self.range, self.slice)
    }
}

/// One value in coherent memory, as [`CoherentSlice`] holds many.
#[derive(Debug)]
pub struct Coherent<T>(CoherentSlice<T>);

impl<T: FromBytes + IntoBytes> Coherent<T> {
    /// A zeroed value.
    ///
    /// # Errors
    /// [`DmaError`] with the reason.
    #[track_caller]
    pub fn zeroed(device: &Arc<Device>) -> Result<Self, DmaError> {
        Ok(Self(CoherentSlice::zeroed(device, 1)?))
    }

    /// Memory that holds `value` from the start.
    ///
    /// # Errors
    /// [`DmaError`] with the reason.
    #[track_caller]
    pub fn new(device: &Arc<Device>, value: T) -> Result<Self, DmaError> {
        let coherent = Self::zeroed(device)?;
        coherent.write(value);
        Ok(coherent)
    }

    /// Where the device finds it.
    pub fn dma_address(&self) -> DmaAddr {
        self.0.dma_address()
    }

    /// Reads the value.
    pub fn read(&self) -> T {
        self.0.read(0)
    }

    /// Writes the value.
    pub fn write(&self, value: T) {
        self.0.write(0, value);
    }
}
