//! The rules of the pool, one by one.

mod common;

use std::sync::Arc;

use common::{FOUR_GIB, Host, Original, SEGMENT, pattern, pool, trusted, untrusted};
use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use platform::{PhysAddr, Platform};
use swiotlb::{Config, PoolTooSmall, SEGMENT_SLOTS, SLOT_SIZE, Statistics, Swiotlb};

use Direction::{Bidirectional, FromDevice, ToDevice};

fn map_aligned(
    pool: &Swiotlb,
    parms: &DeviceParms,
    original: &Original,
    alloc_align_mask: u64,
    dir: Direction,
) -> Result<u64, DmaError> {
    // SAFETY: tests keep the original until they have unmapped it, and touch it meanwhile as its direction allows.
    let copy =
        unsafe { pool.map(parms, original.ptr(), original.len, alloc_align_mask, dir, Attrs::empty()) };
    assert!(pool.is_consistent());
    copy.map(PhysAddr::get)
}

fn map(pool: &Swiotlb, parms: &DeviceParms, original: &Original, dir: Direction) -> Result<u64, DmaError> {
    map_aligned(pool, parms, original, 0, dir)
}

fn unmap(pool: &Swiotlb, copy: u64, original: &Original, dir: Direction) {
    // SAFETY: tests end each mapping once.
    unsafe { pool.unmap(PhysAddr::new(copy), original.len, dir, Attrs::empty()) };
    assert!(pool.is_consistent());
}

fn zeros(len: usize) -> Original {
    Original::new(0, &vec![0; len])
}

#[test]
fn what_the_device_may_write_comes_back_and_nothing_else() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    for dir in [ToDevice, FromDevice, Bidirectional] {
        let original = Original::new(0x123, &pattern(1, 5000));
        let copy = map(&pool, &trusted(), &original, dir).unwrap();
        assert_eq!(host.device_read(copy, 5000), pattern(1, 5000), "{dir:?}: the copy is filled");
        host.device_write(copy + 3000, &[0xaa; 100]);
        unmap(&pool, copy, &original, dir);
        let mut expected = pattern(1, 5000);
        if dir != ToDevice {
            expected[3000..3100].fill(0xaa);
        }
        assert_eq!(original.read(), expected, "{dir:?}");
    }
}

#[test]
fn an_unmap_that_skips_the_sync_copies_nothing_but_frees() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let original = Original::new(0, &pattern(2, 100));
    let copy = map(&pool, &trusted(), &original, Bidirectional).unwrap();
    host.device_write(copy, &[0xaa; 100]);
    // SAFETY: mapped above, ended once.
    unsafe { pool.unmap(PhysAddr::new(copy), 100, Bidirectional, Attrs::SKIP_CPU_SYNC) };
    assert_eq!(original.read(), pattern(2, 100));
    assert_eq!(pool.statistics().used, 0);
}

#[test]
fn a_sync_copies_its_part_alone_and_only_the_way_of_the_direction() {
    const LEN: usize = 3 * SLOT_SIZE;
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let parms = trusted();
    parms.set_min_align_mask(0xfff);
    for dir in [ToDevice, FromDevice, Bidirectional] {
        // Parts within a slot, across slots, and from the middle of one; the data begins in the middle of one too.
        for (at, len) in [(0, 1), (10, 2000), (SLOT_SIZE + 7, 11), (1500, 3000), (LEN - 5, 5), (0, LEN)] {
            let original = Original::new(0x345, &pattern(3, LEN));
            let copy = map(&pool, &parms, &original, dir).unwrap();
            let part = PhysAddr::new(copy + at as u64);
            host.device_write(copy, &pattern(4, LEN));
            // SAFETY: a part of the live mapping.
            unsafe { pool.sync_for_cpu(part, len, dir) };
            let mut expected = pattern(3, LEN);
            if dir != ToDevice {
                expected[at..at + len].copy_from_slice(&pattern(4, LEN)[at..at + len]);
            }
            assert_eq!(original.read(), expected, "{dir:?} for the CPU, {len} bytes at {at}");

            original.write(0, &pattern(5, LEN));
            // SAFETY: as above.
            unsafe { pool.sync_for_device(part, len, dir) };
            let mut expected = pattern(4, LEN);
            if dir != FromDevice {
                expected[at..at + len].copy_from_slice(&pattern(5, LEN)[at..at + len]);
            }
            assert_eq!(host.device_read(copy, LEN), expected, "{dir:?} for the device, {len} bytes at {at}");
            unmap(&pool, copy, &original, dir);
        }
    }
}

#[test]
fn a_sync_beyond_the_end_stops_there_and_is_counted() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    // 100 bytes of a longer original.
    let whole = Original::new(0, &pattern(6, 300));
    // SAFETY: the original outlives the mapping.
    let copy = unsafe { pool.map(&trusted(), whole.ptr(), 100, 0, Bidirectional, Attrs::empty()) }.unwrap();
    host.device_write(copy.get(), &[0xaa; 300]);
    // SAFETY: too long on purpose; 300 bytes of memory are there on both sides.
    unsafe { pool.sync_for_cpu(copy, 300, Bidirectional) };
    // From the middle too.
    // SAFETY: as above.
    unsafe { pool.sync_for_cpu(copy.wrapping_add(60), 240, Bidirectional) };
    // The slot goes on after the data: none of it is the mapping's.
    // SAFETY: as above.
    unsafe { pool.sync_for_cpu(copy.wrapping_add(100), 1, Bidirectional) };
    assert_eq!(pool.statistics().clamped, 3);
    assert_eq!(whole.read()[..100], [0xaa; 100]);
    assert_eq!(whole.read()[100..], pattern(6, 300)[100..]);
    // SAFETY: ended once.
    unsafe { pool.unmap(copy, 100, Bidirectional, Attrs::empty()) };
}

#[test]
fn the_bits_of_min_align_mask_are_kept() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let parms = trusted();
    for mask in [0x1ff, 0x7ff, 0xfff, 0x1fff, 0xffff] {
        parms.set_min_align_mask(mask);
        for low_bits in [0, 1, 0x200, 0x7ff, 0x800, 0xabc, 0x1fff, 0xfeed] {
            let original = Original::new(low_bits, &pattern(7, 3000));
            let copies: Vec<u64> = (0..3).map(|_| map(&pool, &parms, &original, ToDevice).unwrap()).collect();
            for copy in copies {
                assert_eq!(copy & mask, low_bits as u64 & mask, "mask {mask:#x}, low bits {low_bits:#x}");
                assert_eq!(host.device_read(copy, 3000), pattern(7, 3000));
                unmap(&pool, copy, &original, ToDevice);
            }
        }
    }
}

#[test]
fn runs_begin_and_end_at_multiples_of_the_alignment_asked_for() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let parms = trusted();
    // Something that makes the next free slot an odd one.
    let small = zeros(1);
    let odd = map(&pool, &parms, &small, ToDevice).unwrap();
    for min_align_mask in [0, 0xfff] {
        parms.set_min_align_mask(min_align_mask);
        for low_bits in [0, 0x20, 0x900, 0xfff] {
            let original = Original::new(low_bits, &pattern(8, 100));
            let used = pool.statistics().used;
            let copy = map_aligned(&pool, &parms, &original, 0x3fff, Bidirectional).unwrap();
            assert_eq!(copy & 0x3fff, low_bits as u64 & min_align_mask);
            assert_eq!(pool.statistics().used - used, 0x4000 / SLOT_SIZE, "whole granules");
            // The data may begin in the second slot of its run: it comes back, and so do the slots before it.
            host.device_write(copy, &pattern(9, 100));
            unmap(&pool, copy, &original, Bidirectional);
            assert_eq!(original.read(), pattern(9, 100));
            assert_eq!(pool.statistics().used, used);
        }
    }
    unmap(&pool, odd, &small, ToDevice);
}

#[test]
fn without_a_mask_whole_pages_begin_at_pages() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let small = zeros(1);
    let page = Original::new(0x10, &[0; 4096]);
    for _ in 0..4 {
        map(&pool, &trusted(), &small, ToDevice).unwrap();
        assert_eq!(map(&pool, &trusted(), &page, ToDevice).unwrap() & 0xfff, 0);
    }
    // Less than a page goes to the next slot.
    let last = map(&pool, &trusted(), &small, ToDevice).unwrap();
    let short = zeros(4095);
    assert_eq!(map(&pool, &trusted(), &short, ToDevice).unwrap(), last + SLOT_SIZE as u64);
}

#[test]
fn no_run_crosses_the_segment_boundary_of_the_device() {
    let host = Host::new();
    let pool = pool(&host, 2 * SEGMENT, 1);
    let parms = trusted();
    parms.set_segment_boundary(0x3fff);
    // A window has 8 slots: a run of 5 fits once and no more.
    let original = zeros(5 * SLOT_SIZE);
    let mut runs = Vec::new();
    let error = loop {
        match map(&pool, &parms, &original, ToDevice) {
            Ok(copy) => runs.push(copy),
            Err(error) => break error,
        }
    };
    assert_eq!(runs.len(), 2 * SEGMENT / 0x4000, "one in each window");
    for copy in runs {
        assert_eq!(copy >> 14, (copy + original.len as u64 - 1) >> 14, "{copy:#x}");
    }
    let total = 2 * SEGMENT_SLOTS;
    assert_eq!(error, DmaError::BouncePoolFull { size: original.len, used: total / 8 * 5, total });
}

#[test]
fn what_is_longer_than_a_run_can_be_is_refused_by_name_with_the_most() {
    let host = Host::new();
    let pool = pool(&host, 4 * SEGMENT, 1);
    let refused = |parms: &DeviceParms, original: &Original, max: usize| {
        assert_eq!(pool.max_mapping_size(parms), max);
        let error = map(&pool, parms, original, ToDevice);
        assert_eq!(error, Err(DmaError::TooLargeForBounce { size: original.len, max }));
        let message = error.unwrap_err().to_string();
        assert!(message.contains("swiotlb") && message.contains(&max.to_string()), "{message}");
    };
    let fits = |parms: &DeviceParms, original: &Original| {
        let copy = map(&pool, parms, original, ToDevice).unwrap();
        unmap(&pool, copy, original, ToDevice);
    };
    let parms = trusted();
    fits(&parms, &zeros(SEGMENT));
    refused(&parms, &zeros(SEGMENT + 1), SEGMENT);
    // Bits to keep cost room: as many bytes as they may put before the data.
    parms.set_min_align_mask(0x1ff);
    fits(&parms, &Original::new(0x1ff, &vec![0; SEGMENT - 0x1ff]));
    refused(&parms, &Original::new(0x1ff, &vec![0; SEGMENT - 0x1fe]), SEGMENT - 0x1ff);
    parms.set_min_align_mask(0xfff);
    fits(&parms, &Original::new(0xfff, &vec![0; SEGMENT - 0xfff]));
    // The run would begin in the second slot of a page: a whole segment of slots never begins there.
    refused(&parms, &Original::new(0x800, &vec![0; SEGMENT - 0x400]), SEGMENT - 0xfff);
    // The device's boundary is nearer than a segment's end.
    parms.set_min_align_mask(0);
    parms.set_segment_boundary(0xffff);
    fits(&parms, &zeros(0x1_0000));
    refused(&parms, &zeros(0x1_0001), 0x1_0000);
    assert_eq!(pool.statistics().used, 0);
}

#[test]
fn no_bytes_are_refused() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    assert_eq!(map(&pool, &trusted(), &zeros(0), ToDevice), Err(DmaError::InvalidLength(0)));
    // SAFETY: nothing is mapped.
    let none =
        unsafe { pool.map(&trusted(), zeros(1).ptr(), usize::MAX, u64::MAX, ToDevice, Attrs::empty()) };
    assert_eq!(none, Err(DmaError::TooLargeForBounce { size: usize::MAX, max: SEGMENT }));
}

#[test]
fn a_full_pool_is_named_with_its_numbers_and_serves_again() {
    let host = Host::new();
    let pool = pool(&host, 2 * SEGMENT, 1);
    let (large, small) = (zeros(SEGMENT - SLOT_SIZE), zeros(2 * SLOT_SIZE));
    let held = [(); 2].map(|()| map(&pool, &trusted(), &large, ToDevice).unwrap());
    // Two slots are free, but not side by side.
    let error = map(&pool, &trusted(), &small, ToDevice).unwrap_err();
    assert_eq!(error, DmaError::BouncePoolFull { size: small.len, used: 254, total: 256 });
    let message = error.to_string();
    assert!(message.contains("swiotlb") && message.contains("254 of 256"), "{message}");
    unmap(&pool, held[0], &large, ToDevice);
    let copy = map(&pool, &trusted(), &small, ToDevice).unwrap();
    unmap(&pool, copy, &small, ToDevice);
    unmap(&pool, held[1], &large, ToDevice);
    assert_eq!(
        pool.statistics(),
        Statistics { slots: 256, used: 0, high_water: 254, maps: 3, ..Statistics::default() }
    );
}

#[test]
fn high_water_is_the_most_at_once() {
    let host = Host::new();
    let pool = pool(&host, 2 * SEGMENT, 2);
    let original = zeros(10 * SLOT_SIZE);
    for _ in 0..5 {
        let held = [(); 3].map(|()| map(&pool, &trusted(), &original, ToDevice).unwrap());
        for copy in held {
            unmap(&pool, copy, &original, ToDevice);
        }
    }
    assert_eq!(
        pool.statistics(),
        Statistics { slots: 256, used: 0, high_water: 30, maps: 15, ..Statistics::default() }
    );
}

#[test]
fn for_an_untrusted_device_the_rest_of_the_run_is_zeroed() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    // Secrets of others in every slot.
    let secret = Original::new(0, &[0xee; SEGMENT]);
    let fill = || {
        let copy = map(&pool, &trusted(), &secret, ToDevice).unwrap();
        unmap(&pool, copy, &secret, ToDevice);
    };
    let parms = untrusted();
    parms.set_min_align_mask(0xfff);
    for (low_bits, len) in [(0, 100), (0x123, 1), (0x923, 5000), (0xfff, 4096), (0, 4096)] {
        fill();
        let original = Original::new(low_bits, &vec![0xcc; len]);
        let copy = map_aligned(&pool, &parms, &original, 0xfff, ToDevice).unwrap();
        let first = copy & !0xfff;
        let end = (copy + len as u64).next_multiple_of(0x1000);
        let mut expected = vec![0; (end - first) as usize];
        expected[(copy - first) as usize..][..len].fill(0xcc);
        assert_eq!(host.device_read(first, expected.len()), expected, "{len} bytes at {low_bits:#x}");
        unmap(&pool, copy, &original, ToDevice);
    }
}

#[test]
fn a_pool_is_in_reach_and_needs_a_segment() {
    let host = Host::new();
    let platform: Arc<dyn Platform> = host.clone();
    for size in [0, SEGMENT - 1, 1 << 40] {
        let refused = Swiotlb::new(&platform, &Config { size, ..Config::default() });
        assert_eq!(refused.err(), Some(PoolTooSmall(size)));
    }
    assert_eq!(host.live(), 0);
    for (size, cpus, slots) in [(SEGMENT, 1, 128), (5 * SEGMENT - 1, 3, 512), (3 * SEGMENT, 64, 256)] {
        let pool = pool(&host, size, cpus);
        assert_eq!(pool.statistics().slots, slots);
        let copy = map(&pool, &trusted(), &zeros(1), ToDevice).unwrap();
        assert!(copy < FOUR_GIB);
        assert!(pool.contains(PhysAddr::new(copy)) && !pool.contains(PhysAddr::new(FOUR_GIB)));
        unmap(&pool, copy, &zeros(1), ToDevice);
    }
    assert_eq!(host.live(), 0, "a pool that nobody uses goes back");
}

#[test]
fn a_pool_in_use_is_leaked_when_dropped() {
    let host = Host::new();
    let pool = pool(&host, SEGMENT, 1);
    let original = zeros(1);
    let copy = map(&pool, &trusted(), &original, ToDevice).unwrap();
    drop(pool);
    assert_eq!(host.live(), SEGMENT);
    // The device's writes harm nobody.
    host.device_write(copy, &[1]);
}
