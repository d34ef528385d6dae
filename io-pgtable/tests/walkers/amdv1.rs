//! A second reading of the AMD specification (section 2.2.3): what hardware finds in a host page table, by the raw words.

use std::collections::{BTreeMap, BTreeSet};

use io_pgtable::{IoPgtableCfg, Root};

use super::Found;
use crate::common::Arena;

/// A page, by where it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    pub(crate) phys: u64,
    pub(crate) size: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) coherent: bool,
}

/// Everything below a table's top.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Pages by their first I/O address.
    pub(crate) pages: BTreeMap<u64, Page>,
    /// Physical addresses of all tables, the top included.
    pub(crate) tables: BTreeSet<u64>,
}

/// An entry that is present.
enum Entry {
    /// NextLevel 1 to 6: a table.
    Table { at: u64, level: u32 },
    /// NextLevel 0 or 7: a page.
    Page(Page),
}

/// Bytes that an entry of a level stands for: level 1 is 4 KiB.
fn span(level: u32) -> u128 {
    1 << (12 + 9 * (level - 1))
}

/// Reads an entry of `level`; panics when a unit would fault on it.
fn read(entry: u64, level: u32) -> Option<Entry> {
    if entry & 0x1 == 0 {
        return None;
    }
    let address = entry & 0x000f_ffff_ffff_f000;
    let next_level = (entry & 0xe00) >> 9;
    assert_eq!(entry & 0x07f0_0000_0000_0000, 0, "{entry:#x}: bits 58:52 must be zero");
    if (1..=6).contains(&next_level) {
        assert_eq!(entry & 0x1800_0000_0000_0000, 0, "{entry:#x}: FC and U must be zero in a pointer");
        assert!(next_level < u64::from(level), "{entry:#x}: does not lead down from level {level}");
        assert_eq!(entry >> 61 & 3, 3, "{entry:#x}: takes rights from all below it");
        return Some(Entry::Table { at: address, level: next_level as u32 });
    }
    let size = if next_level == 0 {
        span(level)
    } else {
        let zero = (12..52).find(|bit| address >> bit & 1 == 0).expect("a zero in the address field");
        let size = 1u128 << (zero + 1);
        assert!(size > span(level) && size < span(level + 1), "{entry:#x}: no size of level {level}");
        size
    };
    let size = u64::try_from(size).expect("a page of less than the address space");
    Some(Entry::Page(Page {
        phys: address & !(size - 1),
        size,
        read: entry & 0x2000_0000_0000_0000 != 0,
        write: entry & 0x4000_0000_0000_0000 != 0,
        coherent: entry & 0x1000_0000_0000_0000 != 0,
    }))
}

/// The index bits of a level.
fn index(iova: u64, level: u32) -> u64 {
    iova >> (12 + 9 * (level - 1)) & 0x1ff
}

/// What a unit finds for one address, walking from a top of `mode` levels: the page, and the physical address of the byte.
pub(crate) fn walk(arena: &Arena, root: u64, mode: u32, iova: u64) -> Option<(Page, u64)> {
    if u128::from(iova) >= span(mode + 1) {
        return None;
    }
    let (mut table, mut level) = (root, mode);
    loop {
        match read(arena.read(table + 8 * index(iova, level)), level)? {
            Entry::Page(page) => return Some((page, page.phys + iova % page.size)),
            Entry::Table { at, level: next } => {
                assert_eq!(next, level - 1, "the engine skips no level");
                (table, level) = (at, next);
            }
        }
    }
}

/// What a unit finds for one byte, told the level by the device table entry.
pub(crate) fn walk_byte(arena: &Arena, root: Root, _cfg: &IoPgtableCfg, iova: u64) -> Option<Found> {
    let (page, phys) = walk(arena, root.phys.get(), root.level, iova)?;
    Some(Found { phys, size: page.size, read: page.read, write: page.write })
}

/// Reads the whole tree, and that the copies of each coded entry are complete and equal.
pub(crate) fn tree(arena: &Arena, root: u64, mode: u32) -> Tree {
    let mut tree = Tree::default();
    descend(arena, root, mode, 0, &mut tree);
    tree
}

fn descend(arena: &Arena, table: u64, level: u32, first: u64, tree: &mut Tree) {
    assert!(tree.tables.insert(table), "the table at {table:#x} is reached twice");
    // Seven bits of an address are left for level 6.
    let entries = if level == 6 { 128 } else { 512 };
    let mut index = 0;
    while index < entries {
        let entry = arena.read(table + 8 * index);
        let iova = first + index * span(level) as u64;
        let mut slots = 1;
        match read(entry, level) {
            None => assert_eq!(entry, 0, "not present, and not clear"),
            Some(Entry::Table { at, level }) => descend(arena, at, level, iova, tree),
            Some(Entry::Page(page)) => {
                slots = page.size / span(level) as u64;
                assert_eq!(iova % page.size, 0, "{iova:#x}: a copy without the first one");
                for copy in index..index + slots {
                    assert_eq!(arena.read(table + 8 * copy), entry, "{iova:#x}: copies differ");
                }
                tree.pages.insert(iova, page);
            }
        }
        index += slots;
    }
    for index in entries..512 {
        assert_eq!(arena.read(table + 8 * index), 0, "no address leads to this entry");
    }
}
