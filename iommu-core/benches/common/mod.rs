//! A machine whose IOMMU does nothing, so that what is measured is the core's own work; and the machine's own limit.
// Each benchmark uses its part.
#![allow(dead_code, unreachable_pub)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::Criterion;
use dma_api::Device;
use iommu_core::iova::IovaDomain;
use iommu_core::pci::{Node, Topology};
use iommu_core::{
    AttachError, Capability, DomainError, DomainOps, Iommu, IommuOps, ProbeError, Probed, Settings, SyncError,
};
use platform::pci::PciAddress;
use platform::{
    CacheMaintenance, Clock, DmaAddr, Extent, Flushed, FrameRequest, Frames, Instant, IotlbGather, MapError,
    OutOfFrames, PageSizes, PhysAddr, Prot, Window,
};

pub const PAGE: usize = 4096;
const NIC: PciAddress = PciAddress::new(0, 0, 3, 0);

/// One uncontended `lock cmpxchg`: what taking and giving back cost at least.
pub fn limit(criterion: &mut Criterion) {
    let word = AtomicU64::new(0);
    criterion.bench_function("lock cmpxchg, uncontended", |bencher| bencher.iter(|| exchange(&word)));
}

pub fn exchange(word: &AtomicU64) -> bool {
    let old = word.load(Ordering::Relaxed);
    word.compare_exchange(old, black_box(old + 1), Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// The same numbers in every run (Marsaglia's xorshift64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

const LIMIT: DmaAddr = DmaAddr::new((1 << 48) - 1);
const PAGE_LEN: u64 = PAGE as u64;

pub fn domain() -> IovaDomain {
    IovaDomain::new(PAGE_LEN, DmaAddr::new(0), LIMIT, 2).expect("there is memory")
}

#[inline(never)]
pub fn take(iovas: &IovaDomain, pages: u64) -> DmaAddr {
    iovas.alloc(pages * PAGE_LEN, LIMIT).expect("there are addresses")
}

#[inline(never)]
pub fn give_back(iovas: &IovaDomain, at: DmaAddr, pages: u64) {
    // SAFETY: nothing is ever mapped.
    iovas.free(at, pages * PAGE_LEN, &unsafe { Flushed::assert() });
}

/// Addresses with `live` ranges of 1 to 16 pages taken and as many holes of such lengths between them, nothing in magazines.
pub fn fragmented(live: usize, random: &mut Random) -> IovaDomain {
    let iovas = domain();
    let mut held: Vec<_> = (0..2 * live)
        .map(|_| {
            let pages = 1 + random.below(16);
            (take(&iovas, pages), pages)
        })
        .collect();
    while held.len() > live {
        let (at, pages) = held.swap_remove(random.below(held.len() as u64) as usize);
        give_back(&iovas, at, pages);
    }
    iovas.drain();
    iovas
}

/// A machine with one device, strict or lazy.
#[derive(Debug)]
pub struct Machine {
    // Dropped first.
    pub device: Device,
    pub iommu: Iommu,
}

pub fn boot(lazy: bool) -> Machine {
    let settings = Settings { lazy, ..Settings::default() };
    let iommu = Iommu::new(Arc::new(Host), settings, None);
    iommu.register(Arc::new(NoIommu { domain: Arc::new(NoTable) }));
    let mut topology = Topology::new();
    topology.insert(Node::new(NIC));
    iommu.probe(&topology, |_| false).expect("nothing can fail");
    let group = iommu.group_of(NIC).expect("probed");
    // SAFETY: there is no device that could touch anything.
    let device = unsafe { group.bind_trusted(NIC) }.expect("bound");
    Machine { device, iommu }
}

/// All of the heap is RAM, at its own address.
#[derive(Debug)]
struct Host;

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size.next_multiple_of(PAGE), align.max(PAGE)).expect("a size that exists")
}

// SAFETY: every allocation is zeroed heap memory of its own with exposed provenance; physical addresses are pointers.
unsafe impl Frames for Host {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout(request.size, request.align)) };
        Ok(PhysAddr::new(memory.expose_provenance() as u64))
    }

    unsafe fn free(&self, at: PhysAddr, size: usize) {
        // SAFETY: the caller gives back what `alloc` made, for a frame's alignment.
        unsafe { dealloc(self.window().ptr(at), layout(size, PAGE)) }
    }

    fn window(&self) -> Window {
        // SAFETY: physical addresses are pointers, and what the benchmarks map is memory.
        unsafe { Window::new(0).with_ram(PhysAddr::new(0), 1 << 47) }
    }

    fn translate(&self, at: *const u8, len: usize) -> Option<Extent> {
        Some(Extent { phys: self.window().phys(at), len })
    }
}

impl CacheMaintenance for Host {}

impl Clock for Host {
    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }

    fn relax(&self) {
        std::hint::spin_loop();
    }
}

/// A page table that keeps nothing, and a cache that is always empty.
#[derive(Debug)]
struct NoTable;

// SAFETY: no device is there to reach anything.
unsafe impl DomainOps for NoTable {
    unsafe fn attach_dev(&self, _dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        Ok(())
    }

    unsafe fn map_pages(
        &self,
        _iova: DmaAddr,
        _phys: PhysAddr,
        page_size: u64,
        count: usize,
        _prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        (page_size * count as u64, Ok(()))
    }

    unsafe fn map_range(
        &self,
        _iova: DmaAddr,
        _phys: PhysAddr,
        len: u64,
        _prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        (len, Ok(()))
    }

    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        gather.add_range(iova, len);
        len
    }

    fn iotlb_sync(&self, _gather: &IotlbGather<'_>) -> Result<(), SyncError> {
        Ok(())
    }

    fn page_sizes(&self) -> PageSizes {
        PageSizes::from_bits(1 << 12 | 1 << 21 | 1 << 30)
    }

    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        (DmaAddr::new(0), DmaAddr::new((1 << 48) - 1))
    }
}

#[derive(Debug)]
struct NoIommu {
    domain: Arc<NoTable>,
}

// SAFETY: as above.
unsafe impl IommuOps for NoIommu {
    fn name(&self) -> &str {
        "none"
    }

    fn capable(&self, _dev: PciAddress, _capability: Capability) -> bool {
        true
    }

    fn probe_device(&self, _dev: PciAddress) -> Result<Probed, ProbeError> {
        Ok(Probed::default())
    }

    fn release_device(&self, _dev: PciAddress) {}

    fn domain_alloc_paging(&self, _dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError> {
        Ok(self.domain.clone())
    }

    fn identity_domain(&self) -> Option<Arc<dyn DomainOps>> {
        None
    }

    fn blocked_domain(&self) -> Option<Arc<dyn DomainOps>> {
        Some(self.domain.clone())
    }
}
