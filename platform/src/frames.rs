//! Page frames: memory that devices and their IOMMU see, and the way from a physical address to the CPU's.

use core::fmt;
use core::ptr::NonNull;

use crate::PhysAddr;
#[cfg(not(loom))]
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::AtomicU64;

/// The page frame that the traits of this crate speak of, in bytes. Page tables with another granule ask for what they
/// need by size and alignment.
pub const FRAME_SIZE: usize = 4096;

/// How many words of a frame exist: all of them in life, four in a model (loom pays for each atomic). Who asks for less than a
/// frame, a short ring for a model, gets as many words as that takes, four at least.
pub const WORDS_PER_FRAME: usize = if cfg!(loom) { 4 } else { FRAME_SIZE / 8 };

/// What is wanted of [`Frames::alloc`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRequest {
    /// Bytes. An allocator that has nothing smaller rounds up to whole frames.
    pub size: usize,
    /// Alignment in bytes, a power of two.
    pub align: usize,
    /// The highest physical address that the last byte may have.
    pub limit: PhysAddr,
}

impl FrameRequest {
    /// One frame anywhere.
    pub const ONE: Self = Self::anywhere(FRAME_SIZE);

    /// `size` bytes, physically contiguous, anywhere.
    pub const fn anywhere(size: usize) -> Self {
        Self { size, align: FRAME_SIZE, limit: PhysAddr::new(u64::MAX) }
    }
}

/// No run of frames satisfies the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no {size} contiguous bytes of memory, aligned to {align}, at or below {limit}", size = .0.size, align = .0.align, limit = .0.limit)]
pub struct OutOfFrames(pub FrameRequest);

/// The physically contiguous memory behind a pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Physical address of the first byte.
    pub phys: PhysAddr,
    /// How many bytes from there on are contiguous, at most as many as were asked for.
    pub len: usize,
}

/// The machine's memory: page frames to take and give back, and addresses translated both ways.
///
/// # Safety
/// Page tables, rings and safe buffer types are built in what `alloc` returns. An implementation promises:
/// - frames handed out are RAM, zeroed, not in use by anybody else, and reachable through [`Frames::window`] until they
///   are freed;
/// - `window` answers the same forever, and stays valid as long as anything holds the implementation;
/// - `translate` says the truth about memory that is allocated, for as long as it stays allocated: the answer belongs to
///   the pages themselves, which are not moved or swapped.
pub unsafe trait Frames: Send + Sync + fmt::Debug {
    /// Takes physically contiguous, zeroed memory (Linux: `alloc_pages` and `__GFP_ZERO`).
    ///
    /// # Errors
    /// [`OutOfFrames`] when nothing satisfies the request.
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `at` and `size` are what one call of [`Frames::alloc`] returned and was asked for, nobody frees them twice, and
    /// from now on neither the CPU nor a device touches them.
    unsafe fn free(&self, at: PhysAddr, size: usize);

    /// The linear window through which the CPU sees frames.
    fn window(&self) -> Window;

    /// The physically contiguous extent that starts at `at` and is at most `len` bytes long, or `None` when this memory
    /// is not the machine's RAM. A kernel's heap is RAM; on a simulated machine the process's heap is not.
    ///
    /// Asked only about what [`Window::translate`] does not know.
    fn translate(&self, at: *const u8, len: usize) -> Option<Extent>;

    /// Shows frames that lie anywhere to the CPU in one piece, in this order (Linux: `vmap`), each given by its address and
    /// length in whole frames. [`Frames::translate`] knows what is seen so. `None` where the platform has no such way, or no
    /// room for it; then memory for a device must be contiguous.
    ///
    /// # Safety
    /// The frames are the caller's, and stay so until [`Frames::vunmap`].
    unsafe fn vmap(&self, pieces: &[(PhysAddr, usize)]) -> Option<NonNull<u8>> {
        let _ = pieces;
        None
    }

    /// Ends what [`Frames::vmap`] has made of `size` bytes.
    ///
    /// # Safety
    /// `at` is what it returned for pieces of that length together; ended once, and the CPU uses it no more.
    unsafe fn vunmap(&self, at: NonNull<u8>, size: usize) {
        let _ = (at, size);
    }

    /// The last physical address of RAM, or all ones when nobody knows (Linux: `max_pfn`): what a device must reach at most.
    fn last(&self) -> PhysAddr {
        PhysAddr::new(u64::MAX)
    }
}

/// Where the CPU sees physical memory: at a constant distance, so that translating is one addition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// What to add to a physical address, wrapping.
    offset: usize,
    /// First address and length of one stretch of RAM, as the CPU sees it.
    ram: usize,
    ram_len: usize,
}

impl Window {
    /// The window that shows physical address `p` at virtual address `p + offset`, wrapping. A kernel passes the start of
    /// its linear map.
    ///
    /// The memory behind it must have exposed provenance (`ptr::expose_provenance`) when it is an allocation of this
    /// program.
    ///
    /// # Safety
    /// Every frame that the machine's [`Frames`] hands out is at that distance, readable and writable.
    pub const unsafe fn new(offset: usize) -> Self {
        Self { offset, ram: 0, ram_len: 0 }
    }

    /// The same window, which knows that the `len` bytes of physical memory from `first` on are all RAM: the machine's largest
    /// stretch of it, best. What lies there is translated without asking [`Frames::translate`].
    ///
    /// # Safety
    /// What the CPU sees there through the window is RAM, or memory that nobody passes to the DMA API.
    #[must_use]
    pub const unsafe fn with_ram(self, first: PhysAddr, len: usize) -> Self {
        Self { ram: (first.get() as usize).wrapping_add(self.offset), ram_len: len, ..self }
    }

    /// The physical address of `len` bytes at `at` that all lie in the RAM that the window knows; `None` says nothing:
    /// [`Frames::translate`] may know more.
    #[inline]
    pub fn translate(self, at: *const u8, len: usize) -> Option<PhysAddr> {
        let before = at.addr().wrapping_sub(self.ram);
        (before < self.ram_len && len <= self.ram_len - before).then(|| self.phys(at))
    }

    /// Where the CPU sees `at`. The pointer is only as good as the frame behind it.
    #[inline]
    pub fn ptr(self, at: PhysAddr) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut((at.get() as usize).wrapping_add(self.offset))
    }

    /// The physical address that the CPU sees at `at`, for a pointer that came from [`Window::ptr`].
    #[inline]
    pub fn phys(self, at: *const u8) -> PhysAddr {
        PhysAddr::new(at.addr().wrapping_sub(self.offset) as u64)
    }

    /// The 64-bit word at `at`: an entry of a table or ring, or the word that a completion is stored to. This and
    /// its neighbours are the only ways to such words, so that models drive the same code.
    ///
    /// # Safety
    /// `at` is 8-byte aligned and lies in a frame that stays allocated for `'a`. Whoever else accesses the word
    /// meanwhile does it atomically (hardware does).
    #[inline]
    pub unsafe fn word<'a>(self, at: PhysAddr) -> &'a AtomicU64 {
        debug_assert!(at.is_aligned(8));
        #[cfg(not(loom))]
        {
            // SAFETY: the caller promises an aligned word in a live frame, accessed atomically by everybody.
            unsafe { AtomicU64::from_ptr(self.ptr(at).cast()) }
        }
        #[cfg(loom)]
        {
            let index = at.offset_in(FRAME_SIZE as u64) as usize / 8;
            // SAFETY: as above; in a model every frame is a `ModelFrame`.
            let frame = unsafe { &*self.ptr(at.align_down(FRAME_SIZE as u64)).cast::<model::ModelFrame>() };
            &frame.words[index % frame.words.len()]
        }
    }

    /// `count` words from `at` on: entries of a page table. In a model as many of them as the frame has.
    ///
    /// # Safety
    /// As [`Window::word`], for each word; they are in what one call of [`Frames::alloc`] returned.
    #[inline]
    pub unsafe fn words<'a>(self, at: PhysAddr, count: usize) -> &'a [AtomicU64] {
        debug_assert!(at.is_aligned(8));
        #[cfg(not(loom))]
        {
            // SAFETY: the caller promises live memory, accessed atomically by everybody; AtomicU64 has the layout of u64.
            unsafe { core::slice::from_raw_parts(self.ptr(at).cast::<AtomicU64>(), count) }
        }
        #[cfg(loom)]
        {
            let index = at.offset_in(FRAME_SIZE as u64) as usize / 8;
            // SAFETY: as above; in a model every frame is a `ModelFrame`.
            let frame = unsafe { &*self.ptr(at.align_down(FRAME_SIZE as u64)).cast::<model::ModelFrame>() };
            let from = index % frame.words.len();
            &frame.words[from..(from + count).min(frame.words.len())]
        }
    }

    /// The 32-bit word at `at`, an entry of a table that has such. Not for models.
    ///
    /// # Safety
    /// As [`Window::word`], with an alignment of four.
    #[inline]
    #[cfg(not(loom))]
    pub unsafe fn half_word<'a>(self, at: PhysAddr) -> &'a AtomicU32 {
        debug_assert!(at.is_aligned(4));
        // SAFETY: the caller promises an aligned word in a live frame, accessed atomically by everybody.
        unsafe { AtomicU32::from_ptr(self.ptr(at).cast()) }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window(+{:#x})", self.offset)
    }
}

#[cfg(loom)]
pub use model::ModelFrames;

/// Frames for models: each a boxed array of a few of loom's atomics.
#[cfg(loom)]
mod model {
    use alloc::boxed::Box;
    use core::fmt;

    use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::{Extent, FRAME_SIZE, FrameRequest, Frames, OutOfFrames, WORDS_PER_FRAME, Window};
    use crate::PhysAddr;

    #[repr(align(4096))]
    pub(super) struct ModelFrame {
        pub(super) words: Box<[AtomicU64]>,
    }

    /// A frame allocator for models. It counts what is out, so that a model can show that nothing leaks.
    pub struct ModelFrames {
        live: AtomicUsize,
    }

    impl ModelFrames {
        /// An allocator with nothing handed out.
        pub fn new() -> Self {
            Self { live: AtomicUsize::new(0) }
        }

        /// How many frames are handed out.
        pub fn live(&self) -> usize {
            self.live.load(Ordering::SeqCst)
        }
    }

    impl Default for ModelFrames {
        fn default() -> Self {
            Self::new()
        }
    }

    impl fmt::Debug for ModelFrames {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("ModelFrames")
        }
    }

    // SAFETY: each frame is a box of its own, zeroed, with its address exposed; physical addresses are its address.
    unsafe impl Frames for ModelFrames {
        fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
            if request.size > FRAME_SIZE {
                return Err(OutOfFrames(request));
            }
            self.live.fetch_add(1, Ordering::SeqCst);
            let words = if request.size < FRAME_SIZE {
                request.size.div_ceil(8).max(WORDS_PER_FRAME)
            } else {
                WORDS_PER_FRAME
            };
            let frame = Box::new(ModelFrame { words: (0..words).map(|_| AtomicU64::new(0)).collect() });
            Ok(PhysAddr::new(Box::into_raw(frame).expose_provenance() as u64))
        }

        unsafe fn free(&self, at: PhysAddr, _size: usize) {
            self.live.fetch_sub(1, Ordering::SeqCst);
            // SAFETY: the caller gives back what `alloc` made, once.
            drop(unsafe { Box::from_raw(self.window().ptr(at).cast::<ModelFrame>()) });
        }

        fn window(&self) -> Window {
            // SAFETY: physical addresses are pointers here.
            unsafe { Window::new(0) }
        }

        fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
            None
        }
    }
}
