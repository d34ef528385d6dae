//! Maps and unmaps of disjoint ranges at the same time. With the compare-and-swap that installs a table made a store, one of
//! two maps is lost; with a table taken out because it is empty though the range does not cover it, a neighbour's map is.

#![cfg(loom)]

use std::sync::Arc;

use io_pgtable::{AmdV1, CfgError, Decoded, Format, IoPageTable, IoPgtableCfg, PageTable, Shape, Upper};
use loom::thread;
use platform::frames::ModelFrames;
use platform::{DmaAddr, IotlbGather, LeakCounter, PageSizes, PhysAddr, Prot};

const PAGE: u64 = 0x1000;

/// A format whose tables have as many entries as a model's frames have words, so that one can be filled and emptied.
#[derive(Clone, Copy, Debug)]
struct Four;

impl Format for Four {
    const GRANULE_SHIFT: u32 = 12;
    const INDEX_BITS: u32 = 2;
    const MAX_LEVEL: u32 = 3;
    const PAGE_SIZES: PageSizes = PageSizes::from_bits(1 << 12);
    const OUTPUT_BITS: u32 = 64;

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

struct Bed<F: Format> {
    frames: Arc<ModelFrames>,
    table: PageTable<F>,
}

impl<F: Format> Bed<F> {
    fn new(levels: u32) -> Arc<Self> {
        let frames = Arc::new(ModelFrames::new());
        let table = PageTable::new(frames.clone(), &IoPgtableCfg::new(12 + F::INDEX_BITS * levels))
            .expect("a frame for the top");
        Arc::new(Self { frames, table })
    }

    fn map(&self, iova: u64, count: usize) {
        let (at, to) = (DmaAddr::new(iova), PhysAddr::new(PAGE + iova));
        // SAFETY: no device walks the table, and the models' ranges are disjoint.
        let (done, result) = unsafe { self.table.map_pages(at, to, PAGE, count, Prot::READ) };
        assert_eq!((done, result), (PAGE * count as u64, Ok(())));
    }

    /// Unmaps, and gives tables back at once.
    fn unmap(&self, iova: u64, len: u64) {
        let leaks = LeakCounter::new();
        let mut gather = IotlbGather::new(&leaks);
        // SAFETY: as for `map`.
        assert_eq!(unsafe { self.table.unmap_range(DmaAddr::new(iova), len, &mut gather) }, len);
        // SAFETY: there is no IOMMU that could remember anything.
        let _flushed = unsafe { gather.flushed(&*self.frames) };
    }

    fn phys(&self, iova: u64) -> Option<u64> {
        self.table.iova_to_phys(DmaAddr::new(iova)).map(|found| found.phys.get())
    }

    /// Asserts how many frames the table takes, and that all go back with it.
    fn finish(self: Arc<Self>, tables: usize) {
        assert_eq!((self.frames.live(), self.table.table_pages()), (tables, tables));
        let frames = self.frames.clone();
        drop(self);
        assert_eq!(frames.live(), 0);
    }
}

fn beside<F: Format>(bed: &Arc<Bed<F>>, other: fn(&Bed<F>), mine: fn(&Bed<F>)) {
    let bed_there = Arc::clone(bed);
    let there = thread::spawn(move || other(&bed_there));
    mine(bed);
    there.join().unwrap();
}

#[test]
fn two_maps_install_one_table() {
    loom::model(|| {
        let bed = Bed::<AmdV1>::new(3);
        beside(&bed, |bed| bed.map(0, 1), |bed| bed.map(PAGE, 1));
        assert_eq!((bed.phys(0), bed.phys(PAGE)), (Some(PAGE), Some(2 * PAGE)));
        bed.finish(3);
    });
}

#[test]
fn an_emptied_table_stays_for_a_neighbours_map() {
    loom::model(|| {
        let bed = Bed::<Four>::new(2);
        // The last page of one table and the first of the next: neither table is covered.
        bed.map(3 * PAGE, 2);
        beside(&bed, |bed| bed.unmap(3 * PAGE, 2 * PAGE), |bed| bed.map(2 * PAGE, 1));
        assert_eq!((bed.phys(3 * PAGE), bed.phys(2 * PAGE)), (None, Some(3 * PAGE)));
        bed.finish(3);
    });
}

#[test]
fn a_covered_table_goes_while_its_neighbour_comes() {
    loom::model(|| {
        let bed = Bed::<Four>::new(3);
        bed.map(0, 4);
        // Both under one table of the middle level, of which neither covers all.
        beside(&bed, |bed| bed.unmap(0, 4 * PAGE), |bed| bed.map(4 * PAGE, 1));
        assert_eq!((bed.phys(0), bed.phys(4 * PAGE)), (None, Some(5 * PAGE)));
        bed.finish(3);
    });
}
