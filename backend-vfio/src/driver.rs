//! VFIO as an IOMMU driver: containers are domains, and groups are the kernel's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use iommu_core::{
    AttachError, Capability, DeviceGroup, DomainError, DomainOps, IommuOps, ProbeError, Probed, ResvRegion,
    SyncError,
};
use platform::pci::PciAddress;
use platform::sync::Mutex;
use platform::{DmaAddr, IotlbGather, MapError, PageSizes, PhysAddr, Prot};

use crate::container::Container;
use crate::device::OpenDevice;
use crate::error::VfioError;
use crate::group::VfioGroup;
use crate::host::Host;
use crate::info::IommuInfo;

/// The devices that are taken, and their groups.
#[derive(Debug)]
pub(crate) struct Registry {
    host: Host,
    devices: Mutex<BTreeMap<PciAddress, Claimed>>,
}

#[derive(Debug)]
struct Claimed {
    group: Arc<VfioGroup>,
    /// The device's file, while somebody has it.
    open: Weak<OpenDevice>,
    /// Whether it was released.
    gone: Arc<AtomicBool>,
}

impl Registry {
    fn group(&self, address: PciAddress) -> Option<Arc<VfioGroup>> {
        self.devices.lock().get(&address).map(|claimed| Arc::clone(&claimed.group))
    }

    /// Takes a device, and its group unless another device has brought that.
    fn claim(&self, address: PciAddress) -> Result<(), VfioError> {
        let host = &self.host;
        if !host.function(address).exists() {
            return Err(VfioError::NoSuchFunction(address));
        }
        let id = host.group_of(address).ok_or(VfioError::NoIommu(address))?;
        let driver = host.driver_of(address);
        if !driver.as_ref().is_some_and(|driver| driver.starts_with("vfio")) {
            return Err(VfioError::NotBound { address, driver });
        }
        let mut devices = self.devices.lock();
        let known = devices.values().find(|claimed| claimed.group.id == id);
        let group = match known {
            Some(claimed) => Arc::clone(&claimed.group),
            None => Arc::new(VfioGroup::open(host, address)?),
        };
        devices.entry(address).or_insert(Claimed { group, open: Weak::new(), gone: Arc::default() });
        Ok(())
    }

    /// The device's file, opened unless it is.
    fn open(&self, address: PciAddress) -> Result<Arc<OpenDevice>, VfioError> {
        let mut devices = self.devices.lock();
        let claimed = devices.get_mut(&address).ok_or(VfioError::NotOpened(address))?;
        if let Some(open) = claimed.open.upgrade() {
            return Ok(open);
        }
        let open = Arc::new(OpenDevice::open(&self.host, &claimed.group, address)?);
        claimed.open = Arc::downgrade(&open);
        Ok(open)
    }

    fn release(&self, address: PciAddress) {
        let mut devices = self.devices.lock();
        let Some(claimed) = devices.remove(&address) else { return };
        claimed.gone.store(true, Ordering::Relaxed);
        if let Some(open) = claimed.open.upgrade() {
            open.revoke();
        }
        let shared = devices.values().any(|other| Arc::ptr_eq(&other.group, &claimed.group));
        if !shared {
            // What fails here is done by the kernel when the files are closed; until then the device is no bus master.
            let _ = claimed.group.leave();
        }
    }
}

/// The driver (Linux: `vfio_iommu_type1`, as user space has it).
#[derive(Debug)]
pub(crate) struct Type1 {
    registry: Arc<Registry>,
}

impl Type1 {
    pub(crate) fn new(host: Host) -> Self {
        Self { registry: Arc::new(Registry { host, devices: Mutex::default() }) }
    }

    /// Takes a device, so that it can be probed.
    ///
    /// # Errors
    /// [`VfioError`] with the reason.
    pub(crate) fn claim(&self, address: PciAddress) -> Result<(), VfioError> {
        self.registry.claim(address)
    }

    /// What says that a device was released.
    pub(crate) fn gone(&self, address: PciAddress) -> Option<Arc<AtomicBool>> {
        self.registry.devices.lock().get(&address).map(|claimed| Arc::clone(&claimed.gone))
    }

    /// The file of a device whose group is in a domain.
    ///
    /// # Errors
    /// [`VfioError::NotOpened`], and the kernel's.
    pub(crate) fn device(&self, address: PciAddress) -> Result<Arc<OpenDevice>, VfioError> {
        self.registry.open(address)
    }
}

// SAFETY: the kernel confines a group to what its container maps, or to nothing outside of one; a released device is no bus
// master, and its group leaves its container with its last device. The kernel's groups are of devices that hardware tells
// apart from all others.
unsafe impl IommuOps for Type1 {
    fn name(&self) -> &str {
        "vfio-type1"
    }

    fn capable(&self, _dev: PciAddress, capability: Capability) -> bool {
        // The kernel gives no device to user space whose accesses are not coherent. An unmap is over when its call is:
        // nothing can be deferred.
        capability == Capability::CacheCoherency
    }

    fn probe_device(&self, dev: PciAddress) -> Result<Probed, ProbeError> {
        self.registry.group(dev).map(|_| Probed::default()).ok_or(ProbeError::NotMine)
    }

    fn release_device(&self, dev: PciAddress) {
        self.registry.release(dev);
    }

    fn device_group(&self, dev: PciAddress) -> DeviceGroup {
        self.registry.group(dev).map_or(DeviceGroup::Generic, |group| DeviceGroup::Given(group.id))
    }

    fn domain_alloc_paging(&self, dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError> {
        let group = self.registry.group(dev).ok_or(DomainError::Unsupported)?;
        let container = Container::open(&self.registry.host).map_err(|_| DomainError::Exhausted)?;
        Ok(Arc::new(Type1Domain {
            container: Arc::new(container),
            info: group.info.clone(),
            registry: Arc::clone(&self.registry),
        }))
    }

    fn blocked_domain(&self) -> Option<Arc<dyn DomainOps>> {
        Some(Arc::new(NoContainer { registry: Arc::clone(&self.registry) }))
    }

    fn resv_regions(&self, dev: PciAddress) -> Vec<ResvRegion> {
        self.registry.group(dev).map(|group| group.info.reserved()).unwrap_or_default()
    }
}

/// A container as a domain.
#[derive(Debug)]
struct Type1Domain {
    container: Arc<Container>,
    info: IommuInfo,
    registry: Arc<Registry>,
}

// SAFETY: the kernel leads each group of the container to exactly the memory that was mapped, pinned, in the ways that the
// map allows, and an unmap is over, caches included, when its call returns.
unsafe impl DomainOps for Type1Domain {
    unsafe fn attach_dev(&self, dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        self.registry.group(dev).ok_or(AttachError::Device)?.enter(&self.container)
    }

    unsafe fn map_pages(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        page_size: u64,
        count: usize,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        match page_size.checked_mul(count as u64) {
            // SAFETY: the caller's promise.
            Some(len) => unsafe { self.map_range(iova, phys, len, prot) },
            None => (0, Err(MapError::OutOfRange(iova))),
        }
    }

    /// One call of the kernel, whatever the pages: it finds the largest itself.
    unsafe fn map_range(
        &self,
        iova: DmaAddr,
        phys: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        // SAFETY: the caller's promise.
        match unsafe { self.container.map(iova, phys, len, prot) } {
            Ok(()) => (len, Ok(())),
            Err(error) => (0, Err(error)),
        }
    }

    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        let unmapped = self.container.unmap(iova, len);
        if unmapped != 0 {
            gather.add_range(iova, unmapped);
        }
        unmapped
    }

    fn iotlb_sync(&self, _gather: &IotlbGather<'_>) -> Result<(), SyncError> {
        Ok(())
    }

    fn iova_to_phys(&self, iova: DmaAddr) -> Option<PhysAddr> {
        self.container.translate(iova)
    }

    fn page_sizes(&self) -> PageSizes {
        self.info.page_sizes
    }

    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        self.info.aperture()
    }
}

/// Outside of any container, where nothing passes.
#[derive(Debug)]
struct NoContainer {
    registry: Arc<Registry>,
}

// SAFETY: a group without a container reaches nothing; one that cannot leave has nothing mapped there.
unsafe impl DomainOps for NoContainer {
    unsafe fn attach_dev(&self, dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        self.registry.group(dev).map_or(Ok(()), |group| group.leave())
    }
}
