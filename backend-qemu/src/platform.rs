//! The machine as a `platform::Platform`: frames of the shared RAM, and the host's clock.

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
    /// What the frames are of.
    _ram: Ram,
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
        Self { frames, clock: StdClock::new(), _ram: ram }
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
        self.frames.translate(at, len)
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
