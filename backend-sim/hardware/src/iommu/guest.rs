//! Guest translation: tables in the format of a CPU's, found by PASID through the GCR3 table. Where an entry has a host table
//! too, every address in them is translated by that.

use std::sync::atomic::Ordering;

use super::cache::{Caches, Leaf, Pointer, Tag, span};
use super::device_table::Dte;
use super::event::{Event, Refusal};
use super::{Shared, walker};
use crate::ats::{Source, Translation};
use crate::bus::{BusError, Translated};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const PAGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A request that guest tables translate.
#[derive(Clone, Copy)]
pub(super) struct Guest {
    device: u16,
    dte: Dte,
    /// 0 for a request without one.
    pasid: u32,
}

impl Guest {
    fn tag(self) -> Tag {
        Tag::guest(self.dte.domain(), self.pasid)
    }

    fn fault(self, address: u64, write: bool, refusal: Refusal) -> Event {
        Event::page_fault(self.device, self.dte.domain(), address, write, refusal).of_guest(self.pasid)
    }

    fn allows(self, leaf: Leaf, write: bool) -> bool {
        if write { leaf.write && self.dte.write_allowed() } else { leaf.read && self.dte.read_allowed() }
    }
}

impl Shared {
    /// Whether guest tables translate a request; one that carries a PASID has no other way.
    pub(super) fn guest_of(
        &self,
        source: Source,
        address: u64,
        write: bool,
    ) -> Result<Option<Guest>, BusError> {
        let device = source.requester.get();
        // What has no entry, or a bad one, is the same as without guest tables.
        let Ok(dte) = self.entry(device) else { return Ok(None) };
        let translates = dte.valid() && dte.translation_valid() && !dte.memory_half_reserved(&self.config);
        if !translates || source.pasid.is_none() && !(dte.guest_valid() && dte.guest_io()) {
            return Ok(None);
        }
        let guest = Guest { device, dte, pasid: source.pasid.unwrap_or(0) };
        let refused = if !dte.guest_valid() || guest.pasid >> self.config.pasid_bits() != 0 {
            guest.fault(address, write, Refusal::NotPresent)
        } else if dte.glx() >= self.config.max_gcr3_levels()
            || dte.guest_levels() > self.config.max_guest_levels()
            || dte.mode() > self.config.max_levels()
            || !self.registers.lock().guest_enabled()
        {
            Event::illegal_dte(device, address, write, false, false).of_guest(guest.pasid)
        } else {
            return Ok(Some(guest));
        };
        self.log(refused);
        Err(BusError::TargetAbort)
    }

    /// As [`crate::bus::Remapper::with_translation`].
    pub(super) fn with_guest_translation(
        &self,
        guest: Guest,
        address: u64,
        len: u64,
        write: bool,
        access: &mut dyn FnMut(Translated) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        let mut walked = false;
        loop {
            let caches = self.caches.read();
            if let Some(leaf) = caches.leaf(guest.tag(), address) {
                if !guest.allows(leaf, write) {
                    drop(caches);
                    self.log(guest.fault(address, write, Refusal::Permission));
                    return Err(BusError::TargetAbort);
                }
                let counter = if walked { &self.counters.misses } else { &self.counters.hits };
                counter.fetch_add(1, Ordering::Relaxed);
                let offset = address & ((1 << leaf.shift) - 1);
                // The caches stay held: a command waits for the access.
                return access(Translated {
                    phys: leaf.phys + offset,
                    len: len.min((1 << leaf.shift) - offset),
                });
            }
            drop(caches);
            walked = true;
            if let Err(refusal) = self.fetch_guest(guest, address) {
                self.counters.misses.fetch_add(1, Ordering::Relaxed);
                self.log(guest.fault(address, write, refusal));
                return Err(BusError::TargetAbort);
            }
        }
    }

    /// The answer to a translation request.
    pub(super) fn guest_translation(&self, guest: Guest, address: u64) -> Result<Translation, Option<Event>> {
        loop {
            if let Some(leaf) = self.caches.read().leaf(guest.tag(), address) {
                let (read, write) = (guest.allows(leaf, false), guest.allows(leaf, true));
                return Ok(Translation { phys: leaf.phys, shift: leaf.shift, read, write });
            }
            match self.fetch_guest(guest, address) {
                Ok(()) => {}
                Err(refusal @ Refusal::TableUnreadable(_)) => {
                    return Err(Some(guest.fault(address, false, refusal)));
                }
                Err(_) => return Ok(Translation::NONE),
            }
        }
    }

    fn fetch_guest(&self, guest: Guest, address: u64) -> Result<(), Refusal> {
        let mut caches = self.caches.write();
        if caches.leaf(guest.tag(), address).is_some() {
            return Ok(());
        }
        let leaf = self.walk_guest(&mut caches, guest, address)?;
        caches.insert_leaf(guest.tag(), address, leaf, self.config.iotlb_capacity);
        Ok(())
    }

    /// What the host table makes of an address in a guest table: itself, without one.
    fn host(&self, caches: &mut Caches, dte: Dte, address: u64) -> Result<Leaf, Refusal> {
        if dte.mode() == 0 {
            return Ok(Leaf { phys: 0, shift: 63, read: true, write: true, marked: true });
        }
        if let Some(leaf) = caches.leaf(dte.domain(), address) {
            return Ok(leaf);
        }
        let leaf = walker::walk(&self.ram, caches, dte, address, false)?;
        caches.insert_leaf(dte.domain(), address, leaf, self.config.iotlb_capacity);
        Ok(leaf)
    }

    fn entry_at(&self, caches: &mut Caches, dte: Dte, at: u64) -> Result<u64, Refusal> {
        let host = self.host(caches, dte, at)?;
        if !host.read {
            return Err(Refusal::Permission);
        }
        let place = host.phys + (at & ((1 << host.shift) - 1));
        self.ram.read64(place).map_err(|_| Refusal::TableUnreadable(place))
    }

    /// The root of the table of a PASID.
    fn guest_root(&self, caches: &mut Caches, guest: Guest) -> Result<u64, Refusal> {
        if let Some(root) = caches.root(guest.tag()) {
            return Ok(root);
        }
        let levels = guest.dte.glx() + 1;
        if u64::from(guest.pasid) >> (9 * levels) != 0 {
            return Err(Refusal::NotPresent);
        }
        let mut table = guest.dte.gcr3_root();
        for level in (0..levels).rev() {
            let index = u64::from(guest.pasid) >> (9 * level) & 0x1ff;
            let entry = self.entry_at(caches, guest.dte, table + 8 * index)?;
            if entry & PRESENT == 0 {
                return Err(Refusal::NotPresent);
            }
            if entry & !ADDRESS != PRESENT {
                return Err(Refusal::ReservedBit);
            }
            table = entry & ADDRESS;
        }
        caches.insert_root(guest.tag(), table);
        Ok(table)
    }

    fn walk_guest(&self, caches: &mut Caches, guest: Guest, address: u64) -> Result<Leaf, Refusal> {
        let top = guest.dte.guest_levels();
        // Addresses are signed.
        let spare = 64 - (12 + 9 * top);
        if ((address << spare) as i64 >> spare) as u64 != address {
            return Err(Refusal::NotPresent);
        }
        let mut at = match caches.pointer(guest.tag(), address, top) {
            Some((_, pointer)) => pointer,
            None => {
                let table = self.guest_root(caches, guest)?;
                Pointer { table, level: top, read: true, write: true }
            }
        };
        loop {
            let index = address >> span(at.level) & 0x1ff;
            let entry = self.entry_at(caches, guest.dte, at.table + 8 * index)?;
            if entry & PRESENT == 0 {
                return Err(Refusal::NotPresent);
            }
            let is_page = at.level == 1 || entry & PAGE != 0;
            let low = if is_page && at.level > 1 { ((1 << span(at.level)) - 1) & !0x1fff } else { 0 };
            let no_such_page = is_page && at.level > 3;
            if no_such_page || entry & low != 0 || entry & NO_EXECUTE != 0 && !self.config.has_no_execute() {
                return Err(Refusal::ReservedBit);
            }
            // Requests are a user's: without the bit nothing is allowed.
            let user = entry & USER != 0;
            let (read, write) = (at.read && user, at.write && user && entry & WRITE != 0);
            if is_page {
                let page = entry & ADDRESS & !((1 << span(at.level)) - 1);
                let inside = address & ((1 << span(at.level)) - 1);
                let host = self.host(caches, guest.dte, page + inside)?;
                let shift = span(at.level).min(host.shift);
                let part = page + (inside & !((1 << shift) - 1));
                let phys = host.phys + (part & ((1 << host.shift) - 1));
                let (read, write) = (read && host.read, write && host.write);
                // A host table below a guest's is marked as used, never as written.
                return Ok(Leaf { phys, shift, read, write, marked: true });
            }
            let pointer = Pointer { table: entry & ADDRESS, level: at.level - 1, read, write };
            caches.insert_pointer(guest.tag(), address, at.level, pointer);
            at = pointer;
        }
    }
}
