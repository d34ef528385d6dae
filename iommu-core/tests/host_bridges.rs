//! What is between a root bus and memory closes I/O addresses to the devices below it, and limits them.

mod common;

use common::{Bench, NIC, PAGE, Setup, bridge, endpoint, map_page, topology};
use dma_api::{BusRange, BusRanges, Device};
use iommu_core::pci::{HostBridge, PortType, Topology};
use iommu_core::{Settings, Trust};
use platform::pci::PciAddress;
use platform::{DmaAddr, PhysAddr};

/// Addresses of 16 pages.
const LAST: u64 = 0xffff;

fn window(first: u64, last: u64) -> HostBridge {
    HostBridge { windows: vec![(DmaAddr::new(first), DmaAddr::new(last))], ..HostBridge::default() }
}

fn range(phys: u64, dma: u64, size: u64) -> BusRange {
    BusRange { phys: PhysAddr::new(phys), dma: DmaAddr::new(dma), size }
}

fn below(bridge: HostBridge, mut topology: Topology) -> Bench {
    topology.insert_host_bridge(0, 0, bridge);
    Setup { topology, ..Setup::default() }.aperture(0, LAST).bench()
}

/// The numbers of all pages that a device can get.
fn pages(device: &Device) -> Vec<u64> {
    let mut pages: Vec<_> = std::iter::from_fn(|| Some(map_page(device).ok()?.get() / PAGE)).collect();
    pages.sort_unstable();
    pages
}

#[test]
fn windows_of_the_host_bridge_are_never_handed_out() {
    let bench = below(window(0x4800, 0x7000), topology([endpoint(NIC)]));
    assert_eq!(pages(&bench.bind(NIC)), [1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]);
}

#[test]
fn they_are_those_of_the_root_bus_above_a_device() {
    let far = PciAddress::new(0, 2, 0, 0);
    let ports = [
        bridge(PciAddress::new(0, 0, 1, 0), PortType::RootPort, 1),
        bridge(PciAddress::new(0, 1, 0, 0), PortType::PcieToPci, 2),
    ];
    let tree = topology(ports.into_iter().chain([endpoint(far)]));
    let bench = below(window(0x1000, 0xefff), tree.clone());
    assert_eq!(pages(&bench.bind(far)), [15]);
    let mut same = tree.clone();
    same.insert_host_bridge(0, 0, window(0, 1));
    same.insert_host_bridge(0, 2, window(2, 3));
    assert_eq!(same.host_bridge(far), Some(&window(0, 1)), "bus 2 is no root bus");
    // Another segment's is another.
    let mut other = tree.clone();
    other.insert_host_bridge(1, 0, window(0, u64::MAX));
    assert!(other.host_bridge(far).is_none());
    // Bridges that name each other's buses are below none.
    let mut circle = Topology::new();
    circle.insert(bridge(PciAddress::new(0, 1, 0, 0), PortType::PcieToPci, 2));
    circle.insert(bridge(PciAddress::new(0, 2, 0, 0), PortType::PcieToPci, 1));
    circle.insert_host_bridge(0, 1, HostBridge::default());
    assert!(circle.host_bridge(far).is_none());
}

#[test]
fn gaps_between_what_the_bus_shows_are_never_handed_out() {
    // In any order, and not where memory is.
    let dma_ranges = BusRanges::new([range(0, 0xa000, 0x2000), range(0x8000_0000, 0x3000, 0x4000)]).unwrap();
    let bench = below(HostBridge { dma_ranges, ..HostBridge::default() }, topology([endpoint(NIC)]));
    assert_eq!(pages(&bench.bind(NIC)), [3, 4, 5, 6, 10, 11]);
}

#[test]
fn the_limit_of_the_bus_is_the_devices() {
    let bridge = HostBridge { dma_limit: 0x3fff, ..HostBridge::default() };
    let bench = below(bridge, topology([endpoint(NIC)]));
    let device = bench.bind(NIC);
    assert_eq!(device.parms().bus_limit(), 0x3fff);
    assert_eq!(pages(&device), [1, 2, 3]);
}

#[test]
fn a_device_that_comes_later_closes_what_its_bridge_closes() {
    let late = PciAddress::new(0, 1, 0, 0);
    let port = bridge(PciAddress::new(0, 0, 1, 0), PortType::RootPort, 1);
    let first = PciAddress::new(0, 1, 1, 0);
    let mut tree = topology([port, endpoint(first)]);
    let bench = Setup { topology: tree.clone(), ..Setup::default() }.aperture(0, LAST).bench();
    tree.insert(endpoint(late));
    tree.insert_host_bridge(0, 0, window(0x1000, 0xdfff));
    bench.iommu.probe(&tree, |_| false).unwrap();
    assert_eq!(pages(&bench.bind(first)), [14, 15]);
}

#[test]
fn without_translation_a_device_finds_memory_where_its_bus_shows_it() {
    let mut tree = topology([endpoint(NIC)]);
    let dma_ranges = BusRanges::new([range(0, 0x8000_0000, 0x1000_0000)]).unwrap();
    tree.insert_host_bridge(0, 0, HostBridge { dma_ranges, ..HostBridge::default() });
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    let settings = Settings { passthrough: Some(unsafe { Trust::new() }), ..Settings::default() };
    let bench = Setup { topology: tree, settings, ..Setup::default() }.bench();
    let at = map_page(&bench.bind_trusted(NIC)).unwrap();
    assert_eq!(at, DmaAddr::new(0x8010_0000));
}
