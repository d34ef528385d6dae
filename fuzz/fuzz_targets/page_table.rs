//! A page table does what a map from page to page does, whatever is asked of it, and loses no frame.

#![no_main]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use io_pgtable::{AmdV1, IoPageTable, IoPgtableCfg, PageTable};
use libfuzzer_sys::fuzz_target;
use platform::frames::FRAME_SIZE;
use platform::{
    DmaAddr, Extent, FrameRequest, Frames, IotlbGather, LeakCounter, MapError, OutOfFrames, PhysAddr, Prot,
    Window,
};

/// The process's heap as page frames, as many as the input allows.
#[derive(Debug)]
struct Heap {
    live: AtomicUsize,
    limit: usize,
}

const FRAME: Layout = Layout::new::<[u64; FRAME_SIZE / 8]>();

// SAFETY: frames are zeroed allocations of their own, aligned to their size, and physical addresses are pointers.
unsafe impl Frames for Heap {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        if request.size > FRAME_SIZE || self.live.load(Ordering::Relaxed) >= self.limit {
            return Err(OutOfFrames(request));
        }
        let layout = FRAME.align_to(FRAME_SIZE).map_err(|_| OutOfFrames(request))?;
        // SAFETY: the layout is not empty.
        let frame = unsafe { alloc_zeroed(layout) };
        if frame.is_null() {
            return Err(OutOfFrames(request));
        }
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(PhysAddr::new(frame.expose_provenance() as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        assert_eq!(size, FRAME_SIZE);
        self.live.fetch_sub(1, Ordering::Relaxed);
        if let Ok(layout) = FRAME.align_to(FRAME_SIZE) {
            // SAFETY: the caller gives back what `alloc` returned, once.
            unsafe { dealloc(self.window().ptr(at), layout) };
        }
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are pointers here.
        unsafe { Window::new(0) }
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

/// A page of the model.
#[derive(Clone, Copy, Debug)]
struct Page {
    phys: u64,
    size: u64,
    prot: Prot,
}

/// What is mapped: pages by where they start.
#[derive(Debug, Default)]
struct Model(BTreeMap<u64, Page>);

impl Model {
    /// The page that holds an address.
    fn at(&self, iova: u64) -> Option<(u64, Page)> {
        let (&start, &page) = self.0.range(..=iova).next_back()?;
        (iova - start < page.size).then_some((start, page))
    }

    /// Whether a page overlaps [iova, iova + size).
    fn overlaps(&self, iova: u64, size: u64) -> bool {
        self.at(iova).is_some() || self.0.range(iova..=iova + (size - 1)).next().is_some()
    }

    /// Unmaps as the table's contract says: up to a hole or into the middle of a page, whole pages at the end.
    fn unmap(&mut self, iova: u64, len: u64) -> u64 {
        let mut at = iova;
        while at - iova < len {
            let Some(page) = self.0.remove(&at) else { break };
            at += page.size;
        }
        at - iova
    }
}

/// The input, taken in pieces; zeros when it has ended.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first)
    }

    fn word(&mut self) -> u64 {
        self.byte() | self.byte() << 8
    }

    /// An address: few places, so that operations meet, in the whole reach of the table.
    fn address(&mut self) -> u64 {
        let shift = [12, 13, 16, 20, 21, 24, 30, 39, 48][self.byte() as usize % 9];
        (self.word() << shift) ^ ((self.byte() & 3) << 12) ^ ((self.byte() & 1) << 47)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let level = (input.byte() % 6 + 1) as u32;
    let heap = Arc::new(Heap { live: AtomicUsize::new(0), limit: 1 + input.word() as usize % 512 });
    let cfg = IoPgtableCfg::new((12 + 9 * level).min(64));
    let Ok(table) = PageTable::<AmdV1>::new(heap.clone(), &cfg) else { panic!("a frame is free") };
    let leaks = LeakCounter::new();
    let mut model = Model::default();
    while !input.0.is_empty() {
        match input.byte() % 3 {
            0 => map(&table, &mut model, &mut input),
            1 => unmap(&table, &mut model, &mut input, &heap, &leaks),
            _ => look_up(&table, &model, input.address() | input.word() & 0xfff),
        }
        assert_eq!(heap.live.load(Ordering::Relaxed), table.table_pages());
    }
    for (&start, page) in &model.0 {
        look_up(&table, &model, start);
        look_up(&table, &model, start + (page.size - 1));
    }
    drop(table);
    assert_eq!(heap.live.load(Ordering::Relaxed), 0, "frames lost");
    assert_eq!(leaks.get(), 0);
});

fn map(table: &PageTable<AmdV1>, model: &mut Model, input: &mut Input<'_>) {
    let page_size = 1u64 << (12 + input.byte() % 40);
    let count = input.byte() as usize % 9;
    let (iova, phys) = (input.address() & !(page_size - 1), input.address() & !(page_size - 1));
    let prot = Prot::from_bits_truncate(input.byte() as _);
    // SAFETY: no device reads this table, so nothing stands behind the addresses; there is one thread.
    let (done, result) =
        unsafe { table.map_pages(DmaAddr::new(iova), PhysAddr::new(phys), page_size, count, prot) };
    // Only the table knows in which pieces it mapped beside tables that were there.
    let mut told = 0;
    while told < done {
        let at = iova + told;
        let Some(piece) = table.iova_to_phys(DmaAddr::new(at)) else { panic!("{at:#x} is not mapped") };
        assert!(!model.overlaps(at, piece.page_size), "mapped twice at {at:#x}");
        assert!(piece.page_size <= page_size && table.page_sizes().contains(piece.page_size));
        model.0.insert(at, Page { phys: phys + told, size: piece.page_size, prot });
        told += piece.page_size;
    }
    assert_eq!(told, done);
    match result {
        Ok(()) => assert_eq!(done, page_size * count as u64),
        Err(MapError::InUse(at)) => {
            assert!(at.get() >= iova + done && at.get() - iova < page_size * count as u64);
            let rest = page_size - (iova + done) % page_size;
            assert!(model.overlaps(iova + done, rest), "nothing is mapped from {:#x} on", iova + done);
        }
        Err(MapError::OutOfMemory) => {}
        // Refused before anything is done: what it is must be so.
        Err(MapError::NoAccess) => {
            assert!(done == 0 && !prot.intersects(Prot::READ | Prot::WRITE));
        }
        Err(MapError::NoPageSize(_)) => {
            assert!(done == 0 && page_size == 1 << 39);
        }
        Err(MapError::OutOfRange(_)) => {
            let len = (page_size as u128) * count as u128;
            let last = (table.aperture().1.get()) as u128;
            let fits = table.page_sizes().contains(page_size);
            let reached = iova as u128 + len <= last + 1 && phys as u128 + len <= 1 << 52 && len != 0;
            assert!(done == 0 && !(fits && reached));
        }
        Err(error) => panic!("{error}"),
    }
}

fn unmap(
    table: &PageTable<AmdV1>,
    model: &mut Model,
    input: &mut Input<'_>,
    heap: &Heap,
    leaks: &LeakCounter,
) {
    let iova = input.address();
    let len = (input.word() + 1) << [12, 12, 16, 21, 30][input.byte() as usize % 5];
    let mut gather = IotlbGather::new(leaks);
    // SAFETY: there is one thread.
    let unmapped = unsafe { table.unmap_range(DmaAddr::new(iova), len, &mut gather) };
    let reached = DmaAddr::new(iova).last_of(len).is_some_and(|last| last <= table.aperture().1);
    assert_eq!(unmapped, if reached { model.unmap(iova, len) } else { 0 });
    let range = gather.range().map(|(first, last)| (first.get(), last.get()));
    assert_eq!(range, (unmapped != 0).then(|| (iova, iova + (unmapped - 1))));
    // SAFETY: no IOMMU reads this table; its pages came from these frames.
    let _ = unsafe { gather.flushed(heap) };
}

fn look_up(table: &PageTable<AmdV1>, model: &Model, iova: u64) {
    let found = table.iova_to_phys(DmaAddr::new(iova));
    let found = found.map(|found| (found.phys.get(), found.page_size, found.prot));
    let shown = Prot::READ | Prot::WRITE | Prot::CACHE;
    let expected =
        model.at(iova).map(|(start, page)| (page.phys + (iova - start), page.size, page.prot & shown));
    assert_eq!(found, expected, "at {iova:#x}");
}
