//! What an IOMMU driver implements: `IommuOps` for the hardware, `DomainOps` for one of its domains.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, IotlbGather, MapError, PageSizes, PhysAddr, Prot};

use crate::iopf::PageResponse;
use crate::resv::ResvRegion;

/// The type of a domain (Linux: `IOMMU_DOMAIN_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum DomainType {
    /// Nothing passes (`IOMMU_DOMAIN_BLOCKED`).
    Blocked,
    /// Everything passes untranslated (`IOMMU_DOMAIN_IDENTITY`).
    Identity,
    /// Mapped by its owner alone (`IOMMU_DOMAIN_UNMANAGED`).
    Unmanaged,
    /// Mapped by the DMA API, strictly (`IOMMU_DOMAIN_DMA`).
    Dma,
    /// Mapped by the DMA API, lazily: invalidations are collected in a flush queue (`IOMMU_DOMAIN_DMA_FQ`).
    DmaFq,
    /// The address space of a process, for requests with its PASID (`IOMMU_DOMAIN_SVA`). Nobody makes these yet.
    Sva,
    /// Mapped by a guest, over a domain of its host (`IOMMU_DOMAIN_NESTED`). Nobody makes these yet.
    Nested,
}

impl DomainType {
    /// Whether the DMA API maps in it.
    pub const fn is_dma(self) -> bool {
        matches!(self, Self::Dma | Self::DmaFq)
    }

    /// Whether it has a page table of its own.
    pub const fn is_paging(self) -> bool {
        matches!(self, Self::Unmanaged | Self::Dma | Self::DmaFq)
    }
}

impl fmt::Display for DomainType {
    /// As Linux's sysfs shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocked => "blocked",
            Self::Identity => "identity",
            Self::Unmanaged => "unmanaged",
            Self::Dma => "DMA",
            Self::DmaFq => "DMA-FQ",
            Self::Sva | Self::Nested => "unknown",
        })
    }
}

/// What a driver can be asked about (Linux: `enum iommu_cap`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Capability {
    /// Device accesses can be made coherent (`IOMMU_CAP_CACHE_COHERENCY`).
    CacheCoherency,
    /// Mappings can forbid execution (`IOMMU_CAP_NOEXEC`).
    NoExec,
    /// Firmware kept devices out of memory before the operating system started (`IOMMU_CAP_PRE_BOOT_PROTECTION`).
    PreBootProtection,
    /// A domain can make all accesses coherent, whatever the device asks for (`IOMMU_CAP_ENFORCE_CACHE_COHERENCY`): see
    /// [`DomainOps::enforce_cache_coherency`].
    EnforceCacheCoherency,
    /// Invalidations can be collected and done later (`IOMMU_CAP_DEFERRED_FLUSH`).
    DeferredFlush,
    /// A domain can say which pages were written (`IOMMU_CAP_DIRTY_TRACKING`): see [`DomainOps::set_dirty_tracking`].
    DirtyTracking,
    /// The device may keep translations itself (`IOMMU_CAP_PCI_ATS_SUPPORTED`): it is fenced while it is reset.
    PciAtsSupported,
    /// The device raises no interrupts but those that it was given (`IOMMU_CAP_INTR_REMAP`, now `IRQ_DOMAIN_FLAG_ISOLATED_MSI`):
    /// see [`IrqRemap`](crate::IrqRemap) and [`crate::Group::has_isolated_msi`]. Without it a device that is handed to somebody
    /// untrusted can forge the interrupts of others.
    #[doc(alias = "IRQ_DOMAIN_FLAG_ISOLATED_MSI")]
    IsolatedMsi,
}

/// What an IOMMU's maker lets user space know about it (Linux: `IOMMU_GET_HW_INFO`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HwInfo {
    /// Whose words `data` is in (Linux: `enum iommu_hw_info_type`).
    pub kind: u32,
    /// The maker's words.
    pub data: Vec<u8>,
}

bitflags::bitflags! {
    /// What a paging domain must be able to do (Linux: `enum iommufd_hwpt_alloc_flags`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct PagingFlags: u32 {
        /// Nested domains can be put over it (`IOMMU_HWPT_ALLOC_NEST_PARENT`).
        const NEST_PARENT = 1 << 0;
        /// It can say which pages were written (`IOMMU_HWPT_ALLOC_DIRTY_TRACKING`).
        const DIRTY_TRACKING = 1 << 1;
        /// Devices attached to it can use PASIDs beside it (`IOMMU_HWPT_ALLOC_PASID`).
        const PASID = 1 << 3;
    }
}

/// How a driver groups its devices (Linux: what `device_group` calls).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum DeviceGroup {
    /// By what the PCI tree keeps apart (`pci_device_group`).
    #[default]
    Pci,
    /// Each for itself, since the IOMMU tells them apart whatever the tree looks like (`generic_device_group`).
    Generic,
    /// With the driver's other devices that have this number, since the system beneath has put them into one group
    /// (`iommu_group_ref_get` of a group that is there).
    Given(u32),
    /// All devices of the driver together, since it has one translation for all (`generic_single_device_group`).
    Single,
}

/// What a driver knows of a device that it claims.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Probed {
    /// Other requester IDs that the device may use on its way up: firmware's aliases.
    pub aliases: Vec<RequesterId>,
    /// How many PASIDs the device and its IOMMU can tell apart, 0 for none (Linux: `max_pasids`). PASID 0 is among them.
    pub max_pasids: u32,
    /// Whether a flush of a whole domain is dear for this device's IOMMU, as where a hypervisor emulates it: a lazy domain then
    /// collects more and flushes less often (Linux: `shadow_on_flush`).
    pub shadow_on_flush: bool,
}

/// Why a driver does not take a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// It is behind none of this driver's IOMMUs (Linux: `-ENODEV`).
    #[error("the device is behind none of these IOMMUs")]
    NotMine,
    /// It is, but something failed.
    #[error("the IOMMU could not take the device")]
    Failed,
}

/// Why a domain could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// The driver has no domains of this type, or not for this device (Linux: `-EOPNOTSUPP`).
    #[error("the IOMMU has no such domain for this device")]
    Unsupported,
    /// Out of memory or of domain identifiers (Linux: `-ENOMEM`, `-ENOSPC`).
    #[error("out of memory or domain identifiers")]
    Exhausted,
    /// The domain is the DMA API's, or has a handler of this kind (Linux: another `cookie_type`).
    #[error("the domain is the DMA API's, or has a handler already")]
    InUse,
}

/// Why a device could not be attached to a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// This domain is not for this device; another may be (Linux: `-EINVAL`).
    #[error("the domain is incompatible with the device")]
    Incompatible,
    /// The device has a domain that must be taken off first, or is being reset (Linux: `-EBUSY`).
    #[error("the device or group is busy")]
    Busy,
    /// Out of memory or identifiers (Linux: `-ENOMEM`, `-ENOSPC`).
    #[error("out of memory or identifiers")]
    Exhausted,
    /// The device or its IOMMU failed (Linux: `-ENODEV`).
    #[error("the device or its IOMMU failed")]
    Device,
    /// Firmware needs memory of the device that this domain would block (Linux: `-EINVAL` and a message).
    #[error("firmware requires direct mappings for the device, so it cannot be blocked")]
    RequiresDirect,
    /// The domain, the device or its IOMMU knows no PASIDs (Linux: `-EOPNOTSUPP`).
    #[error("the domain, the device or its IOMMU knows no PASIDs")]
    Unsupported,
}

/// An invalidation did not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the IOMMU did not finish an invalidation")]
pub struct SyncError;

/// Why a domain does not say what was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyError {
    /// The domain cannot (Linux: `-EOPNOTSUPP`): it was made without [`PagingFlags::DIRTY_TRACKING`].
    #[error("the domain cannot track what is written")]
    Unsupported,
    /// Tracking is off (Linux: `-EINVAL`).
    #[error("dirty tracking is off")]
    Off,
    /// The IOMMU did not answer.
    #[error("{0}")]
    Sync(#[from] SyncError),
}

/// An IOMMU driver (Linux: `struct iommu_ops`). Drivers keep their own state per device, keyed by its address.
///
/// Five members are required. The others have Linux's defaults, so a driver writes only what its hardware has.
///
/// # Safety
/// The DMA API rests on what this returns:
/// - its domains keep the promises of [`DomainOps`];
/// - a device in the blocked domain reaches no memory at all, and neither does one that was probed and not attached, or
///   released;
/// - [`DomainType::Identity`] of `def_domain_type` vouches for a device that hardware does not confine;
/// - [`DeviceGroup::Generic`] vouches for hardware that keeps the device apart from all others;
/// - a device whose attach is deferred reaches no memory that this system uses.
#[doc(alias = "iommu_ops")]
pub unsafe trait IommuOps: Send + Sync + fmt::Debug {
    /// A name for messages.
    fn name(&self) -> &str;

    /// Whether the IOMMU of `dev` can do something (Linux: `capable`).
    fn capable(&self, dev: PciAddress, capability: Capability) -> bool;

    /// What user space may know of the IOMMU of `dev` (Linux: `hw_info`).
    fn hw_info(&self, dev: PciAddress) -> Option<HwInfo> {
        let _ = dev;
        None
    }

    /// Claims a device (Linux: `probe_device`).
    ///
    /// # Errors
    /// [`ProbeError::NotMine`] when another driver may ask.
    fn probe_device(&self, dev: PciAddress) -> Result<Probed, ProbeError>;

    /// Claims a device that is not trusted: what it says of itself must not count (Linux: `untrusted` of `struct pci_dev`).
    /// A driver that lets devices keep translations of their own (ATS) does not let this one.
    ///
    /// # Errors
    /// As [`IommuOps::probe_device`].
    fn probe_untrusted_device(&self, dev: PciAddress) -> Result<Probed, ProbeError> {
        self.probe_device(dev)
    }

    /// Tells the names that a device's requests may carry besides its own: of bridges, and what is known of the device (Linux:
    /// what a driver asks `pci_for_each_dma_alias` for). After [`IommuOps::probe_device`], before the device is attached. A driver
    /// whose hardware looks a request up by its name gives each of them what the device gets; what
    /// [`Probed::aliases`] says it knows already.
    #[doc(alias = "pci_for_each_dma_alias")]
    fn set_dma_aliases(&self, dev: PciAddress, aliases: &[PciAddress]) {
        let _ = (dev, aliases);
    }

    /// Does what is left once the device is in its group's domain (Linux: `probe_finalize`).
    fn probe_finalize(&self, dev: PciAddress) {
        let _ = dev;
    }

    /// Forgets a device, its PASIDs included; it then reaches nothing (Linux: `release_device`). Hardware is not touched for
    /// a device that was never attached.
    fn release_device(&self, dev: PciAddress);

    /// How the device is grouped (Linux: `device_group`).
    fn device_group(&self, dev: PciAddress) -> DeviceGroup {
        let _ = dev;
        DeviceGroup::Pci
    }

    /// Makes an empty domain with a page table, for `dev` and devices like it (Linux: `domain_alloc_paging`).
    ///
    /// # Errors
    /// [`DomainError`] with the reason.
    fn domain_alloc_paging(&self, dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError>;

    /// As [`IommuOps::domain_alloc_paging`], for a domain that can do what `flags` say (Linux:
    /// `domain_alloc_paging_flags`). By default there are only domains without flags.
    ///
    /// # Errors
    /// [`DomainError::Unsupported`] for what the hardware does not have; [`DomainError`] with the reason.
    fn domain_alloc_paging_flags(
        &self,
        dev: PciAddress,
        flags: PagingFlags,
    ) -> Result<Arc<dyn DomainOps>, DomainError> {
        if flags.is_empty() { self.domain_alloc_paging(dev) } else { Err(DomainError::Unsupported) }
    }

    /// The domain in which everything passes, if the hardware has one (Linux: `identity_domain`).
    fn identity_domain(&self) -> Option<Arc<dyn DomainOps>> {
        None
    }

    /// The domain in which nothing passes, if the hardware has one (Linux: `blocked_domain`). Without it an empty paging
    /// domain blocks, and there are no PASIDs: this domain's [`DomainOps::set_dev_pasid`] takes them off.
    fn blocked_domain(&self) -> Option<Arc<dyn DomainOps>> {
        None
    }

    /// The domain in which a device is left when it goes, before [`IommuOps::release_device`] (Linux: `release_domain`).
    fn release_domain(&self) -> Option<Arc<dyn DomainOps>> {
        None
    }

    /// The type of default domain that the driver insists on for a device (Linux: `def_domain_type`):
    /// [`DomainType::Identity`], [`DomainType::Dma`], or no opinion.
    fn def_domain_type(&self, dev: PciAddress) -> Option<DomainType> {
        let _ = dev;
        None
    }

    /// Whether DMA of a device is strict unless somebody asks for a lazy domain by name, whatever the settings say (Linux: a
    /// driver that calls `iommu_set_dma_strict`): every unmap costs this IOMMU little more than none, or a hypervisor wants to
    /// see each. No by default.
    #[doc(alias = "iommu_set_dma_strict")]
    fn strict_by_default(&self, dev: PciAddress) -> bool {
        let _ = dev;
        false
    }

    /// I/O addresses that are not free for a device (Linux: `get_resv_regions`).
    fn resv_regions(&self, dev: PciAddress) -> Vec<ResvRegion> {
        let _ = dev;
        Vec::new()
    }

    /// Whether the device still runs on tables of the system before this one, which are left alone until its driver maps
    /// something (Linux: `is_attach_deferred`, for kdump). Asked once, when it is probed.
    fn is_attach_deferred(&self, dev: PciAddress) -> bool {
        let _ = dev;
        false
    }

    /// Sends the answer to a device's page requests (Linux: `page_response`). Called for requests that this driver reported,
    /// so a driver that reports none needs none.
    fn page_response(&self, dev: PciAddress, response: PageResponse) {
        let _ = (dev, response);
    }
}

/// One domain of an IOMMU driver (Linux: `struct iommu_domain_ops`): a translation that devices can be attached to.
///
/// Only the attaching members are ever called on a blocked or identity domain; the others then return what the defaults
/// do.
///
/// # Safety
/// Safe types rely on it:
/// - a device attached to the domain reaches exactly what is mapped, in the ways that it is mapped for;
/// - after `unmap` and an `iotlb_sync` or `flush_iotlb_all` that returned `Ok`, no attached device reaches what was
///   unmapped: requests that were under way have ended;
/// - table pages given to the gather are not reached from the table any more.
#[doc(alias = "iommu_domain_ops")]
pub unsafe trait DomainOps: Send + Sync + fmt::Debug {
    /// Attaches a device, taking it from `old` (Linux: `attach_dev`). On failure it stays where it was.
    ///
    /// # Errors
    /// [`AttachError`] with the reason.
    ///
    /// # Safety
    /// Nobody else moves the device meanwhile, and nobody has it in a domain that he relies on: it is the core that calls,
    /// with the lock of the device's group. What the device reaches here it may reach; for an identity domain somebody has
    /// said that he trusts it. The domain lives until the device has been taken off it.
    unsafe fn attach_dev(&self, dev: PciAddress, old: Option<&dyn DomainOps>) -> Result<(), AttachError>;

    /// Whether [`DomainOps::set_dev_pasid`] is there.
    fn has_set_dev_pasid(&self) -> bool {
        false
    }

    /// Attaches a PASID of a device, taking it from `old`; on the blocked domain, takes the PASID off (Linux:
    /// `set_dev_pasid`). On failure it stays where it was.
    ///
    /// # Errors
    /// [`AttachError`] with the reason.
    ///
    /// # Safety
    /// As [`DomainOps::attach_dev`], for requests of the device that carry `pasid`.
    unsafe fn set_dev_pasid(
        &self,
        dev: PciAddress,
        pasid: u32,
        old: Option<&dyn DomainOps>,
    ) -> Result<(), AttachError> {
        let _ = (dev, pasid, old);
        Err(AttachError::Unsupported)
    }

    /// Maps `count` pages of `page_size` bytes (Linux: `map_pages`). Returns the bytes that were mapped beside the error;
    /// the caller undoes them.
    ///
    /// # Safety
    /// The memory stays valid until it is unmapped, and nobody else touches this range of I/O addresses meanwhile.
    unsafe fn map_pages(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        let _ = (phys, page_size, count, prot);
        (0, Err(MapError::OutOfRange(iova)))
    }

    /// Maps a range, in the largest pages that fit (Linux: `map_range`). Returns the bytes that were mapped beside the error;
    /// the caller undoes them. A table that can do better than a call per run of pages of one size has its own.
    ///
    /// # Safety
    /// As [`DomainOps::map_pages`].
    #[inline]
    unsafe fn map_range(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        let page_sizes = self.page_sizes();
        let mut done = 0;
        while done < len {
            let (at, from) = (iova.wrapping_add(done), phys.wrapping_add(done));
            let Some(run) = page_sizes.pick(at.get(), from.get(), len - done) else {
                return (done, Err(MapError::NoPageSize(at)));
            };
            // SAFETY: the caller's promise, for a part of the range.
            let (mapped, result) = unsafe { self.map_pages(at, from, run.page_size, run.count, prot) };
            done += mapped;
            if let Err(error) = result {
                return (done, Err(error));
            }
            if mapped == 0 {
                // A driver that neither maps nor says why would be asked for ever.
                return (done, Err(MapError::NoPageSize(at)));
            }
        }
        (done, Ok(()))
    }

    /// Unmaps a range and collects what must be invalidated (Linux: `unmap_pages`). Returns the bytes unmapped: fewer than
    /// `len` when it met a hole, more when the range ended within a larger page.
    ///
    /// # Safety
    /// Nobody else touches this range of I/O addresses meanwhile.
    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        let _ = (iova, len, gather);
        0
    }

    /// Whether new mappings need [`DomainOps::iotlb_sync_map`]: hardware that remembers what was not there. Asked once.
    fn needs_sync_map(&self) -> bool {
        false
    }

    /// Makes new mappings visible (Linux: `iotlb_sync_map`).
    ///
    /// # Errors
    /// [`SyncError`] when the IOMMU does not answer.
    fn iotlb_sync_map(&self, iova: DmaAddr, len: u64) -> Result<(), SyncError> {
        let _ = (iova, len);
        Ok(())
    }

    /// Invalidates what was gathered and waits until that is done (Linux: `iotlb_sync`).
    ///
    /// # Errors
    /// [`SyncError`] when the IOMMU does not answer.
    fn iotlb_sync(&self, gather: &IotlbGather<'_>) -> Result<(), SyncError> {
        let _ = gather;
        Ok(())
    }

    /// Invalidates everything of this domain and waits until that is done (Linux: `flush_iotlb_all`).
    ///
    /// # Errors
    /// [`SyncError`] when the IOMMU does not answer.
    fn flush_iotlb_all(&self) -> Result<(), SyncError> {
        Ok(())
    }

    /// Where an I/O address leads (Linux: `iova_to_phys`). May run beside an unmap of that address: table pages that it can be
    /// in are given back after it.
    fn iova_to_phys(&self, iova: DmaAddr) -> Option<PhysAddr> {
        let _ = iova;
        None
    }

    /// Makes every access from now on coherent, whatever the device asks for (Linux: `enforce_cache_coherency`). Returns
    /// whether that is so.
    fn enforce_cache_coherency(&self) -> bool {
        false
    }

    /// Starts or stops noting which pages are written (Linux: `set_dirty_tracking`).
    ///
    /// # Errors
    /// [`DirtyError`] with the reason.
    fn set_dirty_tracking(&self, on: bool) -> Result<(), DirtyError> {
        let _ = on;
        Err(DirtyError::Unsupported)
    }

    /// Tells `report` each run of pages of a range that was written, as first address and length in bytes, and forgets that
    /// if `clear` (Linux: `read_and_clear_dirty`). The caller invalidates before he relies on what he was told.
    ///
    /// # Errors
    /// [`DirtyError`] with the reason.
    fn read_and_clear_dirty(
        &self,
        iova: DmaAddr,
        len: u64,
        clear: bool,
        report: &mut dyn FnMut(DmaAddr, u64),
    ) -> Result<(), DirtyError> {
        let _ = (iova, len, clear, report);
        Err(DirtyError::Unsupported)
    }

    /// The page sizes of the table (Linux: `pgsize_bitmap`).
    fn page_sizes(&self) -> PageSizes {
        PageSizes::from_bits(0)
    }

    /// The first and last I/O address that can be mapped (Linux: `geometry`).
    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        (DmaAddr::new(0), DmaAddr::new(0))
    }
}
