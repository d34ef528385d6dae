//! Devices whose requests carry another name than their own reach what they were given, under that name, and nothing else.

mod common;

use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine;
use common::engine::RawEngine;
use common::{boot, domain_id, page};
use dma_api::{Bidirectional, Streaming};
use platform::DmaAddr;
use platform::pci::RequesterId;

const MARK: [u8; 8] = *b"a visit!";

fn a_named_device((function, name): (RequesterId, RequesterId)) {
    let machine = boot(|config| config.aliasing_devices = true);
    let address = SimMachine::address(function);
    let (pci, device) = machine.bind(address).unwrap();
    let engine = RawEngine::new(&*pci);
    let buffer = dma_api::DmaBuffer::<u8>::zeroed(&device, 4096).unwrap();
    let mapped: Streaming<_, Bidirectional> = Streaming::map(&device, buffer).unwrap();
    let at = mapped.dma_address();
    assert_eq!(domain_id(&machine, name), domain_id(&machine, function));
    assert_ne!(domain_id(&machine, name), 0);
    assert!(engine.write(at, MARK), "the device reaches its buffer");
    // What it was not given it does not reach, and who it was is known.
    assert!(!engine.write(DmaAddr::new(at.get() ^ 0x4000_0000), MARK));
    let faults = machine.take_faults();
    assert_eq!(faults.iter().map(|fault| fault.requester.id).collect::<Vec<_>>(), [name]);
    let buffer = mapped.unmap().unwrap();
    assert_eq!(buffer[..8], MARK);
    assert!(!engine.write(at, MARK), "the name forgets with the device");
    drop(buffer);
    // Blocked under both names when it goes.
    machine.iommu().unwrap().remove(address);
    assert_eq!((domain_id(&machine, name), domain_id(&machine, function)), (0, 0));
    let stranger = page(&machine);
    assert!(!engine.write(DmaAddr::new(stranger.phys().get()), MARK));
    assert!(stranger.iter().all(|&byte| byte == 0));
}

#[test]
fn a_device_behind_a_bridge_to_conventional_pci() {
    a_named_device(Machine::BRIDGED_ENGINE);
}

#[test]
fn a_device_that_uses_the_name_of_a_function_that_is_not_there() {
    a_named_device(Machine::MISNAMED_ENGINE);
}
