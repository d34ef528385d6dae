//! The chain of layers: the driver says its own names, between the core's and the table's.

mod common;

use common::*;
use iommu_core::IommuOps;
use platform::pci::PciAddress;
use platform::{DmaAddr, IotlbGather, LeakCounter, PhysAddr, Prot, trace};

#[test]
fn the_driver_says_its_names_when_it_runs() {
    let setup = bring_up();
    let dev = PciAddress::new(0, 1, 0, 0);
    setup.driver.probe_device(dev).unwrap();
    let domain = setup.driver.domain_alloc_paging(dev).unwrap();
    attach(&*domain, dev, None).unwrap();
    let leaks = LeakCounter::new();
    let ((), events) = trace::record(|| {
        let mut gather = IotlbGather::new(&leaks);
        // SAFETY: the unit of these tests does not access memory by such mappings.
        unsafe {
            let (mapped, _) =
                domain.map_pages(DmaAddr::new(0x1000), PhysAddr::new(0x8000), 0x1000, 2, Prot::READ);
            assert_eq!(mapped, 0x2000);
            assert_eq!(domain.unmap(DmaAddr::new(0x1000), 0x2000, &mut gather), 0x2000);
        }
        domain.iotlb_sync(&gather).unwrap();
    });
    let names: Vec<_> = events.iter().map(|event| (event.name, event.address, event.len)).collect();
    assert_eq!(
        names,
        [
            ("amd_iommu_map", 0x1000, 0x2000),
            ("io_pgtable_ops.map_pages", 0x1000, 0x2000),
            ("amd_iommu_unmap", 0x1000, 0x2000),
            ("io_pgtable_ops.unmap_pages", 0x1000, 0x2000),
            ("amd_iommu_iotlb_sync", 0x1000, 0x2000),
        ]
    );
}
