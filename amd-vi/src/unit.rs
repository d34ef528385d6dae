//! One IOMMU (Linux: `struct amd_iommu`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use iommu_core::IrqTarget;
use platform::pci::PciAddress;
use platform::{Platform, TimedOut};

use crate::command::Command;
use crate::command_queue::{CommandError, CommandQueue};
use crate::completion::Ticket;
use crate::config::Config;
use crate::control::ControlRegister;
use crate::gcr3::Gcr3Table;
use crate::invalidate::{Cover, MOST_BLOCKS, split};
use crate::irq_remap::IrqMode;
use crate::ivrs::{Ivhd, IvhdFlags};
use crate::log::{EventLog, PprLog};
use crate::pci_capability::IommuCapability;
use crate::registers::{
    Control, ExtendedFeatures, ExtendedFeatures2, InvTimeout, Registers, Status, XtInterruptControl, offset,
};

/// One IOMMU: its registers, its command buffer and its event log.
#[doc(alias = "amd_iommu")]
pub struct Unit {
    index: usize,
    ivhd: Ivhd,
    features: ExtendedFeatures,
    features2: ExtendedFeatures2,
    np_cache: bool,
    iotlb_sup: bool,
    registers: Registers,
    control: ControlRegister,
    commands: CommandQueue,
    events: EventLog,
    page_requests: Option<PprLog>,
    platform: Arc<dyn Platform>,
}

impl Unit {
    pub(crate) fn new(
        index: usize,
        ivhd: Ivhd,
        capability: IommuCapability,
        registers: Registers,
        platform: &Arc<dyn Platform>,
        config: &Config,
    ) -> Result<Self, platform::OutOfFrames> {
        let (features, features2) = if capability.efr_sup() {
            (registers.extended_features(), registers.extended_features_2())
        } else {
            (ExtendedFeatures::new(), ExtendedFeatures2::new())
        };
        let commands =
            CommandQueue::new(platform, registers.clone(), config.log2_commands, config.command_timeout)?;
        let events = match EventLog::new(platform, registers.clone(), config.log2_events) {
            Ok(events) => events,
            Err(error) => {
                // SAFETY: the unit has never been told of the ring.
                unsafe { commands.free() };
                return Err(error);
            }
        };
        let guest = features.gt_sup() && features.gio_sup();
        let page_requests = if guest && features.ppr_sup() {
            match PprLog::new(platform, registers.clone(), config.log2_page_requests) {
                Ok(log) => Some(log),
                Err(error) => {
                    // SAFETY: the unit has never been told of the rings.
                    unsafe {
                        commands.free();
                        events.free();
                    }
                    return Err(error);
                }
            }
        } else {
            None
        };
        Ok(Self {
            index,
            features,
            features2,
            np_cache: capability.np_cache(),
            iotlb_sup: capability.iotlb_sup(),
            control: ControlRegister::new(registers.clone()),
            commands,
            events,
            page_requests,
            registers,
            ivhd,
            platform: platform.clone(),
        })
    }

    /// Its number among the driver's units.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its own PCI function.
    pub fn address(&self) -> PciAddress {
        self.ivhd.address
    }

    /// What firmware says of it.
    pub fn ivhd(&self) -> &Ivhd {
        &self.ivhd
    }

    /// The extended features, zero when the unit has no such register.
    pub fn features(&self) -> ExtendedFeatures {
        self.features
    }

    /// The second register of extended features.
    pub fn features2(&self) -> ExtendedFeatures2 {
        self.features2
    }

    /// Whether firmware's images of the feature registers, where it gives them, are what the registers say (Linux warns
    /// otherwise, and believes the registers).
    pub fn features_match_firmware(&self) -> bool {
        self.ivhd.efr.is_none_or(|image| image == self.features)
            && self.ivhd.efr2.is_none_or(|image| image == self.features2)
    }

    /// Whether it may remember that nothing was mapped (NpCache).
    pub fn np_cache(&self) -> bool {
        self.np_cache
    }

    /// Whether it can invalidate what devices keep themselves (IotlbSup).
    pub fn iotlb_sup(&self) -> bool {
        self.iotlb_sup
    }

    /// The most levels that a host page table may have here, `None` when it does not translate with such tables.
    pub fn host_levels(&self) -> Option<u8> {
        if self.ivhd.host_translation_disabled() { None } else { self.features.host_levels() }
    }

    /// How many levels a guest (v2) page table has here, 4 or 5, `None` when there are none (Linux: GT with GIOSUP, GATS).
    ///
    /// Some say that they can do guest translation and cannot: those lack guest I/O protection.
    pub fn guest_levels(&self) -> Option<u8> {
        match self.features.gats() {
            gats @ 0..=1 if self.features.gt_sup() && self.features.gio_sup() => Some(4 + gats),
            _ => None,
        }
    }

    /// Bits of a PASID here, 0 when there are none: as its tables and its registers have them (Linux: PASmax, GLX).
    pub fn pasid_bits(&self) -> u8 {
        const MOST: u8 = 20;
        let tables = 9 * (self.features.glx_sup() + 1).min(Gcr3Table::MOST_LEVELS);
        self.guest_levels().map_or(0, |_| (self.features.pas_max() + 1).min(tables).min(MOST))
    }

    /// Its command buffer.
    pub fn commands(&self) -> &CommandQueue {
        &self.commands
    }

    /// Its event log.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Its log of page requests, if it takes any: they are for guest tables.
    pub fn page_requests(&self) -> Option<&PprLog> {
        self.page_requests.as_ref()
    }

    /// Its registers.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    pub(crate) fn control(&self) -> &ControlRegister {
        &self.control
    }

    /// Stops everything: logs and commands first, translation last, and waits until nothing runs (Linux: `iommu_disable`).
    /// Devices then reach memory unchecked.
    #[doc(alias = "iommu_disable")]
    pub(crate) fn disable(&self) -> Result<(), TimedOut> {
        self.commands.stop();
        let mut control = self.control.lock();
        control.update(|control| {
            control
                .with_cmd_buf_en(false)
                .with_event_int_en(false)
                .with_event_log_en(false)
                .with_com_wait_int_en(false)
                .with_ppr_log_en(false)
                .with_ppr_int_en(false)
                .with_ppr_en(false)
                .with_ga_log_en(false)
                .with_ga_int_en(false)
        });
        control.update(|control| control.with_iommu_en(false));
        control.wait(&*self.platform, |status| {
            !(status.cmd_buf_run() || status.event_log_run() || status.ppr_log_run() || status.ga_log_run())
        })
    }

    /// Brings the unit from stopped to translating (Linux: `early_enable_iommu`). `device_table` is the value of the base
    /// register. Interrupts stay off.
    #[doc(alias = "early_enable_iommu")]
    pub(crate) fn enable(&self, device_table: u64, interrupts: Option<IrqMode>) -> Result<(), TimedOut> {
        self.init_flags();
        self.init_irq_mode(interrupts);
        self.registers.write(offset::DEVICE_TABLE_BASE, device_table);
        self.commands.program();
        self.events.program();
        self.page_requests.iter().for_each(PprLog::program);
        if self.features.ppr_auto_rsp_sup() {
            // Success: a device whose request is lost tries again, and asks again.
            self.registers.write(offset::PPR_AUTO_RESPONSE, 0);
        }
        self.registers.write(offset::EXCLUSION_BASE, 0);
        self.registers.write(offset::EXCLUSION_LIMIT, 0);
        // An overflow that somebody before left would keep the log from running.
        self.registers.clear_status(Status::from_bits(Status::WRITE_ONE_TO_CLEAR));
        let mut control = self.control.lock();
        control.update(|control| control.with_event_log_en(true));
        let page_requests = self.page_requests.is_some();
        control.update(|control| control.with_ppr_en(page_requests).with_ppr_log_en(page_requests));
        control.update(|control| control.with_cmd_buf_en(true));
        control.update(|control| control.with_iommu_en(true));
        control.wait(&*self.platform, |status| {
            status.cmd_buf_run() && status.event_log_run() && status.ppr_log_run() == page_requests
        })?;
        drop(control);
        self.commands.start();
        Ok(())
    }

    /// What firmware's flags say of the control register (Linux: `iommu_init_flags`). Everything else that somebody before
    /// has switched on is off, since it points to memory and tables of his: segments of the device table, other logs, wide
    /// interrupt entries. What stays is firmware's own: cache policy and the filter of system management interrupts.
    fn init_flags(&self) {
        let flags = self.ivhd.flags;
        self.control.lock().update(|old| {
            Control::new()
                .with_crw(old.crw())
                .with_smif_en(old.smif_en())
                .with_slf_wb_dis(old.slf_wb_dis())
                .with_smif_log_en(old.smif_log_en())
                .with_ht_tun_en(flags.contains(IvhdFlags::HT_TUN))
                .with_pass_pw(flags.contains(IvhdFlags::PASS_PW))
                .with_res_pass_pw(flags.contains(IvhdFlags::RES_PASS_PW))
                .with_isoc(flags.contains(IvhdFlags::ISOC))
                .with_coherent(true)
                .with_gt_en(self.guest_levels().is_some())
                .with_eph_en(self.features.eph_sup())
                .with_ppr_auto_rsp_en(self.page_requests.is_some() && self.features.ppr_auto_rsp_sup())
                .with_inv_timeout(InvTimeout::S1 as u8)
        });
    }

    /// How interrupts are remapped (Linux: `iommu_enable_ga`, `iommu_enable_xt`, `iommu_enable_2k_int`). The width of entries must
    /// not change while the unit runs.
    #[doc(alias = "iommu_enable_ga")]
    #[doc(alias = "iommu_enable_xt")]
    #[doc(alias = "iommu_enable_2k_int")]
    fn init_irq_mode(&self, mode: Option<IrqMode>) {
        let Some(mode) = mode else { return };
        let mut control = self.control.lock();
        control.update(|control| {
            control.with_ga_en(mode.is_x2apic()).with_num_int_remap_mode(u8::from(mode.is_2k()))
        });
        // XTEn needs GAEn.
        control.update(|control| control.with_xt_en(mode.is_x2apic()));
    }

    /// Whether the unit can send its own interrupts to 32-bit destinations. Linux asks for both bits, too.
    pub(crate) fn has_xt_interrupts(&self) -> bool {
        self.features.xt_sup() && self.features.msi_cap_mmio_sup()
    }

    /// Has all interrupts of the unit go to `target`: the handler looks at every log (Linux: `iommu_setup_intcapxt`).
    #[doc(alias = "iommu_setup_intcapxt")]
    pub(crate) fn set_xt_interrupts(&self, target: IrqTarget) {
        let value = XtInterruptControl::to(target).into_bits();
        for register in [offset::XT_GENERAL_INTERRUPT, offset::XT_PPR_INTERRUPT, offset::XT_GA_INTERRUPT] {
            self.registers.write(register, value);
        }
        self.control.lock().update(|control| control.with_int_cap_xt_en(true));
    }

    /// Lets events raise the unit's interrupt.
    pub(crate) fn enable_interrupts(&self) {
        self.control
            .lock()
            .update(|control| control.with_event_int_en(true).with_ppr_int_en(self.page_requests.is_some()));
    }

    /// Puts commands into the ring and waits until they are done. When the wait fails because the unit stopped, the ring is
    /// brought back for others.
    pub(crate) fn run(&self, commands: &[Command]) -> Result<(), CommandError> {
        let ticket = self.submit(commands)?;
        self.wait(ticket)
    }

    /// Puts commands and a completion wait into the ring.
    #[inline]
    pub(crate) fn submit(&self, commands: &[Command]) -> Result<Ticket, CommandError> {
        self.commands.submit(commands).inspect_err(|error| self.after(*error))
    }

    /// Waits for what was put in.
    #[inline]
    pub(crate) fn wait(&self, ticket: Ticket) -> Result<(), CommandError> {
        self.commands.wait(ticket).inspect_err(|error| self.after(*error))
    }

    #[cold]
    fn after(&self, error: CommandError) {
        if matches!(error, CommandError::Timeout | CommandError::Full) {
            // The caller has its error whatever comes of this.
            let _ = self.commands.recover(&self.control);
        }
    }

    /// Puts invalidations for `first` to `last` (inclusive) of `domain` into the ring (Linux: `amd_iommu_domain_flush_pages`).
    ///
    /// Cached table pointers always go too: most unmaps free tables sooner or later, and one command does both.
    #[doc(alias = "amd_iommu_domain_flush_pages")]
    #[inline]
    pub(crate) fn submit_pages(&self, domain: u16, first: u64, last: u64) -> Result<Ticket, CommandError> {
        if !self.np_cache {
            let cover = Cover::containing(first, last);
            return self.submit(&[Command::invalidate_iommu_pages(domain, cover, true)]);
        }
        let mut commands = [Command::completion_interrupt(); MOST_BLOCKS];
        let mut count = 0;
        for cover in split(first, last) {
            let Some(command) = commands.get_mut(count) else {
                return self.submit(&[Command::invalidate_iommu_pages(domain, Cover::ALL, true)]);
            };
            *command = Command::invalidate_iommu_pages(domain, cover, true);
            count += 1;
        }
        self.submit(&commands[..count])
    }

    /// Makes the unit forget every translation of `domain` (Linux: `amd_iommu_flush_tlb_domid`).
    pub(crate) fn flush_domain(&self, domain: u16) -> Result<(), CommandError> {
        self.run(&[Command::invalidate_iommu_pages(domain, Cover::ALL, true)])
    }

    /// Makes the unit forget the device table entry of `device` (Linux: `iommu_flush_dte`) and its interrupt entries.
    #[doc(alias = "iommu_flush_dte")]
    pub(crate) fn flush_dte(&self, device: u16) -> Result<(), CommandError> {
        self.run(&[Command::invalidate_devtab_entry(device), Command::invalidate_interrupt_table(device)])
    }

    /// Makes the unit forget everything (Linux: `amd_iommu_flush_all_caches`). `highest` is the last device of its table.
    #[doc(alias = "amd_iommu_flush_all_caches")]
    pub(crate) fn flush_all_caches(&self, highest: u16) -> Result<(), CommandError> {
        if self.features.ia_sup() {
            return self.run(&[Command::invalidate_iommu_all()]);
        }
        let devices = (0..=highest).flat_map(|device| {
            [Command::invalidate_devtab_entry(device), Command::invalidate_interrupt_table(device)]
        });
        let domains = (0..=u16::MAX).map(|domain| Command::invalidate_iommu_pages(domain, Cover::ALL, true));
        // One wait for each so many commands: with a wait only at the end, a slow unit would look dead.
        const CHUNK: usize = 256;
        let mut chunk = Vec::with_capacity(CHUNK);
        for command in devices.chain(domains) {
            chunk.push(command);
            if chunk.len() == CHUNK {
                self.run(&chunk)?;
                chunk.clear();
            }
        }
        self.run(&chunk)
    }

    /// Gives rings and logs back.
    ///
    /// # Safety
    /// The unit is disabled and stays so.
    pub(crate) unsafe fn free(self) {
        // SAFETY: a disabled unit neither fetches commands nor logs.
        unsafe {
            self.commands.free();
            self.events.free();
            self.page_requests.into_iter().for_each(|log| log.free());
        }
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit")
            .field("address", &self.ivhd.address)
            .field("features", &self.features)
            .field("np_cache", &self.np_cache)
            .finish_non_exhaustive()
    }
}
