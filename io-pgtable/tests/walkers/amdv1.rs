//! A second reading of the AMD specification (section 2.2.3): what hardware finds in a host page table, by the raw words.

use std::collections::{BTreeMap, BTreeSet};

use io_pgtable::{IoPgtableCfg, Root};

use super::{Fault, Found};
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
    Table { at: u64, level: u32, read: bool, write: bool },
    /// NextLevel 0 or 7: a page.
    Page(Page),
}

/// Bytes that an entry of a level stands for: level 1 is 4 KiB.
fn span(level: u32) -> u128 {
    1 << (12 + 9 * (level - 1))
}

/// Why a unit does not go on at an entry.
#[derive(Debug)]
enum Refusal {
    NotPresent,
    ReservedBit,
    /// A next level that does not lead down, or a size that is none of the level.
    BadLevel,
}

impl Refusal {
    fn fault(self, entry: u64) -> Fault {
        match self {
            Self::NotPresent => Fault::of_empty(entry),
            Self::ReservedBit => Fault::Refused("a reserved bit"),
            Self::BadLevel => Fault::Refused("a next level or a size that is none here"),
        }
    }
}

/// Reads an entry of `level`, as a unit does.
fn read(entry: u64, level: u32) -> Result<Entry, Refusal> {
    if entry & 0x1 == 0 {
        return Err(Refusal::NotPresent);
    }
    let address = entry & 0x000f_ffff_ffff_f000;
    let next_level = (entry & 0xe00) >> 9;
    let is_pointer = (1..=6).contains(&next_level);
    // Bits 58:52; in a pointer FC and U too.
    let reserved = if is_pointer { 0x1ff0_0000_0000_0000 } else { 0x07f0_0000_0000_0000 };
    if entry & reserved != 0 {
        return Err(Refusal::ReservedBit);
    }
    let (read, write) = (entry & 0x2000_0000_0000_0000 != 0, entry & 0x4000_0000_0000_0000 != 0);
    if is_pointer {
        if next_level >= u64::from(level) {
            return Err(Refusal::BadLevel);
        }
        return Ok(Entry::Table { at: address, level: next_level as u32, read, write });
    }
    let size = if next_level == 0 {
        span(level)
    } else {
        let zero = (12..52).find(|bit| address >> bit & 1 == 0).ok_or(Refusal::BadLevel)?;
        let size = 1u128 << (zero + 1);
        if size <= span(level) || size >= span(level + 1) {
            return Err(Refusal::BadLevel);
        }
        size
    };
    let size = u64::try_from(size).map_err(|_| Refusal::BadLevel)?;
    let coherent = entry & 0x1000_0000_0000_0000 != 0;
    Ok(Entry::Page(Page { phys: address & !(size - 1), size, read, write, coherent }))
}

/// Reads an entry of `level` as a driver may write it: clear, or one that a unit goes on at.
fn read_written(entry: u64, level: u32) -> Option<Entry> {
    match read(entry, level) {
        Err(Refusal::NotPresent) => {
            assert_eq!(entry, 0, "not present, and not clear");
            None
        }
        Err(refusal) => panic!("{entry:#x} in level {level}: {refusal:?}"),
        Ok(Entry::Table { level: next, read, write, .. }) if next != level - 1 || !read || !write => {
            panic!("{entry:#x} in level {level}: skips a level, or takes rights from all below it")
        }
        Ok(entry) => Some(entry),
    }
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
        match read_written(arena.read(table + 8 * index(iova, level)), level)? {
            Entry::Page(page) => return Some((page, page.phys + iova % page.size)),
            Entry::Table { at, level: next, .. } => (table, level) = (at, next),
        }
    }
}

/// What a unit finds for one byte, told the level by the device table entry.
pub(crate) fn walk_byte(arena: &Arena, root: Root, _cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    let (page, phys) = walk(arena, root.phys.get(), root.level, iova).ok_or(Fault::Absent)?;
    Ok(Found { phys, size: page.size, read: page.read, write: page.write, execute: page.read })
}

/// What a unit finds for one byte, whatever is there. Rights are those that all levels give.
pub(crate) fn hardware(arena: &Arena, root: Root, _cfg: &IoPgtableCfg, iova: u64) -> Result<Found, Fault> {
    let (mut table, mut level) = (root.phys.get(), root.level);
    if u128::from(iova) >= span(level + 1) {
        return Err(Fault::Absent);
    }
    let (mut may_read, mut may_write) = (true, true);
    loop {
        let entry = arena.read(table + 8 * index(iova, level));
        match read(entry, level).map_err(|refusal| refusal.fault(entry))? {
            Entry::Page(Page { phys, size, read, write, .. }) => {
                let (read, write) = (read && may_read, write && may_write);
                return Ok(Found { phys: phys + iova % size, size, read, write, execute: read });
            }
            Entry::Table { at, level: next, read, write } => {
                // The index bits of levels that are left out must be zero.
                if (next + 1..level).any(|skipped| index(iova, skipped) != 0) {
                    return Err(Fault::Refused("index bits of a level that is left out"));
                }
                (table, level) = (at, next);
                (may_read, may_write) = (may_read && read, may_write && write);
            }
        }
    }
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
        match read_written(entry, level) {
            None => {}
            Some(Entry::Table { at, level, .. }) => descend(arena, at, level, iova, tree),
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
