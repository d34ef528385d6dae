//! A machine, complete: what a driver's author would find on his desk.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use platform::Mmio;
use platform::pci::RequesterId;

use crate::ats::Downstream;
use crate::disk::DiskError;
use crate::dma_engine::{self, DmaEngine};
use crate::firmware::{IvrsConfig, ivrs};
use crate::hpet::Hpet;
use crate::interrupts::InterruptController;
use crate::io_apic::IoApic;
use crate::iommu::{self, AmdIommu};
use crate::nvme::{self, NvmeController};
use crate::pci::{Acs, Builder, IommuFunction, PciTree};
use crate::ram::{Ram, RamError};
use crate::virtio::{self, VirtioBlk};

/// Where the IOMMU's registers are.
const IOMMU_BASE: u64 = 0xfeb8_0000;
/// Where its capability block is in its configuration space.
const IOMMU_CAPABILITY: u16 = 0x80;

/// What the machine should be like.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Memory: start and length of each range, in bytes.
    pub memory: Vec<(u64, u64)>,
    /// The IOMMU, if there is to be one.
    pub iommu: Option<iommu::Config>,
    /// The NVMe controller.
    pub nvme: nvme::Config,
    /// The file that is its namespace.
    pub disk: PathBuf,
    /// Whether it may be written.
    pub disk_writable: bool,
    /// A virtio block device, if there is to be one.
    pub virtio_blk: Option<virtio::Config>,
    /// What the DMA engines can do.
    pub engines: dma_engine::Config,
    /// Whether there are devices whose requests carry another name than their own.
    pub aliasing_devices: bool,
}

impl MachineConfig {
    /// 255 MiB of memory below and 512 MiB above 4 GiB, an IOMMU, and the given disk.
    pub fn new(disk: impl Into<PathBuf>) -> Self {
        Self {
            memory: vec![(1 << 20, 255 << 20), (4 << 30, 512 << 20)],
            iommu: Some(iommu::Config::default()),
            nvme: nvme::Config::default(),
            disk: disk.into(),
            disk_writable: false,
            virtio_blk: None,
            engines: dma_engine::Config::default(),
            aliasing_devices: false,
        }
    }
}

/// A machine could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No memory.
    #[error("{0}")]
    Ram(#[from] RamError),
    /// No disk.
    #[error("{0}")]
    Disk(#[from] DiskError),
}

/// The machine. Its devices:
///
/// | address | what |
/// |---|---|
/// | 00:00.0 | host bridge |
/// | 00:00.2 | the IOMMU |
/// | 00:01.0 | root port, isolating |
/// | 01:00.0 | NVMe controller |
/// | 00:02.0 | root port, isolating |
/// | 02:00.0 | switch: upstream port |
/// | 03:00.0 | downstream port, isolating |
/// | 04:00.0 | DMA engine |
/// | 03:01.0 | downstream port without ACS |
/// | 05:00.0 | DMA engine |
/// | 00:03.0, 00:03.1 | DMA engines, functions of one slot without ACS |
/// | 00:04.0 | root port, isolating; only with a virtio block device |
/// | 06:00.0 | that device |
/// | 00:05.0 | root port, isolating; only with aliasing devices, like what follows |
/// | 07:00.0 | bridge to conventional PCI: what is behind it is called 08:00.0 |
/// | 08:01.0 | DMA engine |
/// | 00:06.0 | root port, isolating |
/// | 09:00.0 | DMA engine, by its numbers a Marvell 88SE9123, whose requests are called 09:00.1 |
///
/// and an IO-APIC and an HPET, whose messages carry the name 00:14.0.
pub struct Machine {
    /// Memory.
    pub ram: Arc<Ram>,
    /// The PCI tree.
    pub pci: Arc<PciTree>,
    /// The interrupt controller.
    pub interrupts: Arc<InterruptController>,
    /// The IO-APIC.
    pub io_apic: Arc<IoApic>,
    /// The HPET.
    pub hpet: Arc<Hpet>,
    /// The IOMMU, if there is one.
    pub iommu: Option<Arc<AmdIommu>>,
    /// The NVMe controller.
    pub nvme: Arc<NvmeController>,
    /// The virtio block device, if there is one.
    pub virtio_blk: Option<Arc<VirtioBlk>>,
    ivrs: Vec<u8>,
}

impl Machine {
    /// The NVMe controller.
    pub const NVME: RequesterId = RequesterId::from_parts(1, 0, 0);
    /// The DMA engine below the isolating downstream port.
    pub const ENGINE: RequesterId = RequesterId::from_parts(4, 0, 0);
    /// The DMA engine below the port without ACS.
    pub const SHARING_ENGINE: RequesterId = RequesterId::from_parts(5, 0, 0);
    /// The virtio block device, where there is one.
    pub const VIRTIO_BLK: RequesterId = RequesterId::from_parts(6, 0, 0);

    /// The IO-APIC's identifier.
    pub const IO_APIC_ID: u8 = 0;
    /// The name that its messages carry: the southbridge's.
    pub const IO_APIC: RequesterId = RequesterId::from_parts(0, 20, 0);
    /// The HPET's number.
    pub const HPET_NUMBER: u8 = 0;
    /// The name that its messages carry.
    pub const HPET: RequesterId = RequesterId::from_parts(0, 20, 0);
    /// The DMA engine behind the bridge to conventional PCI, and the name of its requests, where it is.
    pub const BRIDGED_ENGINE: (RequesterId, RequesterId) =
        (RequesterId::from_parts(8, 1, 0), RequesterId::from_parts(8, 0, 0));
    /// The DMA engine whose requests carry another function's name, and that name, where it is.
    pub const MISNAMED_ENGINE: (RequesterId, RequesterId) =
        (RequesterId::from_parts(9, 0, 0), RequesterId::from_parts(9, 0, 1));

    /// Puts a machine together and switches it on.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        let ram = Ram::new(&config.memory)?;
        let interrupts = InterruptController::new();
        let nvme = NvmeController::new(config.nvme, &config.disk, config.disk_writable)?;
        let id = RequesterId::from_parts;
        let engine = || DmaEngine::new(config.engines) as _;
        let mut builder = Builder::new()
            .root_port(id(0, 1, 0), 1, 1, Acs::ISOLATED)
            .endpoint(Self::NVME, Arc::clone(&nvme) as _, false, Acs::Absent)
            .root_port(id(0, 2, 0), 2, 5, Acs::ISOLATED)
            .upstream_port(id(2, 0, 0), 3, 5)
            .downstream_port(id(3, 0, 0), 4, 4, Acs::ISOLATED)
            .endpoint(Self::ENGINE, engine(), false, Acs::Absent)
            .downstream_port(id(3, 1, 0), 5, 5, Acs::Absent)
            .endpoint(Self::SHARING_ENGINE, engine(), false, Acs::Absent)
            .endpoint(id(0, 3, 0), engine(), true, Acs::Absent)
            .endpoint(id(0, 3, 1), engine(), true, Acs::Absent);
        let virtio_blk = config.virtio_blk.map(|config| VirtioBlk::new(&config)).transpose()?;
        if let Some(device) = &virtio_blk {
            builder = builder.root_port(id(0, 4, 0), 6, 6, Acs::ISOLATED).endpoint(
                Self::VIRTIO_BLK,
                Arc::clone(device) as _,
                false,
                Acs::Absent,
            );
        }
        if config.aliasing_devices {
            builder = builder
                .root_port(id(0, 5, 0), 7, 8, Acs::ISOLATED)
                .pci_bridge(id(7, 0, 0), 8, 8)
                .endpoint(Self::BRIDGED_ENGINE.0, engine(), false, Acs::Absent)
                .root_port(id(0, 6, 0), 9, 9, Acs::ISOLATED)
                .endpoint(
                    Self::MISNAMED_ENGINE.0,
                    DmaEngine::with_numbers(0x1b4b, 0x9123, config.engines) as _,
                    false,
                    Acs::Absent,
                )
                .misnamed(Self::MISNAMED_ENGINE.0, Self::MISNAMED_ENGINE.1.function());
        }
        let mut table = Vec::new();
        let iommu = config.iommu.map(|config| {
            table = ivrs(&IvrsConfig {
                base: IOMMU_BASE,
                efr: config.efr,
                efr2: config.efr2,
                capability: IOMMU_CAPABILITY,
                iotlb_sup: config.iotlb_sup,
                devices: (id(0, 1, 0), id(255, 31, 7)),
                io_apic: (Self::IO_APIC_ID, Self::IO_APIC),
                hpet: (Self::HPET_NUMBER, Self::HPET),
            });
            let (np_cache, iotlb_sup) = (config.np_cache, config.iotlb_sup);
            let unit = AmdIommu::new(config, Arc::clone(&ram), Arc::clone(&interrupts) as _);
            (np_cache, iotlb_sup, unit)
        });
        if let Some((np_cache, iotlb_sup, unit)) = &iommu {
            let unit = Arc::clone(unit);
            let msi_changed = move |address, data, on| unit.set_msi(address, data, on);
            let function = IommuFunction {
                id: id(0, 0, 2),
                capability: IOMMU_CAPABILITY,
                base: IOMMU_BASE,
                np_cache: *np_cache,
                iotlb_sup: *iotlb_sup,
            };
            builder = builder.iommu(function, Box::new(msi_changed));
        }
        let iommu = iommu.map(|(.., unit)| unit);
        let remapper = iommu.as_ref().map(|unit| Arc::clone(unit) as _);
        let pci = builder.build(Arc::clone(&ram), remapper, Arc::clone(&interrupts) as _);
        if let Some(unit) = &iommu {
            let devices: Arc<dyn Downstream> = pci.clone();
            unit.connect(Arc::downgrade(&devices));
        }
        let io_apic = IoApic::new(Self::IO_APIC_ID, Self::IO_APIC, Arc::clone(&pci));
        let hpet = Hpet::new(Self::HPET, Arc::clone(&pci));
        Ok(Self { ram, pci, interrupts, io_apic, hpet, iommu, nvme, virtio_blk, ivrs: table })
    }

    /// The IVRS that firmware wrote; empty without an IOMMU.
    pub fn ivrs(&self) -> &[u8] {
        &self.ivrs
    }

    /// The registers at a physical address, if they are the IOMMU's.
    pub fn registers_at(&self, base: u64) -> Option<Arc<dyn Mmio>> {
        self.iommu.as_ref().filter(|_| base == IOMMU_BASE).map(|unit| Arc::clone(unit) as _)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.pci.shutdown();
        if let Some(iommu) = &self.iommu {
            iommu.shutdown();
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("ram", &self.ram).field("pci", &self.pci).finish_non_exhaustive()
    }
}
