//! Devices move between domains: from then on they reach what is in the new one, whatever the unit remembered.

mod common;

use std::sync::Arc;

use backend_sim::sim_hardware::Machine;
use backend_sim::{SimError, SimMachine};
use common::engine::RawEngine;
use common::{boot, domain_id, page};
use dma_api::{Bidirectional, DmaBuffer, DmaError, Streaming};
use iommu_core::{AttachError, Domain, DomainType, Fault, Group, GroupError, Owner, PagingFlags};
use platform::pci::PciAddress;
use platform::{DmaAddr, Prot};

const OWNER: Owner = Owner(1);
const IOVA: DmaAddr = DmaAddr::new(0x40_0000);
const MARK: [u8; 8] = *b"a visit!";

/// A machine, its engine without a driver, and the engine's group.
fn engine() -> (SimMachine, RawEngine, Arc<Group>) {
    let machine = boot(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    let (function, device) = machine.bind(address).unwrap();
    drop(device);
    let group = machine.group(address).unwrap();
    (machine, RawEngine::new(&*function), group)
}

/// A domain with a page at [`IOVA`].
fn domain_with_page(machine: &SimMachine, group: &Group) -> (Arc<Domain>, DmaBuffer<u8>) {
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    let page = page(machine);
    // SAFETY: the caller keeps the page as long as the machine runs, and looks at it only when the engine is idle.
    let (_, mapped) = unsafe { domain.map(IOVA, page.phys(), 4096, Prot::READ | Prot::WRITE) };
    mapped.unwrap();
    (domain, page)
}

fn only_fault(machine: &SimMachine) -> Fault {
    let faults = machine.take_faults();
    let [fault] = faults[..] else { panic!("not one fault: {faults:?}") };
    fault
}

#[test]
fn a_device_moved_to_the_blocked_domain_reaches_nothing() {
    let (machine, engine, group) = engine();
    group.claim_dma_owner(OWNER).unwrap();
    let (domain, mut page) = domain_with_page(&machine, &group);
    group.attach(&domain).unwrap();
    // The unit has read the device's entry and the page's translation.
    assert!(engine.write(IOVA, MARK));
    assert_eq!(page[..8], MARK);
    page.fill(0);
    // An owner's group without a domain is blocked; the page stays mapped in the domain that it has left.
    group.detach().unwrap();
    assert_eq!(group.domain().unwrap().domain_type(), DomainType::Blocked);
    assert!(!engine.write(IOVA, MARK));
    assert_eq!(engine.read(IOVA), None);
    assert!(page.iter().all(|&byte| byte == 0));
    assert_eq!(machine.take_faults().len(), 2);
}

#[test]
fn a_device_moved_to_another_domain_reaches_that_ones_memory() {
    let (machine, engine, group) = engine();
    group.claim_dma_owner(OWNER).unwrap();
    let (first, first_page) = domain_with_page(&machine, &group);
    let (second, second_page) = domain_with_page(&machine, &group);
    group.attach(&first).unwrap();
    assert!(engine.write(IOVA, *b"to first"));
    group.detach().unwrap();
    group.attach(&second).unwrap();
    assert!(engine.write(IOVA, *b"tosecond"));
    assert_eq!((&first_page[..8], &second_page[..8]), (&b"to first"[..], &b"tosecond"[..]));
    // A fault says whose table it was.
    let second_id = domain_id(&machine, Machine::ENGINE);
    assert!(!engine.write(IOVA.wrapping_add(4096), MARK));
    assert_eq!(only_fault(&machine).domain, second_id);
    // And back, to what the unit knew once.
    group.detach().unwrap();
    group.attach(&first).unwrap();
    assert!(engine.write(IOVA, *b"andagain"));
    assert_eq!((&first_page[..8], &second_page[..8]), (&b"andagain"[..], &b"tosecond"[..]));
    assert_ne!(domain_id(&machine, Machine::ENGINE), second_id);
}

#[test]
fn all_devices_of_a_group_move_together() {
    let machine = boot(|_| {});
    let slot = [0, 1].map(|function| PciAddress::new(0, 0, 3, function));
    let engines = slot.map(|address| RawEngine::new(&*machine.bind(address).unwrap().0));
    let group = machine.group(slot[0]).unwrap();
    group.claim_dma_owner(OWNER).unwrap();
    let (domain, mut page) = domain_with_page(&machine, &group);
    group.attach(&domain).unwrap();
    for engine in &engines {
        page.fill(0);
        assert!(engine.write(IOVA, MARK));
        assert_eq!(page[..8], MARK);
    }
    group.detach().unwrap();
    page.fill(0);
    for engine in &engines {
        assert!(!engine.write(IOVA, MARK));
    }
    assert!(page.iter().all(|&byte| byte == 0));
    let requesters: Vec<PciAddress> = machine.take_faults().iter().map(|fault| fault.requester).collect();
    assert_eq!(requesters, slot);
}

#[test]
fn a_released_group_serves_drivers_again() {
    let (machine, engine, group) = engine();
    let address = SimMachine::address(Machine::ENGINE);
    group.claim_dma_owner(OWNER).unwrap();
    assert!(matches!(machine.bind(address), Err(SimError::Group(GroupError::Busy))));
    let (domain, page) = domain_with_page(&machine, &group);
    group.attach(&domain).unwrap();
    assert!(engine.write(IOVA, MARK));
    let other = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    assert_eq!(group.attach(&other), Err(GroupError::Attach(AttachError::Busy)));
    group.release_dma_owner(OWNER).unwrap();
    // The owner's memory is out of reach, the driver's is in it.
    assert!(!engine.write(IOVA, *b"too late"));
    assert_eq!(page[..8], MARK);
    let (_, device) = machine.bind(address).unwrap();
    let buffer = DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
    let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap();
    assert!(engine.write(mapped.dma_address(), MARK));
    assert_eq!(mapped.unmap().unwrap()[..8], MARK);
    assert_eq!(group.claim_dma_owner(OWNER), Err(GroupError::Owned));
}

#[test]
fn a_domain_that_nobody_uses_any_more_gives_everything_back() {
    let (machine, engine, group) = engine();
    let before = machine.platform().frames().bytes_in_use();
    group.claim_dma_owner(OWNER).unwrap();
    let (domain, page) = domain_with_page(&machine, &group);
    group.attach(&domain).unwrap();
    assert!(engine.write(IOVA, MARK));
    group.release_dma_owner(OWNER).unwrap();
    drop(domain);
    drop(page);
    assert_eq!(machine.platform().frames().bytes_in_use(), before);
    // The unit does not walk what has been given back.
    assert!(!engine.write(IOVA, MARK));
    assert_eq!(machine.check_free_memory(), []);
}

#[test]
fn a_device_that_was_removed_reaches_nothing_and_its_driver_is_told() {
    let machine = boot(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    let (function, device) = machine.bind(address).unwrap();
    let engine = RawEngine::new(&*function);
    let buffer = DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
    let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap();
    assert!(engine.write(mapped.dma_address(), MARK));
    machine.iommu().unwrap().remove(address);
    assert!(!engine.write(mapped.dma_address(), *b"too late"));
    let buffer = DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
    let failed = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap_err();
    assert_eq!(failed.error, DmaError::Gone);
    // What it had is given back all the same.
    assert_eq!(mapped.unmap().unwrap()[..8], MARK);
}
