//! What the unit remembers: device table entries, page translations, table pointers. Nothing leaves but by the command that
//! names it, unless a capacity is set.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use parking_lot::Mutex;

use super::device_table::Dte;
use super::interrupts::Irte;

/// Whose translations they are: a domain's own, or those of one of its PASIDs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Tag(u64);

impl Tag {
    /// Guest translations of a PASID.
    pub(super) fn guest(domain: u16, pasid: u32) -> Self {
        Self(1 << 63 | u64::from(pasid) << 16 | u64::from(domain))
    }
}

impl From<u16> for Tag {
    /// Host translations of a domain.
    fn from(domain: u16) -> Self {
        Self(u64::from(domain))
    }
}

/// A page translation, with the permissions of all table levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leaf {
    pub(super) phys: u64,
    pub(super) shift: u32,
    pub(super) read: bool,
    pub(super) write: bool,
    /// A write need not mark the entry: it was marked by one before, or nobody asked for marks when the entry was read.
    pub(super) marked: bool,
}

/// A pointer to a table, with the permissions of the levels above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pointer {
    pub(super) table: u64,
    pub(super) level: u32,
    pub(super) read: bool,
    pub(super) write: bool,
}

/// A hash of a few words: the keys come from a driver under test, not from an attacker.
#[derive(Default)]
pub(super) struct WordHasher(u64);

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<WordHasher>>;

/// Everything that is cached.
#[derive(Default)]
pub(super) struct Caches {
    dtes: Map<u16, Dte>,
    /// By device and index: valid entries only.
    irtes: Map<(u16, u32), Irte>,
    /// By domain, log2 of the page size, and page number.
    leaves: Map<(Tag, u32, u64), Leaf>,
    /// Which page sizes there are among the leaves.
    shifts: u64,
    order: VecDeque<(Tag, u32, u64)>,
    /// By domain, level of the entry, and number of what the entry stands for.
    pointers: Map<(Tag, u32, u64), Pointer>,
    /// Roots of guest tables, as the GCR3 table says.
    roots: Map<Tag, u64>,
    /// Addresses that were not there, by domain and page of 4 KiB: only with NpCache.
    absent: HashSet<(Tag, u64)>,
    /// Devices whose first page fault has been logged.
    faulted: Mutex<HashSet<u16>>,
}

impl Caches {
    pub(super) fn dte(&self, device: u16) -> Option<Dte> {
        self.dtes.get(&device).copied()
    }

    pub(super) fn insert_dte(&mut self, device: u16, dte: Dte) {
        self.dtes.insert(device, dte);
    }

    pub(super) fn irte(&self, device: u16, index: u32) -> Option<Irte> {
        self.irtes.get(&(device, index)).copied()
    }

    pub(super) fn insert_irte(&mut self, device: u16, index: u32, irte: Irte) {
        self.irtes.insert((device, index), irte);
    }

    /// INVALIDATE_INTERRUPT_TABLE.
    pub(super) fn drop_irtes(&mut self, device: u16) {
        self.irtes.retain(|&(of, _), _| of != device);
    }

    pub(super) fn leaf(&self, domain: impl Into<Tag>, address: u64) -> Option<Leaf> {
        let domain = domain.into();
        let mut shifts = self.shifts;
        while shifts != 0 {
            let shift = shifts.trailing_zeros();
            shifts &= shifts - 1;
            if let Some(leaf) = self.leaves.get(&(domain, shift, address >> shift)) {
                return Some(*leaf);
            }
        }
        None
    }

    /// Forgets the leaf that [`Caches::leaf`] finds for an address.
    pub(super) fn drop_leaf(&mut self, domain: impl Into<Tag>, address: u64) {
        let domain = domain.into();
        if let Some(Leaf { shift, .. }) = self.leaf(domain, address) {
            self.leaves.remove(&(domain, shift, address >> shift));
        }
    }

    pub(super) fn insert_leaf(
        &mut self,
        domain: impl Into<Tag>,
        address: u64,
        leaf: Leaf,
        capacity: Option<usize>,
    ) {
        let key = (domain.into(), leaf.shift, address >> leaf.shift);
        self.shifts |= 1 << leaf.shift;
        if self.leaves.insert(key, leaf).is_none()
            && let Some(capacity) = capacity
        {
            self.order.push_back(key);
            while self.leaves.len() > capacity.max(1) {
                let Some(oldest) = self.order.pop_front() else { break };
                self.leaves.remove(&oldest);
            }
        }
    }

    /// The lowest table pointer that is cached for an address, below `top`, and the level of the entry that it is from.
    pub(super) fn pointer(&self, domain: impl Into<Tag>, address: u64, top: u32) -> Option<(u32, Pointer)> {
        let domain = domain.into();
        let at = |level| self.pointers.get(&(domain, level, address >> span(level))).copied();
        (2..=top).find_map(|level| Some((level, at(level)?)))
    }

    /// Remembers what the entry of `level` for an address leads to.
    pub(super) fn insert_pointer(
        &mut self,
        domain: impl Into<Tag>,
        address: u64,
        level: u32,
        pointer: Pointer,
    ) {
        self.pointers.insert((domain.into(), level, address >> span(level)), pointer);
    }

    pub(super) fn is_absent(&self, domain: impl Into<Tag>, address: u64) -> bool {
        !self.absent.is_empty() && self.absent.contains(&(domain.into(), address >> 12))
    }

    pub(super) fn insert_absent(&mut self, domain: impl Into<Tag>, address: u64) {
        self.absent.insert((domain.into(), address >> 12));
    }

    /// INVALIDATE_DEVTAB_ENTRY.
    pub(super) fn drop_dte(&mut self, device: u16) {
        self.dtes.remove(&device);
        self.faulted.get_mut().remove(&device);
    }

    /// A page fault of a device that logs its first one only; whether this is it.
    pub(super) fn is_first_fault(&self, device: u16) -> bool {
        self.faulted.lock().insert(device)
    }

    /// INVALIDATE_IOMMU_PAGES: `first` to `last` (inclusive) of a domain. A leaf that is larger than the range goes only
    /// when `lenient`.
    pub(super) fn drop_pages(
        &mut self,
        domain: impl Into<Tag>,
        first: u64,
        last: u64,
        pointers: bool,
        lenient: bool,
    ) {
        let domain = domain.into();
        let named = |at: u64, shift: u32| {
            let (start, end) = (at << shift, (at << shift) + ((1 << shift) - 1));
            if lenient { start <= last && end >= first } else { start >= first && end <= last }
        };
        let pages = (last - first) >> 12;
        if pages < 64 {
            // Few pages: look for each, in every size.
            for shift in (0..64).filter(|shift| self.shifts >> shift & 1 != 0) {
                for at in first >> shift..=last >> shift {
                    if named(at, shift) {
                        self.leaves.remove(&(domain, shift, at));
                    }
                }
            }
        } else {
            self.leaves.retain(|&(of, shift, at), _| of != domain || !named(at, shift));
        }
        if pointers {
            let touches = |level: u32, at: u64| {
                let start = at.checked_shl(span(level)).unwrap_or(0);
                let end = start.saturating_add((1u64 << span(level)) - 1);
                start <= last && end >= first
            };
            self.roots.remove(&domain);
            self.pointers.retain(|&(of, level, at), _| of != domain || !touches(level, at));
        }
        if !self.absent.is_empty() {
            self.absent.retain(|&(of, page)| of != domain || page < first >> 12 || page > last >> 12);
        }
    }

    /// The root of a PASID's table, if the GCR3 table has been read for it.
    pub(super) fn root(&self, tag: Tag) -> Option<u64> {
        self.roots.get(&tag).copied()
    }

    pub(super) fn insert_root(&mut self, tag: Tag, root: u64) {
        self.roots.insert(tag, root);
    }

    /// INVALIDATE_IOMMU_ALL.
    pub(super) fn drop_all(&mut self) {
        *self = Self::default();
    }
}

/// log2 of the bytes that one entry of a level stands for.
pub(super) fn span(level: u32) -> u32 {
    12 + 9 * (level - 1)
}
