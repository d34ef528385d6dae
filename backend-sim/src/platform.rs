//! The simulated machine as a `platform::Platform`: its frames, and the host's clock.

use std::sync::Arc;

use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FramePool, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};
use sim_hardware::ram::Ram;

/// Memory and time of the simulated machine. Its devices are coherent.
#[derive(Debug)]
pub struct SimPlatform {
    frames: FramePool,
    clock: StdClock,
    /// What the frames are of.
    _ram: Arc<Ram>,
}

impl SimPlatform {
    /// All of the machine's memory, free.
    pub fn new(ram: Arc<Ram>) -> Self {
        let ranges: Vec<_> = ram.ranges().iter().map(|&(start, len)| (PhysAddr::new(start), len)).collect();
        // SAFETY: all RAM is one mapping that lives as long as `ram`, at a constant distance, with its address exposed.
        let window = unsafe { Window::new(ram.window_offset()) };
        // SAFETY: new RAM is zeros and nobody's; it lives as long as this value. Devices access it atomically.
        let frames = unsafe { FramePool::new(&ranges, window) };
        Self { frames, clock: StdClock::new(), _ram: ram }
    }

    /// The frame allocator.
    pub fn frames(&self) -> &FramePool {
        &self.frames
    }
}

// SAFETY: everything is handed to the frame allocator, whose promises hold.
unsafe impl Frames for SimPlatform {
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

impl CacheMaintenance for SimPlatform {}

impl Clock for SimPlatform {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}
