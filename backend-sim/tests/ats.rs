//! Devices that keep translations themselves: what was unmapped is out of their reach all the same.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backend_sim::sim_hardware::Machine;
use backend_sim::sim_hardware::ats::Atc;
use backend_sim::{Config, SimMachine};
use common::engine::RawEngine;
use common::{boot, page};
use dma_api::{Bidirectional, DmaBuffer, Streaming};
use iommu_core::{Capability, Domain, Group, IommuOps, Owner, PagingFlags, Trust};
use platform::pci::ConfigSpace;
use platform::{DmaAddr, IotlbGather, LeakCounter, Prot};

const IOVA: DmaAddr = DmaAddr::new(0x40_0000);
const MARK: [u8; 8] = *b"a visit!";

/// Engines can keep translations, and may.
fn with_ats(config: &mut Config) {
    config.engines.ats = Some(4);
    // SAFETY: simulated devices do DMA only when a test tells them to, on memory of the simulated machine.
    config.driver.ats = Some(unsafe { Trust::new() });
}

fn atc(machine: &SimMachine) -> &Arc<Atc> {
    machine.hardware().pci.atc(Machine::ENGINE).unwrap()
}

/// I of the engine's device table entry: bit 96, at 32 times the requester ID from the address in MMIO register 0000h.
fn entry_says_i(machine: &SimMachine) -> bool {
    let table = machine.driver().unwrap().units()[0].registers().read(0) & 0x000f_ffff_ffff_f000;
    let at = table + 32 * u64::from(Machine::ENGINE.get()) + 8;
    machine.hardware().ram.read64(at).unwrap() >> 32 & 1 != 0
}

/// A machine, its engine, and a domain of the engine's group with a page at [`IOVA`].
fn attached(
    change: impl FnOnce(&mut Config),
) -> (SimMachine, RawEngine, Arc<Group>, Arc<Domain>, DmaBuffer<u8>) {
    let machine = boot(|config| {
        with_ats(config);
        change(config);
    });
    let address = SimMachine::address(Machine::ENGINE);
    let (function, device) = machine.bind(address).unwrap();
    drop(device);
    let group = machine.group(address).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    let page = page(&machine);
    // SAFETY: the page stays as long as the machine, and is looked at only when the engine is idle.
    unsafe { domain.map(IOVA, page.phys(), 4096, Prot::READ | Prot::WRITE) }.1.unwrap();
    group.attach(&domain).unwrap();
    let engine = RawEngine::new(&*function);
    (machine, engine, group, domain, page)
}

/// Unmaps the page; whether everybody has forgotten it.
fn unmap(domain: &Domain) -> bool {
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    // SAFETY: nobody else touches the range.
    unsafe { domain.unmap(IOVA, 4096, &mut gather) };
    domain.sync(gather).is_ok()
}

#[test]
fn what_was_unmapped_is_out_of_the_devices_reach() {
    let (machine, engine, _group, domain, page) = attached(|_| {});
    assert!(engine.write(IOVA, MARK));
    assert_eq!(page[..8], MARK);
    assert_eq!(atc(&machine).len(), 1, "the device keeps it");
    assert!(unmap(&domain));
    assert!(!engine.write(IOVA, *b"too late"));
    assert_eq!(page[..8], MARK);
    assert!(atc(&machine).is_empty());
}

#[test]
fn a_drivers_buffers_come_and_go() {
    let machine = boot(with_ats);
    let (function, device) = machine.bind(SimMachine::address(Machine::ENGINE)).unwrap();
    let engine = RawEngine::new(&*function);
    for round in 0..50_u64 {
        let buffer = DmaBuffer::<u8>::zeroed(&device, 64 << 10).unwrap();
        let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap();
        let at = mapped.dma_address();
        assert!(engine.write(at, round.to_le_bytes()));
        assert_eq!(mapped.unmap().unwrap()[..8], round.to_le_bytes());
        assert!(!engine.write(at, MARK));
    }
    assert!(atc(&machine).is_enabled());
    assert_eq!(machine.check_free_memory(), []);
}

#[test]
fn a_device_that_changes_its_domain_keeps_nothing_of_the_old_one() {
    let (machine, engine, group, _domain, first) = attached(|_| {});
    assert!(engine.write(IOVA, *b"to first"));
    let second_page = page(&machine);
    let second = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    // SAFETY: as for the first.
    unsafe { second.map(IOVA, second_page.phys(), 4096, Prot::READ | Prot::WRITE) }.1.unwrap();
    group.detach().unwrap();
    assert!(!atc(&machine).is_enabled() && !entry_says_i(&machine), "blocked");
    assert!(!engine.write(IOVA, MARK));
    group.attach(&second).unwrap();
    assert!(atc(&machine).is_enabled() && entry_says_i(&machine));
    assert!(engine.write(IOVA, *b"tosecond"));
    assert_eq!((&first[..8], &second_page[..8]), (&b"to first"[..], &b"tosecond"[..]));
    assert!(unmap(&second));
    assert!(!engine.write(IOVA, MARK));
}

#[test]
fn a_device_keeps_translations_only_with_trust() {
    type Change = fn(&mut Config);
    let without: [Change; 4] = [
        // Nobody trusts devices that far; this one is not trusted; its unit cannot send invalidations.
        |config| config.driver.ats = None,
        |config| config.untrusted = vec![SimMachine::address(Machine::ENGINE)],
        |config| config.iommu.as_mut().unwrap().iotlb_sup = false,
        // Nor can it without the capability.
        |config| config.engines.ats = None,
    ];
    for (number, change) in without.into_iter().enumerate() {
        let (machine, engine, _group, domain, page) = attached(change);
        assert!(!entry_says_i(&machine), "{number}");
        let driver = machine.driver().unwrap();
        assert!(!driver.capable(SimMachine::address(Machine::ENGINE), Capability::PciAtsSupported));
        assert!(engine.write(IOVA, MARK));
        assert_eq!(page[..8], MARK);
        assert!(machine.hardware().pci.atc(Machine::ENGINE).is_none_or(|atc| !atc.is_enabled()));
        assert!(unmap(&domain));
    }
}

#[test]
fn a_device_that_does_not_answer_fails_the_unmap_and_keeps_nothing_from_then_on() {
    let (machine, engine, _group, domain, page) = attached(|_| {});
    assert!(engine.write(IOVA, MARK));
    atc(&machine).hold_invalidations(true);
    let start = Instant::now();
    assert!(!unmap(&domain), "nobody knows what the device still reaches");
    assert!(start.elapsed() >= Duration::from_secs(1), "the unit gives it a second");
    // But now it has lost what it kept, and is asked no more.
    assert!(!atc(&machine).is_enabled() && !entry_says_i(&machine));
    assert!(!engine.write(IOVA, *b"too late"));
    assert_eq!(page[..8], MARK);
    // SAFETY: as before.
    unsafe { domain.map(IOVA, page.phys(), 4096, Prot::READ | Prot::WRITE) }.1.unwrap();
    assert!(engine.write(IOVA, *b"as usual"));
    let start = Instant::now();
    assert!(unmap(&domain));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_driver_is_told_when_its_device_does_not_answer() {
    let machine = boot(with_ats);
    let (function, device) = machine.bind(SimMachine::address(Machine::ENGINE)).unwrap();
    let engine = RawEngine::new(&*function);
    let mapped =
        Streaming::<_, Bidirectional>::map(&device, DmaBuffer::<u8>::zeroed(&device, 4096).unwrap()).unwrap();
    assert!(engine.write(mapped.dma_address(), MARK));
    atc(&machine).hold_invalidations(true);
    mapped.unmap().unwrap_err();
    assert_eq!(machine.iommu().unwrap().statistics().quarantined, 4096);
}

#[test]
fn a_device_that_does_not_answer_the_first_invalidation_goes_without() {
    let (machine, engine, group, domain, page) = attached(|_| {});
    group.detach().unwrap();
    atc(&machine).hold_invalidations(true);
    group.attach(&domain).unwrap();
    assert!(!atc(&machine).is_enabled() && !entry_says_i(&machine));
    assert!(engine.write(IOVA, MARK));
    assert_eq!(page[..8], MARK);
}

#[test]
fn a_device_is_told_nothing_while_it_is_reset() {
    let (machine, engine, group, domain, page) = attached(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    assert!(engine.write(IOVA, MARK));
    let fence = group.fence_reset(address).unwrap();
    assert!(!atc(&machine).is_enabled() && !entry_says_i(&machine));
    assert!(!engine.write(IOVA, *b"inbetwee"));
    // Configuration space after a reset: the control register of ATS is 0. Nobody answers meanwhile.
    atc(&machine).hold_invalidations(true);
    let start = Instant::now();
    // SAFETY: nobody else touches the range.
    unsafe { domain.map(DmaAddr::new(0x50_0000), page.phys(), 4096, Prot::READ) }.1.unwrap();
    assert!(unmap(&domain));
    assert!(start.elapsed() < Duration::from_secs(1));
    atc(&machine).hold_invalidations(false);
    fence.done().unwrap();
    assert!(atc(&machine).is_enabled() && entry_says_i(&machine));
    assert!(!engine.write(IOVA, MARK));
    assert!(engine.read(DmaAddr::new(0x50_0000)).is_some());
}

#[test]
fn unmaps_beside_resets_never_wait_for_a_device_that_is_off() {
    let (machine, engine, group, domain, page) = attached(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50 {
                group.fence_reset(address).unwrap().done().unwrap();
            }
        });
        for _ in 0..200 {
            // Whether or not it is fenced now.
            engine.write(IOVA, MARK);
            assert!(unmap(&domain));
            assert!(!engine.write(IOVA, MARK));
            // SAFETY: as for the first map.
            unsafe { domain.map(IOVA, page.phys(), 4096, Prot::READ | Prot::WRITE) }.1.unwrap();
        }
    });
    assert!(atc(&machine).is_enabled(), "it has answered each");
}

#[test]
fn no_more_invalidations_are_under_way_than_the_device_can_hold() {
    // The depth is in the command, bits 31:24: what the device says, and 32 where it says 0.
    for (says, told) in [(4, 4), (32, 32)] {
        let (machine, _engine, _group, domain, _page) = attached(|config| config.engines.ats = Some(says));
        assert!(unmap(&domain));
        // The page command goes first, and the device's behind it.
        let commands = recent_commands(&machine, 4);
        let [pages, _, iotlb, _] = commands[..] else { panic!("{commands:x?}") };
        let device = u64::from(Machine::ENGINE.get());
        assert_eq!(pages.0 >> 60, 3);
        assert_eq!(iotlb, (4 << 60 | device << 32 | told << 24 | device, IOVA.get()));
    }
}

/// The last `count` commands of the ring, oldest first, as they are in memory: the base is in MMIO register 0008h, the tail
/// in 2008h.
fn recent_commands(machine: &SimMachine, count: u64) -> Vec<(u64, u64)> {
    let registers = machine.driver().unwrap().units()[0].registers();
    let (base, tail) = (registers.read(0x08), registers.read(0x2008));
    let size = 16 << (base >> 56 & 0xf);
    let at = |back: u64| (base & 0x000f_ffff_ffff_f000) + (tail + size - 16 * back) % size;
    let ram = &machine.hardware().ram;
    (1..=count).rev().map(|back| (ram.read64(at(back)).unwrap(), ram.read64(at(back) + 8).unwrap())).collect()
}

#[test]
fn ats_is_off_once_the_driver_has_let_go_of_the_device() {
    let (machine, engine, _group, _domain, _page) = attached(|_| {});
    let address = SimMachine::address(Machine::ENGINE);
    assert!(engine.write(IOVA, MARK));
    machine.iommu().unwrap().remove(address);
    assert!(!atc(&machine).is_enabled() && !entry_says_i(&machine));
    // The capability is where it was: the engine's first extended one.
    assert_eq!(machine.hardware().pci.read32(address, 0x104) >> 31, 0);
    assert!(!engine.write(IOVA, MARK));
}
