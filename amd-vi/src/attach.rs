//! Devices: what is known of each, what it is attached to, and how it moves from one domain to another.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_core::{AttachError, ProbeError, Probed};
use platform::pci::{PciAddress, RequesterId};
use platform::sync::Mutex;

use crate::ats::Ats;
use crate::command_queue::CommandError;
use crate::domain::PagingDomain;
use crate::driver::Shared;
use crate::dte::{IntCtl, Translation};
use crate::gcr3::Gcr3Table;
use crate::guest_domain::GuestDomain;
use crate::listeners::Listeners;
use crate::pasid::PasidCapability;
use crate::ppr::Pri;
use crate::segment::Segment;
use crate::unit::Unit;

/// What a device is attached to.
#[derive(Clone, Debug)]
pub(crate) enum Attachment {
    /// Nothing: no memory, and no interrupts but those that are remapped.
    None,
    /// The blocked domain: no memory.
    Blocked,
    /// The identity domain.
    Identity,
    /// A paging domain, kept alive by this.
    Paging(Arc<PagingDomain>),
    /// A domain with a guest table, kept alive by this.
    Guest(Arc<GuestDomain>),
}

impl Attachment {
    /// Who is told by name what its domain has unmapped.
    pub(crate) fn listeners(&self) -> Option<&Listeners> {
        match self {
            Self::Paging(domain) => Some(domain.listeners()),
            Self::Guest(domain) => Some(domain.listeners()),
            Self::None | Self::Blocked | Self::Identity => None,
        }
    }

    /// A unit may go on using its domain for ever.
    pub(crate) fn poison(&self) {
        match self {
            Self::Paging(domain) => domain.poison(),
            Self::Guest(domain) => domain.poison(),
            Self::None | Self::Blocked | Self::Identity => {}
        }
    }
}

#[derive(Debug)]
pub(crate) struct DeviceState {
    /// Its own requester ID first, then its aliases, each with the unit that requests of that name meet: the bridge whose
    /// name they carry may be behind another unit.
    pub(crate) ids: Vec<(u16, usize)>,
    pub(crate) attached: Attachment,
    /// Its ATS, if it may use it.
    pub(crate) ats: Option<Ats>,
    /// Whether that is on.
    pub(crate) ats_on: bool,
    /// Its page requests, if it may make any.
    pub(crate) pri: Option<Pri>,
    /// Its PASIDs, if it can have any.
    pub(crate) pasid: Option<PasidCapability>,
    /// How many of them, 0 for none.
    pub(crate) max_pasids: u32,
    /// The domains that they are in.
    pub(crate) pasids: BTreeMap<u32, Arc<GuestDomain>>,
    /// Where units find their tables, and that of a guest domain it is attached to itself.
    pub(crate) gcr3: Option<Gcr3Table>,
}

impl DeviceState {
    /// How requests without a PASID are named when they are to be forgotten: as PASID 0 where a guest table translates them.
    pub(crate) fn own_pasid(&self) -> Option<u32> {
        matches!(self.attached, Attachment::Guest(_)).then_some(0)
    }

    /// Every unit that requests of the device may meet, each once.
    pub(crate) fn units<'a>(&'a self, shared: &'a Shared) -> impl Iterator<Item = &'a Unit> {
        let first = |index: usize| self.ids[..index].iter().all(|(_, unit)| *unit != self.ids[index].1);
        (0..self.ids.len())
            .filter(move |index| first(*index))
            .filter_map(|index| shared.units().get(self.ids[index].1))
    }
}

impl Shared {
    fn translation(&self, attachment: &Attachment) -> (Translation, IntCtl) {
        match attachment {
            Attachment::None => (Translation::Blocked, IntCtl::Abort),
            Attachment::Blocked => (Translation::Blocked, IntCtl::Forward),
            Attachment::Identity => (Translation::Identity { domain: self.identity_id() }, IntCtl::Forward),
            Attachment::Paging(domain) => (domain.translation(), IntCtl::Forward),
            // No host table: the guest table alone translates, and its tag takes the place of this one.
            Attachment::Guest(_) => (Translation::Identity { domain: 0 }, IntCtl::Forward),
        }
    }

    pub(crate) fn probe(&self, dev: PciAddress, trusted: bool) -> Result<Probed, ProbeError> {
        let unit = self.unit_of(dev).ok_or(ProbeError::NotMine)?.index();
        let segment = self.segments().get(&dev.segment).ok_or(ProbeError::NotMine)?;
        if !segment.table.contains(dev.id.get()) {
            return Err(ProbeError::NotMine);
        }
        let alias = segment.alias_of(dev.id.get());
        let alias_unit = alias.map(|alias| (alias, segment.unit_of(alias).unwrap_or(unit)));
        let ids: Vec<_> = core::iter::once((dev.id.get(), unit)).chain(alias_unit).collect();
        let ats = if trusted { self.find_ats(segment, dev, &ids) } else { None };
        let (pasid, max_pasids) = self.find_pasids(dev, &ids).unzip();
        let max_pasids = max_pasids.unwrap_or(0);
        let pri = ats.and_then(|_| self.find_pri(dev, &ids));
        let state = DeviceState {
            ids,
            attached: Attachment::None,
            ats,
            ats_on: false,
            pri,
            pasid,
            max_pasids,
            pasids: BTreeMap::new(),
            gcr3: None,
        };
        self.devices().lock().entry(dev).or_insert(state);
        Ok(Probed {
            aliases: alias.map(RequesterId::new).into_iter().collect(),
            max_pasids,
            shadow_on_flush: false,
        })
    }

    /// Takes in what else a device's requests may be called (Linux: `setup_aliases`). A name that no IVHD has is with the
    /// device's own unit; one beyond the device table is blocked by the unit.
    #[doc(alias = "setup_aliases")]
    pub(crate) fn set_dma_aliases(&self, dev: PciAddress, aliases: &[PciAddress]) {
        let Some(segment) = self.segments().get(&dev.segment) else { return };
        let mut devices = self.devices().lock();
        let Some(state) = devices.get_mut(&dev) else { return };
        let Some(&(_, unit)) = state.ids.first() else { return };
        for alias in aliases.iter().filter(|alias| alias.segment == dev.segment).map(|alias| alias.id.get()) {
            if segment.table.contains(alias) && state.ids.iter().all(|(id, _)| *id != alias) {
                state.ids.push((alias, segment.unit_of(alias).unwrap_or(unit)));
            }
        }
    }

    /// Attaches a device (Linux: `amd_iommu_attach_device`). On failure it stays where it was, or is blocked when the unit
    /// does not answer.
    #[doc(alias = "amd_iommu_attach_device")]
    pub(crate) fn attach(&self, dev: PciAddress, new: Attachment) -> Result<(), AttachError> {
        // Dropped last, without the lock: dropping a domain flushes.
        let _old;
        let mut devices = self.devices().lock();
        let state = devices.get_mut(&dev).ok_or(AttachError::Device)?;
        let segment = self.segments().get(&dev.segment).ok_or(AttachError::Device)?;
        if let Attachment::Paging(domain) = &new
            && !state.units(self).all(|unit| domain.fits(unit))
        {
            return Err(AttachError::Incompatible);
        }
        self.prepare_guest(state, &new)?;
        let stopped = self.stop_ats(dev, state);
        self.switch_pasids(dev, state, &new);
        match &new {
            Attachment::Paging(domain) => state.units(self).for_each(|unit| domain.enter(unit.index())),
            Attachment::Guest(domain) => self.listen(dev, state, domain, 0),
            Attachment::None | Attachment::Blocked | Attachment::Identity => {}
        }
        self.set_own_table(state, &new);
        let written = stopped.and_then(|()| self.write_entries(segment, state, &state.ids, &new));
        // What the old domain's translations are tagged with must be gone before its pages or its tag are used again; a unit
        // that remembers what was not there must look again in the new one.
        let flushed = written.and_then(|()| {
            state.units(self).try_for_each(|unit| {
                self.forget(unit, state, &state.attached)?;
                if unit.np_cache() { self.forget(unit, state, &new) } else { Ok(()) }
            })
        });
        match flushed {
            Ok(()) => {
                let own = state.own_pasid();
                _old = core::mem::replace(&mut state.attached, new);
                self.leave(dev, state, own, &_old);
                let started = self.start_ats(segment, dev, state);
                drop(devices);
                started
            }
            Err(_) => {
                self.undo(segment, dev, state, &new);
                drop(devices);
                Err(AttachError::Device)
            }
        }
    }

    /// Puts a device back to where it was after a failed attach.
    fn undo(&self, segment: &Segment, dev: PciAddress, state: &mut DeviceState, new: &Attachment) {
        self.switch_pasids(dev, state, &state.attached);
        // There is a table since there is something to undo.
        let old = core::mem::replace(&mut state.attached, Attachment::None);
        self.set_own_table(state, &old);
        state.attached = old;
        let back = self
            .write_entries(segment, state, &state.ids, &state.attached)
            .and_then(|()| state.units(self).try_for_each(|unit| self.forget(unit, state, new)));
        if back.is_ok() {
            let pasid = matches!(new, Attachment::Guest(_)).then_some(0);
            self.leave(dev, state, pasid, new);
            // A unit that does not answer has blocked the device.
            let _ = self.start_ats(segment, dev, state);
        } else {
            // The unit may have seen any of the entries: it may walk both tables for ever.
            new.poison();
            state.attached.poison();
        }
    }

    /// Takes a device off a domain that its units have forgotten; `pasid` is 0 for one with a guest table.
    fn leave(&self, dev: PciAddress, state: &DeviceState, pasid: Option<u32>, old: &Attachment) {
        if let Attachment::Paging(domain) = old {
            state.units(self).for_each(|unit| domain.leave(unit.index()));
        }
        let again = |listeners: &Listeners| {
            let now = state.attached.listeners();
            now.is_some_and(|now| core::ptr::eq(now, listeners))
        };
        // A device that came back to its domain is still listed there.
        old.listeners().into_iter().filter(|old| !again(old)).for_each(|old| old.remove(dev, pasid));
    }

    /// Writes the entries of names of a device.
    pub(crate) fn write_entries(
        &self,
        segment: &Segment,
        state: &DeviceState,
        ids: &[(u16, usize)],
        attachment: &Attachment,
    ) -> Result<(), CommandError> {
        let (translation, interrupts) = self.translation(attachment);
        let ats = state.answers_translations(attachment);
        let asks = state.asks_for_pages(attachment);
        let guest = state.guest_fields(self, attachment);
        for &(id, unit) in ids {
            let Some(unit) = self.units().get(unit) else { continue };
            let mut entry = segment.table.entry_for(id, translation, interrupts);
            entry.translation.set_i(ats);
            entry.translation.set_ppr(asks);
            guest.into_iter().for_each(|guest| guest.apply(&mut entry));
            if self.config().unchecked_interrupts
                && self.config().irq_remap.is_none()
                && interrupts == IntCtl::Forward
            {
                entry.interrupt.set_iv(false);
            }
            segment.table.update(id, entry, || unit.flush_dte(id))?;
        }
        Ok(())
    }

    /// Changes what the device table entries of a domain's devices say, and rewrites them (Linux: `amd_iommu_change_top`,
    /// `amd_iommu_set_dirty_tracking`). Devices that are attached later have the new entry, whatever this returns; where a unit
    /// did not answer the device is blocked.
    #[doc(alias = "amd_iommu_change_top")]
    #[cold]
    pub(crate) fn change_translation(
        &self,
        domain: u16,
        translation: &Mutex<Translation>,
        change: impl FnOnce(&mut Translation),
    ) -> Result<(), CommandError> {
        let devices = self.devices().lock();
        change(&mut translation.lock());
        let mut result = Ok(());
        for (dev, state) in devices.iter() {
            let Attachment::Paging(attached) = &state.attached else { continue };
            if attached.id() == domain
                && let Some(segment) = self.segments().get(&dev.segment)
            {
                result = result.and(self.write_entries(segment, state, &state.ids, &state.attached));
            }
        }
        result
    }

    fn forget(&self, unit: &Unit, state: &DeviceState, attachment: &Attachment) -> Result<(), CommandError> {
        match (attachment, &state.gcr3) {
            (Attachment::Paging(domain), _) => unit.flush_domain(domain.id()),
            (Attachment::Guest(_), Some(table)) => self.forget_pasid(unit, table.tag(), 0),
            _ => Ok(()),
        }
    }

    /// Blocks a device and forgets it (Linux: `amd_iommu_release_device`). Its aliases are blocked unless another device
    /// uses them.
    pub(crate) fn release(&self, dev: PciAddress) {
        let mut devices = self.devices().lock();
        let Some(mut state) = devices.remove(&dev) else { return };
        let Some(segment) = self.segments().get(&dev.segment) else { return };
        let used = |id: &(u16, usize)| {
            devices.iter().any(|(other, state)| other.segment == dev.segment && state.ids.contains(id))
        };
        let ids: Vec<(u16, usize)> = state.ids.iter().copied().filter(|id| !used(id)).collect();
        let gone = self
            .stop_ats(dev, &mut state)
            .and_then(|()| self.write_entries(segment, &state, &ids, &Attachment::None))
            .and_then(|()| state.units(self).try_for_each(|unit| self.forget(unit, &state, &state.attached)));
        if gone.is_err() {
            state.attached.poison();
            state.pasids.values().for_each(|domain| domain.poison());
        }
        let old = core::mem::replace(&mut state.attached, Attachment::None);
        let own = matches!(old, Attachment::Guest(_)).then_some(0);
        self.leave(dev, &state, own, &old);
        if gone.is_ok() || self.is_stopped() {
            self.release_guest(dev, &mut state);
        }
        // The last reference to a domain may go with the state: not under the lock.
        drop(devices);
        drop((old, state));
    }
}
