//! Guest (v2) tables: as a device's own, and for its PASIDs.

mod common;

use std::sync::Arc;

use backend_sim::sim_hardware::{Machine, iommu};
use backend_sim::{Config, SimMachine};
use common::engine::RawEngine;
use common::{IDENTITY, boot, page};
use dma_api::{Bidirectional, DmaBuffer, Streaming};
use iommu_core::{AttachError, Domain, DomainType, Group, GroupError, IrqSource, Owner, PagingFlags, Trust};
use platform::{DmaAddr, Prot};

const IOVA: DmaAddr = DmaAddr::new(0x40_0000);
const MARK: [u8; 8] = *b"a visit!";
const PASID: u32 = 0x1_2345;

/// A unit that can do guest translation, and engines with PASIDs of 20 bits.
fn with_pasids(config: &mut Config) {
    let unit = config.iommu.as_mut().unwrap();
    unit.efr |= iommu::Config::GUEST;
    config.engines.pasid_bits = Some(20);
}

fn with_ats(config: &mut Config) {
    config.engines.ats = Some(2);
    // SAFETY: simulated devices do DMA only when a test tells them to, on memory of the simulated machine.
    config.driver.ats = Some(unsafe { Trust::new() });
}

/// An engine and its group, which an owner has; it is in a domain that has PASIDs beside it.
fn engine(change: impl FnOnce(&mut Config)) -> (SimMachine, RawEngine, Arc<Group>, Arc<Domain>) {
    let machine = boot(|config| {
        with_pasids(config);
        change(config);
    });
    let address = SimMachine::address(Machine::ENGINE);
    let (function, device) = machine.bind(address).unwrap();
    drop(device);
    let group = machine.group(address).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    let own = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    group.attach(&own).unwrap();
    let engine = RawEngine::new(&*function);
    (machine, engine, group, own)
}

/// Maps a new page at [`IOVA`].
fn with_page(machine: &SimMachine, domain: &Domain) -> DmaBuffer<u8> {
    let page = page(machine);
    // SAFETY: the caller keeps the page as long as the machine, and looks at it only when the engine is idle.
    unsafe { domain.map(IOVA, page.phys(), 4096, Prot::READ | Prot::WRITE) }.1.unwrap();
    page
}

fn unmap(domain: &Domain) -> bool {
    let mut gather = domain.gather();
    // SAFETY: nobody else touches the range.
    unsafe { domain.unmap(IOVA, 4096, &mut gather) };
    domain.sync(gather).is_ok()
}

/// The engine's entry.
fn entry(machine: &SimMachine) -> [u64; 4] {
    let table = machine.driver().unwrap().units()[0].registers().read(0) & 0x000f_ffff_ffff_f000;
    let at = table + 32 * u64::from(Machine::ENGINE.get());
    [0, 8, 16, 24].map(|word| machine.hardware().ram.read64(at + word).unwrap())
}

#[test]
fn a_guest_table_translates_a_devices_own_requests() {
    for five_levels in [false, true] {
        let (machine, engine, _group, own) = engine(|config| {
            if !five_levels {
                // GATS: bits 13:12.
                config.iommu.as_mut().unwrap().efr &= !(3 << 12);
            }
        });
        let [w0, w1, w2, _] = entry(&machine);
        // V, TV, GIoV, GV, GLX for three levels, IR, IW; no host table.
        assert_eq!(w0 & !(7 << 58), 3 | 1 << 54 | 1 << 55 | 2 << 56 | 1 << 61 | 1 << 62);
        assert_ne!(w1 & 0xffff, 0);
        assert_eq!(w2 >> 54 & 3, u64::from(five_levels));
        let last = if five_levels { (1 << 56) - 1 } else { (1 << 47) - 1 };
        assert_eq!(own.aperture(), (DmaAddr::new(0), DmaAddr::new(last)));
        // Interrupts are led elsewhere beside it.
        let function = SimMachine::address(Machine::ENGINE);
        let source = IrqSource::Msi { function, aliases: &[] };
        let _irqs = machine.irq_remap().unwrap().alloc(source, 1).unwrap();
        assert_eq!(entry(&machine)[2] >> 54 & 3, u64::from(five_levels));
        let page = with_page(&machine, &own);
        assert!(engine.write(IOVA, MARK));
        assert_eq!(page[..8], MARK);
        assert!(unmap(&own));
        assert!(!engine.write(IOVA, *b"too late"));
        // What is read-only is not written.
        // SAFETY: as before.
        unsafe { own.map(IOVA, page.phys(), 4096, Prot::READ) }.1.unwrap();
        assert_eq!(engine.read(IOVA), Some(MARK));
        assert!(!engine.write(IOVA, *b"too late"));
        assert_eq!(page[..8], MARK);
    }
}

#[test]
fn the_format_is_a_setting_and_falls_back_to_what_there_is() {
    type Change = fn(&mut Config);
    // What is changed, and whether entries have GV.
    let cases: [(Change, bool); 5] = [
        (|_| {}, false),
        (|config| config.driver.page_table = amd_vi::PageTableFormat::V2, true),
        // Without guest I/O protection there is no v2, whatever GTSup says.
        (
            |config| {
                config.driver.page_table = amd_vi::PageTableFormat::V2;
                config.iommu.as_mut().unwrap().efr &= !(1 << 48);
            },
            false,
        ),
        // HATS = 3: there is no v1.
        (|config| config.iommu.as_mut().unwrap().efr |= 3 << 10, true),
        // Devices with PASIDs have it by default.
        (|config| config.engines.pasid_bits = Some(8), true),
    ];
    for (number, (change, guest)) in cases.into_iter().enumerate() {
        let machine = boot(|config| {
            with_pasids(config);
            config.engines.pasid_bits = None;
            change(config);
        });
        let (function, device) = machine.bind(SimMachine::address(Machine::ENGINE)).unwrap();
        assert_eq!(entry(&machine)[0] >> 55 & 1 != 0, guest, "{number}");
        let engine = RawEngine::new(&*function);
        let buffer = DmaBuffer::<u8>::zeroed(&device, 8192).unwrap();
        let mapped = Streaming::<_, Bidirectional>::map(&device, buffer).unwrap();
        let at = mapped.dma_address();
        assert!(engine.write(at, MARK));
        assert_eq!(mapped.unmap().unwrap()[..8], MARK);
        assert!(!engine.write(at, MARK));
        assert_eq!(machine.check_free_memory(), []);
    }
}

#[test]
fn each_pasid_reaches_its_own_domain_and_no_other() {
    let (machine, engine, group, own) = engine(|_| {});
    let own_page = with_page(&machine, &own);
    let domains = [1, PASID].map(|pasid| (pasid, group.alloc_unmanaged(PagingFlags::PASID).unwrap()));
    let pages = domains.each_ref().map(|(_, domain)| with_page(&machine, domain));
    engine.use_pasid(Some(PASID));
    assert!(!engine.write(IOVA, MARK), "nobody has attached it");
    for (pasid, domain) in &domains {
        group.attach_pasid(domain, *pasid).unwrap();
    }
    for ((pasid, _), mark) in domains.iter().zip([b"pasid  1", b"the big."]) {
        engine.use_pasid(Some(*pasid));
        assert!(engine.write(IOVA, *mark));
    }
    engine.use_pasid(None);
    assert!(engine.write(IOVA, MARK));
    assert_eq!(
        (&own_page[..8], &pages[0][..8], &pages[1][..8]),
        (&MARK[..], &b"pasid  1"[..], &b"the big."[..])
    );
    // A fault says whose it is.
    machine.take_faults();
    engine.use_pasid(Some(PASID));
    assert!(!engine.write(IOVA.wrapping_add(4096), MARK));
    assert_eq!(machine.take_faults()[0].pasid, Some(PASID));
    // An unmap in one is an unmap in one.
    assert!(unmap(&domains[1].1));
    assert!(!engine.write(IOVA, MARK));
    engine.use_pasid(Some(1));
    assert!(engine.write(IOVA, MARK));
    // Off it goes.
    group.detach_pasid(1).unwrap();
    assert!(!engine.write(IOVA, *b"too late"));
    assert_eq!(pages[0][..8], MARK);
    engine.use_pasid(None);
    assert!(engine.write(IOVA, MARK), "the device itself is where it was");
}

#[test]
fn a_pasid_is_replaced_with_no_time_between() {
    for ats in [false, true] {
        let (machine, engine, group, _own) = engine(|config| {
            if ats {
                with_ats(config);
            }
        });
        let (old, new) = (
            group.alloc_unmanaged(PagingFlags::PASID).unwrap(),
            group.alloc_unmanaged(PagingFlags::PASID).unwrap(),
        );
        let (old_page, new_page) = (with_page(&machine, &old), with_page(&machine, &new));
        group.attach_pasid(&old, PASID).unwrap();
        engine.use_pasid(Some(PASID));
        assert!(engine.write(IOVA, *b"to old  "));
        group.replace_pasid(&new, PASID).unwrap();
        assert!(engine.write(IOVA, *b"to new  "));
        assert_eq!((&old_page[..8], &new_page[..8]), (&b"to old  "[..], &b"to new  "[..]));
        assert!(unmap(&new));
        assert!(!engine.write(IOVA, MARK));
        assert!(unmap(&old));
    }
}

#[test]
fn a_device_that_keeps_translations_is_told_by_pasid() {
    let (machine, engine, group, own) = engine(with_ats);
    let domain = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    let (own_page, pasid_page) = (with_page(&machine, &own), with_page(&machine, &domain));
    group.attach_pasid(&domain, PASID).unwrap();
    engine.use_pasid(Some(PASID));
    assert!(engine.write(IOVA, MARK));
    engine.use_pasid(None);
    assert!(engine.write(IOVA, MARK));
    let atc = machine.hardware().pci.atc(Machine::ENGINE).unwrap();
    assert_eq!(atc.len(), 2);
    assert!(unmap(&own));
    assert_eq!(atc.len(), 1);
    assert!(!engine.write(IOVA, *b"too late"));
    engine.use_pasid(Some(PASID));
    assert!(engine.write(IOVA, MARK));
    assert!(unmap(&domain));
    assert!(!engine.write(IOVA, *b"too late"));
    assert_eq!((&own_page[..8], &pasid_page[..8]), (&MARK[..], &MARK[..]));
}

#[test]
fn beside_an_identity_domain_pasids_have_their_tables() {
    let machine = boot(|config| {
        with_pasids(config);
        config.settings = IDENTITY;
    });
    let address = SimMachine::address(Machine::ENGINE);
    // SAFETY: the engine does what this test tells it.
    let (function, _device) = unsafe { machine.trust(address) }.unwrap();
    let group = machine.group(address).unwrap();
    assert_eq!(group.domain().unwrap().domain_type(), DomainType::Identity);
    let domain = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    let page = with_page(&machine, &domain);
    group.attach_pasid(&domain, PASID).unwrap();
    // GV without GIoV.
    assert_eq!(entry(&machine)[0] >> 54 & 3, 2);
    let engine = RawEngine::new(&*function);
    engine.use_pasid(Some(PASID));
    assert!(engine.write(IOVA, MARK));
    assert_eq!(page[..8], MARK);
    engine.use_pasid(None);
    assert_eq!(engine.read(DmaAddr::new(page.phys().get())), Some(MARK), "addresses pass as they are");
    engine.use_pasid(Some(PASID));
    group.detach_pasid(PASID).unwrap();
    assert!(!engine.write(IOVA, *b"too late"));
}

#[test]
fn where_there_are_no_pasids() {
    let (machine, _engine, group, _own) = engine(|_| {});
    let v2 = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    let attach = |pasid| group.attach_pasid(&v2, pasid);
    assert_eq!(attach(0), Err(GroupError::InvalidPasid(0)));
    assert_eq!(attach(1 << 20), Err(GroupError::InvalidPasid(1 << 20)));
    // A host table has none beside it, and does not come while there are any.
    let v1 = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    assert_eq!(group.attach_pasid(&v1, 1), Err(GroupError::Attach(AttachError::Unsupported)));
    attach(1).unwrap();
    group.detach().unwrap();
    assert_eq!(group.attach(&v1), Err(GroupError::Attach(AttachError::Busy)));
    group.detach_pasid(1).unwrap();
    group.attach(&v1).unwrap();
    assert_eq!(attach(1), Err(GroupError::Attach(AttachError::Unsupported)));
    assert_eq!(entry(&machine)[0] >> 54 & 3, 0);
    // Nor has a machine whose unit, or whose device, lacks them.
    for pasid_bits in [None, Some(20)] {
        let machine = boot(|config| config.engines.pasid_bits = pasid_bits);
        let group = machine.group(SimMachine::address(Machine::ENGINE)).unwrap();
        assert!(group.alloc_unmanaged(PagingFlags::PASID).is_err());
    }
}

#[test]
fn pasids_are_as_many_as_device_and_unit_both_have() {
    for (device, unit, most) in [(8, 20, 8), (20, 9, 9)] {
        let machine = boot(|config| {
            with_pasids(config);
            config.engines.pasid_bits = Some(device);
            // PASmax, bits 36:32: bits less one.
            let efr = &mut config.iommu.as_mut().unwrap().efr;
            *efr = *efr & !(0x1f << 32) | (unit - 1) << 32;
        });
        let (_, device) = machine.bind(SimMachine::address(Machine::ENGINE)).unwrap();
        drop(device);
        let group = machine.group(SimMachine::address(Machine::ENGINE)).unwrap();
        group.claim_dma_owner(Owner(1)).unwrap();
        let own = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
        group.attach(&own).unwrap();
        let domain = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
        assert_eq!(group.attach_pasid(&domain, 1 << most), Err(GroupError::InvalidPasid(1 << most)));
        group.attach_pasid(&domain, (1 << most) - 1).unwrap();
        // One level of the GCR3 table for every 9 bits.
        assert_eq!(entry(&machine)[0] >> 56 & 3, 0);
    }
}

#[test]
fn a_reset_takes_pasids_away_and_brings_them_back() {
    let (machine, engine, group, own) = engine(with_ats);
    let domain = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    let _pages = (with_page(&machine, &own), with_page(&machine, &domain));
    group.attach_pasid(&domain, PASID).unwrap();
    engine.use_pasid(Some(PASID));
    assert!(engine.write(IOVA, MARK));
    let fence = group.fence_reset(SimMachine::address(Machine::ENGINE)).unwrap();
    assert!(!engine.write(IOVA, MARK));
    fence.done().unwrap();
    assert!(engine.write(IOVA, MARK));
    assert!(unmap(&domain));
    assert!(!engine.write(IOVA, MARK));
}

#[test]
fn everything_is_given_back() {
    let machine = boot(with_pasids);
    let address = SimMachine::address(Machine::ENGINE);
    let before = machine.platform().frames().bytes_in_use();
    let group = machine.group(address).unwrap();
    group.claim_dma_owner(Owner(1)).unwrap();
    let own = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    let domain = group.alloc_unmanaged(PagingFlags::PASID).unwrap();
    group.attach(&own).unwrap();
    group.attach_pasid(&domain, PASID).unwrap();
    group.detach_pasid(PASID).unwrap();
    drop(domain);
    group.release_dma_owner(Owner(1)).unwrap();
    drop(own);
    // What is left of it are tables for PASIDs, until the device goes: the lowest of this one's.
    assert_eq!(machine.platform().frames().bytes_in_use(), before + 4096);
    machine.iommu().unwrap().remove(address);
    drop(group);
    assert!(machine.platform().frames().bytes_in_use() < before);
    assert_eq!(machine.check_free_memory(), []);
}
