//! Faults go to the program with everything, and to the device's driver with what concerns it; what nobody takes is counted.

mod common;

use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use common::{NIC, Setup, bridge, endpoint, topology};
use dma_api::DeviceFault;
use iommu_core::pci::PortType;
use iommu_core::{DomainError, Fault, FaultFlags, FaultHandler, FaultKind, Owner, PagingFlags};
use platform::DmaAddr;
use platform::pci::{PciAddress, RequesterId};

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

#[test]
fn a_fault_under_an_alias_reaches_every_driver_that_it_may_be_for() {
    let alias = RequesterId::from_parts(0, 7, 0);
    let (one, two) = (PciAddress::new(0, 0, 4, 0), PciAddress::new(0, 0, 5, 0));
    let mut setup = Setup { topology: topology([endpoint(one), endpoint(two)]), ..Setup::default() };
    setup.knobs.aliases.extend([(one, vec![alias]), (two, vec![alias])]);
    let bench = setup.bench();
    let devices = [one, two].map(|address| bench.bind(address));
    let name = PciAddress { segment: 0, id: alias };
    bench.iommu.report_fault(fault(name, 0x1000, FaultFlags::empty()));
    let heard = Some(DeviceFault { address: DmaAddr::new(0x1000), write: false });
    assert_eq!(devices.each_ref().map(|device| device.take_fault()), [heard, heard]);
    // Under its own name it is one's alone.
    bench.iommu.report_fault(fault(one, 0x2000, FaultFlags::empty()));
    assert!(devices[0].take_fault().is_some() && devices[1].take_fault().is_none());
}

#[test]
fn a_fault_under_a_bridges_name_reaches_the_drivers_behind_it() {
    let bridge_at = PciAddress::new(0, 0, 4, 0);
    let behind = PciAddress::new(0, 1, 3, 0);
    let nodes = [bridge(bridge_at, PortType::PcieToPci, 1), endpoint(behind)];
    let bench = Setup { topology: topology(nodes), ..Setup::default() }.bench();
    let device = bench.bind(behind);
    // A bridge from PCI Express to PCI says its secondary bus, device 0, function 0.
    bench.iommu.report_fault(fault(PciAddress::new(0, 1, 0, 0), 0x1000, FaultFlags::empty()));
    assert!(device.take_fault().is_some());
}

#[test]
fn a_fault_does_not_wait_for_an_attach() {
    let bench = Arc::new(Setup::default().bench());
    let device = bench.bind(NIC);
    let group = bench.group(NIC);
    let under_way = Arc::new(Barrier::new(2));
    drop(device);
    bench.toy.hold_attach(&under_way);
    let attaching = std::thread::spawn(move || group.claim_dma_owner(Owner(1)));
    under_way.wait();
    let (done, reported) = mpsc::channel();
    let reporting = std::thread::spawn({
        let bench = Arc::clone(&bench);
        move || {
            bench.iommu.report_fault(fault(NIC, 0x1000, FaultFlags::empty()));
            done.send(()).unwrap();
        }
    });
    let reported = reported.recv_timeout(Duration::from_secs(5));
    under_way.wait();
    attaching.join().unwrap().unwrap();
    reporting.join().unwrap();
    assert_eq!(reported, Ok(()));
}

/// Takes what is below an address.
#[derive(Debug)]
struct Below(u64);

impl FaultHandler for Below {
    fn handle(&self, fault: &Fault) -> bool {
        fault.address.get() < self.0
    }
}

#[test]
fn the_handler_of_a_domain_hears_of_its_faults_first() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    let mine = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    mine.set_fault_handler(Arc::new(Below(0x2000))).unwrap();
    group.attach(&mine).unwrap();
    let (handled, other) = (fault(NIC, 0x1000, FaultFlags::empty()), fault(NIC, 0x2000, FaultFlags::empty()));
    bench.iommu.report_fault(handled);
    bench.iommu.report_fault(other);
    assert_eq!(bench.iommu.take_faults(), [other]);
    assert_eq!(bench.iommu.statistics().faults, 2, "both were faults");
    group.detach().unwrap();
    bench.iommu.report_fault(handled);
    assert_eq!(bench.iommu.take_faults(), [handled], "in another domain it is nobody's");
}

#[test]
fn only_a_domain_of_ones_own_has_a_handler_and_one() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    let handler = || Arc::new(Below(0));
    assert_eq!(group.default_domain().unwrap().set_fault_handler(handler()), Err(DomainError::InUse));
    let mine = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    mine.set_fault_handler(handler()).unwrap();
    assert_eq!(mine.set_fault_handler(handler()), Err(DomainError::InUse));
}

#[test]
fn a_removed_device_hears_nothing_more() {
    let bench = Setup::default().bench();
    let device = bench.bind(NIC);
    bench.iommu.remove(NIC);
    bench.iommu.report_fault(fault(NIC, 0x1000, FaultFlags::empty()));
    assert_eq!(device.take_fault(), None);
    assert_eq!(bench.iommu.take_faults().len(), 1);
}
