//! QEMU's devices behind QEMU's AMD IOMMU.

use std::sync::Arc;

use backend_qemu::{Config, Defect, Emulator, Program, ProgramError, QemuError, QemuMachine};
use conformance::Bench;
use dma_api::Device;
use iommu_core::Fault;
use platform::Platform;
use platform::pci::{Function, PciAddress};

use crate::{Backend, BackendError, Confinement, Description, Options, Statistics, describe, settings};

const NAME: &str = "qemu";
/// Where the disk's controller and the device of [`Backend::rogue`] are.
const DISK: PciAddress = PciAddress::new(0, 0, 4, 0);
const ROGUE: PciAddress = PciAddress::new(0, 0, 5, 0);

struct Qemu {
    machine: QemuMachine,
    platform: Arc<dyn Platform>,
}

pub(crate) fn open(options: &Options) -> Result<Box<dyn Backend>, BackendError> {
    let settings = settings::of(options)?;
    let (path, writable) = options.disk.file(NAME)?;
    let program = match Program::find(Emulator::X86_64) {
        // Whoever has named one wants that one.
        Err(error @ ProgramError::NotFound(_)) if !Program::is_demanded() => {
            return Err(BackendError::Absent(Box::new(error)));
        }
        found => found.map_err(|error| BackendError::Start(Box::new(error)))?,
    };
    let config = Config::q35()
        .program(program)
        .settings(settings)
        .nvme(DISK.id.device(), path, writable)
        .edu(ROGUE.id.device());
    let machine = QemuMachine::start(config).map_err(|error| BackendError::Start(Box::new(error)))?;
    let group = machine.group(DISK).map_err(|error| device_error(DISK, error))?;
    if let Some(wanted) = options.domain_type
        && group.domain_type() != Some(wanted)
    {
        return Err(BackendError::DomainType(wanted));
    }
    let platform: Arc<dyn Platform> = machine.platform().clone();
    Ok(Box::new(Qemu { machine, platform }))
}

fn device_error(address: PciAddress, error: QemuError) -> BackendError {
    match error {
        QemuError::NoSuchFunction(address) => BackendError::NoSuchFunction(address),
        other => BackendError::Device { address, why: Box::new(other) },
    }
}

impl Backend for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    fn description(&self) -> Description {
        let units = self.machine.driver().map(|driver| driver.units()).unwrap_or_default();
        let version = self.machine.version();
        let iommu = |address| format!("AMD IOMMU of QEMU {version} at {address}");
        Description {
            iommus: units.iter().map(|unit| iommu(unit.address())).collect(),
            memory: self.machine.memory(),
            functions: describe::functions(self.machine.topology()),
            groups: self.machine.iommu().map(|iommu| describe::groups(iommu)).unwrap_or_default(),
        }
    }

    fn disk(&self) -> PciAddress {
        DISK
    }

    fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError> {
        self.machine.bind(address).map_err(|error| device_error(address, error))
    }

    unsafe fn trust(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError> {
        // SAFETY: the caller's trust, handed on.
        unsafe { self.machine.trust(address) }.map_err(|error| device_error(address, error))
    }

    fn rogue(&self) -> Result<Box<dyn Bench>, BackendError> {
        match self.machine.edu(ROGUE) {
            Ok(edu) => Ok(Box::new(edu)),
            Err(error) => Err(device_error(ROGUE, error)),
        }
    }

    fn rogue_confinement(&self) -> Confinement {
        let group = self.machine.group(ROGUE);
        Confinement::of(group.ok().and_then(|group| group.domain_type()))
    }

    fn reports_faults(&self) -> bool {
        !self.machine.version().has(Defect::NoEventLog)
    }

    fn take_faults(&self) -> Vec<Fault> {
        self.machine.take_faults()
    }

    /// QEMU does not say what its IOMMU remembers.
    fn statistics(&self) -> Statistics {
        let core = self.machine.iommu().map(|iommu| iommu.statistics()).unwrap_or_default();
        let units = self.machine.driver().map(|driver| driver.units()).unwrap_or_default();
        let invalidations = units.iter().map(|unit| unit.commands().statistics().invalidations);
        Statistics {
            maps: core.maps,
            unmaps: core.unmaps,
            bounces: self.machine.bounce().statistics().maps,
            invalidations: invalidations.sum(),
            iotlb_hits: 0,
            iotlb_misses: 0,
            faults: core.faults,
            quarantined: core.quarantined,
        }
    }

    fn check_free_memory(&self) -> Vec<String> {
        self.machine.check_free_memory().iter().map(ToString::to_string).collect()
    }
}
