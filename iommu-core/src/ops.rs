//! What an IOMMU driver implements: `IommuOps` for the hardware, `DomainOps` for one of its domains.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, IotlbGather, MapError, PageSizes, PhysAddr, Prot};

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
        })
    }
}

/// What a driver can be asked about (Linux: `enum iommu_cap`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Capability {
    /// Device accesses can be made coherent (`IOMMU_CAP_CACHE_COHERENCY`).
    CacheCoherency,
    /// Invalidations can be collected and done later (`IOMMU_CAP_DEFERRED_FLUSH`).
    DeferredFlush,
}

/// What a driver knows of a device that it claims.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Probed {
    /// Other requester IDs that the device may use on its way up: firmware's aliases.
    pub aliases: Vec<RequesterId>,
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
}

/// An invalidation did not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the IOMMU did not finish an invalidation")]
pub struct SyncError;

/// What a reserved region is for (Linux: `enum iommu_resv_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum ResvType {
    /// Must be mapped to itself always (`IOMMU_RESV_DIRECT`).
    Direct,
    /// Must be mapped to itself until a driver takes over (`IOMMU_RESV_DIRECT_RELAXABLE`).
    DirectRelaxable,
    /// Must never be mapped (`IOMMU_RESV_RESERVED`).
    Reserved,
    /// Message interrupts, which hardware does not translate (`IOMMU_RESV_MSI`).
    Msi,
}

/// A range of I/O addresses that is not for everybody (Linux: `struct iommu_resv_region`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResvRegion {
    /// First address.
    pub start: DmaAddr,
    /// Length in bytes.
    pub len: u64,
    /// What it is for.
    pub kind: ResvType,
    /// Permissions of a direct mapping.
    pub prot: Prot,
}

/// An IOMMU driver (Linux: `struct iommu_ops`). Drivers keep their own state per device, keyed by its address.
///
/// # Safety
/// The DMA API rests on the domains that this returns: see [`DomainOps`]. A device in the blocked domain reaches no
/// memory at all.
#[doc(alias = "iommu_ops")]
pub unsafe trait IommuOps: Send + Sync + fmt::Debug {
    /// A name for messages.
    fn name(&self) -> &str;

    /// Whether the IOMMU of `dev` can do something (Linux: `capable`).
    fn capable(&self, dev: PciAddress, capability: Capability) -> bool;

    /// Claims a device (Linux: `probe_device`).
    ///
    /// # Errors
    /// [`ProbeError::NotMine`] when another driver may ask.
    fn probe_device(&self, dev: PciAddress) -> Result<Probed, ProbeError>;

    /// Forgets a device, which then reaches nothing (Linux: `release_device`).
    fn release_device(&self, dev: PciAddress);

    /// Makes an empty domain with a page table, for `dev` and devices like it (Linux: `domain_alloc_paging`).
    ///
    /// # Errors
    /// [`DomainError`] with the reason.
    fn domain_alloc_paging(&self, dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError>;

    /// The domain in which everything passes, if the hardware has one (Linux: `identity_domain`).
    fn identity_domain(&self) -> Option<Arc<dyn DomainOps>>;

    /// The domain in which nothing passes (Linux: `blocked_domain`).
    fn blocked_domain(&self) -> Arc<dyn DomainOps>;

    /// The type of default domain that the driver insists on for a device (Linux: `def_domain_type`).
    fn def_domain_type(&self, dev: PciAddress) -> Option<DomainType> {
        let _ = dev;
        None
    }

    /// I/O addresses that are not free for a device (Linux: `get_resv_regions`).
    fn resv_regions(&self, dev: PciAddress) -> Vec<ResvRegion> {
        let _ = dev;
        Vec::new()
    }
}

/// One domain of an IOMMU driver (Linux: `struct iommu_domain_ops`): a translation that devices can be attached to.
///
/// Only the first member is ever called on a blocked or identity domain; the others then return what the defaults do.
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
    fn attach_dev(&self, dev: PciAddress, old: Option<&dyn DomainOps>) -> Result<(), AttachError>;

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

    /// Where an I/O address leads (Linux: `iova_to_phys`).
    fn iova_to_phys(&self, iova: DmaAddr) -> Option<PhysAddr> {
        let _ = iova;
        None
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
