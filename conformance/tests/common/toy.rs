//! The IOMMU, and the device behind it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use conformance::{Bench, Refused, Waiver};
use dma_api::{
    Attrs, CoherentMemory, Device, DeviceBuilder, DeviceParms, Direction, DmaError, DmaMapOps, Quarantined,
    SgEntry,
};
use platform::device_memory::{copy_in, copy_out};
use platform::{DmaAddr, FrameRequest, Frames, PhysAddr};

use super::Memory;

/// How the machine makes memory visible to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// Where it is.
    Maps,
    /// As a copy.
    Bounces,
}

/// What may be wrong with the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Every mapping is readable and writable.
    IgnoresDirection,
    /// A mapping may be written whatever its direction, but read only when it says so.
    WritesWhatIsReadOnly,
    /// The IOMMU still translates what was unmapped, until something else is mapped there.
    KeepsTranslations,
    /// The same for reads alone.
    KeepsTranslationsForReads,
    /// Addresses are below 4 GiB, but not below a narrower mask.
    IgnoresMask,
    /// The same for coherent memory alone.
    IgnoresMaskOfCoherentMemory,
    /// No IOMMU at all: addresses are physical.
    HandsOutPhysicalAddresses,
    /// What is not mapped is let through untranslated.
    LetsUnmappedThrough,
    /// Syncs of a copy do nothing.
    SyncDoesNothing,
    /// Only `sync_for_device` does nothing.
    SyncForDeviceDoesNothing,
    /// An unmap does not copy back.
    LosesWhatTheDeviceWrote,
    /// The copy for a device that reads begins with zeros.
    LosesWhatTheCpuWrote,
    /// The copy for a device that only writes begins with zeros.
    DoesNotFillTheCopy,
    /// When addresses run out, there are others beyond them.
    NeverRunsOut,
    /// Running out has the wrong name.
    MisnamesRunningOut,
    /// Addresses are not given back.
    NeverGivesAddressesBack,
    /// The CPU and the device see different coherent memory.
    SplitsCoherentMemory,
    /// A mapping of more than a page ends at the last whole page before its end.
    CutsTheLastPage,
    /// The first two segments of a list come in the wrong order.
    MixesSegmentsUp,
}

/// How many bytes of I/O addresses there are.
const APERTURE: u64 = 64 << 20;
const GRANULE: u64 = 4096;

#[derive(Clone, Copy, Debug)]
struct Translation {
    len: usize,
    /// Where the device is led.
    target: PhysAddr,
    /// The memory that was mapped; the same, unless it is bounced.
    original: PhysAddr,
    dir: Direction,
}

#[derive(Debug, Default)]
struct Table {
    live: BTreeMap<u64, Translation>,
    /// What a cache that was not flushed still knows.
    stale: BTreeMap<u64, Translation>,
    /// Addresses that are taken though nothing is mapped there.
    lost: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Ops {
    memory: Arc<Memory>,
    machine: Machine,
    fault: Option<Fault>,
    table: Mutex<Table>,
}

/// The machine as a bench.
#[derive(Debug)]
pub struct Toy {
    ops: Arc<Ops>,
    device: Arc<Device>,
    waivers: Vec<Waiver>,
}

impl Toy {
    /// A machine with a fault, or without.
    pub fn new(machine: Machine, fault: Option<Fault>) -> Self {
        let memory = Arc::new(Memory::new());
        let table = Mutex::default();
        let ops = Arc::new(Ops { memory: memory.clone(), machine, fault, table });
        let device = Arc::new(DeviceBuilder::new("toy").build(ops.clone(), memory));
        Self { ops, device, waivers: Vec::new() }
    }

    pub fn waiving(mut self, check: &'static str) -> Self {
        self.waivers.push(Waiver { check, reason: "the test says so" });
        self
    }

    /// Mappings that are still there, and bytes of memory that are still taken.
    pub fn left(&self) -> (usize, usize) {
        (self.ops.table.lock().unwrap().live.len(), self.ops.memory.live())
    }
}

impl Bench for Toy {
    fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn device_write(&self, address: DmaAddr, data: &[u8]) -> Result<(), Refused> {
        let at = self.ops.translate(address, data.len(), true).ok_or(Refused)?;
        // SAFETY: live memory that was mapped, or that the check holds and looks at.
        unsafe { copy_in(data.as_ptr(), self.ops.memory.window().ptr(at), data.len()) };
        Ok(())
    }

    fn device_read(&self, address: DmaAddr, into: &mut [u8]) -> Result<(), Refused> {
        let at = self.ops.translate(address, into.len(), false).ok_or(Refused)?;
        // SAFETY: as in `device_write`.
        unsafe { copy_out(self.ops.memory.window().ptr(at), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn waivers(&self) -> &[Waiver] {
        &self.waivers
    }
}

impl Ops {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Where a request of the device ends, if it may.
    fn translate(&self, address: DmaAddr, len: usize, write: bool) -> Option<PhysAddr> {
        let untranslated = PhysAddr::new(address.get());
        let table = self.table.lock().unwrap();
        let found = find(&table.live, address, len).or_else(|| find(&table.stale, address, len));
        let Some((dir, target)) = found else {
            let open = self.has(Fault::LetsUnmappedThrough) || self.has(Fault::HandsOutPhysicalAddresses);
            return (open && self.memory.has(untranslated, len)).then_some(untranslated);
        };
        let allowed = if write { dir.device_writes() } else { dir.device_reads() };
        let anyway = match self.fault {
            Some(Fault::WritesWhatIsReadOnly) => write,
            Some(Fault::IgnoresDirection | Fault::HandsOutPhysicalAddresses) => true,
            _ => false,
        };
        (allowed || anyway).then_some(target)
    }

    /// Takes I/O addresses at or below `mask`.
    fn take(&self, table: &Table, mask: u64, len: usize, offset: u64) -> Result<u64, DmaError> {
        let mask = if self.has(Fault::IgnoresMask) { u64::from(u32::MAX) } else { mask };
        let size = (offset + len as u64).next_multiple_of(GRANULE);
        let full = DmaError::AddressSpaceExhausted { size: len, limit: DmaAddr::new(mask) };
        let lowest = (mask + 1).saturating_sub(APERTURE);
        // Where the highest of what is in the way begins. Nothing overlaps, so that it is the last that begins before the end.
        let in_the_way = |at: u64| {
            let live = table.live.range(..at + size).next_back().map(|(&start, of)| (start, of.len as u64));
            let lost = table.lost.range(..at + size).next_back().map(|(&start, &len)| (start, len));
            live.into_iter().chain(lost).find(|(start, len)| start + len > at).map(|(start, _)| start)
        };
        let mut at = (mask + 1).checked_sub(size).ok_or(full)?;
        while let Some(start) = in_the_way(at) {
            let below = (start & !(GRANULE - 1)).checked_sub(size).filter(|&below| below >= lowest);
            match below {
                Some(below) => at = below,
                None if self.has(Fault::NeverRunsOut) => at = (1 << 40) + table.live.len() as u64 * size,
                None if self.has(Fault::MisnamesRunningOut) => return Err(DmaError::OutOfMemory),
                None => return Err(full),
            }
        }
        Ok(at + offset)
    }

    fn insert(&self, mask: u64, mut translation: Translation) -> Result<DmaAddr, DmaError> {
        if self.has(Fault::HandsOutPhysicalAddresses) {
            let address = translation.target.get();
            self.table.lock().unwrap().live.insert(address, translation);
            return Ok(DmaAddr::new(address));
        }
        let mut table = self.table.lock().unwrap();
        let offset = translation.target.offset_in(GRANULE);
        let at = self.take(&table, mask, translation.len, offset)?;
        if self.has(Fault::CutsTheLastPage) && translation.len as u64 > GRANULE {
            translation.len -= translation.len % GRANULE as usize;
        }
        table
            .stale
            .retain(|start, stale| start + stale.len as u64 <= at || *start >= at + translation.len as u64);
        table.live.insert(at, translation);
        Ok(DmaAddr::new(at))
    }

    fn remove(&self, address: DmaAddr) -> Translation {
        let mut table = self.table.lock().unwrap();
        let removed = table.live.remove(&address.get()).expect("a live mapping");
        if self.has(Fault::KeepsTranslations) {
            table.stale.insert(address.get(), removed);
        }
        if self.has(Fault::KeepsTranslationsForReads) {
            table.stale.insert(address.get(), Translation { dir: Direction::ToDevice, ..removed });
        }
        // Short ones do come back: a check that tries one buffer after running out would not see it.
        if self.has(Fault::NeverGivesAddressesBack) && removed.len > 0x4000 {
            table.lost.insert(address.get(), removed.len as u64);
        }
        removed
    }

    /// Copies a part of a bounced mapping.
    fn copy(&self, address: DmaAddr, len: usize, back: bool) {
        let table = self.table.lock().unwrap();
        let (start, found) = table.live.range(..=address.get()).next_back().expect("a live mapping");
        let part = (address.get() - start) as usize..(address.get() - start) as usize + len;
        self.copy_part(found, part, back);
    }

    fn copy_part(&self, of: &Translation, part: Range<usize>, back: bool) {
        let (from, to) = if back { (of.target, of.original) } else { (of.original, of.target) };
        if from == to {
            return;
        }
        let at = |phys: PhysAddr| self.memory.window().ptr(phys.wrapping_add(part.start as u64));
        // SAFETY: both are live for as long as the mapping; checks do not touch the original meanwhile.
        unsafe { copy_in(at(from), at(to), part.len()) };
    }
}

fn find(table: &BTreeMap<u64, Translation>, address: DmaAddr, len: usize) -> Option<(Direction, PhysAddr)> {
    let (start, found) = table.range(..=address.get()).next_back()?;
    let skip = address.get() - start;
    let inside = skip + len as u64 <= found.len as u64;
    inside.then(|| (found.dir, found.target.wrapping_add(skip)))
}

// SAFETY: addresses lead to the memory that was mapped, or to a copy; the faults are the tests' own, and no check touches
// memory that is not there.
unsafe impl DmaMapOps for Ops {
    fn alloc(&self, dev: &DeviceParms, size: usize, _attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        let frames = || self.memory.alloc(FrameRequest::anywhere(size)).map_err(|_| DmaError::OutOfMemory);
        let original = frames()?;
        let target = if self.has(Fault::SplitsCoherentMemory) { frames()? } else { original };
        let mask = if self.has(Fault::IgnoresMaskOfCoherentMemory) {
            u64::from(u32::MAX)
        } else {
            dev.coherent_mask()
        };
        let dma =
            self.insert(mask, Translation { len: size, target, original, dir: Direction::Bidirectional })?;
        Ok(CoherentMemory { cpu: NonNull::new(self.memory.window().ptr(original)).unwrap(), dma, size })
    }

    unsafe fn free(&self, _dev: &DeviceParms, memory: CoherentMemory, _: Attrs) -> Result<(), Quarantined> {
        let Translation { original, target, .. } = self.remove(memory.dma);
        // SAFETY: from `alloc`, freed once.
        unsafe { self.memory.free(original, memory.size) };
        if target != original {
            // SAFETY: as above.
            unsafe { self.memory.free(target, memory.size) };
        }
        Ok(())
    }

    unsafe fn map_phys(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        _attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        let mut translation = Translation { len, target: phys, original: phys, dir };
        if self.machine == Machine::Bounces {
            dev.set_needs_sync();
            let copy = self.memory.alloc(FrameRequest::anywhere(len)).map_err(|_| DmaError::OutOfMemory)?;
            translation.target = copy;
            let empty =
                if dir.device_reads() { Fault::LosesWhatTheCpuWrote } else { Fault::DoesNotFillTheCopy };
            if !self.has(empty) {
                self.copy_part(&translation, 0..len, false);
            }
        }
        let target = translation.target;
        self.insert(dev.streaming_mask(), translation).inspect_err(|_| {
            if target != phys {
                // SAFETY: the copy was made just now.
                unsafe { self.memory.free(target, len) };
            }
        })
    }

    unsafe fn unmap_phys(
        &self,
        _dev: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        _attrs: Attrs,
    ) -> Result<(), Quarantined> {
        let removed = self.remove(address);
        if dir.device_writes() && !self.has(Fault::LosesWhatTheDeviceWrote) {
            self.copy_part(&removed, 0..len, true);
        }
        if removed.target != removed.original {
            // SAFETY: the copy of `map_phys`, freed once.
            unsafe { self.memory.free(removed.target, len) };
        }
        Ok(())
    }

    unsafe fn map_sg(
        &self,
        dev: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        for entry in list.iter_mut() {
            // SAFETY: the caller's promise, for each element.
            let address = unsafe { self.map_phys(dev, entry.phys, entry.len, dir, attrs) };
            // The lists of the checks are short.
            entry.dma_address = address.expect("addresses for a list");
            entry.dma_len = entry.len;
        }
        if let (true, [first, second, ..]) = (self.has(Fault::MixesSegmentsUp), &mut *list) {
            std::mem::swap(&mut first.dma_address, &mut second.dma_address);
            std::mem::swap(&mut first.dma_len, &mut second.dma_len);
        }
        Ok(list.len())
    }

    unsafe fn sync_for_cpu(&self, _dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        if dir.device_writes() && !self.has(Fault::SyncDoesNothing) {
            self.copy(address, len, true);
        }
    }

    unsafe fn sync_for_device(&self, _dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        let nothing = self.has(Fault::SyncDoesNothing) || self.has(Fault::SyncForDeviceDoesNothing);
        if dir.device_reads() && !nothing {
            self.copy(address, len, false);
        }
    }
}
