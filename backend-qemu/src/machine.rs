//! The machine with the stack on it.

use std::io::Write as _;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use amd_vi::{AmdVi, Hardware, InitError, MsiMessage};
use dma_api::{BusRanges, Counted, Device, DeviceBuilder, OpsCounters, OpsStatistics};
use iommu_core::pci::{HostBridge, QUIRKS, Topology};
use iommu_core::{Fault, Group, GroupError, Iommu, IommuOps};
use platform::pci::{ConfigSpace, Function, PciAddress, PciError};
use platform::{DmaAddr, FreeFrameChanged, Mmio, OutOfFrames, PhysAddr, Platform};
use qemu_devices::{Edu, EduBench, EduError};
use swiotlb::{PoolTooSmall, Swiotlb, SwiotlbDma};

use crate::acpi::{AcpiError, AcpiTables};
use crate::config::{Config, Unit};
use crate::config_space::QemuConfigSpace;
use crate::enumerate::{Bars, enumerate};
use crate::function::QemuFunction;
use crate::fw_cfg::FwCfg;
use crate::messages::{MessagePage, WithMessages};
use crate::mmio::QtestMmio;
use crate::monitor::Monitor;
use crate::platform::QemuPlatform;
use crate::process::Process;
use crate::program::{Program, ProgramError, Version};
use crate::qtest::{Qtest, QtestError};
use crate::ram::{Ram, path_of, unnamed};
use crate::threads::{EventReader, Ticker};

/// Why the machine did not start, or a device was not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuError {
    /// There is no QEMU.
    #[error("{0}")]
    Program(#[from] ProgramError),
    /// The host gives no memory, sockets, processes or threads.
    #[error("the host does not let QEMU start: {0}")]
    Host(#[from] std::io::Error),
    /// QEMU has ended, or hangs.
    #[error("{error}; it says: {messages}")]
    Qemu {
        /// What did not work.
        error: QtestError,
        /// QEMU's standard error.
        messages: String,
    },
    /// The ACPI tables cannot be had.
    #[error("{0}")]
    Acpi(#[from] AcpiError),
    /// No memory for interrupt messages.
    #[error("{0}")]
    Memory(#[from] OutOfFrames),
    /// There is no room for the bounce pool.
    #[error("{0}")]
    Pool(#[from] PoolTooSmall),
    /// The IOMMU did not come up.
    #[error("the IOMMU did not come up: {0}")]
    Init(#[from] InitError),
    /// A group could not be set up, or a device not bound.
    #[error("{0}")]
    Group(#[from] GroupError),
    /// There is no such function.
    #[error("there is no function {0}")]
    NoSuchFunction(PciAddress),
    /// Nothing confines the device, and nobody has said that he trusts it.
    #[error("without an IOMMU nothing confines {0}: binding it takes trust")]
    NeedsTrust(PciAddress),
    /// `edu` does not work.
    #[error("{0}")]
    Edu(#[from] EduError),
}

impl From<PciError> for QemuError {
    fn from(error: PciError) -> Self {
        Self::Edu(error.into())
    }
}

/// A machine of QEMU's, with its processor halted and the stack of this process in its place.
///
/// What was made on it may outlive it: its devices no longer do DMA then, and its registers read as ones.
// Fields are dropped in this order: threads before what they call, software before hardware.
#[derive(Debug)]
pub struct QemuMachine {
    ticker: Option<Ticker>,
    events: Option<Arc<EventReader>>,
    bounce: Arc<Swiotlb>,
    untranslated: Arc<OpsCounters>,
    topology: Topology,
    acpi: AcpiTables,
    bars: Arc<Bars>,
    messages: Arc<MessagePage>,
    config_space: Arc<QemuConfigSpace>,
    platform: Arc<QemuPlatform>,
    qtest: Arc<Qtest>,
    monitor: Monitor,
    process: Process,
    version: Version,
    memory: u64,
}

impl QemuMachine {
    /// Starts QEMU, does what firmware does, and boots the stack.
    ///
    /// # Errors
    /// [`QemuError`] with the reason.
    pub fn start(config: Config) -> Result<Self, QemuError> {
        let board = config.board;
        let program = config.program.clone().map_or_else(|| Program::find(board.emulator), Ok)?;
        let version = program.version();
        let mut ram = Ram::new(config.memory as usize)?;
        ram.start_with(board.halt);
        let firmware = halting_firmware()?;
        let firmware_path = board.is_pc.then(|| path_of(&firmware));
        let (ours, theirs) = UnixStream::pair()?;
        let arguments = config.arguments(version, &ram.path(), firmware_path.as_deref());
        let (monitor, their_monitor) = UnixStream::pair()?;
        let process = Process::start(&program, arguments, theirs, their_monitor)?;
        let monitor = Monitor::new(monitor)?;
        let qtest = Arc::new(Qtest::new(ours)?);
        let failed = |error| QemuError::Qemu { error, messages: process.messages() };
        qtest.ping().map_err(failed)?;
        let platform = Arc::new(QemuPlatform::new(ram, config.memory, board));
        let dyn_platform: Arc<dyn Platform> = platform.clone();
        let config_space = Arc::new(QemuConfigSpace::new(Arc::clone(&qtest), board));
        // Before the tables are read: they are made when they are read first, and say what there is then.
        let bars = Arc::new(enumerate(&*config_space, &board.registers));
        qtest.error().map_err(failed)?;
        let acpi = match board.is_pc {
            true => AcpiTables::load(&FwCfg { qtest: &qtest, platform: &dyn_platform })?,
            false => AcpiTables::default(),
        };
        let mut topology = Topology::scan(&*config_space, 0, QUIRKS);
        let Range { start, end } = board.registers.clone();
        let windows = vec![(DmaAddr::new(start), DmaAddr::new(end - 1))];
        topology.insert_host_bridge(0, 0, HostBridge { windows, ..HostBridge::default() });
        let messages = MessagePage::new(&platform)?;
        // Devices with narrow masks must reach it.
        let limit = PhysAddr::new(board.ram + 0x03ff_ffff);
        let pool = swiotlb::Config { size: config.bounce_pool, areas: 4, limit, ..Default::default() };
        let bounce = Arc::new(Swiotlb::new(&dyn_platform, &pool)?);
        let mut machine = Self {
            ticker: None,
            events: None,
            bounce,
            untranslated: Arc::default(),
            topology,
            acpi,
            bars,
            messages,
            config_space,
            platform,
            qtest,
            monitor,
            process,
            version,
            memory: config.memory,
        };
        if config.iommu == Unit::Amd && config.with_driver {
            machine.bring_iommu_up(dyn_platform, &config)?;
        }
        machine.health()?;
        Ok(machine)
    }

    fn bring_iommu_up(&mut self, platform: Arc<dyn Platform>, config: &Config) -> Result<(), QemuError> {
        let ivrs = self.acpi.table(b"IVRS")?;
        let driver = AmdVi::init(Arc::clone(&platform), ivrs, self, config.driver.clone())?;
        let iommu = Arc::new(Iommu::new(platform, config.settings, Some(Arc::clone(&self.bounce))));
        let ops: Arc<dyn IommuOps> =
            Arc::new(WithMessages { driver: driver.clone(), page: Arc::clone(&self.messages) });
        iommu.register(ops);
        iommu.probe(&self.topology, |address| config.untrusted.contains(&address))?;
        let events = Arc::new(EventReader::new(iommu, driver));
        self.ticker = Some(Ticker::start(config.tick, Arc::clone(&self.platform), Arc::clone(&events))?);
        self.events = Some(events);
        Ok(())
    }

    /// Whether QEMU still answers. Once it does not, every register reads as all ones.
    ///
    /// # Errors
    /// [`QemuError::Qemu`] with what it said last.
    pub fn health(&self) -> Result<(), QemuError> {
        let messages = || self.process.messages();
        self.qtest.error().map_err(|error| QemuError::Qemu { error, messages: messages() })
    }

    /// The version of the QEMU that runs.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Bytes of memory.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Memory and time.
    pub fn platform(&self) -> &Arc<QemuPlatform> {
        &self.platform
    }

    /// The registers at a physical address, `len` bytes of them: what is no function's, such as an IOMMU's. Where nothing is,
    /// reads are zeros.
    pub fn registers(&self, base: PhysAddr, len: usize) -> Arc<dyn Mmio> {
        Arc::new(QtestMmio { qtest: Arc::clone(&self.qtest), base: base.get(), len })
    }

    /// The ACPI tables that QEMU made.
    pub fn acpi(&self) -> &AcpiTables {
        &self.acpi
    }

    /// The IOMMU core, if there is an IOMMU.
    pub fn iommu(&self) -> Option<&Arc<Iommu>> {
        self.events.as_ref().map(|events| &events.iommu)
    }

    /// The IOMMU driver, if there is an IOMMU.
    pub fn driver(&self) -> Option<&Arc<AmdVi>> {
        self.events.as_ref().map(|events| &events.driver)
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

    /// The IOMMU group of a function.
    ///
    /// # Errors
    /// [`QemuError::NoSuchFunction`] when it has none.
    pub fn group(&self, address: PciAddress) -> Result<Arc<Group>, QemuError> {
        let group = self.iommu().and_then(|iommu| iommu.group_of(address));
        group.ok_or(QemuError::NoSuchFunction(address))
    }

    /// A function as nobody's: its registers, and its bus-master switch. Who owns its group may use it so.
    ///
    /// # Errors
    /// [`QemuError::NoSuchFunction`].
    pub fn function(&self, address: PciAddress) -> Result<Arc<dyn Function>, QemuError> {
        self.topology.get(address).ok_or(QemuError::NoSuchFunction(address))?;
        Ok(Arc::new(QemuFunction {
            address,
            config: Arc::clone(&self.config_space),
            bars: Arc::clone(&self.bars),
            qtest: Arc::clone(&self.qtest),
            messages: Arc::clone(&self.messages),
        }))
    }

    /// Binds a driver to a function that the IOMMU confines in full.
    ///
    /// # Errors
    /// [`QemuError::NeedsTrust`] without an IOMMU, and what [`Group::bind`] says.
    pub fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), QemuError> {
        let function = self.function(address)?;
        if self.iommu().is_none() {
            return Err(QemuError::NeedsTrust(address));
        }
        Ok((function, self.group(address)?.bind(address)?))
    }

    /// Binds a driver to a function that is not confined in full: in a lazy or identity domain, or without an IOMMU.
    ///
    /// # Errors
    /// What [`Group::bind`] says.
    ///
    /// # Safety
    /// The caller trusts the device and its driver to touch only memory that they were given, and to stop before it is
    /// given back.
    pub unsafe fn trust(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), QemuError> {
        let function = self.function(address)?;
        if self.iommu().is_some() {
            // SAFETY: the caller's trust.
            let device = unsafe { self.group(address)?.bind_trusted(address) }?;
            return Ok((function, device));
        }
        let platform: Arc<dyn Platform> = self.platform.clone();
        // SAFETY: the caller's trust.
        let ops = unsafe { SwiotlbDma::new(Arc::clone(&platform), Some(Arc::clone(&self.bounce)), ()) };
        let ops = Counted::new(ops, Arc::clone(&self.untranslated));
        let builder = DeviceBuilder::new(address.to_string()).behind_bus(BusRanges::identity(), u64::MAX);
        Ok((function, builder.build(Arc::new(ops), platform)))
    }

    /// Binds `edu` at `address` as a device that does as it is told.
    ///
    /// # Errors
    /// As [`QemuMachine::bind`] and [`QemuMachine::trust`], and [`QemuError::Edu`].
    pub fn edu(&self, address: PciAddress) -> Result<EduBench, QemuError> {
        let (function, device) = match self.bind(address) {
            Err(QemuError::NeedsTrust(_) | QemuError::Group(GroupError::NeedsTrust(_))) => {
                // SAFETY: whoever asks for it tells it what to do: tests and shows, on memory of this machine, which is no
                // memory of the process.
                unsafe { self.trust(address) }?
            }
            bound => bound?,
        };
        Ok(EduBench::new(Edu::new(function)?, device)?)
    }

    /// The faults since the last call: of every request that was refused before this one.
    pub fn take_faults(&self) -> Vec<Fault> {
        if let Some(events) = &self.events {
            events.read();
        }
        self.iommu().map(|iommu| iommu.take_faults()).unwrap_or_default()
    }

    /// The vectors that have been raised on a processor since the start, by its local APIC's request register, lowest first. All
    /// processors are halted, so none is ever taken: a vector that is raised again shows nothing new. Only on a PC.
    ///
    /// # Errors
    /// [`QemuError::Qemu`] when there is no such processor, or QEMU has ended.
    pub fn raised_interrupts(&self, processor: u32) -> Result<Vec<u8>, QemuError> {
        let raised = self.monitor.raised_interrupts(processor);
        raised.map_err(|error| QemuError::Qemu { error, messages: self.process.messages() })
    }

    /// Free memory that somebody has written to.
    pub fn check_free_memory(&self) -> Vec<FreeFrameChanged> {
        self.platform.frames().check_free()
    }
}

impl Drop for QemuMachine {
    /// Does what a kernel does before it ends: devices stop, then the IOMMU. Whatever outlives the machine, buffers, devices and
    /// domains, would else wait for an answer of hardware that is gone.
    fn drop(&mut self) {
        // Nobody looks at the units while they are turned off.
        self.ticker = None;
        let Some(events) = &self.events else { return };
        if self.health().is_err() {
            return;
        }
        for node in self.topology.iter() {
            if let Ok(function) = self.function(node.address) {
                function.set_bus_master(false);
            }
        }
        // QEMU ends all the same when a unit does not stop; who outlives it then waits until his time is over.
        // SAFETY: no function may do DMA any more, and QEMU ends before any gets it back.
        let _ = unsafe { events.driver.shutdown(&*self.config_space) };
    }
}

/// Firmware whose every instruction is `hlt`.
fn halting_firmware() -> std::io::Result<std::fs::File> {
    const HLT: u8 = 0xf4;
    let mut firmware = unnamed("halting-firmware")?;
    firmware.write_all(&[HLT; 64 << 10])?;
    Ok(firmware)
}

impl Hardware for QemuMachine {
    fn map_mmio(&self, base: PhysAddr, len: u64) -> Option<Arc<dyn Mmio>> {
        Some(self.registers(base, usize::try_from(len).ok()?))
    }

    fn config_space(&self) -> &dyn ConfigSpace {
        &*self.config_space
    }

    /// None: QEMU sends it to a processor, and that is halted.
    fn msi_message(&self, _unit: PciAddress) -> Option<MsiMessage> {
        None
    }
}
