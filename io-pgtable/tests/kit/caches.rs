//! Hardware that does not snoop the CPU's caches: it sees what was written back, and before that what was there.

use std::sync::Arc;

use io_pgtable::{CfgError, Format, IoPageTable, IoPgtableCfg, PageTable, Parts};
use platform::{CacheMaintenance, IotlbGather, LeakCounter};

use super::Subject;
use crate::common::{Arena, BASE, RW};
use crate::walkers::sound;

const FRAMES: usize = 512;

/// Caches between the CPU's memory and the device's.
struct Caches {
    cpu: Arc<Arena>,
    device: Arena,
}

impl CacheMaintenance for Caches {
    fn clean(&self, at: *const u8, len: usize) {
        self.device.copy_from(&self.cpu, at, len);
    }
}

/// All words that the CPU sees are written back: after each map, unmap, split and clearing of marks.
pub(crate) fn units_that_do_not_snoop_see_every_change<F: Format>(subject: &Subject<F>) {
    let cfg = IoPgtableCfg { coherent_walk: false, ..subject.cfg };
    let cpu = Arc::new(Arena::new(FRAMES));
    assert_eq!(PageTable::<F>::new(cpu.clone(), &cfg).unwrap_err(), CfgError::NotCoherent);
    let caches = Arc::new(Caches { cpu: cpu.clone(), device: Arena::stale(BASE, FRAMES) });
    let parts = Parts { frames: cpu.clone(), cache: Some(caches.clone()), change_top: None };
    let table = PageTable::<F>::with_parts(parts, &cfg).expect("a table");
    let walk = |iova| sound((subject.walk)(&caches.device, table.root(), &cfg, iova));
    // A small top has the rest of its frame to itself.
    let top = table.root();
    let (first, last) = table.aperture();
    let top_entries = ((last.get() - first.get()) >> F::level_shift(top.level)) + 1;
    let top_end = top.phys.get() + (F::ENTRY_BYTES as u64 * top_entries).max(F::MIN_TOP_BYTES as u64);
    let behind_top = top_end..top_end.next_multiple_of(4096);
    let same = |what| {
        for (at, word) in cpu.all().into_iter().filter(|(at, _)| !behind_top.contains(at)) {
            // That a pointer has been written back is only the CPU's to know.
            let seen = caches.device.read(at);
            assert!(
                seen == word || F::FLUSHED != 0 && seen | F::FLUSHED == word,
                "{at:#x}: {seen:#x} after {what}"
            );
        }
    };
    same("the top");
    let leaks = LeakCounter::new();
    for size in subject.sizes_by_twos() {
        let at = subject.homes(2 * size)[1] & !(2 * size - 1);
        let phys = subject.place(2 * size);
        // SAFETY: nothing walks the table but this thread.
        let (done, result) = unsafe { table.map_pages(at.into(), phys.into(), size, 2, RW) };
        assert_eq!((done, result), (2 * size, Ok(())));
        same("a map");
        for offset in [0, size - 1, size, 2 * size - 1] {
            assert_eq!(walk(at + offset).map(|found| found.phys), Some(phys + offset));
        }
        let mut gather = IotlbGather::new(&leaks);
        // SAFETY: as above.
        assert_eq!(unsafe { table.unmap_range(at.into(), 2 * size, &mut gather) }, 2 * size);
        for offset in [0, size, 2 * size - 1] {
            assert_eq!(walk(at + offset), None);
        }
        // SAFETY: there is no IOMMU that remembers anything.
        let _flushed = unsafe { gather.flushed(&*cpu) };
        same("an unmap");
    }
    let sizes = subject.sizes();
    let &[small, large, ..] = &sizes[..] else { return };
    let at = subject.homes(large)[1];
    // A map below pointers that another thread has installed and not yet written back.
    let map = |at: u64| {
        // SAFETY: as above.
        let (_, result) = unsafe { table.map_pages(at.into(), subject.place(small).into(), small, 1, RW) };
        assert_eq!(result, Ok(()));
    };
    map(at);
    let mut pointers = Vec::new();
    table.walk(at.into(), &mut |entry| pointers.push(entry.at.get()));
    pointers.pop();
    for pointer in pointers {
        let (word, shift) = (pointer & !7, 8 * (pointer & 4));
        let entry = if F::ENTRY_BYTES == 8 { u64::MAX } else { 0xffff_ffff << shift };
        cpu.write(word, cpu.read(word) & !(F::FLUSHED << shift));
        caches.device.write(word, caches.device.read(word) & !entry);
    }
    map(at + small);
    same("a map below pointers of another thread");
    let mut gather = IotlbGather::new(&leaks);
    // SAFETY: as above.
    assert_eq!(unsafe { table.unmap_range(at.into(), 2 * small, &mut gather) }, 2 * small);
    // SAFETY: there is no IOMMU that remembers anything.
    let _flushed = unsafe { gather.flushed(&*cpu) };
    let at = at ^ large;
    // SAFETY: as above.
    let (_, result) = unsafe { table.map_pages(at.into(), subject.place(large).into(), large, 1, RW) };
    assert_eq!(result, Ok(()));
    let mut gather = IotlbGather::new(&leaks);
    // SAFETY: as above.
    let split = unsafe { table.split(at.into(), small, &mut gather) };
    same("a split");
    drop(split);
    drop(gather);
}
