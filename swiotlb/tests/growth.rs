//! What a pool does when it is full and may have more.

mod common;

use std::sync::Arc;

use common::{FOUR_GIB, Host, Original, SEGMENT, configured, pattern, trusted, untrusted};
use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use platform::{FrameRequest, Frames, PhysAddr, trace};
use swiotlb::{Config, SEGMENT_SLOTS, SLOT_SIZE, Statistics, Swiotlb};

use Direction::{Bidirectional, FromDevice, ToDevice};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

fn growing(host: &Arc<Host>, size: usize, max_size: usize) -> Arc<Swiotlb> {
    configured(host, &Config { size, max_size, ..Config::default() })
}

fn map_as(
    pool: &Swiotlb,
    parms: &DeviceParms,
    original: &Original,
    alloc_align_mask: u64,
    dir: Direction,
    attrs: Attrs,
) -> Result<u64, DmaError> {
    // SAFETY: tests keep the original until they have unmapped it, and touch it meanwhile as its direction allows.
    let copy = unsafe { pool.map(parms, original.ptr(), original.len, alloc_align_mask, dir, attrs) };
    assert!(pool.is_consistent());
    copy.map(PhysAddr::get)
}

fn map(pool: &Swiotlb, original: &Original) -> Result<u64, DmaError> {
    map_as(pool, &trusted(), original, 0, Bidirectional, Attrs::empty())
}

fn unmap(pool: &Swiotlb, copy: u64, original: &Original) {
    // SAFETY: tests end each mapping once.
    unsafe { pool.unmap(PhysAddr::new(copy), original.len, Bidirectional, Attrs::empty()) };
    assert!(pool.is_consistent());
}

/// Takes all slots that there are.
fn fill(pool: &Swiotlb) -> (Original, Vec<u64>) {
    let segment = Original::new(0, &[0; SEGMENT]);
    let Statistics { slots, used, .. } = pool.statistics();
    let held = (used..slots).step_by(SEGMENT_SLOTS).map(|_| map(pool, &segment).unwrap()).collect();
    let Statistics { slots, used, transient_slots, .. } = pool.statistics();
    assert_eq!((used, transient_slots), (slots, 0));
    (segment, held)
}

fn slots(pool: &Swiotlb) -> (usize, usize, usize) {
    let Statistics { slots, used, transient_slots, .. } = pool.statistics();
    (slots, used, transient_slots)
}

#[test]
fn a_pool_that_may_not_grow_is_full_when_it_is() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, 0);
    let (_segment, _held) = fill(&pool);
    let refused = map(&pool, &Original::new(0, &[0]));
    assert_eq!(refused, Err(DmaError::BouncePoolFull { size: 1, used: 128, total: 128 }));
    assert_eq!((pool.grow(), host.live()), (0, SEGMENT));
}

#[test]
fn a_full_pool_serves_from_memory_of_just_the_size_until_the_unmap() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, MIB);
    let (_segment, _held) = fill(&pool);
    for (len, frames) in [(1, PAGE), (2 * SLOT_SIZE, PAGE), (2 * SLOT_SIZE + 1, 2 * PAGE), (SEGMENT, SEGMENT)]
    {
        let original = Original::new(0, &pattern(1, len));
        let copy = map(&pool, &original).unwrap();
        assert!(copy < FOUR_GIB && pool.contains(PhysAddr::new(copy)));
        assert!(!pool.contains(PhysAddr::new(copy - 1)));
        assert_eq!(host.live(), SEGMENT + frames, "{len} bytes");
        assert_eq!(slots(&pool), (128, 128, frames / SLOT_SIZE));
        assert_eq!(host.device_read(copy, len), pattern(1, len));
        host.device_write(copy, &pattern(2, len));
        unmap(&pool, copy, &original);
        assert_eq!(original.read(), pattern(2, len));
        assert!(!pool.contains(PhysAddr::new(copy)));
        assert_eq!((host.live(), slots(&pool)), (SEGMENT, (128, 128, 0)));
    }
    assert_eq!(pool.statistics().maps, 1 + 4);
}

#[test]
fn a_transient_copy_keeps_the_device_s_rules() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, 2 * MIB);
    let (_segment, _held) = fill(&pool);
    let parms = untrusted();
    for (kept, boundary, align_mask, low_bits, len) in [
        (0xfff, 0xffff_ffff, 0, 0x923, 100),
        (0x3fff, 0xffff_ffff, 0, 0x2a51, 5000),
        (0x1_ffff, 0xffff_ffff, 0, 0x1_8801, 5000),
        (0x1_ffff, 0xffff_ffff, 0, 0x801, 5000),
        (0xfff, 0xffff_ffff, 0xfff, 0x923, 5000),
        (0, 0x1fff, 0, 0x10, 0x2000),
        (0xff, 0x1fff, 0x1ff, 0x1010, 0x1ff0),
        (0, 0xffff_ffff, 0x3_ffff, 3, 1),
    ] {
        parms.set_min_align_mask(kept);
        parms.set_segment_boundary(boundary);
        let original = Original::new(low_bits, &vec![0xcc; len]);
        let copy = map_as(&pool, &parms, &original, align_mask, Bidirectional, Attrs::empty()).unwrap();
        let case = format!("{kept:#x}, {boundary:#x}, {align_mask:#x}, {low_bits:#x}, {len}");
        assert_eq!(copy & kept, low_bits as u64 & kept, "{case}");
        assert!(len as u64 - 1 <= boundary - (copy & boundary), "{case}");
        assert_eq!(slots(&pool).1, 128, "{case}");
        // Whole granules are the mapping's alone, with zeros around it.
        let first = copy & !align_mask;
        let end = (copy + len as u64).next_multiple_of(align_mask + 1);
        let (last_byte, memory) = (PhysAddr::new(end - 1), host.device_read(first, (end - first) as usize));
        assert!(pool.contains(PhysAddr::new(first)) && pool.contains(last_byte), "{case}");
        assert_eq!(memory.iter().filter(|&&byte| byte == 0xcc).count(), len, "{case}");
        assert!(memory.iter().all(|&byte| byte == 0xcc || byte == 0), "{case}");
        unmap(&pool, copy, &original);
    }
    assert_eq!(host.live(), SEGMENT);
}

#[test]
fn a_transient_copy_is_synced_as_any_other() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, MIB);
    let (_segment, _held) = fill(&pool);
    let parms = trusted();
    // The copy begins in the second slot of its page.
    parms.set_min_align_mask(0xfff);
    for dir in [ToDevice, FromDevice, Bidirectional] {
        let whole = Original::new(0x900, &pattern(1, 6000));
        let len = 5000;
        // SAFETY: the original outlives the mapping.
        let copy = unsafe { pool.map(&parms, whole.ptr(), len, 0, dir, Attrs::empty()) }.unwrap();
        host.device_write(copy.get(), &pattern(2, len));
        let clamped = pool.statistics().clamped;
        // SAFETY: a part of the mapping, and one that is too long on purpose.
        unsafe { pool.sync_for_cpu(copy.wrapping_add(4000), 2000, dir) };
        let expected = if dir == ToDevice {
            pattern(1, 6000)
        } else {
            [&pattern(1, 6000)[..4000], &pattern(2, len)[4000..], &pattern(1, 6000)[5000..]].concat()
        };
        assert_eq!(whole.read(), expected, "{dir:?}");
        whole.write(0, &pattern(3, len));
        // SAFETY: as above; the frames before the copy are no part of it.
        unsafe {
            pool.sync_for_device(copy.wrapping_add(10), 20, dir);
            pool.sync_for_device(PhysAddr::new(copy.get() - 1), 1, dir);
        }
        let mut expected = pattern(2, len);
        if dir != FromDevice {
            expected[10..30].copy_from_slice(&pattern(3, len)[10..30]);
        }
        assert_eq!(host.device_read(copy.get(), len), expected, "{dir:?}");
        let both = u64::from(dir == Bidirectional);
        assert_eq!(pool.statistics().clamped - clamped, 1 + both, "{dir:?}");
        // SAFETY: ended once.
        unsafe { pool.unmap(copy, len, dir, Attrs::SKIP_CPU_SYNC) };
        assert_eq!(whole.read()[..len], pattern(3, len));
    }
}

#[test]
fn transient_pools_take_no_more_than_the_maximum() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, SEGMENT + 2 * PAGE);
    let (_segment, _held) = fill(&pool);
    let small = Original::new(0, &[1; 10]);
    let held = [(); 2].map(|()| map(&pool, &small).unwrap());
    let full = Err(DmaError::BouncePoolFull { size: 10, used: 128, total: 128 });
    assert_eq!(map(&pool, &small), full);
    unmap(&pool, held[0], &small);
    assert!(map(&pool, &small).is_ok());
    assert_eq!((map(&pool, &small), host.live()), (full, SEGMENT + 2 * PAGE));
    assert_eq!(pool.grow(), 0, "there is no room for a pool");
}

#[test]
fn transient_pools_are_so_many_that_a_lookup_is_short() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, 4 * MIB);
    let (_segment, _held) = fill(&pool);
    let small = Original::new(0, &[1; 10]);
    let held: Vec<u64> = std::iter::from_fn(|| map(&pool, &small).ok()).collect();
    assert_eq!((held.len(), slots(&pool)), (128, (128, 128, 256)));
    held.into_iter().for_each(|copy| unmap(&pool, copy, &small));
    assert_eq!((host.live(), slots(&pool)), (SEGMENT, (128, 128, 0)));
}

#[test]
fn growth_is_asked_for_and_of_the_default_size_or_halves_of_it() {
    let host = Host::new();
    let pool = growing(&host, 2 * MIB, 5 * MIB + MIB / 2);
    assert_eq!(pool.grow(), 0, "nobody asked");
    let mut held = vec![fill(&pool)];
    let small = Original::new(0, &pattern(3, 10));
    for (grown, slots) in [(2 * MIB, 2048), (MIB, 2560)] {
        let copy = map(&pool, &small).unwrap();
        unmap(&pool, copy, &small);
        assert_eq!((pool.grow(), pool.grow()), (grown, 0));
        assert_eq!(pool.statistics().slots, slots);
        held.push(fill(&pool));
    }
    let last = map(&pool, &small).unwrap();
    assert_eq!((pool.grow(), host.live()), (0, 5 * MIB + PAGE), "half a MiB is left, and a page taken of it");
    // A lookup finds what is where, and what goes back is found again: first in the default pool.
    for (segment, copies) in &held {
        let (inside, copy) = (Original::new(0, &pattern(4, 10)), copies[0]);
        assert!(pool.contains(PhysAddr::new(copy)));
        unmap(&pool, copy, segment);
        assert_eq!(map(&pool, &inside), Ok(copy));
        host.device_write(copy, &pattern(5, 10));
        unmap(&pool, copy, &inside);
        assert_eq!(inside.read(), pattern(5, 10));
        let again = map(&pool, segment).unwrap();
        assert_eq!(again, copy);
    }
    unmap(&pool, last, &small);
    for (segment, copies) in held {
        copies.into_iter().for_each(|copy| unmap(&pool, copy, &segment));
    }
    assert_eq!(pool.statistics().used, 0);
    drop(pool);
    assert_eq!(host.live(), 0);
}

#[test]
fn growth_without_memory_is_asked_for_again() {
    let host = Host::new();
    let pool = growing(&host, 2 * MIB, 8 * MIB);
    let (_segment, _held) = fill(&pool);
    // All memory below 4 GiB but 1.5 MiB.
    let size = 4 * MIB + MIB / 2;
    let taken = host.alloc(FrameRequest { size, align: PAGE, limit: PhysAddr::new(FOUR_GIB - 1) }).unwrap();
    let small = Original::new(0, &[0; 10]);
    let ask = || unmap(&pool, map(&pool, &small).unwrap(), &small);
    ask();
    assert_eq!(pool.grow(), MIB, "2 MiB are not there");
    let (_segment, _held) = fill(&pool);
    ask();
    assert_eq!((pool.grow(), pool.grow()), (0, 0));
    // SAFETY: taken above, freed once.
    unsafe { host.free(taken, size) };
    assert_eq!(pool.grow(), 0, "the last call took the wish");
    ask();
    assert_eq!(pool.grow(), 2 * MIB);
}

#[test]
fn no_memory_for_a_transient_pool_is_a_full_pool() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, 8 * MIB);
    let (_segment, _held) = fill(&pool);
    let size = 8 * MIB - SEGMENT - PAGE;
    host.alloc(FrameRequest { size, align: PAGE, limit: PhysAddr::new(FOUR_GIB - 1) }).unwrap();
    let (small, large) = (Original::new(0, &[0; 10]), Original::new(0, &[0; 5000]));
    let full = DmaError::BouncePoolFull { size: 5000, used: 128, total: 128 };
    assert_eq!(map(&pool, &large), Err(full));
    let copy = map(&pool, &small).unwrap();
    unmap(&pool, copy, &small);
}

#[test]
fn pools_in_use_are_leaked_one_by_one() {
    let host = Host::new();
    let pool = growing(&host, MIB, 4 * MIB);
    let small = Original::new(0, &[0; 10]);
    let (segment, first) = fill(&pool);
    let default = host.allocations();
    unmap(&pool, map(&pool, &small).unwrap(), &small);
    assert_eq!(pool.grow(), MIB);
    let (_segment, second) = fill(&pool);
    let transient = map(&pool, &small).unwrap();
    first.into_iter().for_each(|copy| unmap(&pool, copy, &segment));
    let mut left = host.allocations();
    drop(pool);
    left.retain(|at, _| !default.contains_key(at));
    assert_eq!(left.len(), 2);
    assert_eq!(host.allocations(), left);
    // The device may still write to these.
    host.device_write(second[0], &[1]);
    host.device_write(transient, &[1]);
}

#[test]
fn the_high_water_mark_begins_again_from_what_is_in_use() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, 2 * MIB);
    let original = Original::new(0, &[0; 10 * SLOT_SIZE]);
    let high_water = || pool.statistics().high_water;
    let held = [(); 3].map(|()| map(&pool, &original).unwrap());
    unmap(&pool, held[0], &original);
    assert_eq!(high_water(), 30);
    pool.reset_high_water();
    assert_eq!(high_water(), 20);
    held[1..].iter().for_each(|&copy| unmap(&pool, copy, &original));
    assert_eq!(high_water(), 20);
    pool.reset_high_water();
    assert_eq!(pool.statistics(), Statistics { slots: 128, maps: 3, ..Statistics::default() });
    unmap(&pool, map(&pool, &original).unwrap(), &original);
    assert_eq!(high_water(), 10);
}

#[test]
fn a_full_pool_is_traced_unless_the_driver_wants_no_warning() {
    let host = Host::new();
    let pool = growing(&host, SEGMENT, 0);
    let (segment, _held) = fill(&pool);
    for (attrs, expected) in
        [(Attrs::empty(), vec![("swiotlb_full", 128, SEGMENT as u64)]), (Attrs::NO_WARN, vec![])]
    {
        let (refused, events) = trace::record(|| map_as(&pool, &trusted(), &segment, 0, ToDevice, attrs));
        assert_eq!(refused, Err(DmaError::BouncePoolFull { size: SEGMENT, used: 128, total: 128 }));
        let events: Vec<_> = events.iter().map(|event| (event.name, event.address, event.len)).collect();
        assert_eq!(events, expected);
    }
}
