//! The machine as a `platform::Platform`: frames of the shared RAM, and the host's clock.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use platform::sync::Mutex;
use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FramePool, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};

use crate::board::Board;
use crate::ram::Ram;

/// The start of RAM is not handed out: on a PC there are firmware and video memory in it, and address 0; elsewhere the processor
/// waits there.
const LOW_MEMORY: u64 = 1 << 20;

/// Memory and time of a machine of QEMU's. Its devices are coherent.
#[derive(Debug)]
pub struct QemuPlatform {
    frames: FramePool,
    clock: StdClock,
    /// What the frames are of, and the physical address of its first byte.
    ram: Ram,
    first: u64,
    /// What is mapped once more: where, and the pieces.
    again: Mutex<BTreeMap<usize, Vec<(PhysAddr, usize)>>>,
}

impl QemuPlatform {
    /// All of `len` bytes of the board's RAM, but for its start and what is QEMU's own, free.
    pub(crate) fn new(ram: Ram, len: u64, board: &Board) -> Self {
        let offset = ram.base().addr().wrapping_sub(board.ram as usize);
        // SAFETY: RAM is one mapping that lives as long as this value, at a constant distance, with its address exposed.
        let window = unsafe { Window::new(offset) };
        let free = len.saturating_sub(LOW_MEMORY + board.ram_tail);
        let ranges = [(PhysAddr::new(board.ram + LOW_MEMORY), free)];
        // SAFETY: a new file is zeros and the machine's alone; it is mapped as long as this value lives. QEMU's devices move
        // whole words.
        let frames = unsafe { FramePool::new(&ranges, window) };
        Self { frames, clock: StdClock::new(), ram, first: board.ram, again: Mutex::default() }
    }

    /// The frame allocator.
    pub fn frames(&self) -> &FramePool {
        &self.frames
    }
}

// SAFETY: everything is handed to the frame allocator, whose promises hold.
unsafe impl Frames for QemuPlatform {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        self.frames.alloc(request)
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.frames.free(at, size) };
    }

    fn window(&self) -> Window {
        self.frames.window()
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        self.frames.translate(at, len).or_else(|| {
            let again = self.again.lock();
            let (base, pieces) = again.range(..=at.addr()).next_back()?;
            let mut before = at.addr() - base;
            for &(phys, piece) in pieces {
                if before < piece {
                    return Some(Extent {
                        phys: phys.wrapping_add(before as u64),
                        len: len.min(piece - before),
                    });
                }
                before -= piece;
            }
            None
        })
    }

    unsafe fn vmap(&self, pieces: &[(PhysAddr, usize)]) -> Option<NonNull<u8>> {
        let offsets: Vec<_> = pieces.iter().map(|(phys, len)| (phys.get() - self.first, *len)).collect();
        let at = NonNull::new(self.ram.map_again(&offsets).ok()?)?;
        self.again.lock().insert(at.as_ptr().expose_provenance(), pieces.to_vec());
        Some(at)
    }

    unsafe fn vunmap(&self, at: NonNull<u8>, size: usize) {
        self.again.lock().remove(&at.addr().get());
        // SAFETY: the caller's promise.
        unsafe { self.ram.unmap_again(at.as_ptr(), size) };
    }

    fn last(&self) -> PhysAddr {
        self.frames.last()
    }
}

impl CacheMaintenance for QemuPlatform {}

impl Clock for QemuPlatform {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}
