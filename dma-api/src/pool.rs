//! Small coherent objects of one size.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use platform::DmaAddr;
use platform::frames::FRAME_SIZE;
use platform::sync::Mutex;
use zerocopy::{FromBytes, IntoBytes};

use crate::checked::PoolWatch;
use crate::{Attrs, CoherentMemory, Device, DmaError, volatile};

/// A pool of coherent blocks of one size, with alignment and a boundary that none crosses (Linux: `struct dma_pool`).
/// Taking a block and giving it back take constant time; memory goes back to the device when pool and blocks are gone.
///
/// A block owns itself: it cannot be given back twice, or to another pool. What safe code can still get wrong is reported for a
/// [checked](Device::checked) device (Linux: `DMAPOOL_DEBUG`): free blocks hold a pattern, and one that was written meanwhile,
/// by a device that had not stopped, is a [`Mistake::FreeBlockChanged`](crate::Mistake::FreeBlockChanged) when it is taken
/// again or the pool goes; a pool that goes before its blocks, so that nobody sees whether one was forgotten, is a
/// [`Mistake::PoolBusy`](crate::Mistake::PoolBusy).
#[doc(alias = "dma_pool_create")]
#[derive(Clone)]
pub struct DmaPool {
    owner: Arc<Owner>,
}

/// What the clones of a pool share. Blocks hold only what is within.
struct Owner(Arc<Inner>);

struct Inner {
    name: Box<str>,
    device: Arc<Device>,
    layout: Layout,
    state: Mutex<State>,
    watch: Option<PoolWatch>,
}

#[derive(Clone, Copy)]
struct Layout {
    /// Bytes in a block.
    size: usize,
    /// What blocks are aligned to.
    align: usize,
    /// From one block to the next.
    stride: usize,
    /// No block crosses a multiple of this.
    boundary: usize,
    /// Bytes in an allocation.
    slab: usize,
}

#[derive(Default)]
struct State {
    slabs: Vec<CoherentMemory>,
    /// How many blocks there are.
    blocks: usize,
    /// There is room for all of them, so that giving one back allocates nothing.
    free: Vec<Block>,
}

/// A block of a slab, as the CPU and the device see it.
#[derive(Clone, Copy)]
struct Block {
    cpu: *mut u8,
    dma: DmaAddr,
}

// SAFETY: a plain address of a block that is in one place only: the free list or an item.
unsafe impl Send for Block {}

impl DmaPool {
    /// A pool called `name` in messages, of blocks of `size` bytes aligned to `align`, a power of two of at most a page.
    /// No block crosses a multiple of `boundary`, a power of two of at least `size`; 0 means none.
    ///
    /// # Errors
    /// [`DmaError::InvalidLength`], [`DmaError::InvalidAlignment`].
    pub fn new(
        device: &Arc<Device>,
        name: &str,
        size: usize,
        align: usize,
        boundary: usize,
    ) -> Result<Self, DmaError> {
        if size == 0 || size > isize::MAX as usize / 2 - FRAME_SIZE {
            return Err(DmaError::InvalidLength(size));
        }
        if !align.is_power_of_two() || align > FRAME_SIZE {
            return Err(DmaError::InvalidAlignment(align));
        }
        if boundary != 0 && (!boundary.is_power_of_two() || boundary < size) {
            return Err(DmaError::InvalidAlignment(boundary));
        }
        let align = align.max(8);
        let stride = size.next_multiple_of(align);
        // Longer blocks may have to move up to a boundary, which is less than a block away: there must be room for one more.
        let moves = boundary != 0 && size > FRAME_SIZE;
        let slab = if moves { 2 * stride } else { stride }.next_multiple_of(FRAME_SIZE);
        let layout = Layout { size, align, stride, boundary, slab };
        let watch = device.debug().map(|debug| PoolWatch::new(debug, device.name(), name));
        let (name, device) = (name.into(), Arc::clone(device));
        let inner = Inner { name, device, layout, state: Mutex::default(), watch };
        Ok(Self { owner: Arc::new(Owner(Arc::new(inner))) })
    }

    /// Takes a zeroed block, as elements of `T` (Linux: `dma_pool_zalloc`).
    ///
    /// # Errors
    /// [`DmaError`] when the pool is empty and the device has no more coherent memory; [`DmaError::InvalidAlignment`] when
    /// blocks are not aligned for `T`.
    #[doc(alias = "dma_pool_alloc")]
    #[doc(alias = "dma_pool_zalloc")]
    #[track_caller]
    pub fn alloc<T: FromBytes + IntoBytes>(&self) -> Result<PoolItem<T>, DmaError> {
        let inner = &self.owner.0;
        let layout = inner.layout;
        if align_of::<T>() > layout.align || size_of::<T>() == 0 {
            return Err(DmaError::InvalidAlignment(align_of::<T>()));
        }
        let free = inner.state.lock().free.pop();
        // No closure: it would be the caller that a report names.
        let block = match free {
            Some(block) => block,
            None => inner.grow()?,
        };
        if let Some(watch) = &inner.watch {
            // SAFETY: the block was free, and is nobody else's now.
            unsafe { watch.take(block.dma, block.cpu, layout.size) };
        }
        let zeros = [0u8; 64];
        for at in (0..layout.size).step_by(zeros.len()) {
            let len = zeros.len().min(layout.size - at);
            // SAFETY: the block is `size` bytes, nobody else's; a device may still look at it, so atomically.
            unsafe { volatile::copy_in(zeros.as_ptr(), block.cpu.add(at), len) };
        }
        Ok(PoolItem {
            block,
            len: layout.size / size_of::<T>(),
            pool: Arc::clone(inner),
            _elements: PhantomData,
        })
    }
}

impl Inner {
    /// Takes a block of a new slab. The lock is not held while the device's ops are asked, which may take long: threads that
    /// find the pool empty at the same time grow it by a slab each.
    #[cold]
    #[track_caller]
    fn grow(&self) -> Result<Block, DmaError> {
        let memory = self.device.alloc_coherent(self.layout.slab, Attrs::empty())?;
        let mut fresh = self.layout.blocks(memory);
        if let Some(watch) = &self.watch {
            for block in &fresh {
                // SAFETY: the block is in memory that nobody else knows.
                unsafe { watch.poison(block.cpu, self.layout.size) };
            }
        }
        let mut state = self.state.lock();
        state.slabs.push(memory);
        state.blocks += fresh.len();
        let block = fresh.pop();
        let room = state.blocks - state.free.len();
        state.free.reserve(room);
        state.free.append(&mut fresh);
        block.ok_or(DmaError::OutOfMemory)
    }

    fn give_back(&self, block: Block) {
        if let Some(watch) = &self.watch {
            // SAFETY: the block's owner gives it up, and nobody else has it yet.
            unsafe { watch.give_back(block.dma, block.cpu, self.layout.size) };
        }
        self.state.lock().free.push(block);
    }
}

impl Layout {
    /// The blocks of a slab.
    fn blocks(&self, slab: CoherentMemory) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut offset = 0;
        while offset + self.size <= self.slab {
            let dma = slab.dma.wrapping_add(offset as u64);
            let last = dma.wrapping_add(self.size as u64 - 1);
            // Addresses from the boundary on, as the device sees them. (They are aligned as offsets are, to a page.)
            let beyond = last.offset_in(self.boundary.max(1) as u64) as usize + 1;
            if self.boundary != 0 && beyond < self.size {
                offset += (self.size - beyond).next_multiple_of(self.align);
                continue;
            }
            // SAFETY: the block is within the slab.
            let cpu = unsafe { slab.cpu.as_ptr().add(offset) };
            blocks.push(Block { cpu, dma });
            offset += self.stride;
        }
        blocks
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(watch) = &self.0.watch {
            watch.pool_gone();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if let Some(watch) = &self.watch {
            for block in &state.free {
                // SAFETY: the block is free, and its slab is still there.
                unsafe { watch.check(block.dma, block.cpu, self.layout.size) };
            }
        }
        for memory in state.slabs.drain(..) {
            // SAFETY: the slab came from this device, and no item is left: each holds the pool. When the device may still
            // reach it, the ops keep and count it.
            let _ = unsafe { self.device.free_coherent(memory, Attrs::empty()) };
        }
    }
}

impl fmt::Debug for DmaPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaPool({}, blocks of {} bytes)", self.owner.0.name, self.owner.0.layout.size)
    }
}

/// A block of a pool, read and written by value as a [`crate::CoherentSlice`] is. It goes back when dropped.
pub struct PoolItem<T> {
    block: Block,
    len: usize,
    pool: Arc<Inner>,
    _elements: PhantomData<T>,
}

// SAFETY: elements are moved in and out by value, atomically piece by piece.
unsafe impl<T: Send> Send for PoolItem<T> {}
// SAFETY: as above; concurrent reads and writes may tear between pieces and are no data race.
unsafe impl<T: Send> Sync for PoolItem<T> {}

impl<T: FromBytes + IntoBytes> PoolItem<T> {
    /// How many elements fit.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether not even one fits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the device finds the block.
    pub fn dma_address(&self) -> DmaAddr {
        self.block.dma
    }

    /// Reads element `index`.
    ///
    /// # Panics
    /// When there is no such element, as a slice does.
    #[inline]
    pub fn read(&self, index: usize) -> T {
        // SAFETY: the element is in the block, which devices access atomically; any bytes are a `T`.
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

    #[inline]
    fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: the element is within the block, which is aligned for it.
        unsafe { self.block.cpu.cast::<T>().add(index) }
    }
}

impl<T> Drop for PoolItem<T> {
    fn drop(&mut self) {
        self.pool.give_back(self.block);
    }
}

impl<T> fmt::Debug for PoolItem<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolItem({} bytes at {})", self.pool.layout.size, self.block.dma)
    }
}
