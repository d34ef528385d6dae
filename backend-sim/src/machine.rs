//! The machine with the stack on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use amd_vi::ivrs::Madt;
use amd_vi::{AmdVi, InitError, IrqRemapConfig};
use dma_api::{BusRanges, Counted, Device, DeviceBuilder, OpsCounters, OpsStatistics};
use iommu_core::pci::{HostBridge, QUIRKS, Topology};
use iommu_core::{Fault, Group, GroupError, Iommu, IrqRemap, Settings};
use platform::pci::{Function, PciAddress, RequesterId};
use platform::{DmaAddr, FreeFrameChanged, PhysAddr, Platform};
use sim_hardware::{Machine, MachineConfig, MachineError, dma_engine, iommu, nvme, virtio};
use swiotlb::{PoolTooSmall, Swiotlb, SwiotlbDma};

use crate::engine::{EngineBench, EngineError};
use crate::function::SimFunction;
use crate::hardware::SimHardware;
use crate::platform::SimPlatform;
use crate::threads::{InterruptHandler, Threads};

/// What the machine should be like.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that is its disk.
    pub disk: PathBuf,
    /// Whether the machine may write to it.
    pub disk_writable: bool,
    /// I/O queues of the disk's controller, at least 1.
    pub queues: u16,
    /// A virtio block device, if there is to be one.
    pub virtio_blk: Option<virtio::Config>,
    /// Whether there are devices whose requests carry another name than their own: see [`Machine`].
    pub aliasing_devices: bool,
    /// The IOMMU, if there is one.
    pub iommu: Option<iommu::Config>,
    /// What the DMA engines can do. Whether they may is the driver's choice.
    pub engines: dma_engine::Config,
    /// What the IOMMU's driver is told to choose: by default interrupts are remapped, since without any device can raise any.
    pub driver: amd_vi::Config,
    /// How default domains are chosen.
    pub settings: Settings,
    /// Which devices are not trusted even where [`SimMachine::trust`] binds them: their domain is strict and parts of pages
    /// are bounced for them.
    pub untrusted: Vec<PciAddress>,
    /// Bytes of the bounce pool.
    pub bounce_pool: usize,
    /// How often flush queues are flushed, at the latest (Linux: `IOVA_DEFAULT_FQ_TIMEOUT`, 10 ms).
    pub tick: Duration,
}

impl Config {
    /// The default machine with this disk.
    pub fn new(disk: impl Into<PathBuf>) -> Self {
        Self {
            disk: disk.into(),
            disk_writable: false,
            queues: 8,
            virtio_blk: None,
            aliasing_devices: false,
            iommu: Some(iommu::Config::default()),
            engines: dma_engine::Config::default(),
            driver: amd_vi::Config {
                irq_remap: Some(IrqRemapConfig {
                    x2apic: true,
                    madt: Some(Madt { io_apics: vec![Machine::IO_APIC_ID] }),
                }),
                ..amd_vi::Config::default()
            },
            settings: Settings::default(),
            untrusted: Vec::new(),
            bounce_pool: 8 << 20,
            tick: Duration::from_millis(10),
        }
    }

    /// The same without an IOMMU.
    #[must_use]
    pub fn without_iommu(mut self) -> Self {
        self.iommu = None;
        // Every buffer above 4 GiB is bounced.
        self.bounce_pool = 32 << 20;
        self
    }
}

/// Why the machine did not boot, or a device was not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The hardware could not be put together.
    #[error("{0}")]
    Machine(#[from] MachineError),
    /// There is no room for the bounce pool.
    #[error("{0}")]
    Pool(#[from] PoolTooSmall),
    /// The IOMMU did not come up.
    #[error("the IOMMU did not come up: {0}")]
    Init(#[from] InitError),
    /// A group could not be set up, or a device not bound.
    #[error("{0}")]
    Group(#[from] GroupError),
    /// No thread for the stack's timers.
    #[error("the host gives no thread: {0}")]
    Thread(#[from] std::io::Error),
    /// There is no such function.
    #[error("there is no function {0}")]
    NoSuchFunction(PciAddress),
    /// Nothing confines the device, and nobody has said that he trusts it.
    #[error("without an IOMMU nothing confines {0}: binding it takes trust")]
    NeedsTrust(PciAddress),
    /// The DMA engine does not work.
    #[error("{0}")]
    Engine(#[from] EngineError),
}

/// A simulated machine, booted.
// Fields are dropped in this order: threads before what they call, software before hardware.
#[derive(Debug)]
pub struct SimMachine {
    threads: Option<Threads>,
    interrupt_handler: Option<Arc<InterruptHandler>>,
    iommu: Option<Arc<Iommu>>,
    driver: Option<Arc<AmdVi>>,
    bounce: Arc<Swiotlb>,
    untranslated: Arc<OpsCounters>,
    platform: Arc<SimPlatform>,
    machine: Machine,
    topology: Topology,
}

impl SimMachine {
    /// Puts a machine together and boots the stack on it.
    ///
    /// # Errors
    /// [`SimError`] with the reason.
    pub fn boot(config: Config) -> Result<Self, SimError> {
        let machine = Machine::new(MachineConfig {
            iommu: config.iommu,
            nvme: nvme::Config { io_queues: config.queues.max(1), ..nvme::Config::default() },
            disk_writable: config.disk_writable,
            virtio_blk: config.virtio_blk,
            engines: config.engines,
            aliasing_devices: config.aliasing_devices,
            ..MachineConfig::new(config.disk)
        })?;
        let platform = Arc::new(SimPlatform::new(Arc::clone(&machine.ram)));
        let dyn_platform: Arc<dyn Platform> = platform.clone();
        // Devices with narrow masks must reach it.
        const POOL_LIMIT: PhysAddr = PhysAddr::new(0x03ff_ffff);
        let pool =
            swiotlb::Config { size: config.bounce_pool, areas: 4, limit: POOL_LIMIT, ..Default::default() };
        let bounce = Arc::new(Swiotlb::new(&dyn_platform, &pool)?);
        let mut topology = Topology::scan(&*machine.pci, 0, QUIRKS);
        let (first, last) = machine.pci.window();
        let windows = vec![(DmaAddr::new(first), DmaAddr::new(last))];
        topology.insert_host_bridge(0, 0, HostBridge { windows, ..HostBridge::default() });
        let mut booted = Self {
            threads: None,
            interrupt_handler: None,
            iommu: None,
            driver: None,
            bounce,
            untranslated: Arc::default(),
            platform,
            machine,
            topology,
        };
        if booted.machine.iommu.is_some() {
            booted.bring_iommu_up(
                dyn_platform,
                config.driver,
                config.settings,
                &config.untrusted,
                config.tick,
            )?;
        }
        Ok(booted)
    }

    fn bring_iommu_up(
        &mut self,
        platform: Arc<dyn Platform>,
        choices: amd_vi::Config,
        settings: Settings,
        untrusted: &[PciAddress],
        tick: Duration,
    ) -> Result<(), SimError> {
        let vector = self.machine.interrupts.allocate();
        let x2apic = choices.irq_remap.as_ref().is_some_and(|remap| remap.x2apic);
        let hardware = SimHardware { machine: &self.machine, vector: vector.as_ref(), x2apic };
        let driver = AmdVi::init(Arc::clone(&platform), self.machine.ivrs(), &hardware, choices)?;
        let iommu = Arc::new(Iommu::new(platform, settings, Some(Arc::clone(&self.bounce))));
        iommu.register(driver.clone());
        iommu.probe(&self.topology, |address| untrusted.contains(&address))?;
        let handler = Arc::new(InterruptHandler::new(Arc::clone(&iommu), Arc::clone(&driver)));
        let (platform, ticked) = (Arc::clone(&self.platform), Arc::clone(&iommu));
        self.threads = Some(Threads::start(tick, platform, ticked, Arc::clone(&handler), vector)?);
        self.interrupt_handler = Some(handler);
        self.iommu = Some(iommu);
        self.driver = Some(driver);
        Ok(())
    }

    /// Memory and time.
    pub fn platform(&self) -> &Arc<SimPlatform> {
        &self.platform
    }

    /// The hardware.
    pub fn hardware(&self) -> &Machine {
        &self.machine
    }

    /// The IOMMU core, if there is an IOMMU.
    pub fn iommu(&self) -> Option<&Arc<Iommu>> {
        self.iommu.as_ref()
    }

    /// The IOMMU driver, if there is an IOMMU.
    pub fn driver(&self) -> Option<&Arc<AmdVi>> {
        self.driver.as_ref()
    }

    /// Interrupt remapping, if interrupts are remapped.
    pub fn irq_remap(&self) -> Option<Arc<dyn IrqRemap>> {
        self.driver.as_ref().and_then(|driver| driver.irq_remap().ok())
    }

    /// The bounce pool.
    pub fn bounce(&self) -> &Arc<Swiotlb> {
        &self.bounce
    }

    /// What was mapped without an IOMMU.
    pub fn untranslated(&self) -> OpsStatistics {
        self.untranslated.statistics()
    }

    /// The PCI tree, as it was found.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where a function of segment 0 is.
    pub fn address(id: RequesterId) -> PciAddress {
        PciAddress { segment: 0, id }
    }

    /// The IOMMU group of a function.
    ///
    /// # Errors
    /// [`SimError::NoSuchFunction`] when it has none.
    pub fn group(&self, address: PciAddress) -> Result<Arc<Group>, SimError> {
        let group = self.iommu.as_ref().and_then(|iommu| iommu.group_of(address));
        group.ok_or(SimError::NoSuchFunction(address))
    }

    fn function(&self, address: PciAddress) -> Result<Arc<dyn Function>, SimError> {
        self.topology.get(address).ok_or(SimError::NoSuchFunction(address))?;
        Ok(Arc::new(SimFunction {
            address,
            tree: Arc::clone(&self.machine.pci),
            interrupts: Arc::clone(&self.machine.interrupts),
            remap: self.irq_remap(),
            aliases: self.topology.dma_aliases(address),
            platform: Arc::clone(&self.platform),
        }))
    }

    /// Binds a driver to a function that the IOMMU confines in full.
    ///
    /// # Errors
    /// [`SimError::NeedsTrust`] without an IOMMU, and what [`Group::bind`] says.
    pub fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), SimError> {
        let function = self.function(address)?;
        if self.iommu.is_none() {
            return Err(SimError::NeedsTrust(address));
        }
        Ok((function, self.group(address)?.bind(address)?))
    }

    /// Binds a driver to a function that is not confined in full: in a lazy or identity domain, or without an IOMMU. There
    /// the device gets a 32-bit mask as long as its driver sets no other, and what it does not reach is bounced.
    ///
    /// # Errors
    /// What [`Group::bind`] says.
    ///
    /// # Safety
    /// The caller trusts the device and its driver to touch only memory that they were given, and to stop before it is
    /// given back.
    pub unsafe fn trust(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), SimError> {
        let function = self.function(address)?;
        if self.iommu.is_some() {
            // SAFETY: the caller's trust.
            let device = unsafe { self.group(address)?.bind_trusted(address) }?;
            return Ok((function, device));
        }
        let platform: Arc<dyn Platform> = self.platform.clone();
        // SAFETY: the caller's trust. These devices do not reach beyond 4 GiB, whatever their drivers think.
        let ops = unsafe { SwiotlbDma::new(Arc::clone(&platform), Some(Arc::clone(&self.bounce)), ()) };
        let ops = Counted::new(ops, Arc::clone(&self.untranslated));
        let builder = DeviceBuilder::new(address.to_string());
        let builder = builder.behind_bus(BusRanges::identity(), u64::from(u32::MAX));
        Ok((function, builder.build(Arc::new(ops), platform)))
    }

    /// Binds a DMA engine as a device that does as it is told.
    ///
    /// # Errors
    /// As [`SimMachine::bind`] and [`SimMachine::trust`], and [`SimError::Engine`].
    pub fn engine(&self, id: RequesterId) -> Result<EngineBench, SimError> {
        let address = Self::address(id);
        let (function, device) = match self.bind(address) {
            Err(SimError::NeedsTrust(_) | SimError::Group(GroupError::NeedsTrust(_))) => {
                // SAFETY: whoever asks for an engine tells it what to do: tests and shows, on memory of this machine, which
                // is no memory of the process.
                unsafe { self.trust(address) }?
            }
            bound => bound?,
        };
        Ok(EngineBench::new(function, device)?)
    }

    /// The faults since the last call: of every request that was refused before this one, whether or not its interrupt has
    /// been handled.
    pub fn take_faults(&self) -> Vec<Fault> {
        if let Some(handler) = &self.interrupt_handler {
            handler.handle();
        }
        self.iommu.as_ref().map(|iommu| iommu.take_faults()).unwrap_or_default()
    }

    /// Free memory that somebody has written to.
    pub fn check_free_memory(&self) -> Vec<FreeFrameChanged> {
        self.platform.frames().check_free()
    }
}
