//! A machine for tests: RAM on both sides of 4 GiB, seen through a linear window, and memory beside it that is no RAM.
// Each test file uses its part.
#![allow(dead_code, unreachable_pub)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use dma_api::DeviceParms;
use platform::time::StdClock;
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Platform, Window,
};
use swiotlb::{Config, Swiotlb};

pub const FOUR_GIB: u64 = 1 << 32;
pub const SEGMENT: usize = 256 << 10;

/// RAM from 8 MiB below 4 GiB to 8 MiB above it.
const RAM_START: u64 = FOUR_GIB - (8 << 20);
const RAM_SIZE: usize = 16 << 20;
const FRAME: u64 = 4096;

/// What was done to the caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    Clean(u64, usize),
    Invalidate(u64, usize),
}

#[derive(Debug)]
pub struct Host {
    ram: NonNull<u8>,
    window: Window,
    clock: StdClock,
    /// First frame and size of what is handed out.
    live: Mutex<BTreeMap<u64, usize>>,
    cache: Mutex<Vec<Cache>>,
}

// SAFETY: the pointer is the start of RAM, which is reached only by whoever holds the frame.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    pub fn new() -> Arc<Self> {
        // SAFETY: the layout has a size.
        let ram = NonNull::new(unsafe { alloc_zeroed(Self::layout()) }).expect("memory for RAM");
        let offset = ram.as_ptr().expose_provenance().wrapping_sub(RAM_START as usize);
        // SAFETY: all frames are in RAM, which is at this distance, with its provenance exposed.
        let window = unsafe { Window::new(offset) };
        let (live, cache) = Default::default();
        Arc::new(Self { ram, window, clock: StdClock::new(), live, cache })
    }

    fn layout() -> Layout {
        Layout::from_size_align(RAM_SIZE, SEGMENT).unwrap()
    }

    /// Bytes handed out.
    pub fn live(&self) -> usize {
        self.live.lock().unwrap().values().sum()
    }

    /// What is handed out: first frames and sizes.
    pub fn allocations(&self) -> BTreeMap<u64, usize> {
        self.live.lock().unwrap().clone()
    }

    /// What was done to the caches since the last call.
    pub fn take_cache(&self) -> Vec<Cache> {
        std::mem::take(&mut self.cache.lock().unwrap())
    }

    /// What a device does at a physical address.
    pub fn device_write(&self, at: u64, bytes: &[u8]) {
        assert!(at >= RAM_START && at + bytes.len() as u64 <= RAM_START + RAM_SIZE as u64);
        // SAFETY: it is RAM, and tests write only to what they were given.
        unsafe {
            let to = self.window.ptr(PhysAddr::new(at));
            platform::device_memory::copy_in(bytes.as_ptr(), to, bytes.len());
        }
    }

    pub fn device_read(&self, at: u64, len: usize) -> Vec<u8> {
        assert!(at >= RAM_START && at + len as u64 <= RAM_START + RAM_SIZE as u64);
        let mut bytes = vec![0; len];
        // SAFETY: it is RAM.
        unsafe {
            let from = self.window.ptr(PhysAddr::new(at));
            platform::device_memory::copy_out(from, bytes.as_mut_ptr(), len);
        }
        bytes
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and whoever held a frame held the host.
        unsafe { dealloc(self.ram.as_ptr(), Self::layout()) };
    }
}

// SAFETY: frames are parts of RAM that do not overlap, zeroed when handed out; the window never changes.
unsafe impl Frames for Host {
    /// The highest place that the request allows.
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let size = request.size.next_multiple_of(FRAME as usize) as u64;
        let align = request.align as u64;
        let mut live = self.live.lock().unwrap();
        let mut end = request.limit.get().saturating_add(1).min(RAM_START + RAM_SIZE as u64);
        loop {
            let at = end.checked_sub(size).ok_or(OutOfFrames(request))? & !(align - 1);
            if at < RAM_START {
                return Err(OutOfFrames(request));
            }
            // What begins in the range, or reaches into it.
            let before =
                live.range(..at + size).next_back().map(|(&start, &len)| (start, start + len as u64));
            match before {
                Some((start, taken_to)) if taken_to > at => end = start,
                _ => {
                    live.insert(at, size as usize);
                    // SAFETY: nobody else has these frames.
                    unsafe { self.window.ptr(PhysAddr::new(at)).write_bytes(0, size as usize) };
                    return Ok(PhysAddr::new(at));
                }
            }
        }
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        let taken = self.live.lock().unwrap().remove(&at.get());
        assert_eq!(taken, Some(size.next_multiple_of(FRAME as usize)), "freed once, as it was allocated");
    }

    fn window(&self) -> Window {
        self.window
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        let phys = self.window.phys(at);
        let left = (RAM_START + RAM_SIZE as u64).checked_sub(phys.get()).filter(|&left| left != 0)?;
        (phys.get() >= RAM_START).then_some(Extent { phys, len: len.min(left as usize) })
    }
}

impl CacheMaintenance for Host {
    fn clean(&self, at: *const u8, len: usize) {
        self.cache.lock().unwrap().push(Cache::Clean(self.window.phys(at).get(), len));
    }

    fn invalidate(&self, at: *const u8, len: usize) {
        self.cache.lock().unwrap().push(Cache::Invalidate(self.window.phys(at).get(), len));
    }
}

impl Clock for Host {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        self.clock.relax();
    }
}

/// Memory of the process, at an address that ends in given bits. It is reached through pointers only, so that the pool may
/// copy to it at any time.
#[derive(Debug)]
pub struct Original {
    memory: NonNull<u8>,
    skip: usize,
    pub len: usize,
}

// SAFETY: the value owns its memory.
unsafe impl Send for Original {}

const ORIGINAL_ALIGN: usize = SEGMENT;

impl Original {
    /// `len` bytes at an address whose lowest 18 bits, those of a segment, are `low_bits`.
    pub fn new(low_bits: usize, bytes: &[u8]) -> Self {
        assert!(low_bits < ORIGINAL_ALIGN);
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc_zeroed(Self::layout(low_bits, bytes.len())) }).unwrap();
        let original = Self { memory, skip: low_bits, len: bytes.len() };
        original.write(0, bytes);
        original
    }

    fn layout(low_bits: usize, len: usize) -> Layout {
        Layout::from_size_align(low_bits + len + 1, ORIGINAL_ALIGN).unwrap()
    }

    pub fn ptr(&self) -> NonNull<u8> {
        // SAFETY: `skip` bytes into the allocation, which is longer.
        unsafe { self.memory.add(self.skip) }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: in bounds; nobody else is at it now.
        unsafe { self.ptr().add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    pub fn read(&self) -> Vec<u8> {
        // SAFETY: in bounds, initialised, and nobody writes it now.
        unsafe { std::slice::from_raw_parts(self.ptr().as_ptr(), self.len).to_vec() }
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the test ended the mappings of it.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.skip, self.len)) };
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8) ^ (index >> 8) as u8 ^ seed).collect()
}

/// A pool below 4 GiB that does not grow.
pub fn pool(host: &Arc<Host>, size: usize, cpus: usize) -> Arc<Swiotlb> {
    configured(host, &Config { size, areas: cpus, ..Config::default() })
}

pub fn configured(host: &Arc<Host>, config: &Config) -> Arc<Swiotlb> {
    let platform: Arc<dyn Platform> = host.clone();
    Arc::new(Swiotlb::new(&platform, config).unwrap())
}

/// A trusted coherent device, or a hostile one.
pub fn trusted() -> DeviceParms {
    DeviceParms::new(true, false)
}

pub fn untrusted() -> DeviceParms {
    DeviceParms::new(true, true)
}
