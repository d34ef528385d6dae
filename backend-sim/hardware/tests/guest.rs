//! Guest tables of the hardware alone: how they are found by PASID, what they say, and what is remembered of them.

mod common;

use common::*;
use sim_hardware::bus::BusError;
use sim_hardware::iommu::Config;

const GT_EN: u64 = 1 << 16;
const GIOV: u64 = 1 << 54;
const GV: u64 = 1 << 55;
/// P, RW, US.
const ALL: u64 = 7;
const PAGE: u64 = 1 << 7;
const IOVA: u64 = 0x1234_5678_9000;
const PASID: u32 = 0x121;
const VALUE: u64 = 0x5eed;

fn config(more: u64) -> Config {
    let config = Config::default();
    Config { efr: config.efr | Config::GUEST | more, ..config }
}

/// Device A in domain 1 with a GCR3 table of `glx + 1` levels at the address that is returned, and no host table.
fn with_gcr3(bench: &Bench, glx: u64, flags: u64) -> u64 {
    bench.registers().write64(CONTROL, ON | GT_EN);
    config_write(&bench.pci, A, 0x114, 1 << 16);
    let gcr3 = bench.table();
    let low = (gcr3 >> 12 & 7) << 58;
    let high = (gcr3 >> 15 & 0xffff) << 16 | (gcr3 >> 31) << 43;
    bench.set_dte(A, [3 | 3 << 61 | GV | glx << 56 | flags | low, 1 | high, 0, 0]);
    gcr3
}

/// Where the entry for an address is, in a guest table of four levels; tables that are not there are made.
fn place(bench: &Bench, root: u64, iova: u64, level: u32) -> u64 {
    let mut table = root;
    for above in (level + 1..=4).rev() {
        let at = table + 8 * (iova >> (12 + 9 * (above - 1)) & 0x1ff);
        if bench.peek(at) == 0 {
            bench.poke(at, bench.table() | ALL);
        }
        table = bench.peek(at) & 0x000f_ffff_ffff_f000;
    }
    table + 8 * (iova >> (12 + 9 * (level - 1)) & 0x1ff)
}

/// A bench whose A has a page of [`VALUE`] at [`IOVA`] for [`PASID`], by a GCR3 table of one level; its root.
fn with_page() -> (Bench, u64, u64) {
    let bench = Bench::new(config(0));
    bench.poke(DATA, VALUE);
    let gcr3 = with_gcr3(&bench, 0, 0);
    let root = bench.table();
    bench.poke(gcr3 + 8 * u64::from(PASID), root | 1);
    bench.poke(place(&bench, root, IOVA, 1), DATA | ALL);
    (bench, gcr3, root)
}

/// The flags of the events so far, bits 59:48, with codes.
fn logged(bench: &Bench) -> Vec<(u64, u64)> {
    bench.events().into_iter().map(|(first, _)| (first >> 60, first >> 48 & 0xfff)).collect()
}

const GN: u64 = 1;
const PR: u64 = 1 << 4;
const RW: u64 = 1 << 5;
const PE: u64 = 1 << 6;
const RZ: u64 = 1 << 7;

#[test]
fn a_pasid_finds_its_table_by_as_many_levels_as_the_entry_says() {
    for (glx, pasid) in [(0, 0x1ff_u32), (1, 0x2_0123), (2, 0xf_ffff)] {
        let bench = Bench::new(config(0));
        bench.poke(DATA, VALUE);
        let mut table = with_gcr3(&bench, glx, 0);
        for level in (1..=glx as u32).rev() {
            let below = bench.table();
            bench.poke(table + 8 * (u64::from(pasid) >> (9 * level) & 0x1ff), below | 1);
            table = below;
        }
        let root = bench.table();
        bench.poke(table + 8 * u64::from(pasid & 0x1ff), root | 1);
        bench.poke(place(&bench, root, IOVA, 1), DATA | ALL);
        assert_eq!(bench.a.read_as(Some(pasid), IOVA), Ok(VALUE), "{glx}");
        // The next one has none; and those beyond the table have none.
        assert!(bench.a.read_as(Some(pasid ^ 1), IOVA).is_err());
        assert!(glx == 2 || bench.a.read_as(Some(pasid ^ 0x8_0000), IOVA).is_err());
        // Without a PASID addresses pass as they are.
        assert_eq!(bench.a.read(DATA), Ok(VALUE));
        assert!(logged(&bench).iter().all(|event| *event == (2, GN)));
    }
}

#[test]
fn requests_without_a_pasid_use_that_of_0_where_the_entry_says_so() {
    let bench = Bench::new(config(0));
    bench.poke(DATA, VALUE);
    let gcr3 = with_gcr3(&bench, 0, GIOV);
    let root = bench.table();
    bench.poke(gcr3, root | 1);
    bench.poke(place(&bench, root, IOVA, 1), DATA | ALL);
    assert_eq!(bench.a.read(IOVA), Ok(VALUE));
    assert_eq!(bench.a.read(DATA), Err(BusError::TargetAbort));
}

#[test]
fn large_pages_and_rights() {
    let (bench, _, root) = with_page();
    bench.poke(place(&bench, root, 0x4000_0000, 3), (1 << 30) | ALL | PAGE);
    bench.poke(place(&bench, root, 0x80_0000, 2), DATA | ALL | PAGE);
    assert_eq!(bench.a.read_as(Some(PASID), 0x80_0000), Ok(VALUE));
    assert_eq!(bench.a.read_as(Some(PASID), 0x4000_0000), Err(BusError::MasterAbort), "no memory there");
    // Read-only; and a table above that forbids writes.
    bench.poke(place(&bench, root, IOVA + 0x1000, 1), DATA | 5);
    assert_eq!(bench.a.read_as(Some(PASID), IOVA + 0x1000), Ok(VALUE));
    assert!(bench.a.write_as(Some(PASID), IOVA + 0x1000, 1).is_err());
    // Not a user's, a reserved bit of a large page, and no page of this level.
    bench.poke(place(&bench, root, IOVA + 0x2000, 1), DATA | 3);
    bench.poke(place(&bench, root, 0xa0_0000, 2), DATA | ALL | PAGE | 1 << 13);
    bench.poke(place(&bench, root, 0x40_0000_0000_u64 << 2, 4), DATA | ALL | PAGE);
    for address in [IOVA + 0x2000, 0xa0_0000, 0x40_0000_0000 << 2] {
        assert!(bench.a.read_as(Some(PASID), address).is_err());
    }
    // Above the signed addresses.
    assert!(bench.a.read_as(Some(PASID), 1 << 47).is_err());
    assert_eq!(
        logged(&bench),
        [(2, GN | PR | PE | RW), (2, GN | PR | PE), (2, GN | PR | RZ), (2, GN | PR | RZ), (2, GN)]
    );
    // The PASID is where the domain would be.
    assert_eq!(bench.peek(EVENTS) >> 32 & 0xffff, u64::from(PASID));
}

#[test]
fn what_is_remembered_is_by_domain_and_pasid() {
    let (bench, gcr3, root) = with_page();
    assert_eq!(bench.a.read_as(Some(PASID), IOVA), Ok(VALUE));
    bench.poke(DATA + 0x1000, 1);
    bench.poke(place(&bench, root, IOVA, 1), (DATA + 0x1000) | ALL);
    let pages = |domain: u64, pasid: u32, second: u64| {
        bench.command(3 << 60 | domain << 32 | u64::from(pasid), second);
        bench.wait();
    };
    // Host translations, another PASID, another domain.
    pages(1, 0, IOVA | 2);
    pages(1, PASID + 1, IOVA | 4 | 2);
    pages(2, PASID, IOVA | 4 | 2);
    assert_eq!(bench.a.read_as(Some(PASID), IOVA), Ok(VALUE));
    pages(1, PASID, IOVA | 4);
    assert_eq!(bench.a.read_as(Some(PASID), IOVA), Ok(1));
    // The GCR3 table is read anew when table pointers go.
    let other = bench.table();
    bench.poke(place(&bench, other, IOVA, 1), DATA | ALL);
    bench.poke(gcr3 + 8 * u64::from(PASID), other | 1);
    pages(1, PASID, 0x7fff_ffff_ffff_f005);
    assert_eq!(bench.a.read_as(Some(PASID), IOVA), Ok(1));
    pages(1, PASID, 0x7fff_ffff_ffff_f007);
    assert_eq!(bench.a.read_as(Some(PASID), IOVA), Ok(VALUE));
}

#[test]
fn a_host_table_translates_what_a_guest_table_says() {
    let bench = Bench::new(config(0));
    bench.poke(DATA, VALUE);
    let gcr3 = with_gcr3(&bench, 0, 0);
    let root = bench.table();
    // The guest's addresses are 1 GiB above memory's.
    const ABOVE: u64 = 1 << 30;
    bench.poke(gcr3 + 8 * u64::from(PASID), (root + ABOVE) | 1);
    let leaf = place(&bench, root, IOVA, 1);
    let mut table = root;
    for above in [4, 3, 2] {
        let at = table + 8 * (IOVA >> (12 + 9 * (above - 1)) & 0x1ff);
        table = bench.peek(at) & 0x000f_ffff_ffff_f000;
        bench.poke(at, (table + ABOVE) | ALL);
    }
    bench.poke(leaf, (DATA + ABOVE) | ALL);
    let host = bench.table();
    bench.map(host, 3, ABOVE, 3, READ_WRITE);
    let low = (gcr3 + ABOVE) >> 12 & 7;
    let middle = (gcr3 + ABOVE) >> 15 & 0xffff;
    bench.set_dte(A, [3 | 3 << 9 | host | 3 << 61 | GV | low << 58, 1 | middle << 16, 0, 0]);
    assert_eq!(bench.a.read_as(Some(PASID), IOVA), Ok(VALUE));
    assert_eq!(bench.a.read(DATA + ABOVE), Ok(VALUE), "without a PASID the host table alone");
    // What the host table lacks is not there.
    bench.poke(leaf, DATA | ALL);
    bench.command(3 << 60 | 1 << 32 | u64::from(PASID), 0x7fff_ffff_ffff_f007);
    bench.wait();
    assert!(bench.a.read_as(Some(PASID), IOVA).is_err());
}

#[test]
fn what_is_missing_makes_an_entry_illegal() {
    type Change = fn(&mut Config);
    let gone: [(&str, Change, u64); 4] = [
        ("GTSup", |config| config.efr &= !(1 << 4), 0),
        ("GIoSup", |config| config.efr &= !(1 << 48), GIOV),
        ("GLXSup", |config| config.efr &= !(3 << 14), 1 << 56),
        ("GLX = 3", |_| {}, 3 << 56),
    ];
    for (what, change, flags) in gone {
        let mut config = config(0);
        change(&mut config);
        let bench = Bench::new(config);
        with_gcr3(&bench, 0, flags);
        assert!(bench.a.read_as(Some(PASID), IOVA).is_err());
        assert_eq!(bench.peek(EVENTS) >> 60, 1, "{what}");
    }
    // And so it is while GTEn is off.
    let (bench, ..) = with_page();
    bench.registers().write64(CONTROL, ON);
    assert!(bench.a.read_as(Some(PASID), IOVA).is_err());
    assert_eq!(bench.peek(EVENTS) >> 60, 1);
    // A PASID that the function may not send it does not send.
    config_write(&bench.pci, A, 0x114, 0);
    assert_eq!(bench.a.read_as(Some(PASID), IOVA), Err(BusError::MasterAbort));
}
