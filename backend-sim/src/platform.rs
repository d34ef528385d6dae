//! The simulated machine as a `platform::Platform`: its frames, and the host's clock.

use std::sync::Arc;

use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};
use sim_hardware::ram::Ram;

use crate::frames::SimFrames;

/// Memory and time of the simulated machine. Its devices are coherent.
#[derive(Debug)]
pub struct SimPlatform {
    frames: SimFrames,
    clock: StdClock,
}

impl SimPlatform {
    /// All of the machine's memory, free.
    pub fn new(ram: Arc<Ram>) -> Self {
        Self { frames: SimFrames::new(ram), clock: StdClock::new() }
    }

    /// The frame allocator.
    pub fn frames(&self) -> &SimFrames {
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
