//! A pool: one piece of memory, in areas (Linux: `struct io_tlb_pool`).

use alloc::boxed::Box;

use crossbeam_utils::CachePadded;
use platform::sync::CpuLock;
use platform::{FrameRequest, PhysAddr, Platform, cpu};

use crate::area::{Area, Mapping};
use crate::request::Request;
use crate::{SEGMENT, SEGMENT_SLOTS, SLOT_SIZE, Statistics};

/// Slots in one piece of memory, divided into areas with a lock each. A CPU begins with its own area.
#[derive(Debug)]
pub(crate) struct Pool {
    start: PhysAddr,
    len: usize,
    /// A power of two of them. Their segments take turns in the pool, so that finding an address's area is no division.
    areas: Box<[CachePadded<CpuLock<Area>>]>,
}

impl Pool {
    /// A pool of at most `size` bytes, in whole segments: as many for each area, of which there are as many as CPUs, if there
    /// are that many segments.
    pub(crate) fn new(platform: &dyn Platform, size: usize, limit: PhysAddr, cpus: usize) -> Option<Self> {
        let segments = size / SEGMENT;
        if segments == 0 {
            return None;
        }
        let areas = cpus.clamp(1, segments).next_power_of_two();
        let areas = if areas > segments { areas / 2 } else { areas };
        let each = segments / areas;
        let len = areas * each * SEGMENT;
        // Aligned to a segment, so that a mapping of a segment's size keeps any boundary of that size.
        let start = platform.alloc(FrameRequest { size: len, align: SEGMENT, limit }).ok()?;
        let areas = (0..areas).map(|_| CachePadded::new(CpuLock::new(Area::new(each)))).collect();
        Some(Self { start, len, areas })
    }

    /// Gives the memory back, if no mapping is in it; else a device may still write there, and it is leaked.
    pub(crate) fn release(&self, platform: &dyn Platform) {
        if self.areas.iter().all(|area| area.lock().used == 0) {
            // SAFETY: the memory was allocated by `new`, which is the last use of it, and no device has any of it.
            unsafe { platform.free(self.start, self.len) };
        }
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn contains(&self, at: PhysAddr) -> bool {
        at.get().wrapping_sub(self.start.get()) < self.len as u64
    }

    /// Takes a run, and says where it begins.
    // One call is the fast path, the others are cold.
    #[inline(always)]
    pub(crate) fn take(&self, request: &Request) -> Option<PhysAddr> {
        let start_area = cpu::current();
        for step in 0..self.areas.len() {
            let number = (start_area + step) & (self.areas.len() - 1);
            let fits = |slot| request.fits(self.slot_phys(number, slot));
            let taken = self.areas[number].lock().take(request.run, fits);
            if let Some(slot) = taken {
                return Some(PhysAddr::new(self.slot_phys(number, slot)));
            }
        }
        None
    }

    /// The original of a byte of a copy.
    #[inline]
    pub(crate) fn lookup(&self, at: PhysAddr) -> Option<Mapping> {
        let (number, slot, within) = self.place(at);
        self.areas[number].lock().lookup(slot, within)
    }

    /// Gives the run back that has an address.
    #[inline]
    pub(crate) fn give_back(&self, at: PhysAddr) {
        let (number, slot, _) = self.place(at);
        self.areas[number].lock().give_back(slot);
    }

    /// Adds this pool's counters.
    pub(crate) fn count(&self, statistics: &mut Statistics) {
        statistics.slots += self.len / SLOT_SIZE;
        for area in &self.areas {
            let area = area.lock();
            statistics.used += area.used;
            statistics.high_water += area.high_water;
            statistics.maps += area.maps;
        }
    }

    /// Forgets that more slots were in use than are now.
    pub(crate) fn reset_high_water(&self) {
        for area in &self.areas {
            let mut area = area.lock();
            area.high_water = area.used;
        }
    }

    /// Whether each slot is either free or in one run, and the counts agree.
    pub(crate) fn is_consistent(&self) -> bool {
        self.areas.iter().all(|area| area.lock().is_consistent())
    }

    fn slot_phys(&self, area: usize, slot: usize) -> u64 {
        let segment = (slot / SEGMENT_SLOTS * self.areas.len()) | area;
        self.start.get() + (segment * SEGMENT + slot % SEGMENT_SLOTS * SLOT_SIZE) as u64
    }

    /// The area, the slot and the byte in it at an address of the pool.
    fn place(&self, at: PhysAddr) -> (usize, usize, usize) {
        let offset = at.get().wrapping_sub(self.start.get()) as usize;
        let segment = offset / SEGMENT;
        let slot =
            (segment >> self.areas.len().trailing_zeros()) * SEGMENT_SLOTS + offset % SEGMENT / SLOT_SIZE;
        (segment & (self.areas.len() - 1), slot, offset % SLOT_SIZE)
    }
}
