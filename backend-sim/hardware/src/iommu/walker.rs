//! The walk of a host page table, with its faults in the order in which hardware finds them.

use super::cache::{Caches, Leaf, Pointer, span};
use super::device_table::Dte;
use super::event::Refusal;
use crate::ram::{NotRam, Ram};

const PRESENT: u64 = 1;
/// A: the entry has been used. In pointers and leaves.
const ACCESSED: u64 = 1 << 5;
/// D: the page has been written. In leaves.
const DIRTY: u64 = 1 << 6;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits 56:52 and 58:57 of a leaf must be zero.
const LEAF_RESERVED: u64 = 0x07f0_0000_0000_0000;
/// Bits 60:52 of a pointer must be zero.
const POINTER_RESERVED: u64 = 0x1ff0_0000_0000_0000;

/// Walks the table of `dte` for `address`, from the lowest table pointer that is cached, and caches what it finds on the way.
pub(super) fn walk(
    ram: &Ram,
    caches: &mut Caches,
    dte: Dte,
    address: u64,
    write: bool,
) -> Result<Leaf, Refusal> {
    let top = dte.mode();
    let width = 12 + 9 * top;
    if width < 64 && address >> width != 0 {
        return Err(Refusal::NotPresent);
    }
    let domain = dte.domain();
    let allows = |read: bool, writable: bool| {
        if write { writable && dte.write_allowed() } else { read && dte.read_allowed() }
    };
    let mut at = Pointer { table: dte.root(), level: top, read: true, write: true };
    if let Some((level, cached)) = caches.pointer(domain, address, top) {
        // Another access has led it here: this one is checked for itself.
        if !allows(cached.read, cached.write) {
            return Err(Refusal::Permission);
        }
        if skips(address, level, cached.level) {
            return Err(Refusal::BadLevel);
        }
        at = cached;
    }
    loop {
        let index = address >> span(at.level) & 0x1ff;
        let place = at.table + 8 * index;
        let unreadable = |_| Refusal::TableUnreadable(place);
        let entry = ram.read64(place).map_err(unreadable)?;
        if entry & PRESENT == 0 {
            return Err(Refusal::NotPresent);
        }
        let next = (entry >> 9 & 7) as u32;
        let is_leaf = next == 0 || next == 7;
        if entry & if is_leaf { LEAF_RESERVED } else { POINTER_RESERVED } != 0 {
            return Err(Refusal::ReservedBit);
        }
        let read = at.read && entry >> 61 & 1 != 0;
        let writable = at.write && entry >> 62 & 1 != 0;
        if !allows(read, writable) {
            return Err(Refusal::Permission);
        }
        if is_leaf {
            let shift = leaf_shift(entry, at.level, next == 7)?;
            let written = write && dte.marks_dirty();
            let marks = if written { ACCESSED | DIRTY } else { ACCESSED };
            if dte.marks_accessed() && !mark(ram, place, entry, marks).map_err(unreadable)? {
                continue;
            }
            let phys = entry & ADDRESS & !((1 << shift) - 1);
            return Ok(Leaf { phys, shift, read, write: writable, marked: written || !dte.marks_dirty() });
        }
        if next >= at.level {
            return Err(Refusal::BadLevel);
        }
        if skips(address, at.level, next) {
            return Err(Refusal::BadLevel);
        }
        if dte.marks_accessed() && !mark(ram, place, entry, ACCESSED).map_err(unreadable)? {
            continue;
        }
        let pointer = Pointer { table: entry & ADDRESS, level: next, read, write: writable };
        caches.insert_pointer(domain, address, at.level, pointer);
        at = pointer;
    }
}

/// Sets bits of an entry that is still what it was; if not, nothing is set. Of a page with several entries, the one that was
/// used alone is marked.
fn mark(ram: &Ram, place: u64, entry: u64, bits: u64) -> Result<bool, NotRam> {
    if entry & bits == bits { Ok(true) } else { ram.replace64(place, entry, entry | bits) }
}

/// Whether the address has index bits for levels between `from` and `to`: they must be zero.
fn skips(address: u64, from: u32, to: u32) -> bool {
    address >> span(to + 1) & ((1 << (9 * (from - 1 - to))) - 1) != 0
}

/// log2 of a leaf's size: the level's own, or coded by the lowest zero of the address field.
fn leaf_shift(entry: u64, level: u32, coded: bool) -> Result<u32, Refusal> {
    if !coded {
        return Ok(span(level));
    }
    let lowest_zero = (entry & ADDRESS | 0xfff).trailing_ones();
    let shift = lowest_zero + 1;
    if shift > span(level) && shift < span(level + 1) { Ok(shift) } else { Err(Refusal::BadLevel) }
}
