//! A machine for tests: RAM, an IOMMU that is a map, and a bench with both under an [`Iommu`].
// Each test file uses its part.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod host;
mod toy;

use std::sync::Arc;

use dma_api::{Attrs, Device, Direction, DmaError, Quarantined};
use iommu_core::pci::{AcsFlags, Node, PortType, Topology};
use iommu_core::{Group, GroupError, Iommu, ResvRegion, ResvType, Settings};
use platform::pci::PciAddress;
use platform::{DmaAddr, Instant, PhysAddr, Platform, Prot};
use swiotlb::Swiotlb;

pub use host::{Cache, Host};
pub use toy::{Did, Knobs, Toy};

pub const PAGE: u64 = 4096;
pub const FOUR_GIB: u64 = 1 << 32;

/// The device of tests that need only one.
pub const NIC: PciAddress = PciAddress::new(0, 0, 3, 0);

/// A machine with its IOMMU.
#[derive(Debug)]
pub struct Bench {
    pub host: Arc<Host>,
    pub toy: Arc<Toy>,
    pub pool: Arc<Swiotlb>,
    pub iommu: Iommu,
}

/// What a bench is like.
#[derive(Clone, Debug)]
pub struct Setup {
    pub knobs: Knobs,
    pub settings: Settings,
    pub topology: Topology,
    pub untrusted: Vec<PciAddress>,
    /// Bounce buffers.
    pub pool: swiotlb::Config,
}

impl Default for Setup {
    /// One trusted device, translated strictly.
    fn default() -> Self {
        Self {
            knobs: Knobs::default(),
            settings: Settings::default(),
            topology: topology([endpoint(NIC)]),
            untrusted: Vec::new(),
            pool: swiotlb::Config { size: 1 << 20, limit: PhysAddr::new(u64::MAX), ..Default::default() },
        }
    }
}

impl Setup {
    /// The machine, and what probing it said.
    pub fn boot(self) -> (Bench, Result<(), GroupError>) {
        let host = Arc::new(Host::new());
        let platform: Arc<dyn Platform> = host.clone();
        let pool = Arc::new(Swiotlb::new(&platform, &self.pool).unwrap());
        let toy = Arc::new(Toy::new(self.knobs));
        let iommu = Iommu::new(platform, self.settings, Some(Arc::clone(&pool)));
        iommu.register(toy.clone());
        let result = iommu.probe(&self.topology, |address| self.untrusted.contains(&address));
        (Bench { host, toy, pool, iommu }, result)
    }

    /// The machine, probed without an error.
    pub fn bench(self) -> Bench {
        let (bench, result) = self.boot();
        assert_eq!(result, Ok(()));
        bench
    }

    pub fn lazy(mut self) -> Self {
        self.settings.lazy = true;
        self
    }

    pub fn untrusted(mut self, address: PciAddress) -> Self {
        self.untrusted.push(address);
        self
    }

    pub fn aperture(mut self, first: u64, last: u64) -> Self {
        self.knobs.aperture = (first, last);
        self
    }

    pub fn region(mut self, address: PciAddress, region: ResvRegion) -> Self {
        self.knobs.regions.push((address, region));
        self
    }
}

impl Bench {
    pub fn group(&self, address: PciAddress) -> Arc<Group> {
        self.iommu.group_of(address).expect("the device has a group")
    }

    /// The device bound to a driver.
    pub fn bind(&self, address: PciAddress) -> Device {
        self.group(address).bind(address).expect("bound")
    }

    pub fn bind_trusted(&self, address: PciAddress) -> Device {
        // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
        unsafe { self.group(address).bind_trusted(address) }.expect("bound")
    }

    pub fn tick(&self) {
        self.iommu.tick(Instant::from_nanos(0));
    }
}

/// Maps memory that no device of the toy IOMMU touches but when the test says so.
pub fn map(device: &Device, phys: u64, len: usize, dir: Direction) -> Result<DmaAddr, DmaError> {
    // SAFETY: the toy's devices touch nothing by themselves, so any memory may be named.
    unsafe { device.map_phys(PhysAddr::new(phys), len, dir, Attrs::empty()) }
}

/// Ends it.
pub fn unmap(device: &Device, at: DmaAddr, len: usize, dir: Direction) -> Result<(), Quarantined> {
    // SAFETY: each test ends what it mapped, once.
    unsafe { device.unmap_single(at, len, dir, Attrs::empty()) }
}

/// Maps one page at a made-up physical address, for the device to read.
pub fn map_page(device: &Device) -> Result<DmaAddr, DmaError> {
    map(device, 0x10_0000, PAGE as usize, Direction::ToDevice)
}

pub fn unmap_page(device: &Device, at: DmaAddr) -> Result<(), Quarantined> {
    unmap(device, at, PAGE as usize, Direction::ToDevice)
}

/// A PCI Express endpoint with one function.
pub fn endpoint(address: PciAddress) -> Node {
    Node { class: 0x02_00_00, ..Node::new(address) }
}

/// A bridge or port to `secondary`.
pub fn bridge(address: PciAddress, port_type: PortType, secondary: u8) -> Node {
    Node { class: 0x06_04_00, port_type, secondary_bus: Some(secondary), ..endpoint(address) }
}

/// Access Control Services with everything that isolates, switched on.
pub fn isolating(node: Node) -> Node {
    Node { acs: Some((AcsFlags::ISOLATED, AcsFlags::ISOLATED)), ..node }
}

pub fn multifunction(node: Node) -> Node {
    Node { multifunction: true, ..node }
}

pub fn topology(nodes: impl IntoIterator<Item = Node>) -> Topology {
    let mut topology = Topology::new();
    nodes.into_iter().for_each(|node| topology.insert(node));
    topology
}

/// A region of I/O addresses from `start` to `end`, exclusive.
pub fn region(start: u64, end: u64, kind: ResvType) -> ResvRegion {
    ResvRegion { start: DmaAddr::new(start), len: end - start, kind, prot: Prot::READ | Prot::WRITE }
}
