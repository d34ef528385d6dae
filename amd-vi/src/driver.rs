//! The driver as `iommu-core` sees it: devices, their attachments, and the domains that it makes.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_core::{
    AttachError, Capability, DomainError, DomainOps, Fault, Iommu, IommuOps, IrqRemap, PageResponse,
    PagingFlags, ProbeError, Probed, ResvRegion, ResvType,
};
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use platform::sync::Mutex;
use platform::sync::atomic::{AtomicBool, Ordering};
use platform::{DmaAddr, Platform, Prot};

use crate::ats::Ats;
use crate::command_queue::CommandError;
use crate::config::{Config, PageTableFormat};
use crate::device_table::DeviceTable;
use crate::domain::{BlockedDomain, IdentityDomain, PagingDomain};
use crate::domain_id::DomainIds;
use crate::dte::{IntCtl, Translation};
use crate::event::Event;
use crate::gcr3::Gcr3Table;
use crate::guest_domain::GuestDomain;
use crate::hardware::Hardware;
use crate::init::{self, InitError};
use crate::interrupt::{Handled, fault};
use crate::irq_remap::{InterruptTable, IrqMode, IrqTables, NoIrqRemap, Remapper};
use crate::ivrs::{DeviceEntry, Ivmd, Ivrs};
use crate::listeners::Listeners;
use crate::pasid::PasidCapability;
use crate::pci_capability;
use crate::ppr::Pri;
use crate::unit::Unit;

/// What the devices of a PCI segment share (Linux: `struct amd_iommu_pci_seg`).
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) table: DeviceTable,
    /// The last device of the table.
    pub(crate) highest: u16,
    /// Which unit translates for a range of devices; the last one that contains a device counts (Linux: `rlookup_table`).
    pub(crate) ranges: Vec<(u16, u16, usize)>,
    /// Which requester ID the devices of a range use on the bus (Linux: `alias_table`).
    pub(crate) aliases: Vec<(u16, u16, u16)>,
    /// Which devices firmware wants without ATS.
    pub(crate) no_ats: Vec<(u16, u16)>,
}

impl Segment {
    pub(crate) fn unit_of(&self, device: u16) -> Option<usize> {
        let holds = |&&(first, last, _): &&(u16, u16, usize)| first <= device && device <= last;
        self.ranges.iter().rev().find(holds).map(|&(_, _, unit)| unit)
    }

    pub(crate) fn alias_of(&self, device: u16) -> Option<u16> {
        let holds = |&&(first, last, _): &&(u16, u16, u16)| first <= device && device <= last;
        self.aliases.iter().rev().find(holds).map(|&(_, _, alias)| alias).filter(|alias| *alias != device)
    }

    /// Whether firmware wants a device without ATS.
    pub(crate) fn forbids_ats(&self, device: u16) -> bool {
        self.no_ats.iter().any(|(first, last)| (*first..=*last).contains(&device))
    }

    /// Takes in what an IVHD says of its devices.
    pub(crate) fn add_entry(&mut self, unit: usize, entry: &DeviceEntry) {
        let (first, last) = entry.devices();
        if first > last {
            return;
        }
        self.ranges.push((first, last, unit));
        const ATS_DISABLED: u32 = 1 << 31;
        match *entry {
            DeviceEntry::Alias { alias, .. } => {
                self.ranges.push((alias, alias, unit));
                self.aliases.push((first, last, alias));
            }
            DeviceEntry::Devices { extended: Some(extended), .. } if extended & ATS_DISABLED != 0 => {
                self.no_ats.push((first, last));
            }
            _ => {}
        }
    }
}

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
            .filter_map(|index| shared.units.get(self.ids[index].1))
    }
}

/// What the driver, its domains and its interrupt handler share.
pub(crate) struct Shared {
    platform: Arc<dyn Platform>,
    config: Config,
    units: Vec<Unit>,
    segments: BTreeMap<u16, Segment>,
    ivmds: Vec<Ivmd>,
    preboot_protection: bool,
    domain_ids: DomainIds,
    identity_id: u16,
    irqs: Result<Arc<IrqTables>, NoIrqRemap>,
    devices: Mutex<BTreeMap<PciAddress, DeviceState>>,
    device_config: Option<Arc<dyn ConfigSpace>>,
    stopped: AtomicBool,
}

impl core::fmt::Debug for Shared {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shared").field("units", &self.units).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        platform: Arc<dyn Platform>,
        config: Config,
        ivrs: &Ivrs,
        units: Vec<Unit>,
        segments: BTreeMap<u16, Segment>,
        irq_mode: Result<IrqMode, NoIrqRemap>,
        device_config: Option<Arc<dyn ConfigSpace>>,
    ) -> Self {
        let domain_ids = DomainIds::new();
        // The first of 65535: it is there. Zero would do no harm, since the identity domain caches no translations.
        let identity_id = domain_ids.alloc().unwrap_or(0);
        Self {
            platform,
            config,
            units,
            segments,
            ivmds: ivrs.ivmds.clone(),
            preboot_protection: ivrs.info.preboot_dma_protection(),
            domain_ids,
            identity_id,
            irqs: irq_mode.map(|mode| Arc::new(IrqTables::new(mode, ivrs))),
            devices: Mutex::new(BTreeMap::new()),
            device_config,
            stopped: AtomicBool::new(false),
        }
    }

    pub(crate) fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    #[inline]
    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    pub(crate) fn segments(&self) -> &BTreeMap<u16, Segment> {
        &self.segments
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Every device that was claimed.
    pub(crate) fn devices(&self) -> &Mutex<BTreeMap<PciAddress, DeviceState>> {
        &self.devices
    }

    /// Configuration space of the devices, if the driver was given it.
    pub(crate) fn device_config(&self) -> Option<&dyn ConfigSpace> {
        self.device_config.as_deref()
    }

    pub(crate) fn domain_ids(&self) -> &DomainIds {
        &self.domain_ids
    }

    /// Whether translation has been turned off: then no unit remembers anything.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The unit that translates for a device, unless it is that unit itself.
    fn unit_of(&self, dev: PciAddress) -> Option<&Unit> {
        if self.units.iter().any(|unit| unit.address() == dev) {
            return None;
        }
        self.units.get(self.segments.get(&dev.segment)?.unit_of(dev.id.get())?)
    }

    fn translation(&self, attachment: &Attachment) -> (Translation, IntCtl) {
        match attachment {
            Attachment::None => (Translation::Blocked, IntCtl::Abort),
            Attachment::Blocked => (Translation::Blocked, IntCtl::Forward),
            Attachment::Identity => (Translation::Identity { domain: self.identity_id }, IntCtl::Forward),
            Attachment::Paging(domain) => (domain.translation(), IntCtl::Forward),
            // No host table: the guest table alone translates, and its tag takes the place of this one.
            Attachment::Guest(_) => (Translation::Identity { domain: 0 }, IntCtl::Forward),
        }
    }

    fn probe(&self, dev: PciAddress, trusted: bool) -> Result<Probed, ProbeError> {
        let unit = self.unit_of(dev).ok_or(ProbeError::NotMine)?.index();
        let segment = self.segments.get(&dev.segment).ok_or(ProbeError::NotMine)?;
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
        self.devices.lock().entry(dev).or_insert(state);
        Ok(Probed {
            aliases: alias.map(RequesterId::new).into_iter().collect(),
            max_pasids,
            shadow_on_flush: false,
        })
    }

    /// Takes in what else a device's requests may be called (Linux: `setup_aliases`). A name that no IVHD has is with the
    /// device's own unit; one beyond the device table is blocked by the unit.
    #[doc(alias = "setup_aliases")]
    fn set_dma_aliases(&self, dev: PciAddress, aliases: &[PciAddress]) {
        let Some(segment) = self.segments.get(&dev.segment) else { return };
        let mut devices = self.devices.lock();
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
        let mut devices = self.devices.lock();
        let state = devices.get_mut(&dev).ok_or(AttachError::Device)?;
        let segment = self.segments.get(&dev.segment).ok_or(AttachError::Device)?;
        if let Attachment::Paging(domain) = &new {
            if !state.units(self).all(|unit| domain.fits(unit)) {
                return Err(AttachError::Incompatible);
            }
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
            let Some(unit) = self.units.get(unit) else { continue };
            let mut entry = segment.table.entry_for(id, translation, interrupts);
            entry.translation.set_i(ats);
            entry.translation.set_ppr(asks);
            guest.into_iter().for_each(|guest| guest.apply(&mut entry));
            if self.config.unchecked_interrupts
                && self.config.irq_remap.is_none()
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
        let devices = self.devices.lock();
        change(&mut translation.lock());
        let mut result = Ok(());
        for (dev, state) in devices.iter() {
            let Attachment::Paging(attached) = &state.attached else { continue };
            if attached.id() == domain
                && let Some(segment) = self.segments.get(&dev.segment)
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
    fn release(&self, dev: PciAddress) {
        let mut devices = self.devices.lock();
        let Some(mut state) = devices.remove(&dev) else { return };
        let Some(segment) = self.segments.get(&dev.segment) else { return };
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

    fn resv_regions(&self, dev: PciAddress) -> Vec<ResvRegion> {
        let mut regions = Vec::new();
        let alias = self.segments.get(&dev.segment).and_then(|segment| segment.alias_of(dev.id.get()));
        let ids: Vec<u16> = core::iter::once(dev.id.get()).chain(alias).collect();
        for ivmd in &self.ivmds {
            let applies = ids.iter().any(|id| ivmd.applies_to(dev.segment, *id));
            let (true, Some(prot), Some(last)) = (applies, ivmd.unity(), ivmd.last()) else { continue };
            // Whole pages: firmware need not align what it asks for.
            let start = ivmd.start & !0xfff;
            let Some(len) = (last | 0xfff).checked_sub(start).and_then(|span| span.checked_add(1)) else {
                continue;
            };
            regions.push(ResvRegion { start: DmaAddr::new(start), len, kind: ResvType::Direct, prot });
        }
        let fixed = |start, last: u64, kind| ResvRegion {
            start: DmaAddr::new(start),
            len: last - start + 1,
            kind,
            prot: Prot::empty(),
        };
        regions.push(fixed(MSI_WINDOW.0, MSI_WINDOW.1, ResvType::Msi));
        if !self.unit_of(dev).is_some_and(|unit| unit.features2().ht_range_ignore()) {
            regions.push(fixed(HT_RANGE.0, HT_RANGE.1, ResvType::Reserved));
        }
        regions
    }
}

/// Where devices write message interrupts, first and last address.
const MSI_WINDOW: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);
/// The HyperTransport range, first and last address.
const HT_RANGE: (u64, u64) = (0xfd_0000_0000, 0xff_ffff_ffff);

/// The AMD IOMMU driver, with all units of a machine.
///
/// Dropping it leaves the units as they are, and leaks what they read: they go on protecting. [`AmdVi::shutdown`] turns
/// them off.
#[derive(Debug)]
pub struct AmdVi {
    shared: Arc<Shared>,
    ivrs: Ivrs,
}

impl AmdVi {
    /// Finds the units in the IVRS table and brings them up with every device blocked (Linux: `amd_iommu_init`). Register
    /// what it returns with [`iommu_core::Iommu::register`].
    ///
    /// # Errors
    /// [`InitError`] with the reason. Units that were already running are turned off again.
    #[doc(alias = "amd_iommu_init")]
    pub fn init(
        platform: Arc<dyn Platform>,
        ivrs: &[u8],
        hardware: &dyn Hardware,
        config: Config,
    ) -> Result<Arc<Self>, InitError> {
        let (shared, ivrs) = init::run(platform, ivrs, hardware, config)?;
        Ok(Arc::new(Self { shared: Arc::new(shared), ivrs }))
    }

    /// The units, in the order of the table.
    pub fn units(&self) -> &[Unit] {
        self.shared.units()
    }

    /// The table that they were found in.
    pub fn ivrs(&self) -> &Ivrs {
        &self.ivrs
    }

    /// The device table of a PCI segment.
    pub fn device_table(&self, segment: u16) -> Option<&DeviceTable> {
        self.shared.segments().get(&segment).map(|segment| &segment.table)
    }

    /// The device tables with their segments.
    pub(crate) fn device_tables(&self) -> impl Iterator<Item = (u16, &DeviceTable)> {
        self.shared.segments().iter().map(|(id, segment)| (*id, &segment.table))
    }

    /// The domain that a device is attached to, when that has a page table.
    pub(crate) fn paging_domain_of(&self, dev: PciAddress) -> Option<Arc<PagingDomain>> {
        match &self.shared.devices.lock().get(&dev)?.attached {
            Attachment::Paging(domain) => Some(domain.clone()),
            Attachment::None | Attachment::Blocked | Attachment::Identity | Attachment::Guest(_) => None,
        }
    }

    /// Whether the machine was protected before the operating system started (Linux: `IOMMU_CAP_PRE_BOOT_PROTECTION`).
    pub fn preboot_protection(&self) -> bool {
        self.shared.preboot_protection
    }

    /// Interrupt remapping, from which a kernel takes every message that a device, an IO-APIC or a timer is to send (Linux:
    /// `amd_iommu_irq_ops`).
    ///
    /// # Errors
    /// [`NoIrqRemap`] with the reason why interrupts are not remapped.
    #[doc(alias = "amd_iommu_irq_ops")]
    pub fn irq_remap(&self) -> Result<Arc<dyn IrqRemap>, NoIrqRemap> {
        let tables = self.shared.irqs.as_ref().map_err(|why| *why)?.clone();
        Ok(Arc::new(Remapper { shared: self.shared.clone(), tables }))
    }

    /// The interrupt tables with the devices that lead to them, by segment and requester ID.
    pub(crate) fn interrupt_tables(&self) -> Vec<((u16, u16), Arc<InterruptTable>)> {
        self.shared.irqs.as_ref().map(|tables| tables.tables()).unwrap_or_default()
    }

    /// What a unit's interrupt asks for, for all units: reads their event logs, hands faults to `report`, and restarts what
    /// has stopped: an event log that overflowed, a command buffer that met an illegal command (Linux:
    /// `amd_iommu_int_thread`).
    ///
    /// `report` is usually [`iommu_core::Iommu::report_fault`]; it runs without a lock held. May be called at any time and by
    /// several at once.
    #[doc(alias = "amd_iommu_int_thread")]
    pub fn handle_interrupt(&self, report: &mut dyn FnMut(Fault)) -> Handled {
        self.handle_events(&mut |unit, event| {
            if let Some(fault) = fault(unit.address().segment, event) {
                report(fault);
            }
        })
    }

    /// As [`AmdVi::handle_interrupt`], with the events as they were logged, those that are not about devices included.
    pub fn handle_events(&self, sink: &mut dyn FnMut(&Unit, Event)) -> Handled {
        let mut handled = Handled::default();
        if !self.shared.is_stopped() {
            for unit in self.shared.units() {
                handled.add(unit.handle_interrupt(&mut |event| sink(unit, event)));
            }
        }
        handled
    }

    /// What the same interrupt asks for where devices ask for pages: takes their requests to the core, which has them answered
    /// (Linux: `amd_iommu_int_thread_pprlog`). Call it after [`AmdVi::handle_interrupt`].
    #[doc(alias = "amd_iommu_int_thread_pprlog")]
    pub fn handle_page_requests(&self, core: &Iommu) -> Handled {
        let mut handled = Handled::default();
        if !self.shared.is_stopped() {
            self.shared.units().iter().for_each(|unit| handled.add(unit.handle_page_requests(core)));
        }
        handled
    }

    /// Blocks all devices and turns all units off (Linux: `disable_iommus`). From then on nothing is translated or checked,
    /// and every call on a domain fails.
    ///
    /// # Errors
    /// [`CommandError::Timeout`] when a unit does not stop; it may still be running.
    ///
    /// # Safety
    /// No device does DMA any more, except such as may reach all memory.
    #[doc(alias = "disable_iommus")]
    pub unsafe fn shutdown(&self, config_space: &dyn ConfigSpace) -> Result<(), CommandError> {
        let devices: Vec<PciAddress> = self.shared.devices.lock().keys().copied().collect();
        devices.into_iter().for_each(|dev| self.shared.release(dev));
        let mut result = Ok(());
        for unit in self.shared.units() {
            if unit.disable().is_err() {
                result = Err(CommandError::Timeout);
            }
            pci_capability::disable_msi(config_space, unit.address());
        }
        if result.is_ok() {
            self.shared.stopped.store(true, Ordering::Release);
        }
        result
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Only units that are off have let go of their memory.
        if self.is_stopped() {
            // SAFETY: every unit is disabled, so none reads its rings or a device table.
            unsafe {
                core::mem::take(&mut self.units).into_iter().for_each(|unit| unit.free());
                core::mem::take(&mut self.segments).into_values().for_each(|segment| segment.table.free());
                let irqs = core::mem::replace(&mut self.irqs, Err(NoIrqRemap::NotAskedFor)).ok();
                if let Some(tables) = irqs.and_then(Arc::into_inner) {
                    tables.free();
                }
            }
        }
    }
}

// SAFETY: a device in the blocked domain has an entry with V=1 and TV=0, which aborts its requests; the paging domains keep
// the promises of `DomainOps`.
unsafe impl IommuOps for AmdVi {
    fn name(&self) -> &str {
        "AMD-Vi"
    }

    #[doc(alias = "amd_iommu_capable")]
    fn capable(&self, dev: PciAddress, capability: Capability) -> bool {
        match capability {
            Capability::CacheCoherency | Capability::EnforceCacheCoherency => true,
            Capability::DirtyTracking => {
                self.shared.unit_of(dev).is_some_and(|unit| unit.features().tracks_dirty())
            }
            Capability::PreBootProtection => self.preboot_protection(),
            Capability::PciAtsSupported => {
                self.shared.devices.lock().get(&dev).is_some_and(|state| state.ats.is_some())
            }
            Capability::DeferredFlush => self.shared.unit_of(dev).is_some(),
            Capability::IsolatedMsi => self.shared.irqs.is_ok() && self.shared.unit_of(dev).is_some(),
            _ => false,
        }
    }

    #[doc(alias = "amd_iommu_probe_device")]
    fn probe_device(&self, dev: PciAddress) -> Result<Probed, ProbeError> {
        self.shared.probe(dev, true)
    }

    fn probe_untrusted_device(&self, dev: PciAddress) -> Result<Probed, ProbeError> {
        self.shared.probe(dev, false)
    }

    fn set_dma_aliases(&self, dev: PciAddress, aliases: &[PciAddress]) {
        self.shared.set_dma_aliases(dev, aliases);
    }

    #[doc(alias = "amd_iommu_release_device")]
    fn release_device(&self, dev: PciAddress) {
        self.shared.release(dev);
    }

    fn domain_alloc_paging(&self, dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError> {
        self.domain_alloc_paging_flags(dev, PagingFlags::empty())
    }

    #[doc(alias = "amd_iommu_domain_alloc_paging_flags")]
    fn domain_alloc_paging_flags(
        &self,
        dev: PciAddress,
        flags: PagingFlags,
    ) -> Result<Arc<dyn DomainOps>, DomainError> {
        let unit = self.shared.unit_of(dev).ok_or(DomainError::Unsupported)?;
        let host = unit.host_levels().map(|most| self.shared.config.levels.clamp(3, most));
        let (pasids, dirty) = (flags == PagingFlags::PASID, flags == PagingFlags::DIRTY_TRACKING);
        // Only host tables say what was written, and only guest tables are for PASIDs.
        let format = match (host, unit.guest_levels(), self.shared.config.page_table) {
            _ if dirty && !unit.features().tracks_dirty() || !(dirty || pasids || flags.is_empty()) => None,
            (Some(levels), _, _) if dirty => Some((PageTableFormat::V1, levels)),
            (_, Some(levels), _) if pasids => Some((PageTableFormat::V2, levels)),
            _ if dirty || pasids => None,
            (None, Some(levels), _) | (_, Some(levels), PageTableFormat::V2) => {
                Some((PageTableFormat::V2, levels))
            }
            (host, ..) => host.map(|levels| (PageTableFormat::V1, levels)),
        };
        match format {
            Some((PageTableFormat::V1, levels)) => Ok(PagingDomain::new(&self.shared, levels, dirty)?),
            Some((PageTableFormat::V2, levels)) => Ok(GuestDomain::new(&self.shared, levels)?),
            None => Err(DomainError::Unsupported),
        }
    }

    fn identity_domain(&self) -> Option<Arc<dyn DomainOps>> {
        Some(Arc::new(IdentityDomain { shared: self.shared.clone() }))
    }

    fn blocked_domain(&self) -> Option<Arc<dyn DomainOps>> {
        Some(Arc::new(BlockedDomain { shared: self.shared.clone() }))
    }

    /// What remembers absence is a hypervisor, which has work with each flush and each map alike: lazily there is little to gain.
    fn strict_by_default(&self, dev: PciAddress) -> bool {
        self.shared.unit_of(dev).is_some_and(Unit::np_cache)
    }

    #[doc(alias = "amd_iommu_page_response")]
    fn page_response(&self, dev: PciAddress, response: PageResponse) {
        self.shared.respond(dev, response);
    }

    #[doc(alias = "amd_iommu_get_resv_regions")]
    fn resv_regions(&self, dev: PciAddress) -> Vec<ResvRegion> {
        self.shared.resv_regions(dev)
    }
}
