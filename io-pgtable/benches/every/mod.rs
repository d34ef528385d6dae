//! The same operations on every format, where tables are: the smallest page, 256 of them in one call, the largest page of several
//! entries of the lowest level, a page of the next level, and lookups.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::{Arc, Mutex};

use criterion::Criterion;
use io_pgtable::{
    AmdV1, Arm32LpaeS1, Arm32LpaeS2, ArmLpa2S1, ArmLpaeS1, ArmLpaeS2, ArmV7s, Dart1, Dart2, Format,
    IoPgtableCfg, MaliLpae, RiscV, RiscV32, VtdSs, X86_64,
};

use platform::{Extent, FrameRequest, Frames, OutOfFrames, PhysAddr, Window};

use crate::{Bench, Subject, limits, pages, places};

/// Where mappings lead: within 32 bits, and aligned for each of the sizes.
const PHYS: u64 = 0x4000_0000;

/// Page frames of physical addresses so low that every format has them.
#[derive(Debug)]
struct Low {
    window: Window,
    /// Bytes handed out, and what came back, by its size.
    state: Mutex<(usize, Vec<(usize, PhysAddr)>)>,
}

/// The first address.
const LOW: u64 = 0x1000_0000;
// SAFETY: a power of two, and no size that wraps.
const MEMORY: Layout = unsafe { Layout::from_size_align_unchecked(64 << 20, 1 << 16) };

impl Low {
    fn new() -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(MEMORY) };
        assert!(!memory.is_null());
        // SAFETY: all of the addresses handed out are in this allocation.
        let window = unsafe { Window::new(memory.expose_provenance().wrapping_sub(LOW as usize)) };
        Self { window, state: Mutex::default() }
    }
}

// SAFETY: frames are pieces of the allocation of their own, aligned to their size and zeroed.
unsafe impl Frames for Low {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        let mut state = self.state.lock().expect("no panics");
        let (used, free) = &mut *state;
        if let Some(index) = free.iter().rposition(|(size, _)| *size == request.size) {
            let (size, at) = free.swap_remove(index);
            // SAFETY: the frame is ours alone.
            unsafe { self.window.ptr(at).write_bytes(0, size) };
            return Ok(at);
        }
        let at = used.next_multiple_of(request.align);
        *used = at + request.size;
        if *used > MEMORY.size() { Err(OutOfFrames(request)) } else { Ok(PhysAddr::new(LOW + at as u64)) }
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        self.state.lock().expect("no panics").1.push((size, at));
    }

    fn window(&self) -> Window {
        self.window
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl Drop for Low {
    fn drop(&mut self) {
        // SAFETY: no table is left, and this is what was allocated.
        unsafe { dealloc(self.window.ptr(PhysAddr::new(LOW)), MEMORY) };
    }
}

fn operations<F: Format>(c: &mut Criterion, format: &str, cfg: &IoPgtableCfg) {
    let mut bench = Bench { phys: PHYS, ..Bench::new::<F>(Arc::new(Low::new()), cfg) };
    let name = |row: &str| format!("every format: {format}: {row}");
    let sizes = bench.table.page_sizes();
    let (small, span) = (1u64 << F::GRANULE_SHIFT, 1u64 << F::level_shift(2));
    let (first, last) = bench.table.aperture();
    // In the middle, from the second halves of tables on. Neighbours keep these and the next, for tables of 256 entries.
    let middle = (first.get() + (last.get() - first.get()) / 2) & !(16 * span - 1);
    let halves = places(middle + span / 2, 2 * span, 8);
    for half in &halves {
        bench.map(half - small, small, 1);
        bench.map(half + span + span / 2 - small, small, 1);
    }
    let singles = places(halves[0], small, 128);
    pages(c, &mut bench, &name("one page"), &singles, small, 1);
    pages(c, &mut bench, &name("256 pages"), &halves, small, 256);
    if let Some(run) = (F::GRANULE_SHIFT + 1..F::level_shift(2)).rev().find(|bit| sizes.contains(1 << bit)) {
        let row = name(&format!("one page of {} entries", 1u64 << (run - F::GRANULE_SHIFT)));
        pages(c, &mut bench, &row, &halves, 1 << run, 1);
    }
    if sizes.contains(span) {
        let large = places(middle + 16 * span, span, 16);
        pages(c, &mut bench, &name("one page of the next level"), &large, span, 1);
    }
    singles.iter().for_each(|iova| bench.map(*iova, small, 1));
    let look = |iova| bench.look(iova);
    limits::lookups(c, &name("lookup"), &singles, look);
}

pub(crate) fn formats(c: &mut Criterion) {
    let of = IoPgtableCfg::new;
    let within = |bits| IoPgtableCfg { oas: bits, ..of(bits) };
    operations::<AmdV1>(c, "AMD v1", &of(48));
    operations::<X86_64>(c, "x86-64", &of(47));
    operations::<VtdSs>(c, "VT-d second stage", &of(48));
    operations::<RiscV>(c, "RISC-V Sv48", &of(48));
    operations::<RiscV32>(c, "RISC-V Sv32", &of(32));
    operations::<ArmLpaeS1<12>>(c, "ARM stage 1, 4 KiB", &of(48));
    operations::<ArmLpaeS1<14>>(c, "ARM stage 1, 16 KiB", &of(48));
    operations::<ArmLpaeS1<16>>(c, "ARM stage 1, 64 KiB", &of(52));
    operations::<ArmLpa2S1<12>>(c, "ARM stage 1, 4 KiB, LPA2", &of(52));
    operations::<ArmLpaeS2<12>>(c, "ARM stage 2, 4 KiB", &within(42));
    operations::<Arm32LpaeS1>(c, "ARM stage 1 of 32 bits", &of(32));
    operations::<Arm32LpaeS2>(c, "ARM stage 2 of 32 bits", &of(40));
    operations::<ArmV7s>(c, "ARM v7s", &within(32));
    operations::<MaliLpae>(c, "Mali", &of(48));
    operations::<Dart1<14>>(c, "DART 1", &of(36));
    operations::<Dart2>(c, "DART 2", &of(42));
}
