//! The host's own devices, through VFIO.

use std::sync::Arc;

use backend_vfio::{Config, Vfio, VfioError};
use conformance::Bench;
use dma_api::Device;
use iommu_core::{DomainType, Fault};
use platform::Platform;
use platform::pci::{Function, PciAddress};

use crate::{Backend, BackendError, Confinement, Description, Disk, Options, Statistics, describe};

const NAME: &str = "vfio";

struct Host {
    vfio: Vfio,
    disk: PciAddress,
    platform: Arc<dyn Platform>,
}

pub(crate) fn open(options: &Options) -> Result<Box<dyn Backend>, BackendError> {
    let Disk::Controller(disk) = options.disk else {
        return Err(BackendError::Disk { backend: NAME, wanted: "the PCI address of an NVMe controller" });
    };
    if let Some(wanted) = options.domain_type.filter(|&wanted| wanted != DomainType::Dma) {
        return Err(BackendError::DomainType(wanted));
    }
    let vfio = Vfio::open(Config::new([disk])).map_err(|error| device_error(disk, error))?;
    let platform: Arc<dyn Platform> = vfio.platform().clone();
    Ok(Box::new(Host { vfio, disk, platform }))
}

fn device_error(address: PciAddress, error: VfioError) -> BackendError {
    match error {
        VfioError::NoSuchFunction(address) | VfioError::NotOpened(address) => {
            BackendError::NoSuchFunction(address)
        }
        other => BackendError::Device { address, why: Box::new(other) },
    }
}

impl Backend for Host {
    fn name(&self) -> &'static str {
        NAME
    }

    fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    /// Of the host, only what was taken.
    fn description(&self) -> Description {
        Description {
            iommus: vec!["the host's, through the kernel's VFIO".into()],
            memory: self.vfio.platform().memory(),
            functions: describe::functions(self.vfio.topology()),
            groups: describe::groups(self.vfio.iommu()),
        }
    }

    fn disk(&self) -> PciAddress {
        self.disk
    }

    fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError> {
        self.vfio.bind(address).map_err(|error| device_error(address, error))
    }

    unsafe fn trust(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError> {
        // SAFETY: the caller's trust, handed on.
        unsafe { self.vfio.trust(address) }.map_err(|error| device_error(address, error))
    }

    fn rogue(&self) -> Result<Box<dyn Bench>, BackendError> {
        Err(BackendError::NoRogue(NAME))
    }

    fn rogue_confinement(&self) -> Confinement {
        Confinement::Strict
    }

    fn reports_faults(&self) -> bool {
        false
    }

    /// The kernel logs them, and tells nobody.
    fn take_faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    /// The kernel does not say what its IOMMU does.
    fn statistics(&self) -> Statistics {
        let core = self.vfio.iommu().statistics();
        Statistics {
            maps: core.maps,
            unmaps: core.unmaps,
            bounces: self.vfio.bounce().statistics().maps,
            quarantined: core.quarantined,
            ..Statistics::default()
        }
    }

    /// The host's free memory is the host's to check.
    fn check_free_memory(&self) -> Vec<String> {
        Vec::new()
    }
}
