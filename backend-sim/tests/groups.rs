//! The machine's groups: which functions hardware cannot keep apart, and that it is so.

mod common;

use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine;
use common::{bar0, boot};
use conformance::Bench;
use dma_api::Attrs;
use iommu_core::DomainType;
use iommu_core::pci::Reason;
use platform::DmaAddr;
use platform::pci::{PciAddress, RequesterId};

const fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function)
}

fn groups(machine: &SimMachine) -> Vec<Vec<PciAddress>> {
    machine.iommu().unwrap().groups().iter().map(|group| group.devices()).collect()
}

#[test]
fn what_no_acs_keeps_apart_shares_a_group() {
    let machine = boot(|_| {});
    // By the ACS rules: a root port and what is behind it are apart when the port isolates, the switch's second port does
    // not isolate and so is one with its device, the two functions of slot 3 have no ACS at all. The host bridge and the
    // IOMMU are not behind the IOMMU.
    let expected = [
        vec![at(0, 1, 0)],
        vec![at(0, 2, 0)],
        vec![at(0, 3, 0), at(0, 3, 1)],
        vec![at(1, 0, 0)],
        vec![at(2, 0, 0)],
        vec![at(3, 0, 0)],
        vec![at(3, 1, 0), at(5, 0, 0)],
        vec![at(4, 0, 0)],
    ];
    assert_eq!(groups(&machine), expected);
}

#[test]
fn a_group_says_why_it_is_one() {
    let machine = boot(|_| {});
    let why = |address| machine.group(address).unwrap().outline();
    assert!(matches!(
        why(at(5, 0, 0))[..],
        [Reason::PortNotIsolated { of, port, .. }] if of == at(5, 0, 0) && port == at(3, 1, 0)
    ));
    assert!(matches!(
        why(at(0, 3, 0))[..],
        [Reason::SlotNotIsolated { of, sibling, .. }] if of == at(0, 3, 0) && sibling == at(0, 3, 1)
    ));
    assert_eq!(why(at(4, 0, 0)), []);
}

#[test]
fn an_untrusted_device_decides_for_its_group_alone() {
    let untrusted = at(5, 0, 0);
    let machine = boot(|config| {
        config.settings = common::IDENTITY;
        config.untrusted = vec![untrusted];
    });
    let kind = |address| machine.group(address).unwrap().domain_type();
    assert_eq!(kind(untrusted), Some(DomainType::Dma));
    assert_eq!(kind(at(3, 1, 0)), Some(DomainType::Dma));
    assert_eq!(kind(at(4, 0, 0)), Some(DomainType::Identity));
}

/// Has the engine `from` write a register of `to`, and says whether it arrived.
fn reaches(machine: &SimMachine, from: RequesterId, to: RequesterId) -> bool {
    let engine = machine.engine(from).unwrap();
    let register = machine.hardware().pci.mmio(to, 0).unwrap();
    let before = register.read64(0);
    let address = DmaAddr::new(bar0(machine, SimMachine::address(to)));
    let told = engine.device_write(address, b"register").is_ok();
    let arrived = register.read64(0) != before;
    assert_eq!(told, arrived);
    arrived
}

#[test]
fn functions_of_one_group_talk_past_the_iommu_and_an_isolated_port_stops_that() {
    let machine = boot(|_| {});
    let (first, second) = (RequesterId::from_parts(0, 3, 0), RequesterId::from_parts(0, 3, 1));
    assert!(reaches(&machine, first, second));
    assert_eq!(machine.take_faults(), []);
    // Its port sends everything up to the root, where the IOMMU knows no such address.
    assert!(!reaches(&machine, Machine::ENGINE, Machine::SHARING_ENGINE));
    assert!(!reaches(&machine, Machine::ENGINE, first));
    assert!(!reaches(&machine, first, Machine::ENGINE));
    assert_eq!(machine.take_faults().len(), 3);
}

#[test]
fn no_address_is_handed_out_at_which_a_function_answers_itself() {
    let machine = boot(|_| {});
    let (_, device) = machine.bind(at(5, 0, 0)).unwrap();
    let memory = device.alloc_coherent(4096, Attrs::empty()).unwrap();
    let (first, last) = machine.hardware().pci.window();
    assert!((first..=last).contains(&bar0(&machine, at(5, 0, 0))));
    assert!(memory.dma.get() < first || memory.dma.get() > last, "{} in the window", memory.dma);
    // SAFETY: allocated just now, freed once.
    unsafe { device.free_coherent(memory, Attrs::empty()) }.unwrap();
}
