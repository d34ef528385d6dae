//! A machine for models: page tables of a few words, a translation cache of one page, no memory at all.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;

use dma_api::{Attrs, Device, Direction, DmaError};
use iommu_core::pci::{Node, Topology};
use iommu_core::{
    AttachError, Capability, DomainError, DomainOps, Iommu, IommuOps, ProbeError, Probed, Settings, SyncError,
};
use platform::frames::ModelFrames;
use platform::pci::PciAddress;
use platform::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use platform::{
    CacheMaintenance, Clock, DmaAddr, Extent, FrameRequest, Frames, Instant, IotlbGather, MapError,
    OutOfFrames, PageSizes, PhysAddr, Prot, Window,
};

const NIC: PciAddress = PciAddress::new(0, 0, 3, 0);

#[derive(Debug, Default)]
struct Host {
    frames: ModelFrames,
    /// Whether a frame was given back. It stays, so that who reads it all the same is caught and not undefined.
    freed: AtomicBool,
}

// SAFETY: handed to the model's frames.
unsafe impl Frames for Host {
    fn alloc(&self, request: FrameRequest) -> Result<PhysAddr, OutOfFrames> {
        self.frames.alloc(request)
    }
    unsafe fn free(&self, _at: PhysAddr, _size: usize) {
        self.freed.store(true, Ordering::Relaxed);
    }
    fn window(&self) -> Window {
        self.frames.window()
    }
    fn translate(&self, _at: *const u8, _len: usize) -> Option<Extent> {
        None
    }
}

impl CacheMaintenance for Host {}

impl Clock for Host {
    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
    fn relax(&self) {
        loom::thread::yield_now();
    }
}

/// The one domain's table: whether each of the first four pages is mapped. As hardware's, its words are read and written
/// without an order of their own.
#[derive(Debug)]
struct Table {
    present: [AtomicBool; 4],
    /// What the translation cache has of them.
    cached: [AtomicBool; 4],
    /// A table page that the next unmap takes out, or 0.
    page: AtomicU64,
    host: Arc<Host>,
    /// The last I/O address.
    last: u64,
}

// SAFETY: no device is there to reach anything; the cache stands for what one would.
unsafe impl DomainOps for Table {
    unsafe fn attach_dev(&self, _dev: PciAddress, _old: Option<&dyn DomainOps>) -> Result<(), AttachError> {
        Ok(())
    }
    unsafe fn map_pages(
        &self,
        iova: DmaAddr,
        _phys: PhysAddr,
        _page_size: u64,
        _count: usize,
        _prot: Prot,
    ) -> (u64, Result<(), MapError>) {
        match self.present[(iova.get() >> 12) as usize].swap(true, Ordering::Relaxed) {
            true => (0, Err(MapError::InUse(iova))),
            false => (4096, Ok(())),
        }
    }
    unsafe fn unmap(&self, iova: DmaAddr, len: u64, gather: &mut IotlbGather<'_>) -> u64 {
        self.present[(iova.get() >> 12) as usize].store(false, Ordering::Relaxed);
        gather.add_range(iova, len);
        let page = self.page.swap(0, Ordering::Relaxed);
        if page != 0 {
            // SAFETY: a frame of the model, in which nothing is kept.
            unsafe { gather.add_table(self.host.window(), PhysAddr::new(page), 4096) };
        }
        len
    }
    fn iova_to_phys(&self, _iova: DmaAddr) -> Option<PhysAddr> {
        let page = self.page.load(Ordering::Relaxed);
        if page == 0 {
            return None;
        }
        let freed = self.host.freed.load(Ordering::Relaxed);
        assert!(!freed, "a table page went back while a lookup was in it");
        Some(PhysAddr::new(0))
    }
    fn flush_iotlb_all(&self) -> Result<(), SyncError> {
        // Emptied, and asked for again.
        for (cached, present) in self.cached.iter().zip(&self.present) {
            if cached.load(Ordering::Relaxed) && !present.load(Ordering::Relaxed) {
                cached.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }
    fn page_sizes(&self) -> PageSizes {
        PageSizes::from_bits(4096)
    }
    fn aperture(&self) -> (DmaAddr, DmaAddr) {
        (DmaAddr::new(0), DmaAddr::new(self.last))
    }
}

#[derive(Debug)]
struct Toy {
    table: Arc<Table>,
    shadow_on_flush: bool,
}

// SAFETY: as above.
unsafe impl IommuOps for Toy {
    fn name(&self) -> &str {
        "model"
    }
    fn capable(&self, _dev: PciAddress, _capability: Capability) -> bool {
        true
    }
    fn probe_device(&self, _dev: PciAddress) -> Result<Probed, ProbeError> {
        Ok(Probed { shadow_on_flush: self.shadow_on_flush, ..Probed::default() })
    }
    fn release_device(&self, _dev: PciAddress) {}
    fn domain_alloc_paging(&self, _dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError> {
        Ok(self.table.clone())
    }
}

/// The model's machine.
#[derive(Clone, Debug)]
pub struct Machine {
    iommu: Arc<Iommu>,
    table: Arc<Table>,
}

impl Machine {
    /// How many pages are mapped.
    pub fn mapped(&self) -> usize {
        self.table.present.iter().filter(|page| page.load(Ordering::Relaxed)).count()
    }

    /// The device uses the page at `at`.
    pub fn remember(&self, at: u64) {
        self.table.cached[(at >> 12) as usize].store(true, Ordering::Relaxed);
    }

    pub fn remembers(&self, at: u64) -> bool {
        self.table.cached[(at >> 12) as usize].load(Ordering::Relaxed)
    }

    /// The table has a page that the next unmap takes out.
    pub fn put_table_page(&self) {
        let page = self.table.host.alloc(FrameRequest::ONE).unwrap();
        self.table.page.store(page.get(), Ordering::Relaxed);
    }

    pub fn is_table_page_free(&self) -> bool {
        self.table.host.freed.load(Ordering::Relaxed)
    }

    pub fn look_up(&self, at: u64) {
        let domain = self.iommu.group_of(NIC).unwrap().domain().unwrap();
        domain.iova_to_phys(DmaAddr::new(at));
    }

    pub fn tick(&self) {
        self.tick_at(0);
    }

    pub fn tick_at(&self, nanos: u64) {
        self.iommu.tick(Instant::from_nanos(nanos));
    }
}

/// Runs a model, says how many executions that took, and wants at least `least` of them: a model in which nothing happens at
/// once shows nothing.
pub fn explore(least: usize, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&executions);
    let builder = loom::model::Builder::new();
    let is_full = builder.preemption_bound.is_none_or(|bound| bound >= 3);
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    let executions = executions.load(std::sync::atomic::Ordering::Relaxed);
    println!("{executions} executions");
    assert!(!is_full || executions >= least, "{executions} executions");
}

/// A machine with I/O addresses up to `last`, and its only device.
pub fn boot(last: u64, lazy: bool) -> (Machine, Arc<Device>) {
    boot_with(last, lazy, false)
}

/// The same, with one flush queue for all CPUs if `shadow_on_flush`.
pub fn boot_with(last: u64, lazy: bool, shadow_on_flush: bool) -> (Machine, Arc<Device>) {
    platform::cpu::set(0);
    let host = Arc::new(Host::default());
    let table = Arc::new(Table {
        page: AtomicU64::new(0),
        host: host.clone(),
        present: std::array::from_fn(|_| AtomicBool::new(false)),
        cached: std::array::from_fn(|_| AtomicBool::new(false)),
        last,
    });
    let settings = Settings { lazy, ..Settings::default() };
    let iommu = Arc::new(Iommu::new(host, settings, None));
    iommu.register(Arc::new(Toy { table: table.clone(), shadow_on_flush }));
    let mut topology = Topology::new();
    topology.insert(Node::new(NIC));
    iommu.probe(&topology, |_| false).unwrap();
    // SAFETY: there is no device that could touch anything.
    let device = unsafe { iommu.group_of(NIC).unwrap().bind_trusted(NIC) }.unwrap();
    (Machine { iommu, table }, Arc::new(device))
}

/// Maps a page; `None` when there are no addresses.
pub fn map(device: &Device) -> Option<u64> {
    // SAFETY: there is no device that could touch anything.
    match unsafe { device.map_phys(PhysAddr::new(0x5000), 4096, Direction::ToDevice, Attrs::empty()) } {
        Ok(at) => Some(at.get()),
        Err(DmaError::AddressSpaceExhausted { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

pub fn unmap(device: &Device, at: u64) {
    // SAFETY: mapped by `map`, ended once.
    unsafe { device.unmap_single(DmaAddr::new(at), 4096, Direction::ToDevice, Attrs::empty()) }.unwrap();
}
