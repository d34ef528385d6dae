//! Mapping.

use platform::sync::atomic::{Ordering, fence};
use platform::{DmaAddr, Extent, MapError, PhysAddr, Prot};

use super::{PageTable, low_bits};
use crate::format::{Decoded, Format};
use crate::table::{IoPageTable, Root};

/// What a map did: bytes, and why it stopped.
pub(super) type Mapped = (u64, Result<(), MapError>);

/// A piece of a mapping: the bits that are looked up, and where they lead.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) iova: u64,
    pub(super) phys: PhysAddr,
    pub(super) len: u64,
    pub(super) prot: Prot,
}

impl Piece {
    fn advance(&mut self, bytes: u64) {
        self.iova = self.iova.wrapping_add(bytes);
        self.phys = self.phys.wrapping_add(bytes);
        self.len -= bytes;
    }
}

/// The table that was found last, so that the next entry in it needs no walk.
struct Position {
    table: PhysAddr,
    /// 0 when nothing was found yet.
    level: u32,
    /// The address above the table's index.
    key: u64,
}

impl Position {
    const fn nowhere() -> Self {
        Self { table: PhysAddr::new(0), level: 0, key: 0 }
    }
}

impl<F: Format> PageTable<F> {
    /// One page or more of one size.
    #[inline]
    pub(super) fn map_sized(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> Mapped {
        if count == 1 {
            // The smallest apart, so that all about it is constant.
            let done = if page_size == 1 << F::GRANULE_SHIFT {
                self.single.contains(1 << F::GRANULE_SHIFT)
                    && self.map_entry(iova, phys, F::GRANULE_SHIFT, 1, prot)
            } else {
                let shift = page_size.trailing_zeros();
                self.single.contains(page_size)
                    && self.map_entry(iova, phys, shift, F::leaf_level(shift), prot)
            };
            if done {
                return (page_size, Ok(()));
            }
        }
        self.map_any_size(iova, phys, page_size, count, prot)
    }

    /// The usual call: a page of one entry, where tables are, and nothing is in the way. Returns whether it was so; if not,
    /// nothing is done.
    #[inline(always)]
    fn map_entry(&self, iova: DmaAddr, phys: PhysAddr, shift: u32, level: u32, prot: Prot) -> bool {
        let span = (1u64 << shift) - 1;
        if (iova.get() | phys.get()) & span != 0 || phys > self.max_phys || !self.format.accepts(prot) {
            return false;
        }
        let root = self.root();
        // A page at a multiple of its size, of a level that is there, is in the table whole or not at all; in memory too.
        let Some(address) = self.looked_up(root, iova.get(), 0) else { return false };
        let Some((table, index)) = self.table_at(root, address, level) else { return false };
        if self.entries.load(table, index, Ordering::Relaxed) != 0 {
            return false;
        }
        let leaf = self.format.leaf(phys, shift, level, prot);
        // Release: the memory's contents, zeros included, are there before a device can reach them.
        self.entries.store(table, index, leaf, Ordering::Release);
        true
    }

    /// All other calls of one size.
    #[inline(never)]
    fn map_any_size(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> Mapped {
        let out_of_range = MapError::OutOfRange(iova);
        if !self.shape.page_sizes.contains(page_size) || (iova.get() | phys.get()) & (page_size - 1) != 0 {
            return (0, Err(MapError::NoPageSize(iova)));
        }
        let shift = page_size.trailing_zeros();
        let Some(len) = page_size.checked_mul(count as u64) else { return (0, Err(out_of_range)) };
        match self.check(iova, phys, len, prot, F::leaf_level(shift)) {
            Ok((root, address)) => {
                let mut piece = Piece { iova: address, phys, len, prot };
                let done = self.map_in_table(root, piece, shift);
                if done == len {
                    return (done, Ok(()));
                }
                piece.advance(done);
                let (rest, result) = self.map_run(root, &mut Position::nowhere(), piece, shift);
                (done + rest, result)
            }
            Err(error) => (0, Err(error)),
        }
    }

    /// The usual call of many entries: in one table, which is there. Maps what it can so, and returns how many bytes.
    #[inline(always)]
    fn map_in_table(&self, root: Root, piece: Piece, shift: u32) -> u64 {
        if self.cache.is_some() {
            // Pointers on the way may have to be written back.
            return 0;
        }
        // The smallest apart, so that all about it is constant.
        let level = if shift == F::GRANULE_SHIFT { 1 } else { F::leaf_level(shift) };
        let Some((table, index)) = self.table_at(root, piece.iova, level) else { return 0 };
        let room = (self.entry_count(root, level) - index) >> (shift - F::level_shift(level));
        let pages = room.min((piece.len >> shift) as usize);
        let written = if shift == F::GRANULE_SHIFT {
            fence(Ordering::Release);
            let leaf = |n: usize| {
                let phys = piece.phys.wrapping_add((n as u64) << F::GRANULE_SHIFT);
                self.format.leaf(phys, F::GRANULE_SHIFT, 1, piece.prot)
            };
            self.write_rising(table, index, pages, leaf, false)
        } else {
            self.write_pages(table, index, pages, piece, shift, false)
        };
        (written as u64) << shift
    }

    /// Any range, by the largest pages that fit.
    #[inline]
    pub(super) fn map_fitting(&self, iova: DmaAddr, phys: PhysAddr, len: u64, prot: Prot) -> Mapped {
        // Most ranges are the smallest page.
        if len == 1 << F::GRANULE_SHIFT
            && self.single.contains(len)
            && self.map_entry(iova, phys, F::GRANULE_SHIFT, 1, prot)
        {
            return (len, Ok(()));
        }
        self.map_pieces(iova, phys, len, prot)
    }

    #[inline(never)]
    fn map_pieces(&self, iova: DmaAddr, phys: PhysAddr, len: u64, prot: Prot) -> Mapped {
        match self.check(iova, phys, len, prot, 1) {
            Ok((root, address)) => {
                let piece = Piece { iova: address, phys, len, prot };
                self.map_piece(root, &mut Position::nowhere(), piece)
            }
            Err(error) => (0, Err(error)),
        }
    }

    /// Extents of memory, one behind the other.
    pub(super) fn map_list(&self, iova: DmaAddr, list: &[Extent], prot: Prot) -> Mapped {
        let mut position = Position::nowhere();
        let mut done = 0;
        let mut rest = list.iter().copied().peekable();
        while let Some(mut extent) = rest.next() {
            // Neighbours in memory may have larger pages together.
            while let Some(next) =
                rest.next_if(|next| extent.phys.checked_add(extent.len as u64) == Some(next.phys))
            {
                extent.len += next.len;
            }
            if extent.len == 0 {
                continue;
            }
            let at = iova.wrapping_add(done);
            let (root, address) = match self.check(at, extent.phys, extent.len as u64, prot, 1) {
                Ok(checked) => checked,
                Err(error) => return (done, Err(error)),
            };
            let piece = Piece { iova: address, phys: extent.phys, len: extent.len as u64, prot };
            let (part, result) = self.map_piece(root, &mut position, piece);
            done += part;
            if result.is_err() {
                return (done, result);
            }
        }
        (done, Ok(()))
    }

    /// Checks a range against the format, memory and the top, which grows for it if it can; returns the top and the bits that are
    /// looked up. Pages of `level` are to be in it.
    #[inline]
    fn check(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
        level: u32,
    ) -> Result<(Root, u64), MapError> {
        if !self.format.accepts(prot) {
            return Err(MapError::NoAccess);
        }
        let out_of_range = MapError::OutOfRange(iova);
        let last_phys = phys.last_of(len).ok_or(out_of_range)?;
        if last_phys > self.max_phys {
            return Err(out_of_range);
        }
        let root = self.root();
        if let Some(address) = self.looked_up(root, iova.get(), len - 1)
            && level <= root.level
        {
            return Ok((root, address));
        }
        let last = iova.last_of(len).ok_or(out_of_range)?;
        self.grow(iova, last.get(), level).map(|root| (root, iova.get()))
    }

    /// The table of `level` for an address, made with all above it if need be; and whether it was made here.
    #[inline]
    fn table_for(&self, root: Root, iova: u64, level: u32) -> Result<(PhysAddr, bool), MapError> {
        let (entries, format) = (self.entries, self.format);
        let (mut table, mut at, mut fresh) = (root.phys, root.level, false);
        let (mut index, mut turned) = Self::indices(iova, at);
        while at > level {
            // Acquire: what is behind a pointer was written before it.
            let entry = entries.load(table, index, Ordering::Acquire);
            (table, fresh) = match format.table(entry, at) {
                Some(next) => {
                    self.met_pointer(table, index, entry);
                    (next, false)
                }
                None if entry == 0 => self.install(root, table, index, at, iova)?,
                None => return Err(self.in_use(root, iova)),
            };
            at -= 1;
            (index, turned) = Self::next_index(turned);
        }
        Ok((table, fresh))
    }

    /// The same from where the last one was found.
    #[inline]
    fn table_from(
        &self,
        root: Root,
        position: &mut Position,
        iova: u64,
        level: u32,
    ) -> Result<(PhysAddr, bool), MapError> {
        let key = iova >> F::level_shift(level) >> F::INDEX_BITS;
        if position.level == level && position.key == key {
            return Ok((position.table, false));
        }
        let (table, fresh) = self.table_for(root, iova, level)?;
        *position = Position { table, level, key };
        Ok((table, fresh))
    }

    /// Makes a table below an empty entry, unless somebody else was first.
    #[cold]
    fn install(
        &self,
        root: Root,
        table: PhysAddr,
        index: usize,
        level: u32,
        iova: u64,
    ) -> Result<(PhysAddr, bool), MapError> {
        let new = self.frames.alloc(self.table_request).map_err(|_| MapError::OutOfMemory)?;
        self.wrote(new, 0, Self::TABLE_ENTRIES);
        // Release: the table's zeros are there before the pointer to them.
        match self.entries.replace(table, index, 0, self.format.pointer(new, level)) {
            Ok(()) => {
                self.pages.fetch_add(1, Ordering::Relaxed);
                self.wrote_pointer(table, index);
                Ok((new, true))
            }
            Err(found) => {
                // SAFETY: nobody has seen the frame.
                unsafe { self.frames.free(new, Self::TABLE_BYTES) };
                match self.format.decode(found, level) {
                    Decoded::Table(below) => {
                        self.met_pointer(table, index, found);
                        Ok((below, false))
                    }
                    _ => Err(self.in_use(root, iova)),
                }
            }
        }
    }

    /// The whole address of bits that are looked up.
    #[cold]
    pub(super) fn address(&self, root: Root, iova: u64) -> DmaAddr {
        let offset = iova.wrapping_sub(self.first) & low_bits(self.input_bits(root.level));
        DmaAddr::new(self.first.wrapping_add(offset))
    }

    #[cold]
    fn in_use(&self, root: Root, iova: u64) -> MapError {
        MapError::InUse(self.address(root, iova))
    }

    /// Maps a piece by the largest pages that fit.
    fn map_piece(&self, root: Root, position: &mut Position, mut piece: Piece) -> Mapped {
        let sizes = self.sizes_below(root.level);
        let mut done = 0;
        while piece.len > 0 {
            let Some(run) = sizes.pick(piece.iova, piece.phys.get(), piece.len) else {
                return (done, Err(MapError::NoPageSize(self.address(root, piece.iova))));
            };
            let part = Piece { len: run.page_size * run.count as u64, ..piece };
            let (bytes, result) = self.map_run(root, position, part, run.page_size.trailing_zeros());
            done += bytes;
            if result.is_err() {
                return (done, result);
            }
            piece.advance(bytes);
        }
        (done, Ok(()))
    }

    /// Maps a piece in pages of 2^`shift` bytes, a table at a time.
    #[inline(never)]
    fn map_run(&self, root: Root, position: &mut Position, mut piece: Piece, shift: u32) -> Mapped {
        let level = F::leaf_level(shift);
        let slot_bits = shift - F::level_shift(level);
        let end = self.entry_count(root, level);
        let mut done = 0;
        while piece.len > 0 {
            let (table, fresh) = match self.table_from(root, position, piece.iova, level) {
                Ok(found) => found,
                Err(error) => return (done, Err(error)),
            };
            let index = Self::index_below(root, piece.iova, level);
            let pages = ((end - index) >> slot_bits).min((piece.len >> shift) as usize);
            // What is in a table made here is the caller's own range.
            let written = self.write_pages(table, index, pages, piece, shift, fresh);
            let mut bytes = (written as u64) << shift;
            done += bytes;
            piece.advance(bytes);
            if written < pages {
                // Something is there.
                let page = Piece { len: 1 << shift, ..piece };
                let result;
                (bytes, result) = self.map_around(root, table, page, shift);
                done += bytes;
                piece.advance(bytes);
                if result.is_err() {
                    return (done, result);
                }
            }
        }
        (done, Ok(()))
    }

    /// Writes pages of 2^`shift` bytes until one comes whose entries are not all empty, and says how many that are; all, when
    /// the table is known to be empty there.
    #[inline]
    pub(super) fn write_pages(
        &self,
        table: PhysAddr,
        index: usize,
        pages: usize,
        piece: Piece,
        shift: u32,
        empty: bool,
    ) -> usize {
        let level = F::leaf_level(shift);
        let slot_shift = F::level_shift(level);
        let slots = 1usize << (shift - slot_shift);
        let leaf = |slot: usize| {
            let phys = piece.phys.wrapping_add((slot as u64) << slot_shift);
            self.format.leaf(phys, shift, level, piece.prot)
        };
        // The memory's contents, zeros included, are there before a device can reach them.
        fence(Ordering::Release);
        let written = if slots == 1 {
            self.write_rising(table, index, pages, leaf, empty)
        } else {
            // A page is written whole or not at all: hardware may remember all of it for one of its entries.
            let written = (0..pages).take_while(|page| {
                let (slot, at) = (page * slots, index + page * slots);
                let empty = empty || self.entries.all_zero(table, at, slots);
                if empty && F::OWN_ADDRESS {
                    self.write_rising(table, at, slots, |n| leaf(slot + n), true);
                } else if empty {
                    self.entries.fill(table, at, slots, leaf(slot));
                }
                empty
            });
            written.count()
        };
        self.wrote(table, index, written * slots);
        written
    }

    /// Writes `count` entries, or those before the first that is not empty.
    #[inline]
    fn write_rising(
        &self,
        table: PhysAddr,
        index: usize,
        count: usize,
        leaf: impl Fn(usize) -> u64,
        empty: bool,
    ) -> usize {
        let first = leaf(0);
        let step = leaf(1).wrapping_sub(first);
        // Where the address has two places in the entry, a run that carries from one to the other does not rise evenly.
        if leaf(count - 1) != first.wrapping_add(step.wrapping_mul(count as u64 - 1)) {
            let is_free = |n: usize| empty || self.entries.load(table, index + n, Ordering::Relaxed) == 0;
            let count = (0..count).take_while(|n| is_free(*n)).count();
            (0..count).for_each(|n| self.entries.store(table, index + n, leaf(n), Ordering::Relaxed));
            return count;
        }
        if empty {
            self.entries.store_rising(table, index, count, first, step);
            return count;
        }
        self.entries.store_rising_if_zero(table, index, count, first, step)
    }

    /// Maps a page of 2^`shift` bytes, whose entries in `table` are not all empty, as smaller ones: where an unmap has emptied
    /// tables and left them. Nobody else uses those now, but the IOMMU may remember them: to take them out would need an
    /// invalidation.
    #[cold]
    #[inline(never)]
    fn map_around(&self, root: Root, table: PhysAddr, piece: Piece, shift: u32) -> Mapped {
        let level = F::leaf_level(shift);
        let index = Self::index_below(root, piece.iova, level);
        let slots = 1usize << (shift - F::level_shift(level));
        let has_table = (index..index + slots).any(|index| {
            let entry = self.entries.load(table, index, Ordering::Relaxed);
            matches!(self.format.decode(entry, level), Decoded::Table(_))
        });
        let smaller = self.shape.page_sizes.bits() & ((1 << shift) - 1);
        match smaller.checked_ilog2() {
            Some(smaller) if has_table => self.map_run(root, &mut Position::nowhere(), piece, smaller),
            _ => (0, Err(self.in_use(root, piece.iova))),
        }
    }
}
