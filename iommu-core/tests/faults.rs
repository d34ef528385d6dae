//! Faults go to the program with everything, and to the device's driver with what concerns it; what nobody takes is counted.

mod common;

use common::{NIC, Setup};
use dma_api::DeviceFault;
use iommu_core::{Fault, FaultFlags, FaultKind};
use platform::DmaAddr;
use platform::pci::PciAddress;

fn fault(requester: PciAddress, address: u64, flags: FaultFlags) -> Fault {
    let address = DmaAddr::new(address);
    Fault { kind: FaultKind::Page, requester, pasid: None, address, domain: 7, flags }
}

#[test]
fn a_fault_reaches_the_program_and_the_driver() {
    let bench = Setup::default().bench();
    let device = bench.bind(NIC);
    let stranger = PciAddress::new(0, 9, 0, 0);
    let all = [
        fault(NIC, 0x1000, FaultFlags::WRITE),
        fault(stranger, 0x2000, FaultFlags::empty()),
        fault(NIC, 0x3000, FaultFlags::PRESENT | FaultFlags::PERMISSION),
    ];
    all.into_iter().for_each(|fault| bench.iommu.report_fault(fault));
    assert_eq!(device.take_fault(), Some(DeviceFault { address: DmaAddr::new(0x1000), write: true }));
    assert_eq!(device.take_fault(), Some(DeviceFault { address: DmaAddr::new(0x3000), write: false }));
    assert_eq!(device.take_fault(), None);
    assert_eq!(bench.iommu.take_faults(), all);
    assert_eq!(bench.iommu.take_faults(), []);
    assert_eq!(all[0].to_string(), "page fault: write of 0000:00:03.0 at 0x1000 in domain 7, not mapped");
    assert_eq!(
        all[2].to_string(),
        "page fault: read of 0000:00:03.0 at 0x3000 in domain 7, PRESENT | PERMISSION"
    );
}

#[test]
fn of_a_flood_the_newest_are_kept_and_the_rest_counted() {
    let bench = Setup::default().bench();
    for address in 0..1500 {
        bench.iommu.report_fault(fault(NIC, address, FaultFlags::empty()));
    }
    let statistics = bench.iommu.statistics();
    assert_eq!((statistics.faults, statistics.faults_lost), (1500, 476));
    let kept: Vec<u64> = bench.iommu.take_faults().iter().map(|fault| fault.address.get()).collect();
    assert_eq!(kept, (476..1500).collect::<Vec<_>>());
}
