//! Dirty tracking: which domains have it, what their devices' entries say, and what is read and cleared.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use iommu_core::{
    AttachError, Capability, DirtyError, DomainError, DomainOps, IommuOps, PagingFlags, SyncError,
};
use platform::pci::{PciAddress, RequesterId};
use platform::{DmaAddr, PhysAddr, Prot};

const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0100) };
const OTHER: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0010) };
/// HASup and HDSup.
const HA: u64 = 1 << 49;
const HD: u64 = 1 << 52;
/// HAD = 3.
const HAD: u64 = 3 << 7;

fn bring_up_tracking() -> Setup {
    let setup = bring_up_with(false, FEATURES | HA | HD, &[ivhd(0x10, 2, BASE, ENTRIES)]);
    setup.driver.probe_device(DEV).unwrap();
    setup
}

fn tracking(setup: &Setup) -> Arc<dyn DomainOps> {
    setup.driver.domain_alloc_paging_flags(DEV, PagingFlags::DIRTY_TRACKING).unwrap()
}

fn dirty(domain: &dyn DomainOps, clear: bool) -> Result<Vec<(u64, u64)>, DirtyError> {
    let mut found = Vec::new();
    domain
        .read_and_clear_dirty(DmaAddr::new(0), 1 << 30, clear, &mut |at, len| found.push((at.get(), len)))
        .map(|()| found)
}

#[test]
fn it_takes_both_features() {
    for (features, has) in [(0, false), (HA, false), (HD, false), (HA | HD, true)] {
        let setup = bring_up_with(false, FEATURES | features, &[ivhd(0x10, 2, BASE, ENTRIES)]);
        setup.driver.probe_device(DEV).unwrap();
        assert_eq!(setup.driver.capable(DEV, Capability::DirtyTracking), has);
        let domain = setup.driver.domain_alloc_paging_flags(DEV, PagingFlags::DIRTY_TRACKING);
        assert_eq!(domain.err(), (!has).then_some(DomainError::Unsupported));
    }
    let setup = bring_up_tracking();
    let nested = setup.driver.domain_alloc_paging_flags(DEV, PagingFlags::NEST_PARENT);
    assert_eq!(nested.err(), Some(DomainError::Unsupported));
}

#[test]
fn a_domain_without_the_flag_has_none() {
    let setup = bring_up_tracking();
    let domain = setup.driver.domain_alloc_paging(DEV).unwrap();
    assert_eq!(domain.set_dirty_tracking(true), Err(DirtyError::Unsupported));
    assert_eq!(dirty(&*domain, true), Err(DirtyError::Unsupported));
    assert_eq!(dirty(&*tracking(&setup), true), Err(DirtyError::Off));
}

#[test]
fn entries_say_so_while_it_is_on_and_the_unit_forgets_what_it_remembers() {
    let setup = bring_up_tracking();
    let domain = tracking(&setup);
    attach(&*domain, DEV, None).unwrap();
    let off = setup.unit.entry(0x0100);
    let id = off[1] & 0xffff;
    assert_eq!(off[0] & HAD, 0);
    setup.unit.take_commands();
    domain.set_dirty_tracking(true).unwrap();
    assert_eq!(setup.unit.entry(0x0100), [off[0] | HAD, off[1], off[2], off[3]]);
    // First the entry, then the translations.
    let all = (3 << 60 | id << 32, 0x7fff_ffff_ffff_f003);
    assert_eq!(setup.unit.take_invalidations(), [(2 << 60 | 0x100, 0), (5 << 60 | 0x100, 0), all]);
    // Who comes later is tracked too.
    setup.driver.probe_device(OTHER).unwrap();
    attach(&*domain, OTHER, None).unwrap();
    assert_eq!(setup.unit.entry(0x0010)[0], off[0] | HAD);
    domain.set_dirty_tracking(false).unwrap();
    assert_eq!(setup.unit.entry(0x0100), off);
    assert_eq!(dirty(&*domain, true), Err(DirtyError::Off));
}

#[test]
fn a_unit_that_does_not_answer_leaves_it_off() {
    let setup = bring_up_tracking();
    let domain = tracking(&setup);
    attach(&*domain, DEV, None).unwrap();
    setup.unit.switches.lose_completions.store(true, Ordering::Relaxed);
    assert_eq!(domain.set_dirty_tracking(true), Err(DirtyError::Sync(SyncError)));
    assert_eq!(dirty(&*domain, false), Err(DirtyError::Off));
    setup.unit.switches.lose_completions.store(false, Ordering::Relaxed);
    attach(&*domain, DEV, Some(&*domain)).unwrap();
    assert_eq!(setup.unit.entry(0x0100)[0] & HAD, 0);
}

#[test]
fn a_unit_that_cannot_tell_takes_no_device_into_such_a_domain() {
    let (first, second) = (FakeUnit::new(FEATURES | HA | HD), FakeUnit::new(FEATURES));
    let machine = Machine::new();
    let mut hardware = hardware(&first, false);
    hardware.units.insert(BASE + 0x8_0000, second.clone());
    hardware.config.add_iommu(PciAddress { segment: 1, id: RequesterId::new(2) }, BASE + 0x8_0000, false);
    let mut block = ivhd(0x10, 2, BASE + 0x8_0000, ENTRIES);
    block[16] = 1;
    let driver = try_bring_up(&machine, &hardware, &[ivhd(0x10, 2, BASE, ENTRIES), block]).unwrap();
    let far = PciAddress { segment: 1, ..DEV };
    driver.probe_device(DEV).unwrap();
    driver.probe_device(far).unwrap();
    let domain = driver.domain_alloc_paging_flags(DEV, PagingFlags::DIRTY_TRACKING).unwrap();
    assert_eq!(attach(&*domain, far, None), Err(AttachError::Incompatible));
    assert_eq!(attach(&*domain, DEV, None), Ok(()));
}

/// The mark of a page of several entries may be in any of them.
#[test]
fn marks_are_read_from_every_entry_of_a_page_and_cleared() {
    let setup = bring_up_tracking();
    let domain = tracking(&setup);
    attach(&*domain, DEV, None).unwrap();
    domain.set_dirty_tracking(true).unwrap();
    // 64 KiB as one page of 16 entries, and a page behind it.
    // SAFETY: the unit of these tests does not access memory by such mappings.
    let mapped = unsafe {
        domain.map_range(DmaAddr::new(0), PhysAddr::new(0x40_0000_0000), 0x1_1000, Prot::READ | Prot::WRITE)
    };
    assert_eq!(mapped, (0x1_1000, Ok(())));
    assert_eq!(dirty(&*domain, true), Ok(vec![]));
    let mut table = setup.unit.entry(0x0100)[0];
    for _ in 0..2 {
        table = word(table & 0x000f_ffff_ffff_f000).load(Ordering::Relaxed);
    }
    let table = table & 0x000f_ffff_ffff_f000;
    // D, bit 6.
    word(table + 8 * 11).fetch_or(1 << 6, Ordering::Relaxed);
    word(table + 8 * 16).fetch_or(1 << 6, Ordering::Relaxed);
    let written = vec![(0, 0x1_0000), (0x1_0000, 0x1000)];
    assert_eq!(dirty(&*domain, false), Ok(written.clone()));
    assert_eq!(dirty(&*domain, true), Ok(written));
    assert_eq!(dirty(&*domain, true), Ok(vec![]));
}
