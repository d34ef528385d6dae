//! Walks of host page tables: levels, sizes, permissions, and the entries that hardware refuses.

mod common;

use common::*;

const DOMAIN: u16 = 0x1234;
/// What events say of a read and of a write of A in this domain, before the flags.
const READ_FAULT: u64 = 0x2000_1234_0000_0018;
const WRITE_FAULT: u64 = 0x2020_1234_0000_0018;
const PR: u64 = 1 << 52;
const PE: u64 = 1 << 54;
const RZ: u64 = 1 << 55;

fn with_levels(levels: u64) -> (Bench, u64) {
    let bench = Bench::default();
    let root = bench.table();
    bench.attach(A, DOMAIN, levels, root);
    (bench, root)
}

#[test]
fn one_to_six_levels_reach_their_whole_space() {
    for levels in 1..=6_u32 {
        let (bench, root) = with_levels(levels.into());
        let width = (12 + 9 * levels).min(64);
        let last = (u64::MAX >> (64 - width)) & !0xfff;
        // The first page, the last, and one with another index at every level.
        let mixed = 0x1234_5678_9abc_d000_u64 & last;
        for (number, iova) in (0..).zip([0, mixed, last]) {
            let page = DATA + 0x1000 * number;
            bench.poke(page + 0x128, 0xabc0 + number);
            bench.map(root, levels, iova, 1, page | READ_WRITE);
            assert_eq!(bench.a.read(iova + 0x128), Ok(0xabc0 + number), "{levels} levels, {iova:#x}");
            assert_eq!(bench.a.write(iova + 0x130, number), Ok(()));
            assert_eq!(bench.peek(page + 0x130), number);
        }
        assert_eq!(bench.events(), []);
    }
}

#[test]
fn an_address_beyond_the_mode_faults() {
    for levels in 1..=5_u32 {
        let (bench, root) = with_levels(levels.into());
        bench.map(root, levels, 0, 1, DATA | READ_WRITE);
        assert!(bench.a.read(0).is_ok());
        let beyond = 1 << (12 + 9 * levels);
        assert!(bench.a.read(beyond).is_err(), "{levels} levels");
        assert!(bench.a.write(1 << 63, 0).is_err());
        assert_eq!(bench.events(), [(READ_FAULT, beyond), (WRITE_FAULT, 1 << 63)]);
    }
}

#[test]
fn leaves_of_each_levels_own_size() {
    // Levels 2 and 3: 2 MiB and 1 GiB; level 4: 512 GiB, of which the memory is the start.
    for (level, size) in [(2, 2_u64 << 20), (3, 1 << 30), (4, 1 << 39)] {
        let (bench, root) = with_levels(4);
        // The bits below the size are no part of the address.
        bench.map(root, 4, 0, level, 0x1000 | READ_WRITE);
        for offset in [0, DATA + 0x1238].into_iter().filter(|&offset| offset < size) {
            bench.poke(offset, 0x77);
            assert_eq!(bench.a.read(offset), Ok(0x77), "level {level}, {offset:#x}");
        }
        if level != 4 {
            assert!(bench.a.read(size).is_err(), "level {level}: the page ends");
        }
    }
}

/// The entries are those of the specification, with bits 12 up to the size less two set.
#[test]
fn leaves_of_coded_sizes() {
    let sizes: [(u32, u64, u64); 9] = [
        // Level, size, entry for the base 0200_0000h.
        (1, 8 << 10, 0x6000_0000_0200_0e01),
        (1, 16 << 10, 0x6000_0000_0200_1e01),
        (1, 32 << 10, 0x6000_0000_0200_3e01),
        (1, 64 << 10, 0x6000_0000_0200_7e01),
        (1, 128 << 10, 0x6000_0000_0200_fe01),
        (1, 256 << 10, 0x6000_0000_0201_fe01),
        (1, 512 << 10, 0x6000_0000_0203_fe01),
        (1, 1 << 20, 0x6000_0000_0207_fe01),
        (2, 4 << 20, 0x6000_0000_021f_fe01),
    ];
    for (level, size, entry) in sizes {
        let (bench, root) = with_levels(3);
        let copies = size >> (12 + 9 * (level - 1));
        let iova = 0x4000_0000;
        for copy in 0..copies {
            bench.map(root, 3, iova + size / copies * copy, level, entry);
        }
        for offset in [0, 0x1008, size / 2, size - 8] {
            bench.poke(0x200_0000 + offset, offset + 1);
            assert_eq!(bench.a.read(iova + offset), Ok(offset + 1), "{size:#x} at {offset:#x}");
        }
        assert!(bench.a.read(iova + size).is_err());
        assert_eq!(bench.unit.stats().iotlb_misses, 2, "one translation serves the whole page");
    }
}

#[test]
fn a_coded_size_must_be_between_the_levels() {
    let entries = [
        // A size of 2 MiB at level 1; of 2 MiB, of 8 KiB at level 2.
        (1, 0x6000_0000_020f_fe01),
        (2, 0x6000_0000_020f_fe01),
        (2, 0x6000_0000_0200_0e01),
        // 1 GiB at level 2.
        (2, 0x6000_0000_1fff_fe01),
    ];
    for (level, entry) in entries {
        let (bench, root) = with_levels(3);
        bench.map(root, 3, 0, level, entry);
        assert!(bench.a.read(0).is_err());
        assert_eq!(bench.events(), [(READ_FAULT | PR, 0)], "level {level}, {entry:#x}");
    }
}

#[test]
fn permission_is_the_and_of_all_levels_and_the_device() {
    // Each of the four places takes reads or writes away: the device's entry, level 3, level 2, level 1.
    for place in 0..4 {
        for (taken, read, write) in [(1_u64 << 61, false, true), (1 << 62, true, false)] {
            let (bench, root) = with_levels(3);
            bench.map(root, 3, 0x5000, 1, DATA | READ_WRITE);
            let at = if place == 0 {
                DEVICE_TABLE + 32 * u64::from(A.get())
            } else {
                bench.place(root, 3, 0x5000, 4 - place)
            };
            bench.poke(at, bench.peek(at) & !taken);
            let case = format!("place {place}, {taken:#x}");
            // Twice: walked, and perhaps from a cache.
            for _ in 0..2 {
                assert_eq!(bench.a.read(0x5008).is_ok(), read, "{case}");
                assert_eq!(bench.a.write(0x5008, 1).is_ok(), write, "{case}");
            }
            let fault = if read { WRITE_FAULT } else { READ_FAULT } | PR | PE;
            assert_eq!(bench.events(), [(fault, 0x5008); 2], "{case}");
        }
    }
}

#[test]
fn a_pointer_without_permission_faults_before_what_is_below() {
    let (bench, root) = with_levels(3);
    bench.map(root, 3, 0x5000, 1, DATA | READ_WRITE);
    let upper = bench.place(root, 3, 0x5000, 3);
    bench.poke(upper, bench.peek(upper) & !(1 << 62));
    // A page that is not there, below a pointer that does not let writes through.
    for _ in 0..2 {
        assert!(bench.a.write(0x6000, 1).is_err());
        assert_eq!(bench.events(), [(WRITE_FAULT | PR | PE, 0x6000)]);
        // The pointers are cached from now on.
        assert!(bench.a.read(0x5000).is_ok());
    }
    assert!(bench.a.read(0x6000).is_err());
    assert_eq!(bench.events(), [(READ_FAULT, 0x6000)]);
}

#[test]
fn entries_that_are_not_there_fault_at_every_level() {
    for level in 1..=3 {
        let (bench, root) = with_levels(3);
        // All bits but PR: they are software's own.
        bench.map(root, 3, 0x20_5000, level, !1);
        assert!(bench.a.write(0x20_5678, 1).is_err());
        assert_eq!(bench.events(), [(WRITE_FAULT, 0x20_5678)], "level {level}");
    }
}

#[test]
fn reserved_bits_fault() {
    for bit in 52..=58 {
        let (bench, root) = with_levels(3);
        bench.map(root, 3, 0, 1, DATA | READ_WRITE | 1 << bit);
        assert!(bench.a.read(0).is_err(), "leaf, bit {bit}");
        assert_eq!(bench.events(), [(READ_FAULT | PR | RZ, 0)]);
    }
    // In a pointer U and FC are reserved too.
    for bit in 52..=60 {
        let (bench, root) = with_levels(3);
        bench.map(root, 3, 0, 1, DATA | READ_WRITE);
        let at = bench.place(root, 3, 0, 2);
        bench.poke(at, bench.peek(at) | 1 << bit);
        assert!(bench.a.read(0).is_err(), "pointer, bit {bit}");
        assert_eq!(bench.events(), [(READ_FAULT | PR | RZ, 0)]);
    }
}

#[test]
fn bits_that_software_may_use_do_nothing() {
    let (bench, root) = with_levels(3);
    bench.poke(DATA, 0x33);
    // 4:1 ignored, A, D, 8:7 ignored, U, FC, 63 ignored.
    let free = 0x1e | 0x60 | 0x180 | 1 << 59 | 1 << 60 | 1 << 63;
    bench.map(root, 3, 0, 1, DATA | READ_WRITE | free);
    let at = bench.place(root, 3, 0, 2);
    bench.poke(at, bench.peek(at) | 0x1fe | 1 << 63);
    assert_eq!(bench.a.read(0), Ok(0x33));
    assert_eq!(bench.a.write(8, 1), Ok(()));
    assert_eq!(bench.events(), []);
}

#[test]
fn a_pointer_must_lead_downwards() {
    // Next levels that are not below the entry's own: at level 1, 2 and 3 of 3.
    for (level, next) in [(1, 1), (1, 2), (1, 6), (2, 2), (2, 3), (3, 3), (3, 4), (3, 6)] {
        let (bench, root) = with_levels(3);
        let table = bench.table();
        bench.map(root, 3, 0, level, pointer(table, next));
        assert!(bench.a.write(0, 1).is_err());
        assert_eq!(bench.events(), [(WRITE_FAULT | PR, 0)], "level {level}, next {next}");
    }
}

#[test]
fn levels_may_be_skipped_where_the_address_has_zeros() {
    let (bench, root) = with_levels(4);
    bench.poke(DATA, 0x44);
    // From level 4 to level 1: bits 38:21 must be zero.
    let table = bench.table();
    bench.poke(slot(root, 1 << 39, 4), pointer(table, 1));
    bench.poke(slot(table, 0x7000, 1), DATA | READ_WRITE);
    let good = 1 << 39 | 0x7000;
    assert_eq!(bench.a.read(good), Ok(0x44));
    // The way is cached now, and is no way for these.
    for bad in [good | 1 << 21, good | 1 << 30, good | 1 << 38] {
        assert!(bench.a.read(bad).is_err(), "{bad:#x}");
        assert_eq!(bench.events(), [(READ_FAULT | PR, bad)]);
    }
    // Nor after everything is forgotten.
    bench.run(8 << 60, 0);
    assert!(bench.a.read(good | 1 << 21).is_err());
    assert_eq!(bench.a.read(good), Ok(0x44));
}

#[test]
fn a_table_that_is_no_memory_is_a_hardware_error() {
    let (bench, root) = with_levels(3);
    bench.poke(slot(root, 0, 3), pointer(0x7_0000_0000, 2));
    assert!(bench.a.write(0x40_0000, 1).is_err());
    // Master abort, at the entry's address.
    assert_eq!(bench.events(), [(0x4220_1234_0000_0018, 0x7_0000_0010)]);
}

#[test]
fn a_request_over_several_pages_is_translated_page_by_page() {
    let (bench, root) = with_levels(3);
    // Neighbours on the bus, the other way round in memory.
    bench.map(root, 3, 0x5000, 1, (DATA + 0x3000) | READ_WRITE);
    bench.map(root, 3, 0x6000, 1, DATA | READ_WRITE);
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(bench.a.write_bytes(0x5fc0, &bytes), Ok(()));
    assert_eq!(bench.a.read_bytes(0x5fc0, 256), Ok(bytes.clone()));
    let (mut end, mut start) = (vec![0; 64], vec![0; 192]);
    bench.ram.read(DATA + 0x3fc0, &mut end).unwrap();
    bench.ram.read(DATA, &mut start).unwrap();
    assert_eq!((&end[..], &start[..]), bytes.split_at(64));
    // The third page is not there: what came before it has been written.
    assert!(bench.a.write_bytes(0x6ff8, &[7; 16]).is_err());
    assert_eq!(bench.peek(DATA + 0xff8), 0x0707_0707_0707_0707);
    assert_eq!(bench.events(), [(WRITE_FAULT, 0x7000)]);
}
