//! This process's memory as a machine's: its addresses are the "physical" ones, since VFIO maps by those and pins what it
//! maps.

use std::collections::BTreeMap;

use platform::frames::FRAME_SIZE;
use platform::sync::Mutex;
use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::system::sysinfo;

const HUGE: usize = 2 << 20;

/// Memory and time of this process. Devices behind VFIO are coherent: the kernel takes no others.
#[derive(Debug)]
pub struct ProcessPlatform {
    clock: StdClock,
    /// What is handed out: where, and how much of it is mapped.
    live: Mutex<BTreeMap<u64, usize>>,
}

impl ProcessPlatform {
    /// With nothing handed out.
    pub fn new() -> Self {
        Self { clock: StdClock::new(), live: Mutex::default() }
    }

    /// Bytes of memory that the system has.
    pub fn memory(&self) -> u64 {
        let info = sysinfo();
        info.totalram as u64 * u64::from(info.mem_unit)
    }

    /// Bytes handed out now.
    pub fn bytes_in_use(&self) -> u64 {
        self.live.lock().values().map(|&len| len as u64).sum()
    }
}

impl Default for ProcessPlatform {
    fn default() -> Self {
        Self::new()
    }
}

/// New memory that nothing else uses, filled with zeros: its address, or `None`.
fn map(len: usize, flags: MapFlags) -> Option<usize> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the system chooses a place that is free.
    let at = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE | flags) };
    at.ok().map(|at| at.expose_provenance())
}

/// # Safety
/// The memory came from `map`, and nobody uses it any more.
unsafe fn unmap(at: usize, len: usize) {
    if len != 0 {
        // SAFETY: the caller's promise. (It can only fail for ranges that are none.)
        let _ = unsafe { munmap(std::ptr::with_exposed_provenance_mut(at), len) };
    }
}

/// New memory with more alignment than a page has: more is mapped, and both ends are given back.
fn map_aligned(len: usize, align: usize) -> Option<usize> {
    let all = len.checked_add(align - FRAME_SIZE)?;
    let start = map(all, MapFlags::empty())?;
    let at = start.next_multiple_of(align);
    // SAFETY: both ends are of the mapping just made, and nobody knows them.
    unsafe {
        unmap(start, at - start);
        unmap(at + len, start + all - at - len);
    }
    Some(at)
}

// SAFETY: each piece is a mapping of its own, zeroed by the system, with its address exposed, until it is freed; "physical"
// addresses are the process's, so the window is the identity, for ever. VFIO pins pages when it maps them: what it maps is
// what the process sees there.
unsafe impl Frames for ProcessPlatform {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let error = OutOfFrames(request);
        let len = request.size.max(1).checked_next_multiple_of(FRAME_SIZE).ok_or(error)?;
        let align = request.align.max(FRAME_SIZE);
        if !align.is_power_of_two() {
            return Err(error);
        }
        // One entry of the IOMMU's table instead of 512, where the administrator has set huge pages aside.
        let huge = (len.is_multiple_of(HUGE) && align <= HUGE)
            .then(|| map(len, MapFlags::HUGETLB | MapFlags::HUGE_2MB))
            .flatten();
        let at = huge.or_else(|| map_aligned(len, align)).ok_or(error)?;
        if (at + (len - 1)) as u64 > request.limit.get() {
            // SAFETY: it was mapped just now, and nobody knows it.
            unsafe { unmap(at, len) };
            return Err(error);
        }
        self.live.lock().insert(at as u64, len);
        Ok(PhysAddr::new(at as u64))
    }

    unsafe fn free(&self, at: PhysAddr, _size: usize) {
        if let Some(len) = self.live.lock().remove(&at.get()) {
            // SAFETY: it was handed out, and the caller gives it back, once.
            unsafe { unmap(at.get() as usize, len) };
        }
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are the process's addresses.
        let window = unsafe { Window::new(0) };
        // SAFETY: all memory of the process is RAM in the sense that VFIO maps and pins it.
        unsafe { window.with_ram(PhysAddr::new(0), isize::MAX as usize) }
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        Some(Extent { phys: PhysAddr::new(at.addr() as u64), len })
    }
}

impl CacheMaintenance for ProcessPlatform {}

impl Clock for ProcessPlatform {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}
