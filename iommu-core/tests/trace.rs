//! Each name of the chain is written by the layer that bears it: with a driver under this crate that says nothing, the
//! driver's names are gone and the others are there.

#![cfg(not(loom))]

mod common;

use common::{NIC, PAGE, Setup};
use dma_api::{Attrs, Direction};
use platform::trace::record;

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
