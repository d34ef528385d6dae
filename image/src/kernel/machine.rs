//! The machine with the stack on it.

use alloc::sync::Arc;
use core::ops::Range;

use amd_vi::{AmdVi, Hardware, InitError, MsiMessage};
use dma_api::Device;
use iommu_core::pci::{QUIRKS, Topology};
use iommu_core::{Fault, Group, GroupError, Iommu, Settings};
use platform::pci::{ConfigSpace, Function, PciAddress};
use platform::sync::irq::{self, Hooks};
use platform::{
    CacheMaintenance, Clock, Extent, FrameRequest, Frames, Instant, Mmio, OutOfFrames, PhysAddr, Platform,
    Window,
};
use swiotlb::{PoolTooSmall, Swiotlb};

use super::acpi::AcpiTables;
use super::clock::Hpet;
use super::config_space::Ecam;
use super::frames::PageFrames;
use super::function::{MESSAGE_ADDRESS, PciFunction};
use super::registers::Registers;
use crate::boot::interrupts::{Vector, mask, restore};

/// Memory and time.
#[derive(Debug)]
struct Kernel {
    frames: PageFrames,
    clock: Hpet,
}

// SAFETY: frames are RAM, each somebody's or free, zeroed on the way out, and seen at their addresses for ever.
unsafe impl Frames for Kernel {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        self.frames.alloc(request)
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        self.frames.free(at, size);
    }

    fn window(&self) -> Window {
        self.frames.window()
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        self.frames.translate(at, len)
    }

    fn last(&self) -> PhysAddr {
        self.frames.last()
    }
}

impl CacheMaintenance for Kernel {}

impl Clock for Kernel {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("firmware has left {0} out")]
    NoTable(&'static str),
    #[error("there is no interrupt vector for the IOMMU")]
    NoVector,
    #[error("{0}")]
    Bounce(#[from] PoolTooSmall),
    #[error("{0}")]
    Init(#[from] InitError),
    #[error("{0}")]
    Group(#[from] GroupError),
}

/// What the rest of a kernel has of all this.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) iommu: Arc<Iommu>,
    driver: Arc<AmdVi>,
    /// The IOMMU's own interrupt.
    events: Vector,
    kernel: Arc<Kernel>,
    config_space: Arc<Ecam>,
}

impl Machine {
    /// Brings everything up: memory from `free` on, time, PCI, the IOMMU, groups and their default domains.
    ///
    /// # Safety
    /// `ram` is RAM, from `free` on nobody's; the tables are firmware's. Called once.
    pub(crate) unsafe fn start(
        ram: Range<u64>,
        free: u64,
        acpi: &AcpiTables,
        untrusted: &dyn Fn(PciAddress) -> bool,
    ) -> Result<Self, MachineError> {
        irq::install(Hooks { mask, restore, cpu: || 0 });
        let field = |name: &'static str, at: usize| {
            let signature = name.as_bytes().try_into().ok();
            let table = signature.and_then(|signature| acpi.find(signature));
            let value = table.and_then(|table| AcpiTables::field(table, at));
            value.map(PhysAddr::new).ok_or(MachineError::NoTable(name))
        };
        // SAFETY: the caller's promise, and firmware's.
        let (frames, clock, config_space) = unsafe {
            (PageFrames::new(ram, free), Hpet::new(field("HPET", 44)?), Ecam::new(field("MCFG", 44)?))
        };
        let kernel = Arc::new(Kernel { frames, clock });
        let platform: Arc<dyn Platform> = kernel.clone();
        let events = Vector::allocate().ok_or(MachineError::NoVector)?;
        let config_space = Arc::new(config_space);
        let bounce =
            Swiotlb::new(&platform, &swiotlb::Config { areas: 1, size: 4 << 20, ..Default::default() });
        let bounce = Arc::new(bounce?);
        let iommu = Arc::new(Iommu::new(Arc::clone(&platform), Settings::default(), Some(bounce)));
        let ivrs = acpi.find(b"IVRS").ok_or(MachineError::NoTable("IVRS"))?;
        let hardware = Firmware { config_space: &config_space, message: events.number() };
        let config = amd_vi::Config { unchecked_interrupts: true, ..amd_vi::Config::default() };
        let driver = AmdVi::init(platform, ivrs, &hardware, config)?;
        iommu.register(driver.clone());
        let topology = Topology::scan(&*config_space, 0, QUIRKS);
        iommu.probe(&topology, untrusted)?;
        Ok(Self { iommu, driver, events, kernel, config_space })
    }

    /// A function's group, if there is such a function.
    pub(crate) fn group(&self, address: PciAddress) -> Option<Arc<Group>> {
        self.iommu.group_of(address)
    }

    /// A function, for its driver.
    pub(crate) fn function(&self, address: PciAddress) -> Arc<dyn Function> {
        let (config_space, platform) = (Arc::clone(&self.config_space), self.kernel.clone());
        Arc::new(PciFunction { address, config_space, platform })
    }

    /// Binds a driver to a function.
    pub(crate) fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), GroupError> {
        let group = self.group(address).ok_or(GroupError::NoSuchDevice(address))?;
        Ok((self.function(address), group.bind(address)?))
    }

    /// Memory and time.
    pub(crate) fn shared_platform(&self) -> Arc<dyn Platform> {
        self.kernel.clone()
    }

    /// How many frames are somebody's.
    pub(crate) fn frames_in_use(&self) -> u32 {
        self.kernel.frames.in_use()
    }

    /// Whether the IOMMU has asked for attention since the last call; what it has logged is then reported. A kernel with threads
    /// does this in one that the interrupt wakes, and [`Iommu::tick`] every 10 ms.
    pub(crate) fn events(&self) -> bool {
        let asked = self.events.take();
        if asked {
            let _ = self.driver.handle_interrupt(&mut |fault| self.iommu.report_fault(fault));
        }
        asked
    }

    /// What the IOMMU has refused since the last call and has been reported.
    pub(crate) fn take_faults(&self) -> alloc::vec::Vec<Fault> {
        self.iommu.take_faults()
    }
}

/// What the IOMMU driver finds.
#[derive(Debug)]
struct Firmware<'a> {
    config_space: &'a Ecam,
    message: u8,
}

impl Hardware for Firmware<'_> {
    fn map_mmio(&self, base: PhysAddr, len: u64) -> Option<Arc<dyn Mmio>> {
        let end = base.get().checked_add(len)?;
        // SAFETY: firmware's table says what is there; all below 4 GiB is mapped as it is.
        (end <= 1 << 32).then(|| Arc::new(unsafe { Registers::new(base, len as usize) }) as Arc<dyn Mmio>)
    }

    fn config_space(&self) -> &dyn ConfigSpace {
        self.config_space
    }

    fn msi_message(&self, _unit: PciAddress) -> Option<MsiMessage> {
        Some(MsiMessage { address: MESSAGE_ADDRESS.into(), data: self.message.into() })
    }
}
