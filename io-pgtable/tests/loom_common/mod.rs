//! What the models share: a format whose tables fit a model's frames, frames that show who comes too late, and a table.

use std::sync::{Arc, Mutex};

use io_pgtable::{
    CfgError, ChangeTop, Decoded, Format, IoPageTable, IoPgtableCfg, PageTable, Parts, Shape, Upper,
};
use loom::sync::atomic::Ordering;
use loom::thread;
use platform::frames::{ModelFrames, WORDS_PER_FRAME};
use platform::{
    DmaAddr, Extent, FrameRequest, Frames, IotlbGather, LeakCounter, OutOfFrames, PageSizes, PhysAddr, Prot,
    Window,
};

pub(crate) const PAGE: u64 = 0x1000;

/// A format whose tables have as many entries as a model's frames have words, so that one can be filled and emptied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Four;

impl Format for Four {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 2;
    const MAX_LEVEL: u32 = 3;
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << 12);
    const OUTPUT_BITS: u32 = 64;
    const GROWS: bool = true;

    fn new(cfg: &IoPgtableCfg) -> Result<(Self, Shape), CfgError> {
        Ok((Self, Shape::of::<Self>(cfg.ias, Upper::Zero)?))
    }

    fn leaf(&self, phys: PhysAddr, _shift: u32, _level: u32, _prot: Prot) -> u64 {
        phys.get() | 1
    }

    fn pointer(&self, phys: PhysAddr, _level: u32) -> u64 {
        phys.get() | 3
    }

    fn decode(&self, entry: u64, level: u32) -> Decoded {
        let phys = PhysAddr::new(entry).align_down(PAGE);
        match entry & 3 {
            1 => Decoded::Leaf { phys, shift: Self::level_shift(level), prot: Prot::READ },
            3 => Decoded::Table(phys),
            _ => Decoded::Empty,
        }
    }
}

/// Frames that stay when they are freed, full of a page at this address: a walk that still comes to one shows it.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    frames: ModelFrames,
    freed: Mutex<Vec<(PhysAddr, usize)>>,
}

/// What a walk of a freed table finds.
const FREED: u64 = 0xdead_0000;

impl Keeping {
    /// Frames handed out and not freed.
    pub(crate) fn live(&self) -> usize {
        self.frames.live() - self.freed.lock().unwrap().len()
    }
}

// SAFETY: frames are those of `ModelFrames`, which are not handed out a second time.
unsafe impl Frames for Keeping {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        self.frames.alloc(request)
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        // SAFETY: the frame is there until `self` is dropped.
        for word in unsafe { self.window().words(at, WORDS_PER_FRAME) } {
            word.store(FREED | 1, Ordering::Relaxed);
        }
        self.freed.lock().unwrap().push((at, size));
    }

    fn window(&self) -> Window {
        self.frames.window()
    }

    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        for (at, size) in self.freed.get_mut().unwrap().drain(..) {
            // SAFETY: `alloc` made it with this size, and it is freed once.
            unsafe { self.frames.free(at, size) };
        }
    }
}

pub(crate) struct Bed<F: Format> {
    pub(crate) frames: Arc<Keeping>,
    pub(crate) table: PageTable<F>,
}

#[allow(dead_code, reason = "not every model does everything")]
impl<F: Format> Bed<F> {
    pub(crate) fn new(levels: u32) -> Arc<Self> {
        let frames = Arc::new(Keeping::default());
        let change_top = ChangeTop::new(F::MAX_LEVEL, |_| Ok(()));
        let parts = Parts { frames: frames.clone(), cache: None, change_top: Some(change_top) };
        let table = PageTable::with_parts(parts, &IoPgtableCfg::new(12 + F::INDEX_BITS * levels))
            .expect("a frame for the top");
        Arc::new(Self { frames, table })
    }

    pub(crate) fn map(&self, iova: u64, count: usize) {
        let (at, to) = (DmaAddr::new(iova), PhysAddr::new(PAGE + iova));
        // SAFETY: no device walks the table, and the models' ranges are disjoint.
        let (done, result) = unsafe { self.table.map_pages(at, to, PAGE, count, Prot::READ) };
        assert_eq!((done, result), (PAGE * count as u64, Ok(())));
    }

    /// Unmaps, and gives tables back at once.
    pub(crate) fn unmap(&self, iova: u64, len: u64) {
        let leaks = LeakCounter::new();
        let mut gather = IotlbGather::new(&leaks);
        self.unmap_into(iova, len, &mut gather);
        // SAFETY: there is no IOMMU that could remember anything.
        let _flushed = unsafe { gather.flushed(&*self.frames) };
    }

    pub(crate) fn unmap_into(&self, iova: u64, len: u64, gather: &mut IotlbGather<'_>) {
        // SAFETY: as for `map`.
        assert_eq!(unsafe { self.table.unmap_range(DmaAddr::new(iova), len, gather) }, len);
    }

    pub(crate) fn phys(&self, iova: u64) -> Option<u64> {
        self.table.iova_to_phys(DmaAddr::new(iova)).map(|found| found.phys.get())
    }

    /// Asserts how many frames the table takes, and that all go back with it.
    pub(crate) fn finish(self: Arc<Self>, tables: usize) {
        assert_eq!((self.frames.live(), self.table.table_pages()), (tables, tables));
        let frames = self.frames.clone();
        drop(self);
        assert_eq!(frames.live(), 0);
    }
}

pub(crate) fn beside<F: Format>(bed: &Arc<Bed<F>>, other: fn(&Bed<F>), mine: fn(&Bed<F>)) {
    let bed_there = Arc::clone(bed);
    let there = thread::spawn(move || other(&bed_there));
    mine(bed);
    there.join().unwrap();
}
