//! The simulated machine, with and without its IOMMU.

use std::sync::Arc;

use backend_sim::sim_hardware::Machine;
use backend_sim::{Config, SimError, SimMachine};
use conformance::Bench;
use dma_api::Device;
use iommu_core::Fault;
use platform::Platform;
use platform::pci::{Function, PciAddress};

#[cfg(feature = "sim")]
use crate::settings;
use crate::{Backend, BackendError, Confinement, Description, Options, Statistics, describe};

struct Sim {
    name: &'static str,
    machine: SimMachine,
    platform: Arc<dyn Platform>,
}

/// With the IOMMU.
#[cfg(feature = "sim")]
pub(crate) fn open(options: &Options) -> Result<Box<dyn Backend>, BackendError> {
    let settings = settings::of(options)?;
    let name = "sim";
    boot(name, Config { settings, ..config(name, options)? })
}

/// Without it.
#[cfg(feature = "swiotlb")]
pub(crate) fn open_without_iommu(options: &Options) -> Result<Box<dyn Backend>, BackendError> {
    const NAME: &str = "swiotlb";
    if options.domain_type.is_some() {
        return Err(BackendError::NoDomains(NAME));
    }
    boot(NAME, config(NAME, options)?.without_iommu())
}

fn config(name: &'static str, options: &Options) -> Result<Config, BackendError> {
    let (path, disk_writable) = options.disk.file(name)?;
    Ok(Config { disk_writable, queues: options.queues, ..Config::new(path) })
}

fn boot(name: &'static str, config: Config) -> Result<Box<dyn Backend>, BackendError> {
    let machine = SimMachine::boot(config).map_err(|error| BackendError::Start(Box::new(error)))?;
    let platform: Arc<dyn Platform> = machine.platform().clone();
    Ok(Box::new(Sim { name, machine, platform }))
}

fn device_error(address: PciAddress, error: SimError) -> BackendError {
    match error {
        SimError::NoSuchFunction(address) => BackendError::NoSuchFunction(address),
        other => BackendError::Device { address, why: Box::new(other) },
    }
}

impl Backend for Sim {
    fn name(&self) -> &'static str {
        self.name
    }

    fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }

    fn description(&self) -> Description {
        let units = self.machine.driver().map(|driver| driver.units()).unwrap_or_default();
        let iommus = units.iter().map(|unit| format!("AMD IOMMU at {}", unit.address())).collect();
        let memory = self.machine.hardware().ram.ranges().iter().map(|&(_, len)| len).sum();
        let functions = describe::functions(self.machine.topology());
        let groups = self.machine.iommu().map(|iommu| describe::groups(iommu)).unwrap_or_default();
        Description { iommus, memory, functions, groups }
    }

    fn disk(&self) -> PciAddress {
        SimMachine::address(Machine::NVME)
    }

    fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError> {
        self.machine.bind(address).map_err(|error| device_error(address, error))
    }

    unsafe fn trust(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError> {
        // SAFETY: the caller's trust, handed on.
        unsafe { self.machine.trust(address) }.map_err(|error| device_error(address, error))
    }

    fn rogue(&self) -> Result<Box<dyn Bench>, BackendError> {
        let address = SimMachine::address(Machine::ENGINE);
        match self.machine.engine(Machine::ENGINE) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) => Err(device_error(address, error)),
        }
    }

    fn rogue_confinement(&self) -> Confinement {
        let group = self.machine.group(SimMachine::address(Machine::ENGINE));
        Confinement::of(group.ok().and_then(|group| group.domain_type()))
    }

    fn reports_faults(&self) -> bool {
        self.machine.iommu().is_some()
    }

    fn take_faults(&self) -> Vec<Fault> {
        self.machine.take_faults()
    }

    fn statistics(&self) -> Statistics {
        let core = self.machine.iommu().map(|iommu| iommu.statistics()).unwrap_or_default();
        let unit = self.machine.hardware().iommu.as_ref().map(|unit| unit.stats()).unwrap_or_default();
        const COMPLETION_WAIT: usize = 1;
        let invalidations = unit.commands.iter().enumerate().filter(|&(opcode, _)| opcode != COMPLETION_WAIT);
        let bounced = self.machine.bounce().statistics().maps;
        let direct = self.machine.untranslated();
        Statistics {
            maps: core.maps + direct.maps + direct.allocations,
            unmaps: core.unmaps + direct.unmaps + direct.frees,
            bounces: bounced,
            invalidations: invalidations.map(|(_, count)| count).sum(),
            iotlb_hits: unit.iotlb_hits,
            iotlb_misses: unit.iotlb_misses,
            faults: core.faults,
            quarantined: core.quarantined,
        }
    }

    fn check_free_memory(&self) -> Vec<String> {
        self.machine.check_free_memory().iter().map(ToString::to_string).collect()
    }
}
