//! PASIDs: address spaces of a device beside the one for requests without.

use alloc::sync::Arc;

use iommu_core::AttachError;
use platform::pci::{ConfigSpace, PciAddress};

use crate::attach::{Attachment, DeviceState};
use crate::command::Command;
use crate::command_queue::CommandError;
use crate::driver::Shared;
use crate::dte::Dte;
use crate::gcr3::Gcr3Table;
use crate::guest_domain::GuestDomain;
use crate::invalidate::Cover;
use crate::listeners::{Keeps, Listener};
use crate::pci_capability::extended_capability;
use crate::unit::Unit;

/// A function's PASID capability (PCI Express, "PASID Extended Capability").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PasidCapability {
    /// Where its capability and control registers are, in one word.
    registers: u16,
    /// Bits of a PASID.
    width: u8,
}

impl PasidCapability {
    const ID: u16 = 0x1b;
    const ENABLE: u32 = 1 << 16;
    /// Enable, and the two switches for execution and privilege, which stay off.
    const CONTROL: u32 = 7 << 16;

    fn find(config: &dyn ConfigSpace, dev: PciAddress) -> Option<Self> {
        let registers = extended_capability(config, dev, Self::ID)? + 4;
        Some(Self { registers, width: (config.read32(dev, registers) >> 8 & 0x1f) as u8 })
    }

    /// Lets requests carry a PASID, or not (Linux: `pci_enable_pasid`, `pci_disable_pasid`). Not while ATS is on.
    #[doc(alias = "pci_enable_pasid")]
    #[doc(alias = "pci_disable_pasid")]
    fn switch(self, config: &dyn ConfigSpace, dev: PciAddress, on: bool) {
        let word = config.read32(dev, self.registers) & !Self::CONTROL;
        config.write32(dev, self.registers, word | if on { Self::ENABLE } else { 0 });
    }
}

/// What a device table entry says of guest tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GuestFields {
    root: u64,
    glx: u8,
    /// Requests without a PASID use the table of PASID 0, instead of passing as they are.
    giov: bool,
    /// GuestPagingMode: 1 for tables of five levels.
    five_levels: bool,
    tag: u16,
}

impl GuestFields {
    /// Writes them into an entry that translates with no host table (Linux: `set_dte_gcr3_table`).
    #[doc(alias = "set_dte_gcr3_table")]
    pub(crate) fn apply(self, entry: &mut Dte) {
        let Self { root, glx, giov, five_levels, tag } = self;
        entry.translation = entry
            .translation
            .with_gv(true)
            .with_giov(giov)
            .with_glx(glx)
            .with_gcr3_low((root >> 12 & 7) as u8)
            .with_gcr3_middle((root >> 15) as u16)
            .with_gcr3_high((root >> 31 & 0x1f_ffff) as u32)
            .with_domain_id(tag);
        entry.interrupt.set_guest_paging_mode(u8::from(five_levels));
    }
}

impl DeviceState {
    /// Whether its entries lead to guest tables under this attachment.
    fn uses_guest_tables(&self, attachment: &Attachment) -> bool {
        match attachment {
            Attachment::Guest(_) => true,
            // Requests with a PASID have their tables all the same.
            Attachment::Identity => self.max_pasids != 0,
            Attachment::None | Attachment::Blocked | Attachment::Paging(_) => false,
        }
    }

    /// What its entries say of guest tables under this attachment.
    pub(crate) fn guest_fields(&self, shared: &Shared, attachment: &Attachment) -> Option<GuestFields> {
        let table = self.gcr3.as_ref().filter(|_| self.uses_guest_tables(attachment))?;
        let giov = matches!(attachment, Attachment::Guest(_));
        Some(GuestFields {
            root: table.root().get(),
            glx: table.glx(),
            giov,
            five_levels: shared.guest_levels(self) == Some(5),
            tag: table.tag(),
        })
    }
}

impl Shared {
    /// Levels of the guest tables of a device: as many as all its units have, or `None` where there are none.
    pub(crate) fn guest_levels(&self, state: &DeviceState) -> Option<u8> {
        state.units(self).map(Unit::guest_levels).min().flatten()
    }

    /// What a device can do of PASIDs with its units: the capability, and how many (Linux: `max_pasids`).
    pub(crate) fn find_pasids(
        &self,
        dev: PciAddress,
        ids: &[(u16, usize)],
    ) -> Option<(PasidCapability, u32)> {
        let capability = PasidCapability::find(self.device_config()?, dev)?;
        let of_unit = |(_, unit): &(u16, usize)| self.units().get(*unit).map_or(0, Unit::pasid_bits);
        let bits = ids.iter().map(of_unit).min().unwrap_or(0).min(capability.width);
        if bits == 0 { None } else { Some((capability, 1 << bits)) }
    }

    /// Makes what a device needs for guest tables under `new`, if it needs that and has it not.
    ///
    /// # Errors
    /// [`AttachError`] with the reason; nothing is changed then.
    pub(crate) fn prepare_guest(&self, state: &mut DeviceState, new: &Attachment) -> Result<(), AttachError> {
        match new {
            Attachment::Guest(domain) if self.guest_levels(state) != Some(domain.levels()) => {
                return Err(AttachError::Incompatible);
            }
            // A host table and PASIDs do not go together (Linux: `pdom_is_sva_capable`).
            Attachment::Paging(_) if !state.pasids.is_empty() => return Err(AttachError::Busy),
            _ => {}
        }
        if state.gcr3.is_none() && state.uses_guest_tables(new) {
            let tag = self.domain_ids().alloc().ok_or(AttachError::Exhausted)?;
            let table = Gcr3Table::new(self.platform(), state.max_pasids, tag);
            state.gcr3 = Some(table.map_err(|_| {
                self.domain_ids().free(tag);
                AttachError::Exhausted
            })?);
        }
        Ok(())
    }

    /// Lets a device send PASIDs where `attachment` has tables for them. Its ATS is off.
    pub(crate) fn switch_pasids(&self, dev: PciAddress, state: &DeviceState, attachment: &Attachment) {
        if let (Some(capability), Some(config)) = (state.pasid, self.device_config()) {
            capability.switch(config, dev, state.uses_guest_tables(attachment));
        }
    }

    /// Gives PASID 0 the table of `attachment`, for requests without a PASID, or none.
    pub(crate) fn set_own_table(&self, state: &mut DeviceState, attachment: &Attachment) {
        let root = match attachment {
            Attachment::Guest(domain) => Some(domain.root()),
            _ => None,
        };
        if let Some(table) = &mut state.gcr3 {
            // It takes no memory: the way there is made with the table.
            let _ = table.set(self.platform(), 0, root);
        }
    }

    /// Makes a unit forget what it has cached of a PASID of a device.
    pub(crate) fn forget_pasid(&self, unit: &Unit, tag: u16, pasid: u32) -> Result<(), CommandError> {
        unit.run(&[Command::invalidate_guest_pages(tag, pasid, Cover::ALL)])
    }

    /// Attaches a PASID of a device to a domain, or to none, in one step (Linux: `iommu_sva_set_dev_pasid`,
    /// `blocked_domain_set_dev_pasid`). On failure it stays where it was; when the unit does not answer, nobody knows, and no table
    /// of either domain is freed any more.
    #[doc(alias = "iommu_sva_set_dev_pasid")]
    #[doc(alias = "blocked_domain_set_dev_pasid")]
    pub(crate) fn set_pasid(
        &self,
        dev: PciAddress,
        pasid: u32,
        new: Option<Arc<GuestDomain>>,
    ) -> Result<(), AttachError> {
        // Dropped last, without the lock.
        let _old;
        let mut devices = self.devices().lock();
        let state = devices.get_mut(&dev).ok_or(AttachError::Device)?;
        let segment = self.segments().get(&dev.segment).ok_or(AttachError::Device)?;
        if let Some(domain) = &new {
            let can = matches!(state.attached, Attachment::Guest(_) | Attachment::Identity);
            if !can || pasid == 0 || pasid >= state.max_pasids {
                return Err(AttachError::Unsupported);
            }
            if self.guest_levels(state) != Some(domain.levels()) {
                return Err(AttachError::Incompatible);
            }
        }
        let Some(table) = &mut state.gcr3 else {
            return if new.is_none() { Ok(()) } else { Err(AttachError::Unsupported) };
        };
        let tag = table.tag();
        let before = state.pasids.get(&pasid).map(|old| old.root());
        // From now on its unmaps are told, before it can be used.
        if let Some(domain) = &new {
            self.listen(dev, state, domain, pasid);
        }
        let Some(table) = &mut state.gcr3 else { return Err(AttachError::Unsupported) };
        if table.set(self.platform(), pasid, new.as_ref().map(|domain| domain.root())).is_err() {
            new.iter().for_each(|domain| domain.listeners().remove(dev, Some(pasid)));
            return Err(AttachError::Exhausted);
        }
        let by_units = state.units(self).try_for_each(|unit| self.forget_pasid(unit, tag, pasid));
        let forgotten = match by_units {
            Ok(()) => self.forget_in_device(segment, dev, state, Some(pasid)),
            Err(_) => Err(AttachError::Device),
        };
        if let Err(error) = forgotten {
            // There is memory for the old one: it was there.
            let _ = state.gcr3.as_mut().map(|table| table.set(self.platform(), pasid, before));
            new.iter().chain(state.pasids.get(&pasid)).for_each(|domain| domain.poison());
            new.iter().for_each(|domain| domain.listeners().remove(dev, Some(pasid)));
            return Err(error);
        }
        _old = match new {
            Some(domain) => state.pasids.insert(pasid, domain),
            None => state.pasids.remove(&pasid),
        };
        let same =
            |old: &&Arc<GuestDomain>| !state.pasids.get(&pasid).is_some_and(|now| Arc::ptr_eq(now, old));
        _old.iter().filter(same).for_each(|old| old.listeners().remove(dev, Some(pasid)));
        drop(devices);
        Ok(())
    }

    /// Has a device's units, and the device if it keeps translations, told of what a domain of one of its PASIDs unmaps.
    pub(crate) fn listen(&self, dev: PciAddress, state: &DeviceState, domain: &GuestDomain, pasid: u32) {
        let Some(table) = &state.gcr3 else { return };
        for (number, unit) in state.units(self).enumerate() {
            let keeps = if number == 0 { state.keeps() } else { Keeps::Nothing };
            domain.listeners().add(Listener::new(dev, unit, keeps).of_guest(table.tag(), pasid));
        }
    }

    /// A device goes: its PASIDs with it. Its entries are blocked, and its units have forgotten the entries.
    pub(crate) fn release_guest(&self, dev: PciAddress, state: &mut DeviceState) {
        let Some(table) = state.gcr3.take() else { return };
        let mut pasids: alloc::vec::Vec<u32> = state.pasids.keys().copied().collect();
        pasids.push(0);
        let forgotten = pasids
            .iter()
            .all(|&pasid| state.units(self).all(|unit| self.forget_pasid(unit, table.tag(), pasid).is_ok()));
        for (&pasid, domain) in &state.pasids {
            domain.listeners().remove(dev, Some(pasid));
            if !forgotten {
                domain.poison();
            }
        }
        if forgotten || self.is_stopped() {
            self.domain_ids().free(table.tag());
            // SAFETY: no entry leads to it any more, and every unit has read the entries anew since.
            unsafe { table.free() };
        }
        if let (Some(capability), Some(config)) = (state.pasid, self.device_config()) {
            capability.switch(config, dev, false);
        }
    }
}
