//! The machine as a `platform::Platform`: frames of the shared RAM, and the host's clock.

use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FramePool, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};

use crate::ram::Ram;

/// RAM below this is not handed out: on a PC there are firmware and video memory in it, and address 0.
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
    /// All of `len` bytes of RAM above the first mebibyte, free.
    pub(crate) fn new(ram: Ram, len: u64) -> Self {
        // SAFETY: RAM is one mapping that lives as long as this value, at a constant distance, with its address exposed.
        let window = unsafe { Window::new(ram.window_offset()) };
        let ranges = [(PhysAddr::new(LOW_MEMORY), len.saturating_sub(LOW_MEMORY))];
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
