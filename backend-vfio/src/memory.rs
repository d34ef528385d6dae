//! This process's memory as a machine's: its addresses are the "physical" ones, since VFIO maps by those and pins what it
//! maps.

use std::collections::BTreeMap;

use platform::frames::FRAME_SIZE;
use platform::sync::Mutex;
use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FramePool, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Window,
};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::system::sysinfo;

const HUGE: usize = 2 << 20;
const GIGANTIC: usize = 1 << 30;

/// Memory and time of this process. Devices behind VFIO are coherent: the kernel takes no others.
#[derive(Debug)]
pub struct ProcessPlatform {
    clock: StdClock,
    /// What is handed out: where, and how much of it is mapped.
    live: Mutex<BTreeMap<u64, usize>>,
    arena: Option<Arena>,
}

/// Memory in one piece, from which frames come first.
#[derive(Debug)]
struct Arena {
    start: u64,
    len: usize,
    frames: FramePool,
}

impl Arena {
    fn contains(&self, at: PhysAddr) -> bool {
        at.get().wrapping_sub(self.start) < self.len as u64
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: it is a mapping of `ProcessPlatform::with_arena`, and who had frames of it holds the platform.
        unsafe { unmap(self.start as usize, self.len) };
    }
}

impl ProcessPlatform {
    /// With nothing handed out.
    pub fn new() -> Self {
        Self { clock: StdClock::new(), live: Mutex::default(), arena: None }
    }

    /// With `len` bytes in one piece, from which memory is handed out first: what a device can have registered
    /// ([`crate::Registered`]). Of huge pages when the length is a multiple of theirs and there are any.
    ///
    /// # Errors
    /// [`OutOfFrames`] when the system has no such piece.
    pub fn with_arena(len: usize) -> Result<Self, OutOfFrames> {
        let error = OutOfFrames(FrameRequest::anywhere(len));
        let len = len.max(1).checked_next_multiple_of(FRAME_SIZE).ok_or(error)?;
        let start = map_huge(len).or_else(|| map_aligned(len, FRAME_SIZE)).ok_or(error)? as u64;
        // SAFETY: physical addresses are the process's addresses.
        let window = unsafe { Window::new(0) };
        // SAFETY: it was mapped just now, zeroed and for nobody else, and stays until the arena is dropped.
        let frames = unsafe { FramePool::new(&[(PhysAddr::new(start), len as u64)], window) };
        Ok(Self { arena: Some(Arena { start, len, frames }), ..Self::new() })
    }

    /// Where the arena is, and how long, if there is one.
    pub fn arena(&self) -> Option<(PhysAddr, usize)> {
        self.arena.as_ref().map(|arena| (PhysAddr::new(arena.start), arena.len))
    }

    /// Memory of the arena, while there is any.
    pub(crate) fn alloc_in_arena(&self, request: FrameRequest) -> Option<PhysAddr> {
        self.arena.as_ref()?.frames.alloc(request).ok()
    }

    /// Bytes of memory that the system has.
    pub fn memory(&self) -> u64 {
        let info = sysinfo();
        info.totalram as u64 * u64::from(info.mem_unit)
    }

    /// Bytes handed out now.
    pub fn bytes_in_use(&self) -> u64 {
        let arena = self.arena.as_ref().map_or(0, |arena| arena.frames.bytes_in_use());
        arena + self.live.lock().values().map(|&len| len as u64).sum::<u64>()
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

/// New memory of huge pages, the largest that its length is a multiple of, where the administrator has set such aside: one entry of
/// the IOMMU's table instead of many.
fn map_huge(len: usize) -> Option<usize> {
    let sizes = [(GIGANTIC, MapFlags::HUGE_1GB), (HUGE, MapFlags::HUGE_2MB)];
    let fitting = sizes.into_iter().filter(|&(size, _)| len.is_multiple_of(size));
    fitting.map(|(_, flag)| map(len, MapFlags::HUGETLB | flag)).find_map(|found| found)
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
        if let Some(at) = self.alloc_in_arena(request) {
            return Ok(at);
        }
        let huge = (align <= HUGE).then(|| map_huge(len)).flatten();
        let at = huge.or_else(|| map_aligned(len, align)).ok_or(error)?;
        if (at + (len - 1)) as u64 > request.limit.get() {
            // SAFETY: it was mapped just now, and nobody knows it.
            unsafe { unmap(at, len) };
            return Err(error);
        }
        self.live.lock().insert(at as u64, len);
        Ok(PhysAddr::new(at as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        if let Some(arena) = self.arena.as_ref().filter(|arena| arena.contains(at)) {
            // SAFETY: the caller's promise: frames of the arena.
            unsafe { arena.frames.free(at, size) };
            return;
        }
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
