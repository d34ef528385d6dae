//! Address Translation Services: a device that keeps translations itself, when it may, and how it is stopped.

use alloc::vec::Vec;

use iommu_core::AttachError;
use platform::pci::{ConfigSpace, PciAddress};

use crate::attach::{Attachment, DeviceState};
use crate::command::Command;
use crate::command_queue::CommandError;
use crate::driver::Shared;
use crate::invalidate::Cover;
use crate::listeners::{Keeps, Listener, Listeners};
use crate::pci_capability::extended_capability;
use crate::segment::Segment;
use crate::unit::Unit;

/// A function's ATS capability (PCI Express, "ATS Extended Capability").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ats {
    /// Where its capability and control registers are, in one word.
    registers: u16,
    /// How many invalidations it can hold, 1 to 32 (Linux: `ats_qdep`).
    depth: u8,
}

impl Ats {
    const ID: u16 = 0x0f;
    const ENABLE: u32 = 1 << 31;
    /// The smallest translation unit, as a power of two of 4 KiB.
    const UNIT: u32 = 0x1f << 16;

    /// The capability of a function that has one.
    pub(crate) fn find(config: &dyn ConfigSpace, dev: PciAddress) -> Option<Self> {
        let registers = extended_capability(config, dev, Self::ID)? + 4;
        // Zero stands for the most (Linux: `PCI_ATS_MAX_QDEP`).
        let depth = match config.read32(dev, registers) as u8 & 0x1f {
            0 => 32,
            depth => depth,
        };
        Some(Self { registers, depth })
    }

    /// Lets the function keep translations of 4 KiB and more (Linux: `pci_enable_ats`).
    #[doc(alias = "pci_enable_ats")]
    fn enable(self, config: &dyn ConfigSpace, dev: PciAddress) {
        let word = config.read32(dev, self.registers) & !Self::UNIT;
        config.write32(dev, self.registers, word | Self::ENABLE);
    }

    /// Makes it forget them, and ask for no more (Linux: `pci_disable_ats`).
    #[doc(alias = "pci_disable_ats")]
    fn disable(self, config: &dyn ConfigSpace, dev: PciAddress) {
        let word = config.read32(dev, self.registers);
        config.write32(dev, self.registers, word & !Self::ENABLE);
    }
}

impl Attachment {
    /// Whether the unit answers translation requests of a device that is attached so.
    fn translates(&self) -> bool {
        !matches!(self, Self::None | Self::Blocked)
    }
}

impl DeviceState {
    /// Whether the device's entries say I under this attachment.
    pub(crate) fn answers_translations(&self, attachment: &Attachment) -> bool {
        self.ats.is_some() && attachment.translates()
    }

    /// What the device keeps now.
    pub(crate) fn keeps(&self) -> Keeps {
        match self.ats {
            Some(ats) if self.ats_on => Keeps::Translations(ats.depth),
            _ => Keeps::Nothing,
        }
    }

    /// Who listens to the domains that the device and its PASIDs are in.
    fn listeners(&self) -> impl Iterator<Item = &Listeners> {
        self.attached.listeners().into_iter().chain(self.pasids.values().map(|domain| domain.listeners()))
    }
}

impl Shared {
    /// The ATS of a device that may use it: the program trusts devices that much and this one is trusted; its unit can send
    /// invalidations, and firmware has nothing against it (Linux: `pci_ats_supported`, `pdev_get_caps`).
    ///
    /// A device whose requests may carry another function's name has none: nobody may be there under that name who answers
    /// an invalidation.
    #[doc(alias = "pci_ats_supported")]
    pub(crate) fn find_ats(&self, segment: &Segment, dev: PciAddress, ids: &[(u16, usize)]) -> Option<Ats> {
        let [(id, unit)] = *ids else { return None };
        let allowed = self.config().ats.is_some()
            && self.units().get(unit).is_some_and(|unit| unit.iotlb_sup())
            && !segment.forbids_ats(id);
        if allowed { Ats::find(self.device_config()?, dev) } else { None }
    }

    /// Stops a device from using translations that it keeps, before its entry changes: invalidations that are on their way
    /// arrive, and from then on it is told nothing (Linux: `pdev_disable_cap_ats`).
    ///
    /// # Errors
    /// The unit does not answer. The device is stopped all the same.
    #[doc(alias = "pdev_disable_cap_ats")]
    pub(crate) fn stop_ats(&self, dev: PciAddress, state: &mut DeviceState) -> Result<(), CommandError> {
        let (Some(ats), true) = (state.ats, state.ats_on) else { return Ok(()) };
        self.switch_page_requests(dev, state, false);
        // A device that is off answers no invalidation, and until it is it uses what it keeps: whoever is about to send one must
        // have sent it, or wait until it is off.
        state.listeners().for_each(|listeners| listeners.mute(dev, Keeps::Soon));
        let arrived = state.units(self).try_for_each(|unit| unit.run(&[]));
        if let Some(config) = self.device_config() {
            ats.disable(config, dev);
        }
        state.listeners().for_each(|listeners| listeners.mute(dev, Keeps::Nothing));
        state.ats_on = false;
        arrived
    }

    /// Lets a device keep translations where its entry says that they are answered (Linux: `pdev_enable_cap_ats`).
    ///
    /// The entry says so before the device is switched on, so that no request of its is refused. A device that does not
    /// answer the first invalidation goes without.
    ///
    /// # Errors
    /// The unit does not answer either; the device is blocked.
    #[doc(alias = "pdev_enable_cap_ats")]
    pub(crate) fn start_ats(
        &self,
        segment: &Segment,
        dev: PciAddress,
        state: &mut DeviceState,
    ) -> Result<(), AttachError> {
        let (Some(ats), true) = (state.ats, state.answers_translations(&state.attached)) else {
            return Ok(());
        };
        // One name, and so one unit.
        let unit = state.ids.first().and_then(|(_, unit)| self.units().get(*unit));
        let (Some(config), Some(unit)) = (self.device_config(), unit) else { return Ok(()) };
        // Before it is on it answers nothing, and from then on it must be told: who has something to tell waits meanwhile.
        self.list_device(dev, unit, state, Keeps::Soon);
        ats.enable(config, dev);
        state.ats_on = true;
        self.list_device(dev, unit, state, state.keeps());
        // What it kept before it must not use now, should it not have forgotten that by itself (Linux: `device_flush_dte`).
        self.forget_in_device(segment, dev, state, state.own_pasid())?;
        let pasids: Vec<u32> = state.pasids.keys().copied().collect();
        pasids.into_iter().try_for_each(|pasid| self.forget_in_device(segment, dev, state, Some(pasid)))?;
        if state.ats_on {
            self.switch_page_requests(dev, state, true);
        }
        Ok(())
    }

    /// Lists a device with the domains that it and its PASIDs are in.
    fn list_device(&self, dev: PciAddress, unit: &Unit, state: &DeviceState, keeps: Keeps) {
        let listener = Listener::new(dev, unit, keeps);
        let guest = |pasid| state.gcr3.as_ref().map(|table| listener.of_guest(table.tag(), pasid));
        match &state.attached {
            Attachment::Paging(domain) => domain.listeners().add(listener),
            Attachment::Guest(domain) => guest(0).into_iter().for_each(|own| domain.listeners().add(own)),
            Attachment::None | Attachment::Blocked | Attachment::Identity => {}
        }
        for (&pasid, domain) in &state.pasids {
            guest(pasid).into_iter().for_each(|listener| domain.listeners().add(listener));
        }
    }

    /// Makes a device forget what it keeps of a PASID, or of requests without one, if it keeps anything. One that does not answer
    /// keeps nothing from then on, so that this is done.
    ///
    /// # Errors
    /// The unit does not answer.
    pub(crate) fn forget_in_device(
        &self,
        segment: &Segment,
        dev: PciAddress,
        state: &mut DeviceState,
        pasid: Option<u32>,
    ) -> Result<(), AttachError> {
        let unit = state.ids.first().and_then(|(_, unit)| self.units().get(*unit));
        let (Some(ats), Some(unit), true) = (state.ats, unit, state.ats_on) else { return Ok(()) };
        let (overflows, unanswered) = (unit.events().overflows(), unit.events().unanswered(dev.id.get()));
        let asked = unit.run(&[Command::invalidate_iotlb_pages(dev.id.get(), ats.depth, pasid, Cover::ALL)]);
        let answered = unit.events().look_ahead(overflows);
        if asked.is_ok() && answered && unit.events().unanswered(dev.id.get()) == unanswered {
            return Ok(());
        }
        self.give_up_ats(segment, dev, state).map_err(|_| AttachError::Device)
    }

    /// Ends the ATS of a device that does not answer: what it keeps it can then use no more, so that it does not matter.
    fn give_up_ats(
        &self,
        segment: &Segment,
        dev: PciAddress,
        state: &mut DeviceState,
    ) -> Result<(), CommandError> {
        self.switch_page_requests(dev, state, false);
        if let (Some(ats), Some(config)) = (state.ats.take(), self.device_config()) {
            ats.disable(config, dev);
        }
        state.ats_on = false;
        let written = self.write_entries(segment, state, &state.ids, &state.attached);
        // Last: as long as it is listed, whoever has asked it something sees that it has not answered.
        state.listeners().for_each(|listeners| listeners.end_ats(dev, self));
        written
    }

    /// As [`Shared::give_up_ats`], for a device that has not answered somebody who unmaps.
    pub(crate) fn silence(&self, dev: PciAddress) {
        let mut devices = self.devices().lock();
        let Some(segment) = self.segments().get(&dev.segment) else { return };
        if let Some(state) = devices.get_mut(&dev).filter(|state| state.ats_on)
            && self.give_up_ats(segment, dev, state).is_err()
        {
            // The unit may not have seen that the device has no ATS any more.
            state.attached.poison();
            state.pasids.values().for_each(|domain| domain.poison());
        }
    }
}
