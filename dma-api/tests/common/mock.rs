//! `DmaMapOps` that write down what they are asked, lead a device where it was mapped, and fail when told to.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dma_api::{
    Attrs, CoherentMemory, DeviceParms, Direction, DmaError, DmaMapOps, IovaOps, IovaPart, IovaRange,
    PageMemory, PagePiece, Quarantined, SgEntry,
};
use platform::device_memory::{copy_in, copy_out};
use platform::{DmaAddr, FrameRequest, Frames, PhysAddr};

use super::host::Host;

/// One call of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Alloc { size: usize },
    Free { dma: u64, size: usize },
    MapPhys { phys: u64, len: usize, dir: Direction },
    MapForeign { cpu: usize, len: usize, dir: Direction },
    UnmapPhys { address: u64, len: usize, dir: Direction, attrs: Attrs },
    MapSg { elements: usize, dir: Direction },
    UnmapSg { elements: usize, dir: Direction },
    AllocPages { size: usize, dir: Direction },
    FreePages { size: usize, dir: Direction, attrs: Attrs },
    SyncForCpu { address: u64, len: usize, dir: Direction },
    SyncForDevice { address: u64, len: usize, dir: Direction },
    SyncSgForCpu { elements: usize, dir: Direction },
    SyncSgForDevice { elements: usize, dir: Direction },
    IovaOps,
    IovaTryAlloc { phys: u64, size: usize },
    IovaLink { offset: usize, len: usize, phys: u64, dir: Direction },
    IovaSync { offset: usize, len: usize },
    IovaUnlink { offset: usize, len: usize, dir: Direction, attrs: Attrs },
    IovaDestroy { linked: usize, dir: Direction, attrs: Attrs },
    DmaSupported { mask: u64 },
    RequiredMask,
    MaxMappingSize,
    OptMappingSize,
    MergeBoundary,
}

/// What a device reaches.
#[derive(Clone, Debug)]
struct Live {
    at: NonNull<u8>,
    len: usize,
    dir: Direction,
    copy: Option<Copy>,
}

/// The memory behind `at` when it is a copy.
#[derive(Clone, Debug)]
struct Copy {
    original: NonNull<u8>,
    _memory: Arc<[AtomicU8]>,
}

impl Live {
    /// What the device wrote comes back.
    fn copy_back(&self, at: *const u8, len: usize) {
        if let Some(copy) = self.copy.as_ref().filter(|_| self.dir.device_writes()) {
            let offset = at.addr() - self.at.addr().get();
            // SAFETY: the range is in the copy, so it is in the original, which is the caller's to write.
            unsafe { copy_out(at, copy.original.as_ptr().add(offset), len) };
        }
    }
}

#[derive(Debug)]
pub struct Mock {
    host: Arc<Host>,
    calls: Mutex<Vec<Call>>,
    live: Mutex<BTreeMap<u64, Live>>,
    next: AtomicU64,
    /// Where the next coherent memory lies for the device.
    pub next_coherent: AtomicU64,
    /// There are no I/O addresses for the two-step interface.
    pub no_addresses: AtomicBool,
    /// How many maps and allocations succeed from now on.
    pub maps_left: AtomicUsize,
    /// No unmap and no free succeeds.
    pub unmaps_fail: AtomicBool,
}

// SAFETY: the addresses in `live` are used while the mapping that they belong to lives.
unsafe impl Send for Mock {}
// SAFETY: as above, and they are behind a lock.
unsafe impl Sync for Mock {}

pub const REQUIRED_MASK: u64 = 0x0fff_ffff_ffff;
pub const MAX_MAPPING: usize = 1 << 20;
pub const OPT_MAPPING: usize = 1 << 17;
pub const MERGE_BOUNDARY: u64 = 0x1ff;
/// The only mask that cannot be served.
pub const UNSUPPORTED: u64 = 0xffff;

impl Mock {
    pub fn new(host: &Arc<Host>) -> Arc<Self> {
        Arc::new(Self {
            host: host.clone(),
            calls: Mutex::default(),
            live: Mutex::default(),
            next: AtomicU64::new(0x1000_0000),
            next_coherent: AtomicU64::new(0x4000_0000),
            no_addresses: AtomicBool::new(false),
            maps_left: AtomicUsize::new(usize::MAX),
            unmaps_fail: AtomicBool::new(false),
        })
    }

    /// What was called since the last time.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// How many mappings and allocations the device reaches.
    pub fn live(&self) -> usize {
        self.live.lock().unwrap().len()
    }

    /// The device writes; false when it may not.
    pub fn device_write(&self, address: DmaAddr, bytes: &[u8]) -> bool {
        let Some(at) = self.reach(address, bytes.len(), Direction::device_writes) else { return false };
        // SAFETY: the mapping is live, and reached atomically.
        unsafe { copy_in(bytes.as_ptr(), at, bytes.len()) };
        true
    }

    /// The device reads; `None` when it may not.
    pub fn device_read(&self, address: DmaAddr, len: usize) -> Option<Vec<u8>> {
        let at = self.reach(address, len, Direction::device_reads)?;
        let mut bytes = vec![0; len];
        // SAFETY: the mapping is live, and reached atomically.
        unsafe { copy_out(at, bytes.as_mut_ptr(), len) };
        Some(bytes)
    }

    fn reach(&self, address: DmaAddr, len: usize, may: fn(Direction) -> bool) -> Option<*mut u8> {
        let live = self.live.lock().unwrap();
        let (&start, mapping) = live.range(..=address.get()).next_back()?;
        let offset = (address.get() - start) as usize;
        // SAFETY: the offset is within the mapping.
        (offset + len <= mapping.len && may(mapping.dir)).then(|| unsafe { mapping.at.as_ptr().add(offset) })
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn allowed(&self) -> Result<(), DmaError> {
        let take = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(1) };
        let left = self.maps_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        left.map(drop).map_err(|_| DmaError::OutOfMemory)
    }

    /// A mapping at addresses of its own, with the place in its page kept and a page left free behind it.
    fn enter(&self, at: NonNull<u8>, len: usize, dir: Direction) -> Result<DmaAddr, DmaError> {
        self.allowed()?;
        Ok(self.insert(Live { at, len, dir, copy: None }))
    }

    fn insert(&self, live: Live) -> DmaAddr {
        let offset = live.at.addr().get() as u64 % 4096;
        let pages = (offset + live.len as u64).next_multiple_of(4096) + 4096;
        let address = self.next.fetch_add(pages, Ordering::Relaxed) + offset;
        self.live.lock().unwrap().insert(address, live);
        DmaAddr::new(address)
    }

    fn leave(&self, address: DmaAddr, len: usize, dir: Direction, attrs: Attrs) -> Result<(), Quarantined> {
        let mut live = self.live.lock().unwrap();
        let mapping = live.get(&address.get()).expect("unmapped what is mapped, once");
        assert_eq!((mapping.len, mapping.dir), (len, dir), "unmapped as it was mapped");
        if self.unmaps_fail.load(Ordering::Relaxed) {
            return Err(Quarantined { address, len });
        }
        if !attrs.contains(Attrs::SKIP_CPU_SYNC) {
            mapping.copy_back(mapping.at.as_ptr(), len);
        }
        live.remove(&address.get());
        Ok(())
    }

    /// Calls `copy` with the mapping of a range and where the range is in it.
    fn sync(&self, address: DmaAddr, copy: impl FnOnce(&Live, *mut u8)) {
        let live = self.live.lock().unwrap();
        let (&start, mapping) = live.range(..=address.get()).next_back().expect("a range of a mapping");
        // SAFETY: the range is within the mapping.
        copy(mapping, unsafe { mapping.at.as_ptr().add((address.get() - start) as usize) });
    }

    fn ram(&self, phys: PhysAddr) -> NonNull<u8> {
        NonNull::new(self.host.window().ptr(phys)).unwrap()
    }
}

// SAFETY: the device reaches exactly what `live` says, which maps fill and unmaps empty.
unsafe impl DmaMapOps for Mock {
    fn alloc(&self, _: &DeviceParms, size: usize, _: Attrs) -> Result<CoherentMemory, DmaError> {
        self.note(Call::Alloc { size });
        self.allowed()?;
        let phys = self.host.alloc(FrameRequest::anywhere(size)).map_err(|_| DmaError::OutOfMemory)?;
        let cpu = self.ram(phys);
        let pages = (size as u64).next_multiple_of(4096);
        let dma = DmaAddr::new(self.next_coherent.fetch_add(pages, Ordering::Relaxed));
        let live = Live { at: cpu, len: size, dir: Direction::Bidirectional, copy: None };
        self.live.lock().unwrap().insert(dma.get(), live);
        Ok(CoherentMemory { cpu, dma, size })
    }

    unsafe fn free(&self, _: &DeviceParms, memory: CoherentMemory, _: Attrs) -> Result<(), Quarantined> {
        self.note(Call::Free { dma: memory.dma.get(), size: memory.size });
        self.leave(memory.dma, memory.size, Direction::Bidirectional, Attrs::empty())?;
        // SAFETY: the caller's promise: memory of `alloc`, freed once.
        unsafe { self.host.free(self.host.window().phys(memory.cpu.as_ptr()), memory.size) };
        Ok(())
    }

    /// Two pieces that lie the other way round in memory, or one.
    fn alloc_pages(
        &self,
        _: &DeviceParms,
        size: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<PageMemory, DmaError> {
        self.note(Call::AllocPages { size, dir });
        self.allowed()?;
        let bytes = size.next_multiple_of(4096);
        let first = if attrs.contains(Attrs::FORCE_CONTIGUOUS) { bytes } else { bytes.min(4096) };
        let dma = DmaAddr::new(self.next_coherent.fetch_add(bytes as u64, Ordering::Relaxed));
        let mut pieces = Vec::new();
        for (offset, len) in [(0, first), (first, bytes - first)] {
            if len != 0 {
                let phys = self.host.alloc(FrameRequest::anywhere(len)).map_err(|_| DmaError::OutOfMemory)?;
                let at = self.ram(phys);
                self.live
                    .lock()
                    .unwrap()
                    .insert(dma.get() + offset as u64, Live { at, len, dir, copy: None });
                pieces.push(PagePiece { cpu: at, len });
            }
        }
        Ok(PageMemory { dma, size, pieces: pieces.into() })
    }

    unsafe fn free_pages(
        &self,
        _: &DeviceParms,
        memory: PageMemory,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        self.note(Call::FreePages { size: memory.size, dir, attrs });
        let mut at = memory.dma;
        for piece in &memory.pieces {
            self.leave(at, piece.len, dir, Attrs::empty())?;
            at = at.wrapping_add(piece.len as u64);
            // SAFETY: the caller's promise: pieces of `alloc_pages`, freed once.
            unsafe { self.host.free(self.host.window().phys(piece.cpu.as_ptr()), piece.len) };
        }
        Ok(())
    }

    unsafe fn sync_sg_for_cpu(&self, _: &DeviceParms, list: &[SgEntry], dir: Direction) {
        self.note(Call::SyncSgForCpu { elements: list.len(), dir });
    }

    unsafe fn sync_sg_for_device(&self, _: &DeviceParms, list: &[SgEntry], dir: Direction) {
        self.note(Call::SyncSgForDevice { elements: list.len(), dir });
    }

    fn iova_ops(&self) -> Option<Box<dyn IovaOps + '_>> {
        self.note(Call::IovaOps);
        Some(Box::new(MockIova(self)))
    }

    unsafe fn map_phys(
        &self,
        _: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        _: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        self.note(Call::MapPhys { phys: phys.get(), len, dir });
        self.enter(self.ram(phys), len, dir)
    }

    unsafe fn unmap_phys(
        &self,
        _: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        self.note(Call::UnmapPhys { address: address.get(), len, dir, attrs });
        self.leave(address, len, dir, attrs)
    }

    unsafe fn map_foreign(
        &self,
        dev: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        _: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        self.note(Call::MapForeign { cpu: cpu.addr().get(), len, dir });
        self.allowed()?;
        dev.set_needs_sync();
        let memory: Arc<[AtomicU8]> = (0..len).map(|_| AtomicU8::new(0)).collect();
        let at = NonNull::new(memory.as_ptr().cast_mut().cast()).unwrap();
        // SAFETY: the original is the caller's promise; the copy is this mapping's own, of the same length.
        unsafe { copy_in(cpu.as_ptr(), at.as_ptr(), len) };
        Ok(self.insert(Live { at, len, dir, copy: Some(Copy { original: cpu, _memory: memory }) }))
    }

    /// Joins what lies together, as an IOMMU can.
    unsafe fn map_sg(
        &self,
        _: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        _: Attrs,
    ) -> Result<usize, DmaError> {
        self.note(Call::MapSg { elements: list.len(), dir });
        let mut joined: Vec<(PhysAddr, usize)> = Vec::new();
        for entry in list.iter() {
            match joined.last_mut() {
                Some((phys, len)) if phys.wrapping_add(*len as u64) == entry.phys => *len += entry.len,
                _ => joined.push((entry.phys, entry.len)),
            }
        }
        for (index, &(phys, len)) in joined.iter().enumerate() {
            match self.enter(self.ram(phys), len, dir) {
                Ok(address) => (list[index].dma_address, list[index].dma_len) = (address, len),
                Err(error) => {
                    for entry in &list[..index] {
                        self.leave(entry.dma_address, entry.dma_len, dir, Attrs::SKIP_CPU_SYNC)
                            .map_err(DmaError::NotUndone)?;
                    }
                    return Err(error);
                }
            }
        }
        if let Some(end) = list.get_mut(joined.len()) {
            end.dma_len = 0;
        }
        Ok(joined.len())
    }

    unsafe fn unmap_sg(
        &self,
        _: &DeviceParms,
        list: &[SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        self.note(Call::UnmapSg { elements: list.len(), dir });
        list.iter()
            .take_while(|entry| entry.dma_len != 0)
            .try_for_each(|entry| self.leave(entry.dma_address, entry.dma_len, dir, attrs))
    }

    unsafe fn sync_for_cpu(&self, _: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        self.note(Call::SyncForCpu { address: address.get(), len, dir });
        self.sync(address, |live, at| live.copy_back(at, len));
    }

    unsafe fn sync_for_device(&self, _: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
        self.note(Call::SyncForDevice { address: address.get(), len, dir });
        self.sync(address, |live, at| {
            let Some(copy) = &live.copy else { return };
            let offset = at.addr() - live.at.addr().get();
            // SAFETY: the range is in the original and the copy, which nobody writes but a device, atomically.
            unsafe { copy_in(copy.original.as_ptr().add(offset), at, len) };
        });
    }

    fn dma_supported(&self, _: &DeviceParms, mask: u64) -> bool {
        self.note(Call::DmaSupported { mask });
        mask != UNSUPPORTED
    }

    fn required_mask(&self, _: &DeviceParms) -> u64 {
        self.note(Call::RequiredMask);
        REQUIRED_MASK
    }

    fn max_mapping_size(&self, _: &DeviceParms) -> usize {
        self.note(Call::MaxMappingSize);
        MAX_MAPPING
    }

    fn opt_mapping_size(&self) -> usize {
        self.note(Call::OptMappingSize);
        OPT_MAPPING
    }

    fn merge_boundary(&self) -> u64 {
        self.note(Call::MergeBoundary);
        MERGE_BOUNDARY
    }
}

/// The two-step interface: each link is a mapping of its own at the range's addresses.
#[derive(Debug)]
struct MockIova<'a>(&'a Mock);

impl MockIova<'_> {
    fn unlink(&self, part: IovaPart, dir: Direction, attrs: Attrs) -> Result<(), Quarantined> {
        let (first, end) = (part.address().get(), part.address().get() + part.len as u64);
        let links: Vec<_> =
            self.0.live.lock().unwrap().range(first..end).map(|(&at, live)| (at, live.len)).collect();
        assert_eq!(links.iter().map(|(_, len)| len).sum::<usize>(), part.len, "whole links, without a gap");
        let given_up = Quarantined { address: part.range.address, len: part.range.size };
        links
            .into_iter()
            .try_for_each(|(at, len)| self.0.leave(DmaAddr::new(at), len, dir, attrs).map_err(|_| given_up))
    }
}

// SAFETY: the device reaches exactly what `live` says, which links fill and unlinks empty.
unsafe impl IovaOps for MockIova<'_> {
    fn try_alloc(&self, _: &DeviceParms, phys: PhysAddr, size: usize) -> Result<IovaRange, DmaError> {
        self.0.note(Call::IovaTryAlloc { phys: phys.get(), size });
        if self.0.no_addresses.load(Ordering::Relaxed) {
            return Err(DmaError::AddressSpaceExhausted { size, limit: DmaAddr::new(0) });
        }
        self.0.allowed()?;
        let offset = phys.get() % 4096;
        let pages = (offset + size as u64).next_multiple_of(4096) + 4096;
        let address = DmaAddr::new(self.0.next.fetch_add(pages, Ordering::Relaxed) + offset);
        Ok(IovaRange { address, size })
    }

    unsafe fn link(
        &self,
        _: &DeviceParms,
        part: IovaPart,
        phys: PhysAddr,
        dir: Direction,
        _: Attrs,
    ) -> Result<(), DmaError> {
        self.0.note(Call::IovaLink { offset: part.offset, len: part.len, phys: phys.get(), dir });
        self.0.allowed()?;
        let live = Live { at: self.0.ram(phys), len: part.len, dir, copy: None };
        self.0.live.lock().unwrap().insert(part.address().get(), live);
        Ok(())
    }

    fn sync(&self, _: &DeviceParms, part: IovaPart) -> Result<(), DmaError> {
        self.0.note(Call::IovaSync { offset: part.offset, len: part.len });
        Ok(())
    }

    unsafe fn unlink(
        &self,
        _: &DeviceParms,
        part: IovaPart,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        self.0.note(Call::IovaUnlink { offset: part.offset, len: part.len, dir, attrs });
        MockIova::unlink(self, part, dir, attrs)
    }

    unsafe fn destroy(
        &self,
        _: &DeviceParms,
        range: IovaRange,
        linked: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        self.0.note(Call::IovaDestroy { linked, dir, attrs });
        MockIova::unlink(self, IovaPart { range, offset: 0, len: linked }, dir, attrs)
    }
}

/// Ops through the members that have no default: the others are as the trait gives them.
#[derive(Debug)]
pub struct Required<T>(pub T);

// SAFETY: what the ops within promise.
unsafe impl<T: DmaMapOps> DmaMapOps for Required<T> {
    fn alloc(&self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
        self.0.alloc(dev, size, attrs)
    }

    unsafe fn free(
        &self,
        dev: &DeviceParms,
        memory: CoherentMemory,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.0.free(dev, memory, attrs) }
    }

    unsafe fn map_phys(
        &self,
        dev: &DeviceParms,
        phys: PhysAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.0.map_phys(dev, phys, len, dir, attrs) }
    }

    unsafe fn unmap_phys(
        &self,
        dev: &DeviceParms,
        address: DmaAddr,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(), Quarantined> {
        // SAFETY: the caller's promise, handed on.
        unsafe { self.0.unmap_phys(dev, address, len, dir, attrs) }
    }
}
