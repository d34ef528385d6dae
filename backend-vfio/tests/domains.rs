//! Containers as domains: what is mapped for whom, in which calls, and what is said when that does not go.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use backend_vfio::Vfio;
use common::{Bed, Call, NIC, NVME, READ, WRITE};
use dma_api::{
    Attrs, Bidirectional, CoherentSlice, Device, Direction, DmaBuffer, DmaError, FromDevice, MapDirection,
    SgEntry, Streaming, ToDevice,
};
use iommu_core::{Domain, DomainType, Owner, PagingFlags};
use platform::{DmaAddr, MapError, PhysAddr, Prot};

fn bind(vfio: &Vfio, address: platform::pci::PciAddress) -> Device {
    vfio.bind(address).unwrap().1
}

#[test]
fn permissions_follow_the_direction() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let device = bind(&vfio, NVME);
    fn flags<D: MapDirection>(bed: &Bed, device: &Device) -> u32
    where
        DmaBuffer<u8>: dma_api::BufferFor<D>,
    {
        let buffer = DmaBuffer::<u8>::zeroed(device, 8192).unwrap();
        let mapped = Streaming::<_, D>::map(device, buffer).unwrap();
        let maps = bed.mock.maps(7).unwrap();
        let map = maps[&mapped.dma_address().get()];
        assert_eq!(map.len, 8192);
        mapped.unmap().unwrap();
        assert_eq!(bed.mock.maps(7).unwrap().len(), 0);
        map.flags
    }
    assert_eq!(flags::<ToDevice>(&bed, &device), READ);
    assert_eq!(flags::<FromDevice>(&bed, &device), WRITE);
    assert_eq!(flags::<Bidirectional>(&bed, &device), READ | WRITE);
}

#[test]
fn a_mapping_is_one_call_however_long_it_is() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let device = bind(&vfio, NVME);
    bed.mock.calls();
    let len = (2 << 20) + 4096;
    let memory = CoherentSlice::<u8>::zeroed(&Arc::new(device), len).unwrap();
    let iova = memory.dma_address().get();
    drop(memory);
    let len = len as u64;
    assert_eq!(bed.mock.calls(), [Call::Map { iova, len, flags: READ | WRITE }, Call::Unmap { iova, len }]);
}

#[test]
fn addresses_come_from_the_ranges_of_the_kernel() {
    let bed = Bed::new();
    // Eight pages on both sides of a hole.
    bed.mock.knobs(|knobs| knobs.ranges = vec![(0x1_0000, 0x1_7fff), (0x2_0000, 0x2_7fff)]);
    let vfio = bed.open(&[NVME]).unwrap();
    let device = bind(&vfio, NVME);
    let mut mapped = Vec::new();
    let error = loop {
        let buffer = DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
        match Streaming::<_, ToDevice>::map(&device, buffer) {
            Ok(one) => mapped.push(one),
            Err(failed) => break failed.error,
        }
    };
    assert!(matches!(error, DmaError::AddressSpaceExhausted { .. }), "{error}");
    let addresses: BTreeSet<_> = mapped.iter().map(|one| one.dma_address().get()).collect();
    let pages = |start: u64| (0..8).map(move |page| start + 4096 * page);
    assert_eq!(addresses, pages(0x1_0000).chain(pages(0x2_0000)).collect());
}

#[test]
fn limits_are_told_apart_and_say_what_to_change() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let device = bind(&vfio, NVME);
    let map = || {
        let buffer = DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
        Streaming::<_, ToDevice>::map(&device, buffer)
    };
    let one = map().unwrap();
    bed.mock.knobs(|knobs| knobs.limit = 1);
    let error = map().unwrap_err().error;
    assert_eq!(error, DmaError::Map(MapError::TooManyMappings));
    assert!(error.to_string().contains("dma_entry_limit"), "{error}");
    bed.mock.knobs(|knobs| {
        knobs.limit = 65_535;
        knobs.locked = 4096;
    });
    let error = map().unwrap_err().error;
    // Without a limit of locked memory the system itself is out of memory.
    let limited = rustix::process::getrlimit(rustix::process::Resource::Memlock).current.is_some();
    if limited {
        assert_eq!(error, DmaError::Map(MapError::PinLimit));
        assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
    } else {
        assert_eq!(error, DmaError::OutOfMemory);
    }
    // What failed has left nothing, and the first is as it was.
    assert_eq!(bed.mock.maps(7).unwrap().len(), 1);
    bed.mock.knobs(|knobs| knobs.locked = u64::MAX);
    map().unwrap().unmap().unwrap();
    one.unmap().unwrap();
}

#[test]
fn an_unmap_that_fails_keeps_the_memory_from_everybody() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let device = bind(&vfio, NVME);
    let before = vfio.platform().bytes_in_use();
    let mapped =
        Streaming::<_, FromDevice>::map(&device, DmaBuffer::<u8>::zeroed(&device, 4096).unwrap()).unwrap();
    bed.mock.knobs(|knobs| knobs.unmap_fails = true);
    assert!(mapped.unmap().is_err());
    assert_eq!(vfio.platform().bytes_in_use(), before + 4096, "the buffer was freed while a device has it");
    assert_eq!(vfio.iommu().statistics().quarantined, 4096);
    assert_eq!(bed.mock.maps(7).unwrap().len(), 1);
}

/// Memory to map by hand.
struct Pages(DmaBuffer<u8>);

impl Pages {
    fn new(device: &Device, count: usize) -> Self {
        Self(DmaBuffer::zeroed(device, 4096 * count).unwrap())
    }

    fn map(&self, domain: &Domain, iova: u64, from: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        let at = PhysAddr::new(self.0.phys().get() + from);
        // SAFETY: the tests unmap before the pages go, or the domain goes first.
        unsafe { domain.map(DmaAddr::new(iova), at, len, prot) }.1
    }
}

fn unmap(domain: &Domain, iova: u64, len: u64) -> u64 {
    let mut gather = domain.gather();
    // SAFETY: the test is alone.
    let unmapped = unsafe { domain.unmap(DmaAddr::new(iova), len, &mut gather) };
    drop(domain.sync(gather).unwrap());
    unmapped
}

/// A domain of somebody's own, and memory of a device of another group.
fn own_domain(vfio: &Vfio) -> (Arc<Domain>, Pages) {
    let group = vfio.group(NVME).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    (domain, Pages::new(&bind(vfio, NIC), 4))
}

#[test]
fn what_overlaps_or_is_not_aligned_or_out_of_range_is_refused() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME, NIC]).unwrap();
    let (domain, pages) = own_domain(&vfio);
    vfio.group(NVME).unwrap().attach(&domain).unwrap();
    pages.map(&domain, 0x10_0000, 0, 8192, Prot::READ).unwrap();
    let refused = |iova, from, len| pages.map(&domain, iova, from, len, Prot::READ).unwrap_err();
    let in_use = |iova| MapError::InUse(DmaAddr::new(iova));
    assert_eq!(refused(0x10_1000, 0, 4096), in_use(0x10_1000));
    assert_eq!(refused(0xf_f000, 0, 12288), in_use(0xf_f000));
    assert_eq!(refused(0x10_0000, 0, 8192), in_use(0x10_0000));
    assert_eq!(refused(0x20_0800, 0, 4096), MapError::NoPageSize(DmaAddr::new(0x20_0800)));
    assert_eq!(refused(0x20_0000, 16, 4096), MapError::NoPageSize(DmaAddr::new(0x20_0000)));
    assert_eq!(refused(0xfee0_0000, 0, 4096), MapError::OutOfRange(DmaAddr::new(0xfee0_0000)));
    assert_eq!(refused(0, 0, 4096), MapError::OutOfRange(DmaAddr::new(0)));
    assert_eq!(pages.map(&domain, 0x20_0000, 0, 4096, Prot::empty()), Err(MapError::NoAccess));
    assert_eq!(bed.mock.maps(7).unwrap().len(), 1);
    assert_eq!(
        domain.iova_to_phys(DmaAddr::new(0x10_1234)),
        Some(PhysAddr::new(pages.0.phys().get() + 0x1234))
    );
    assert_eq!(domain.iova_to_phys(DmaAddr::new(0x10_2000)), None);
}

#[test]
fn a_mapping_is_unmapped_whole_and_neighbours_in_one_call() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME, NIC]).unwrap();
    let (domain, pages) = own_domain(&vfio);
    vfio.group(NVME).unwrap().attach(&domain).unwrap();
    pages.map(&domain, 0x10_0000, 0, 8192, Prot::READ).unwrap();
    pages.map(&domain, 0x10_2000, 8192, 4096, Prot::READ).unwrap();
    bed.mock.calls();
    assert_eq!(unmap(&domain, 0x10_0000, 4096), 0, "a mapping was cut");
    assert_eq!(unmap(&domain, 0x10_1000, 8192), 0, "a mapping was cut");
    assert_eq!(bed.mock.calls(), []);
    assert_eq!(unmap(&domain, 0x10_0000, 0x4000), 0x3000, "up to the hole");
    assert_eq!(bed.mock.calls(), [Call::Unmap { iova: 0x10_0000, len: 0x3000 }]);
    assert_eq!(domain.iova_to_phys(DmaAddr::new(0x10_0000)), None);
    assert_eq!(unmap(&domain, 0x10_0000, 4096), 0);
}

#[test]
fn what_was_mapped_before_the_first_device_came_is_mapped_with_it() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME, NIC]).unwrap();
    let (domain, pages) = own_domain(&vfio);
    pages.map(&domain, 0x10_0000, 0, 4096, Prot::READ | Prot::WRITE).unwrap();
    assert_eq!(bed.mock.maps(7), None, "the group is in no container");
    let group = vfio.group(NVME).unwrap();
    group.attach(&domain).unwrap();
    assert!(bed.mock.dma_write(7, 0x10_0000, 1));
    // And again after it has been away, without what was unmapped meanwhile.
    pages.map(&domain, 0x20_0000, 4096, 4096, Prot::READ).unwrap();
    group.detach().unwrap();
    assert_eq!(bed.mock.maps(7), None);
    assert_eq!(unmap(&domain, 0x20_0000, 4096), 4096);
    group.attach(&domain).unwrap();
    assert_eq!(bed.mock.maps(7).unwrap().keys().copied().collect::<Vec<_>>(), [0x10_0000]);
}

#[test]
fn two_groups_in_one_domain_reach_the_same() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME, NIC]).unwrap();
    let (domain, pages) = own_domain(&vfio);
    let nic = vfio.group(NIC).unwrap();
    nic.claim_dma_owner(Owner(1)).unwrap();
    let nvme = vfio.group(NVME).unwrap();
    nvme.attach(&domain).unwrap();
    nic.attach(&domain).unwrap();
    pages.map(&domain, 0x10_0000, 0, 4096, Prot::WRITE).unwrap();
    assert!(bed.mock.dma_write(7, 0x10_0000, 1) && bed.mock.dma_write(9, 0x10_0000, 2));
    nic.detach().unwrap();
    assert!(bed.mock.dma_write(7, 0x10_0000, 3) && !bed.mock.dma_write(9, 0x10_0000, 4));
    assert_eq!(unmap(&domain, 0x10_0000, 4096), 4096);
    assert!(!bed.mock.dma_write(7, 0x10_0000, 5));
}

#[test]
fn a_device_that_is_open_keeps_its_group_where_it_is() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let group = vfio.group(NVME).unwrap();
    let function = vfio.function(NVME).unwrap();
    // The kernel does not let the group go: it is blocked where it is, and cannot be brought elsewhere.
    group.claim_dma_owner(Owner(1)).unwrap();
    let own = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    assert!(group.attach(&own).is_err());
    drop(function);
    group.attach(&own).unwrap();
}

#[test]
fn a_blocked_device_that_is_open_reaches_nothing_until_it_is_back() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let (function, device) = vfio.bind(NVME).unwrap();
    let device = Arc::new(device);
    let memory = CoherentSlice::<u8>::zeroed(&device, 4096).unwrap();
    let iova = memory.dma_address().get();
    assert!(bed.mock.dma_write(7, iova, 1));
    // Removed: the memory is not given back before the device cannot reach it.
    vfio.iommu().remove(NVME);
    assert!(!bed.mock.dma_write(7, iova, 2));
    assert_eq!(memory.read(0), 1);
    assert!(matches!(
        DmaBuffer::<u8>::zeroed(&device, 4096).map(|buffer| {
            Streaming::<_, ToDevice>::map(&device, buffer).map_err(|failed| failed.error).err()
        }),
        Ok(Some(DmaError::Gone))
    ));
    function.set_bus_master(true);
    assert_eq!(bed.mock.word(NVME, common::CONFIG + 4) & 4, 0, "a removed device is a bus master");
}

#[test]
fn every_domain_is_strict() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let group = vfio.group(NVME).unwrap();
    assert_eq!(group.domain_type(), Some(DomainType::Dma));
    assert!(group.set_type(DomainType::DmaFq).is_err());
}

#[test]
fn pieces_side_by_side_are_one_call() {
    let bed = Bed::new();
    let vfio = bed.open(&[NVME]).unwrap();
    let device = bind(&vfio, NVME);
    // Longer than a segment may be, so that they do not all become one.
    const PIECE: usize = 48 << 10;
    let whole = DmaBuffer::<u8>::zeroed(&device, 4 * PIECE).unwrap();
    let at = whole.phys();
    bed.mock.calls();
    // The first two are neighbours; the third is not theirs.
    let mut list = [0, 1, 3].map(|index| SgEntry::new(at.wrapping_add((PIECE * index) as u64), PIECE));
    // SAFETY: the buffer stays until the list is unmapped.
    let segments = unsafe { device.map_sg(&mut list, Direction::ToDevice, Attrs::empty()) }.unwrap();
    assert_eq!(segments, 3, "a segment is no longer than the device takes");
    let start = list[0].dma_address.get();
    let len = PIECE as u64;
    assert_eq!(
        bed.mock.calls(),
        [
            Call::Map { iova: start, len: 2 * len, flags: READ },
            Call::Map { iova: start + 2 * len, len, flags: READ }
        ]
    );
    // SAFETY: the list is as it was mapped.
    unsafe { device.unmap_sg(&list, Direction::ToDevice, Attrs::empty()) }.unwrap();
    assert_eq!(bed.mock.calls(), [Call::Unmap { iova: start, len: 3 * len }]);
    assert_eq!(vfio.iommu().statistics().quarantined, 0);
}
