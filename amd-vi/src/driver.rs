//! The driver as `iommu-core` and a kernel see it, and what its parts share.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_core::{
    Capability, DomainError, DomainOps, Fault, Iommu, IommuOps, IrqRemap, PageResponse, PagingFlags,
    ProbeError, Probed, ResvRegion, ResvType,
};
use platform::pci::{ConfigSpace, PciAddress};
use platform::sync::Mutex;
use platform::sync::atomic::{AtomicBool, Ordering};
use platform::{DmaAddr, Platform, Prot};

use crate::attach::{Attachment, DeviceState};
use crate::command_queue::CommandError;
use crate::config::{Config, PageTableFormat};
use crate::device_table::DeviceTable;
use crate::domain::{BlockedDomain, IdentityDomain, PagingDomain};
use crate::domain_id::DomainIds;
use crate::event::Event;
use crate::guest_domain::GuestDomain;
use crate::hardware::Hardware;
use crate::init::{self, InitError};
use crate::interrupt::{Handled, fault};
use crate::irq_remap::{InterruptTable, IrqMode, IrqTables, NoIrqRemap, Remapper};
use crate::ivrs::{Ivmd, Ivrs};
use crate::pci_capability;
use crate::segment::Segment;
use crate::unit::Unit;

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

    /// The tag of the identity domain.
    pub(crate) fn identity_id(&self) -> u16 {
        self.identity_id
    }

    /// Whether translation has been turned off: then no unit remembers anything.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The unit that translates for a device, unless it is that unit itself.
    pub(crate) fn unit_of(&self, dev: PciAddress) -> Option<&Unit> {
        if self.units.iter().any(|unit| unit.address() == dev) {
            return None;
        }
        self.units.get(self.segments.get(&dev.segment)?.unit_of(dev.id.get())?)
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
        let guest = unit.guest_levels();
        let v1 = |dirty| -> Result<Arc<dyn DomainOps>, DomainError> {
            Ok(PagingDomain::new(&self.shared, host.ok_or(DomainError::Unsupported)?, dirty)?)
        };
        let v2 = || -> Result<Arc<dyn DomainOps>, DomainError> {
            Ok(GuestDomain::new(&self.shared, guest.ok_or(DomainError::Unsupported)?)?)
        };
        // Only guest tables are for PASIDs, and only host tables say what was written.
        match flags {
            PagingFlags::PASID => v2(),
            PagingFlags::DIRTY_TRACKING if unit.features().tracks_dirty() => v1(true),
            flags if !flags.is_empty() => Err(DomainError::Unsupported),
            _ if host.is_none() => v2(),
            _ if guest.is_some() && self.shared.config.page_table == PageTableFormat::V2 => v2(),
            _ => v1(false),
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
