//! What every backend is: a machine with devices to be had.

use std::sync::Arc;

use conformance::Bench;
use dma_api::Device;
use iommu_core::{DomainType, Fault};
use platform::Platform;
use platform::pci::{Function, PciAddress};

use crate::BackendError;

/// A machine with devices. A driver gets a pair: the PCI function, and the device that does DMA.
pub trait Backend: Send + Sync {
    /// The name by which it was opened.
    fn name(&self) -> &'static str;

    /// Memory, caches and time of the machine.
    fn platform(&self) -> &Arc<dyn Platform>;

    /// What is in it, for people.
    fn description(&self) -> Description;

    /// Where the disk of [`crate::Options::disk`] is.
    fn disk(&self) -> PciAddress;

    /// Binds a driver to a function whose DMA the hardware confines: behind an IOMMU, strict. Dropping the `Device` gives
    /// it back.
    ///
    /// # Errors
    /// [`BackendError::Device`] when this machine or this domain type needs trust, or somebody else has the device.
    fn bind(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError>;

    /// Binds a driver to a function whose DMA the hardware does *not* confine in full: without an IOMMU, in an identity
    /// domain, or with lazy invalidation.
    ///
    /// # Errors
    /// [`BackendError::Device`] when somebody else has the device.
    ///
    /// # Safety
    /// The caller trusts the device and its driver to touch only the memory that they were given, and to stop before it
    /// is given back.
    unsafe fn trust(&self, address: PciAddress) -> Result<(Arc<dyn Function>, Device), BackendError>;

    /// A device that reads and writes wherever it is told, for showing and checking what the machine refuses. Bound as
    /// [`Backend::bind`] or [`Backend::trust`], whichever the machine allows.
    ///
    /// # Errors
    /// [`BackendError::NoRogue`] on a machine that has none; [`BackendError::Device`] when somebody else has it.
    fn rogue(&self) -> Result<Box<dyn Bench>, BackendError>;

    /// How far the device of [`Backend::rogue`] is confined.
    fn rogue_confinement(&self) -> Confinement;

    /// Whether what the hardware refuses shows up in [`Backend::take_faults`]: not where nothing is refused, and not on
    /// hardware that keeps it to itself.
    fn reports_faults(&self) -> bool;

    /// The faults since the last call: of every request that was refused before this one.
    fn take_faults(&self) -> Vec<Fault>;

    /// Counters since the start.
    fn statistics(&self) -> Statistics;

    /// Where free memory was found changed: some device wrote to memory that was nobody's. Empty on a healthy run.
    fn check_free_memory(&self) -> Vec<String>;
}

/// What keeps a device from memory that is not its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confinement {
    /// An IOMMU, strictly: what the device was not given and what was taken back is out of its reach.
    Strict,
    /// An IOMMU, lazily: what was taken back may stay within its reach until the next flush.
    Lazy,
    /// Nothing.
    Absent,
}

#[cfg(any(feature = "sim", feature = "swiotlb", feature = "qemu"))]
impl Confinement {
    /// What a default domain of this type is; `None` where there is none.
    pub(crate) fn of(domain_type: Option<DomainType>) -> Self {
        match domain_type {
            Some(DomainType::Dma) => Self::Strict,
            Some(DomainType::DmaFq) => Self::Lazy,
            _ => Self::Absent,
        }
    }
}

/// A machine in words.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Description {
    /// Each IOMMU in a line.
    pub iommus: Vec<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// The PCI functions, each after the bridge that it is behind.
    pub functions: Vec<FunctionDescription>,
    /// The groups, in order of their numbers. Without an IOMMU there are none.
    pub groups: Vec<GroupDescription>,
}

/// A PCI function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionDescription {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub what: &'static str,
    /// The bridge that it is behind; `None` on a root bus.
    pub bridge: Option<PciAddress>,
}

/// An IOMMU group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupDescription {
    /// Its number.
    pub id: u32,
    /// The type of its default domain.
    pub domain_type: Option<DomainType>,
    /// The functions in it.
    pub members: Vec<PciAddress>,
    /// Why they share a group, when there are several.
    pub why: Vec<String>,
}

/// Counters of a machine since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// DMA mappings made, coherent memory included.
    pub maps: u64,
    /// DMA mappings ended.
    pub unmaps: u64,
    /// Mappings that went through a bounce buffer.
    pub bounces: u64,
    /// Invalidation commands that the IOMMU executed, completion waits not counted.
    pub invalidations: u64,
    /// Device requests that the IOTLB answered.
    pub iotlb_hits: u64,
    /// Device requests that needed a walk of the page table.
    pub iotlb_misses: u64,
    /// Faults reported.
    pub faults: u64,
    /// Bytes given up because the IOMMU did not confirm an invalidation.
    pub quarantined: u64,
}

impl Statistics {
    /// The part of device requests that the IOTLB answered, 0 to 1; `None` when there were none.
    pub fn iotlb_hit_rate(&self) -> Option<f64> {
        let requests = self.iotlb_hits + self.iotlb_misses;
        (requests != 0).then(|| self.iotlb_hits as f64 / requests as f64)
    }
}
