//! Each name of the chain is written by the layer that bears it: with a driver under this crate that says nothing, the
//! driver's names are gone and the others are there.

#![cfg(not(loom))]

mod common;

use std::sync::Arc;

use common::{NIC, PAGE, Setup, map};
use dma_api::{Attrs, Device, DeviceBuilder, Direction, FromDevice, Streaming};
use iommu_core::{Fault, FaultFlags, FaultKind};
use platform::DmaAddr;
use platform::trace::record;
use swiotlb::SwiotlbDma;

fn names<R>(f: impl FnOnce() -> R) -> (R, Vec<&'static str>) {
    let (result, events) = record(f);
    (result, events.into_iter().map(|event| event.name).collect())
}

#[test]
fn a_map_passes_the_layers_down_to_this_crate_and_no_amd_iommu() {
    let bench = Setup::default().bench();
    let device = bench.bind(NIC);
    let memory = bench.host.memory(PAGE as usize);
    // SAFETY: the memory stays until the end of the test, and nobody else uses it.
    let (mapped, chain) = names(|| unsafe {
        device.map_single(memory.ptr(), PAGE as usize, Direction::ToDevice, Attrs::empty())
    });
    assert_eq!(chain, ["dma_map_single", "iommu_dma_map_page", "__iommu_dma_map", "iommu_map"]);
    assert!(!chain.contains(&"amd_iommu_map"));
    // SAFETY: mapped above, ended once.
    let (unmapped, chain) = names(|| unsafe {
        device.unmap_single(mapped.unwrap(), PAGE as usize, Direction::ToDevice, Attrs::empty())
    });
    unmapped.unwrap();
    assert_eq!(chain, ["dma_unmap_single", "iommu_dma_unmap_page", "__iommu_dma_unmap", "iommu_unmap"]);
}

#[test]
fn coherent_memory_takes_the_same_way() {
    let bench = Setup::default().bench();
    let device = bench.bind(NIC);
    let (memory, chain) = names(|| device.alloc_coherent(PAGE as usize, Attrs::empty()));
    assert_eq!(chain, ["dma_alloc_coherent", "iommu_dma_alloc", "__iommu_dma_map", "iommu_map"]);
    // SAFETY: allocated above with these attributes, freed once.
    let (freed, chain) = names(|| unsafe { device.free_coherent(memory.unwrap(), Attrs::empty()) });
    freed.unwrap();
    assert_eq!(chain, ["dma_free_coherent", "iommu_dma_free", "__iommu_dma_unmap", "iommu_unmap"]);
}

/// What a driver's turns with a buffer of the heap, which is bounced, pass.
fn turns(device: &Device) -> Vec<&'static str> {
    let run = || {
        let mapped = Streaming::<_, FromDevice>::map(device, vec![0u8; 100]).unwrap();
        mapped.sync_for_cpu().sync_for_device().unmap().unwrap()
    };
    names(run).1
}

#[test]
fn each_turn_of_a_bounced_buffer_says_whose_it_is() {
    let bench = Setup::default().bench();
    let chain = [
        "dma_map_single",
        "iommu_dma_map_swiotlb",
        "__iommu_dma_map",
        "iommu_map",
        "iommu_dma_sync_single_for_cpu",
        "iommu_dma_sync_single_for_device",
        "dma_unmap_single",
        "iommu_dma_unmap_page",
        "__iommu_dma_unmap",
        "iommu_unmap",
    ];
    assert_eq!(turns(&bench.bind(NIC)), chain);
    // Without an IOMMU.
    // SAFETY: no device touches anything.
    let ops = unsafe { SwiotlbDma::new(bench.host.clone(), Some(bench.pool.clone()), ()) };
    let device = DeviceBuilder::new("direct").build(Arc::new(ops), bench.host.clone());
    let chain = [
        "dma_map_single",
        "swiotlb_map",
        "dma_direct_sync_single_for_device",
        "dma_direct_sync_single_for_cpu",
        "dma_direct_sync_single_for_device",
        "dma_unmap_single",
        "dma_direct_unmap_phys",
        "swiotlb_tbl_unmap_single",
    ];
    device.set_mask(u64::MAX).unwrap();
    assert_eq!(turns(&device), chain);
    let memory = bench.host.memory(8);
    let (mapped, chain) = names(|| map(&device, memory.phys(), 8, Direction::ToDevice));
    mapped.unwrap();
    assert_eq!(chain, ["dma_map_phys", "dma_direct_map_phys"]);
}

#[test]
fn what_happens_to_devices_is_told_as_by_linuxs_tracepoints() {
    let (bench, events) = names(|| Setup::default().bench());
    assert_eq!(events, ["add_device_to_group", "attach_device_to_domain"]);
    let fault = Fault {
        kind: FaultKind::Page,
        requester: NIC,
        pasid: None,
        address: DmaAddr::new(PAGE),
        domain: 2,
        flags: FaultFlags::WRITE,
    };
    assert_eq!(names(|| bench.iommu.report_fault(fault)).1, ["io_page_fault"]);
    assert_eq!(names(|| bench.iommu.remove(NIC)).1, ["remove_device_from_group"]);
}
