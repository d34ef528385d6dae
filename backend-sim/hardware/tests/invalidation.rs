//! Each invalidation command against the hardware alone: what is cached is used until the command that names it, and what
//! it does not name stays.

mod common;

use common::*;

/// Two pages of the data area that tell themselves apart.
fn two_pages(bench: &Bench) -> (u64, u64) {
    bench.poke(DATA, 0x01d);
    bench.poke(DATA + 0x1000, 0x2e3);
    (DATA, DATA + 0x1000)
}

const OLD: u64 = 0x01d;
const NEW: u64 = 0x2e3;

/// A bench whose devices A and B are in domain 1 with 3 levels, and C in domain 2 with tables of its own.
fn two_domains() -> (Bench, u64, u64) {
    let bench = Bench::default();
    let (first, second) = (bench.table(), bench.table());
    bench.attach(A, 1, 3, first);
    bench.attach(B, 1, 3, first);
    bench.attach(C, 2, 3, second);
    (bench, first, second)
}

#[test]
fn device_table_entries_stay_until_they_are_named() {
    let bench = Bench::default();
    let (old, new) = two_pages(&bench);
    let (first, second) = (bench.table(), bench.table());
    bench.map(first, 3, 0x5000, 1, old | READ_WRITE);
    bench.map(second, 3, 0x5000, 1, new | READ_WRITE);
    bench.attach(A, 1, 3, first);
    bench.attach(B, 1, 3, first);
    assert_eq!((bench.a.read(0x5000), bench.b.read(0x5000)), (Ok(OLD), Ok(OLD)));

    // Another domain, so that no translation of the first is used by mistake.
    bench.attach(A, 2, 3, second);
    bench.attach(B, 2, 3, second);
    assert_eq!(bench.a.read(0x5000), Ok(OLD), "the entry is cached");
    bench.invalidate_device(A);
    assert_eq!(bench.a.read(0x5000), Ok(NEW));
    assert_eq!(bench.b.read(0x5000), Ok(OLD), "another device's entry stays");
    bench.invalidate_device(B);
    assert_eq!(bench.b.read(0x5000), Ok(NEW));
}

#[test]
fn an_entry_that_was_not_valid_is_cached_too() {
    let bench = Bench::default();
    two_pages(&bench);
    bench.set_dte(A, [0, 0, 0, 0]);
    assert_eq!(bench.a.read(DATA), Ok(OLD));
    // V without TV: nothing is reached.
    bench.set_dte(A, [1, 0, 0, 0]);
    assert_eq!(bench.a.read(DATA), Ok(OLD));
    bench.invalidate_device(A);
    assert!(bench.a.read(DATA).is_err());
}

#[test]
fn the_device_command_leaves_translations() {
    let (bench, root, _) = two_domains();
    let (old, new) = two_pages(&bench);
    bench.map(root, 3, 0x5000, 1, old | READ_WRITE);
    assert_eq!(bench.a.read(0x5000), Ok(OLD));
    bench.map(root, 3, 0x5000, 1, new | READ_WRITE);
    bench.invalidate_device(A);
    assert_eq!(bench.a.read(0x5000), Ok(OLD), "translations belong to the domain");
}

#[test]
fn one_page_leaves_its_neighbours_and_other_domains() {
    let (bench, first, second) = two_domains();
    let (old, new) = two_pages(&bench);
    let pages = [0x4000, 0x5000, 0x6000];
    for page in pages {
        bench.map(first, 3, page, 1, old | READ_WRITE);
        bench.map(second, 3, page, 1, old | READ_WRITE);
        assert_eq!((bench.a.read(page), bench.c.read(page)), (Ok(OLD), Ok(OLD)));
    }
    for page in pages {
        bench.map(first, 3, page, 1, new | READ_WRITE);
        bench.map(second, 3, page, 1, new | READ_WRITE);
        assert_eq!((bench.a.read(page), bench.c.read(page)), (Ok(OLD), Ok(OLD)), "cached");
    }
    bench.invalidate_pages(1, 0x5000);
    assert_eq!(bench.a.read(0x5000), Ok(NEW));
    assert_eq!(bench.b.read(0x5000), Ok(NEW), "the whole domain sees it");
    assert_eq!((bench.a.read(0x4000), bench.a.read(0x6000)), (Ok(OLD), Ok(OLD)), "the neighbours stay");
    assert!(pages.iter().all(|&page| bench.c.read(page) == Ok(OLD)), "the other domain stays");
}

/// Maps `count` pages from `first` in domain 1, lets A read them, changes them, and tells which ones are new after the
/// command with the second word `second`.
fn renewed(first: u64, count: u64, second: u64) -> Vec<u64> {
    let (bench, root, _) = two_domains();
    let (old, new) = two_pages(&bench);
    let pages: Vec<u64> = (0..count).map(|page| first + 0x1000 * page).collect();
    for &page in &pages {
        bench.map(root, 3, page, 1, old | READ_WRITE);
        assert_eq!(bench.a.read(page), Ok(OLD));
        bench.map(root, 3, page, 1, new | READ_WRITE);
    }
    assert!(pages.iter().all(|&page| bench.a.read(page) == Ok(OLD)));
    bench.invalidate_pages(1, second);
    pages.into_iter().filter(|&page| bench.a.read(page) == Ok(NEW)).collect()
}

#[test]
fn coded_sizes_cover_their_range_and_no_more() {
    let range = |first: u64, count: u64| (0..count).map(|page| first + 0x1000 * page).collect::<Vec<_>>();
    // 8 KiB at 1234_6000h, with a page on each side.
    assert_eq!(renewed(0x1234_5000, 4, 0x1234_6001), range(0x1234_6000, 2));
    // 16 KiB at 1234_4000h: bit 12 one, bit 13 zero.
    assert_eq!(renewed(0x1234_3000, 6, 0x1234_5001), range(0x1234_4000, 4));
    // 64 KiB at 1234_0000h.
    assert_eq!(renewed(0x1233_f000, 18, 0x1234_7001), range(0x1234_0000, 16));
    // 2 MiB at 1220_0000h: more pages than a command looks for one by one.
    assert_eq!(renewed(0x121f_f000, 514, 0x122f_f001), range(0x1220_0000, 512));
    // S = 0: the address is a page, whatever its bits say.
    assert_eq!(renewed(0x1233_f000, 18, 0x1234_7000), range(0x1234_7000, 1));
}

#[test]
fn the_largest_size_is_the_whole_domain_and_no_other() {
    for second in [0x7fff_ffff_ffff_f001, 0xffff_ffff_ffff_f001_u64] {
        let (bench, first, other) = two_domains();
        let (old, new) = two_pages(&bench);
        let pages = [0, 0x5000, 0x4000_0000, 0x7f_ffff_f000];
        for page in pages {
            bench.map(first, 3, page, 1, old | READ_WRITE);
            assert_eq!(bench.a.read(page), Ok(OLD));
            bench.map(first, 3, page, 1, new | READ_WRITE);
        }
        bench.map(other, 3, 0x5000, 1, old | READ_WRITE);
        assert_eq!(bench.c.read(0x5000), Ok(OLD));
        bench.map(other, 3, 0x5000, 1, new | READ_WRITE);
        assert!(pages.iter().all(|&page| bench.a.read(page) == Ok(OLD)));
        bench.invalidate_pages(1, second);
        assert!(pages.iter().all(|&page| bench.a.read(page) == Ok(NEW)), "{second:#x}");
        assert_eq!(bench.c.read(0x5000), Ok(OLD), "the other domain stays");
    }
}

#[test]
fn a_large_leaf_goes_only_when_it_is_covered() {
    let (bench, root, _) = two_domains();
    // 2 MiB pages at the third and fourth 2 MiB of the data area.
    let (old, new) = (DATA + (4 << 20), DATA + (6 << 20));
    bench.poke(old, OLD);
    bench.poke(new, NEW);
    bench.map(root, 3, 0x20_0000, 2, old | READ_WRITE);
    assert_eq!(bench.a.read(0x20_0000), Ok(OLD));
    bench.map(root, 3, 0x20_0000, 2, new | READ_WRITE);
    bench.invalidate_pages(1, 0x20_0000);
    // 1 MiB of it.
    bench.invalidate_pages(1, 0x27_f001);
    assert_eq!(bench.a.read(0x20_0000), Ok(OLD), "a part is not enough");
    bench.invalidate_pages(1, 0x2f_f001);
    assert_eq!(bench.a.read(0x20_0000), Ok(NEW));
}

#[test]
fn table_pointers_go_only_with_the_pde_bit() {
    let (bench, root, other) = two_domains();
    let (old, new) = two_pages(&bench);
    // Page 5 is read to have its table's pointer cached; page 6 is never read before the tables change.
    for (root, reader) in [(root, &bench.a), (other, &bench.c)] {
        for page in [0x5000, 0x6000] {
            bench.map(root, 3, page, 1, old | READ_WRITE);
        }
        assert_eq!(reader.read(0x5000), Ok(OLD));
        // Another table of level 1, where both pages are new.
        let table = bench.table();
        bench.poke(slot(table, 0x5000, 1), new | READ_WRITE);
        bench.poke(slot(table, 0x6000, 1), new | READ_WRITE);
        bench.poke(bench.place(root, 3, 0, 2), pointer(table, 1));
    }
    assert_eq!(bench.a.read(0x6000), Ok(OLD), "walked from the cached pointer");

    bench.invalidate_pages(1, 0x7fff_ffff_ffff_f001);
    assert_eq!(bench.a.read(0x5000), Ok(OLD), "without PDE the pointer stays, for the whole domain too");
    bench.invalidate_pages(1, 0x5000);
    assert_eq!(bench.a.read(0x5000), Ok(OLD), "and for one page");
    bench.invalidate_pages(1, 0x5002);
    assert_eq!(bench.a.read(0x5000), Ok(NEW), "with PDE it goes");
    assert_eq!(bench.c.read(0x6000), Ok(OLD), "another domain's pointer stays");
    bench.invalidate_pages(2, 0x7fff_ffff_ffff_f003);
    assert_eq!(bench.c.read(0x6000), Ok(NEW));
}

#[test]
fn a_pointer_outside_the_range_stays() {
    let (bench, root, _) = two_domains();
    let (old, new) = two_pages(&bench);
    for base in [0, 0x20_0000] {
        bench.map(root, 3, base, 1, old | READ_WRITE);
        bench.map(root, 3, base + 0x1000, 1, old | READ_WRITE);
        assert_eq!(bench.a.read(base), Ok(OLD));
        let table = bench.table();
        bench.poke(slot(table, 0x1000, 1), new | READ_WRITE);
        bench.poke(bench.place(root, 3, base, 2), pointer(table, 1));
    }
    // Of the first 2 MiB, with PDE.
    bench.invalidate_pages(1, 0x0f_f003);
    assert_eq!(bench.a.read(0x1000), Ok(NEW));
    assert_eq!(bench.a.read(0x20_1000), Ok(OLD));
}

#[test]
fn pointers_of_every_level_are_cached() {
    for level in 2..=6 {
        let bench = Bench::default();
        let (old, new) = two_pages(&bench);
        let root = bench.table();
        bench.attach(A, 1, 6, root);
        bench.map(root, 6, 0, 1, old | READ_WRITE);
        bench.map(root, 6, 0x1000, 1, old | READ_WRITE);
        assert_eq!(bench.a.read(0), Ok(OLD));
        // The entry of this level leads elsewhere now.
        let fresh = bench.table();
        bench.poke(bench.place(root, 6, 0, level), pointer(fresh, level - 1));
        bench.map(fresh, level - 1, 0x1000, 1, new | READ_WRITE);
        assert_eq!(bench.a.read(0x1000), Ok(OLD), "level {level}");
        bench.invalidate_pages(1, 0x1003);
        assert_eq!(bench.a.read(0x1000), Ok(NEW), "level {level}");
    }
}

#[test]
fn everything_goes_with_invalidate_all() {
    let (bench, first, second) = two_domains();
    let (old, new) = two_pages(&bench);
    for (root, reader) in [(first, &bench.a), (second, &bench.c)] {
        bench.map(root, 3, 0x5000, 1, old | READ_WRITE);
        assert_eq!(reader.read(0x5000), Ok(OLD));
    }
    // A: another leaf. C: another table of level 1. B: another entry.
    assert_eq!(bench.b.read(0x5000), Ok(OLD));
    bench.map(first, 3, 0x5000, 1, new | READ_WRITE);
    let table = bench.table();
    bench.poke(slot(table, 0x5000, 1), new | READ_WRITE);
    bench.poke(bench.place(second, 3, 0, 2), pointer(table, 1));
    bench.set_dte(B, [1, 0, 0, 0]);
    assert_eq!((bench.a.read(0x5000), bench.c.read(0x5000)), (Ok(OLD), Ok(OLD)));
    assert_eq!(bench.b.read(0x5000), Ok(OLD));
    bench.run(8 << 60, 0);
    assert_eq!((bench.a.read(0x5000), bench.c.read(0x5000)), (Ok(NEW), Ok(NEW)));
    assert!(bench.b.read(0x5000).is_err());
}

#[test]
fn the_interrupt_command_leaves_all_else() {
    let (bench, root, _) = two_domains();
    let (old, new) = two_pages(&bench);
    bench.map(root, 3, 0x5000, 1, old | READ_WRITE);
    assert_eq!(bench.a.read(0x5000), Ok(OLD));
    bench.map(root, 3, 0x5000, 1, new | READ_WRITE);
    bench.set_dte(A, [1, 0, 0, 0]);
    bench.run(5 << 60 | u64::from(A.get()), 0);
    assert_eq!(bench.a.read(0x5000), Ok(OLD));
}

#[test]
fn a_guest_command_leaves_host_translations() {
    let (bench, root, _) = two_domains();
    let (old, new) = two_pages(&bench);
    bench.map(root, 3, 0x5000, 1, old | READ_WRITE);
    assert_eq!(bench.a.read(0x5000), Ok(OLD));
    bench.map(root, 3, 0x5000, 1, new | READ_WRITE);
    // GN: translations of a PASID.
    bench.invalidate_pages(1, 0x7fff_ffff_ffff_f007);
    assert_eq!(bench.a.read(0x5000), Ok(OLD));
}

#[test]
fn the_tag_of_a_translation_is_the_domain() {
    let (bench, first, second) = two_domains();
    let (old, new) = two_pages(&bench);
    bench.map(first, 3, 0x5000, 1, old | READ_WRITE);
    bench.map(second, 3, 0x5000, 1, new | READ_WRITE);
    assert_eq!(bench.a.read(0x5000), Ok(OLD));
    // C comes into domain 1 with another root, and nobody says that the domain has changed.
    bench.attach(C, 1, 3, second);
    assert_eq!(bench.c.read(0x5000), Ok(OLD));
    // Permissions are the device's own.
    let [first_word, domain, ..] = dte(1, 3, first);
    bench.set_dte(B, [first_word & !(1 << 61), domain, 0, 0]);
    assert!(bench.b.read(0x5000).is_err());
    assert_eq!(bench.b.write(0x5008, 1), Ok(()));
}
