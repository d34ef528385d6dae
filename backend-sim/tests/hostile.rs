//! A hostile device behind a strict IOMMU reaches what it was given, and nothing else: memory stays as it was, and each try
//! is reported. Without an IOMMU the same device does its harm, and the watch over free memory sees it.

mod common;

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use backend_sim::sim_hardware::Machine;
use backend_sim::{EngineBench, SimMachine};
use common::engine::RawEngine;
use common::{IDENTITY, bar0, boot, boot_without_iommu, domain_id, page};
use conformance::Bench;
use dma_api::{
    Attrs, Bidirectional, CoherentSlice, DeviceFault, Direction, DmaBuffer, FromDevice, Streaming, ToDevice,
};
use iommu_core::{Fault, FaultFlags, FaultKind};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, FreeFrameChanged, PhysAddr};

const PAGE: usize = 4096;
const MARK: [u8; 8] = *b"intruder";
const SECRET: [u8; 8] = *b"a secret";

fn strict() -> (SimMachine, EngineBench) {
    let machine = boot(|_| {});
    let engine = machine.engine(Machine::ENGINE).unwrap();
    (machine, engine)
}

fn given(engine: &EngineBench) -> DmaBuffer<u8> {
    let mut buffer = DmaBuffer::zeroed(engine.device(), PAGE).unwrap();
    buffer[..SECRET.len()].copy_from_slice(&SECRET);
    buffer
}

fn untouched(buffer: &DmaBuffer<u8>) -> bool {
    buffer[..SECRET.len()] == SECRET && buffer[SECRET.len()..].iter().all(|&byte| byte == 0)
}

/// The device is refused, and the one fault of it arrives with everything at the program and in short at the driver.
fn refused(machine: &SimMachine, engine: &EngineBench, address: DmaAddr, flags: FaultFlags) {
    machine.take_faults();
    while engine.device().take_fault().is_some() {}
    let write = flags.contains(FaultFlags::WRITE);
    if write {
        assert!(engine.device_write(address, &MARK).is_err());
    } else {
        let mut seen = [0; 8];
        assert!(engine.device_read(address, &mut seen).is_err());
        assert_eq!(seen, [0; 8]);
    }
    let fault = Fault {
        kind: FaultKind::Page,
        requester: SimMachine::address(Machine::ENGINE),
        pasid: None,
        address,
        domain: domain_id(machine, Machine::ENGINE),
        flags,
    };
    assert_eq!(machine.take_faults(), [fault]);
    assert_eq!(engine.device().take_fault(), Some(DeviceFault { address, write }));
    assert_eq!(engine.device().take_fault(), None);
}

#[test]
fn memory_that_nobody_mapped_is_out_of_reach() {
    let (machine, engine) = strict();
    let victim = given(&engine);
    let address = DmaAddr::new(victim.phys().get());
    refused(&machine, &engine, address, FaultFlags::WRITE);
    refused(&machine, &engine, address, FaultFlags::empty());
    assert!(untouched(&victim));
}

#[test]
fn a_page_just_unmapped_is_out_of_reach() {
    let (machine, engine) = strict();
    let mapped = Streaming::<_, Bidirectional>::map(engine.device(), given(&engine)).unwrap();
    let address = mapped.dma_address();
    // The unit has used the translation, so it remembers it.
    engine.device_write(address, &SECRET).unwrap();
    let buffer = mapped.unmap().unwrap();
    refused(&machine, &engine, address, FaultFlags::WRITE);
    refused(&machine, &engine, address, FaultFlags::empty());
    assert!(untouched(&buffer));
}

#[test]
fn the_neighbour_of_a_page_just_unmapped_stays_in_reach() {
    let (_machine, engine) = strict();
    let gone = Streaming::<_, Bidirectional>::map(engine.device(), given(&engine)).unwrap();
    let kept = Streaming::<_, Bidirectional>::map(engine.device(), given(&engine)).unwrap();
    engine.device_write(gone.dma_address(), &MARK).unwrap();
    engine.device_write(kept.dma_address(), &MARK).unwrap();
    gone.unmap().unwrap();
    engine.device_write(kept.dma_address().wrapping_add(8), &MARK).unwrap();
    assert_eq!(kept.unmap().unwrap()[..16], [MARK, MARK].concat());
}

#[test]
fn an_unmap_ends_only_when_the_unit_has_forgotten() {
    let (machine, engine) = strict();
    let mapped = Streaming::<_, Bidirectional>::map(engine.device(), given(&engine)).unwrap();
    let address = mapped.dma_address();
    engine.device_write(address, &SECRET).unwrap();
    let unit = machine.hardware().iommu.as_ref().unwrap();
    unit.hold_commands(true);
    let buffer = std::thread::scope(|scope| {
        let unmapping = scope.spawn(|| mapped.unmap());
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) && !unmapping.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let too_early = unmapping.is_finished();
        // Now the device still may; this is why the unmap has to wait.
        let reaches = engine.device_write(address, &SECRET).is_ok();
        unit.hold_commands(false);
        assert!(!too_early, "the unmap ended while the unit remembered the page");
        assert!(reaches);
        unmapping.join().unwrap().unwrap()
    });
    refused(&machine, &engine, address, FaultFlags::WRITE);
    assert!(untouched(&buffer));
}

#[test]
fn memory_to_read_cannot_be_written() {
    let (machine, engine) = strict();
    let mapped = Streaming::<_, ToDevice>::map(engine.device(), given(&engine)).unwrap();
    let mut seen = [0; 8];
    engine.device_read(mapped.dma_address(), &mut seen).unwrap();
    assert_eq!(seen, SECRET);
    let denied = FaultFlags::WRITE | FaultFlags::PRESENT | FaultFlags::PERMISSION;
    refused(&machine, &engine, mapped.dma_address(), denied);
    assert!(untouched(&mapped.unmap().unwrap()));
}

#[test]
fn memory_to_write_cannot_be_read() {
    let (machine, engine) = strict();
    let mapped = Streaming::<_, FromDevice>::map(engine.device(), given(&engine)).unwrap();
    engine.device_write(mapped.dma_address(), &SECRET).unwrap();
    refused(&machine, &engine, mapped.dma_address(), FaultFlags::PRESENT | FaultFlags::PERMISSION);
    assert!(untouched(&mapped.unmap().unwrap()));
}

/// Maps bytes 1000 to 1100 of a page full of secrets, and has the device write the first word of the page and read the last.
/// Returns what it read, what bytes 1000 to 1008 are after the device wrote there, and the rest of the page.
fn part_of_a_page(engine: &EngineBench) -> ([u8; 8], Vec<u8>, Vec<u8>) {
    const OFFSET: usize = 1000;
    const LEN: usize = 100;
    let device = engine.device();
    let mut secrets = DmaBuffer::zeroed(device, PAGE).unwrap();
    secrets.fill(b's');
    let at = NonNull::new(secrets.as_mut_ptr().wrapping_add(OFFSET)).unwrap();
    // SAFETY: these bytes are initialised, outlive the mapping, and nobody looks at them meanwhile.
    let address = unsafe { device.map_single(at, LEN, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    let start = address.align_down(PAGE as u64);
    engine.device_write(address, &MARK).unwrap();
    engine.device_write(start, &MARK).unwrap();
    let mut seen = [0; 8];
    engine.device_read(start.wrapping_add(PAGE as u64 - 8), &mut seen).unwrap();
    // SAFETY: the mapping made above, ended once.
    unsafe { device.unmap_single(address, LEN, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    let rest = secrets[..OFFSET].iter().chain(&secrets[OFFSET + MARK.len()..]).copied().collect();
    (seen, secrets[OFFSET..OFFSET + MARK.len()].to_vec(), rest)
}

#[test]
fn an_untrusted_device_does_not_reach_the_rest_of_a_page() {
    let machine = boot(|config| config.untrusted = vec![SimMachine::address(Machine::ENGINE)]);
    let (seen, written, rest) = part_of_a_page(&machine.engine(Machine::ENGINE).unwrap());
    assert_eq!(seen, [0; 8], "it reads what is around the copy: nothing");
    assert_eq!(written, MARK);
    assert!(rest.iter().all(|&byte| byte == b's'));
    assert_eq!(machine.iommu().unwrap().statistics().bounces, 1);
}

#[test]
fn a_device_that_nobody_has_trusted_does_not_reach_the_rest_of_a_page() {
    let (machine, engine) = strict();
    let (seen, written, rest) = part_of_a_page(&engine);
    assert_eq!((seen, &written[..]), ([0; 8], &MARK[..]));
    assert!(rest.iter().all(|&byte| byte == b's'));
    assert_eq!(machine.iommu().unwrap().statistics().bounces, 1);
}

#[test]
fn a_trusted_device_does_reach_the_rest_of_a_page() {
    let machine = boot(|_| {});
    // SAFETY: the device is told to break the trust, on memory of the machine, which is no memory of the process but a buffer
    // that is looked at only after the mapping.
    let (function, device) = unsafe { machine.trust(SimMachine::address(Machine::ENGINE)) }.unwrap();
    let engine = RawEngine::new(&*function);
    let mut secrets = DmaBuffer::zeroed(&device, PAGE).unwrap();
    secrets.fill(b's');
    let at = NonNull::new(secrets.as_mut_ptr().wrapping_add(1000)).unwrap();
    // SAFETY: these bytes are initialised, outlive the mapping, and nobody looks at them meanwhile.
    let address = unsafe { device.map_single(at, 100, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    let start = address.align_down(PAGE as u64);
    assert!(engine.write(start, MARK));
    assert_eq!(engine.read(start.wrapping_add(PAGE as u64 - 8)), Some([b's'; 8]));
    // SAFETY: the mapping made above, ended once.
    unsafe { device.unmap_single(address, 100, Direction::Bidirectional, Attrs::empty()) }.unwrap();
    assert_eq!(secrets[..MARK.len()], MARK);
}

#[test]
fn a_peer_in_another_group_is_out_of_reach() {
    let (machine, engine) = strict();
    let peer = SimMachine::address(Machine::SHARING_ENGINE);
    let before = machine.hardware().pci.mmio(Machine::SHARING_ENGINE, 0).unwrap().read64(0);
    refused(&machine, &engine, DmaAddr::new(bar0(&machine, peer)), FaultFlags::WRITE);
    let after = machine.hardware().pci.mmio(Machine::SHARING_ENGINE, 0).unwrap().read64(0);
    assert_eq!((before, after), (0, 0));
}

#[test]
fn memory_that_was_freed_is_out_of_reach() {
    let (machine, engine) = strict();
    let mapped = Streaming::<_, Bidirectional>::map(engine.device(), given(&engine)).unwrap();
    let address = mapped.dma_address();
    engine.device_write(address, &MARK).unwrap();
    let buffer = mapped.unmap().unwrap();
    let phys = DmaAddr::new(buffer.phys().get());
    drop(buffer);
    refused(&machine, &engine, address, FaultFlags::WRITE);
    refused(&machine, &engine, phys, FaultFlags::WRITE);
    assert_eq!(machine.check_free_memory(), []);
}

#[test]
fn coherent_memory_that_was_freed_is_out_of_reach() {
    let (machine, engine) = strict();
    let memory = CoherentSlice::<u64>::zeroed(engine.device(), 1024).unwrap();
    let address = memory.dma_address();
    engine.device_write(address, &MARK).unwrap();
    engine.device_write(address.wrapping_add(PAGE as u64), &MARK).unwrap();
    assert_eq!(memory.read(0), u64::from_le_bytes(MARK));
    drop(memory);
    refused(&machine, &engine, address, FaultFlags::WRITE);
    refused(&machine, &engine, address.wrapping_add(PAGE as u64), FaultFlags::WRITE);
    assert_eq!(machine.check_free_memory(), []);
}

#[test]
fn memory_of_a_forgotten_mapping_is_nobodys_again() {
    let (machine, engine) = strict();
    let buffer = given(&engine);
    let phys = buffer.phys();
    let mapped = Streaming::<_, Bidirectional>::map(engine.device(), buffer).unwrap();
    let address = mapped.dma_address();
    std::mem::forget(mapped);
    let others: Vec<_> = (0..64).map(|_| given(&engine)).collect();
    engine.device_write(address, &MARK).unwrap();
    assert!(others.iter().all(|other| other.phys() != phys && untouched(other)));
    drop(others);
    assert_eq!(machine.check_free_memory(), []);
}

#[test]
fn a_hostile_device_hurts_nobody_but_itself() {
    let (machine, engine) = strict();
    let other = RequesterId::from_parts(0, 3, 0);
    let bystander = machine.engine(other).unwrap();
    let kept = Streaming::<_, Bidirectional>::map(bystander.device(), given(&bystander)).unwrap();
    // The same I/O address is another's memory, or nothing, in this device's domain.
    refused(&machine, &engine, kept.dma_address(), FaultFlags::WRITE);
    assert_eq!(bystander.device().take_fault(), None);
    bystander.device_write(kept.dma_address().wrapping_add(8), &MARK).unwrap();
    let buffer = kept.unmap().unwrap();
    assert_eq!((&buffer[..8], &buffer[8..16]), (&SECRET[..], &MARK[..]));
}

/// Frees a page and has the device write to it.
fn write_to_free_memory(machine: &SimMachine) -> (PhysAddr, Vec<FreeFrameChanged>) {
    let engine = machine.engine(Machine::ENGINE).unwrap();
    let phys = page(machine).phys();
    assert_eq!(machine.check_free_memory(), []);
    engine.device_write(DmaAddr::new(phys.get() + 16), &MARK).unwrap();
    (phys, machine.check_free_memory())
}

#[test]
fn without_an_iommu_the_watch_over_free_memory_finds_the_harm() {
    for machine in [boot_without_iommu(), boot(|config| config.settings = IDENTITY)] {
        let (phys, changed) = write_to_free_memory(&machine);
        let harm = FreeFrameChanged { at: phys.wrapping_add(16), found: u64::from_le_bytes(MARK) };
        assert_eq!(changed, [harm]);
        assert_eq!(machine.take_faults(), []);
    }
}

#[test]
fn the_watch_also_looks_at_memory_as_it_is_handed_out() {
    let machine = boot_without_iommu();
    let engine = machine.engine(Machine::ENGINE).unwrap();
    let phys = page(&machine).phys();
    engine.device_write(DmaAddr::new(phys.get()), &MARK).unwrap();
    // The same page again, and clean.
    let again = page(&machine);
    assert_eq!(again.phys(), phys);
    assert!(again.iter().all(|&byte| byte == 0));
    let harm = FreeFrameChanged { at: phys, found: u64::from_le_bytes(MARK) };
    assert_eq!(machine.check_free_memory(), [harm]);
}

#[test]
fn a_device_nobody_bound_reaches_nothing_that_was_not_mapped_for_its_group() {
    let machine = boot(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    let (function, device) = machine.bind(address).unwrap();
    drop(device);
    let engine = RawEngine::new(&*function);
    let victim = page(&machine);
    assert!(!engine.write(DmaAddr::new(victim.phys().get()), MARK));
    assert_eq!(engine.read(DmaAddr::new(victim.phys().get())), None);
    assert!(victim.iter().all(|&byte| byte == 0));
    let requesters: Vec<PciAddress> = machine.take_faults().iter().map(|fault| fault.requester).collect();
    assert_eq!(requesters, [address, address]);
}
