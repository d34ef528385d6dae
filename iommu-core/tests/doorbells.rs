//! Message interrupts: where a domain has its doorbells, and who may raise what.

mod common;

use std::sync::Arc;

use common::{Bench, Did, NIC, PAGE, Setup, endpoint, map_page, multifunction, region, topology};
use iommu_core::{DomainError, Group, GroupError, Owner, PagingFlags, ResvType, Settings, Trust};
use platform::pci::PciAddress;
use platform::{DmaAddr, PhysAddr, Prot};

const DOORBELL: u64 = 0x0800_2040;
const ANYWHERE: DmaAddr = DmaAddr::new(u64::MAX);

fn prepare(group: &Group, doorbell: u64, limit: DmaAddr) -> Result<DmaAddr, GroupError> {
    // SAFETY: the toy's devices touch nothing by themselves.
    unsafe { group.prepare_msi(NIC, PhysAddr::new(doorbell), limit) }
}

fn reach(bench: &Bench, at: DmaAddr) -> Option<u64> {
    assert_eq!(bench.toy.reach(NIC, at, false), None, "messages are written");
    bench.toy.reach(NIC, at, true)
}

fn untranslated(doorbell: u64) -> Result<DmaAddr, GroupError> {
    Ok(DmaAddr::new(doorbell))
}

#[test]
fn in_a_dma_domain_a_doorbell_gets_an_address_of_its_own() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    let at = prepare(&group, DOORBELL, ANYWHERE).unwrap();
    assert_eq!(at.offset_in(PAGE), 0x40);
    assert_eq!(reach(&bench, at), Some(DOORBELL));
    let map = bench.toy.take_log().into_iter().find(|did| matches!(did, Did::Map { .. }));
    let prot = Prot::WRITE | Prot::NOEXEC | Prot::MMIO;
    let (iova, phys) = (at.align_down(PAGE).get(), DOORBELL - 0x40);
    assert_eq!(map, Some(Did::Map { iova, phys, len: PAGE, prot }));
    // Another in the same page is there already, and the address is nobody else's.
    assert_eq!(prepare(&group, DOORBELL + 4, ANYWHERE), Ok(at.wrapping_add(4)));
    assert_ne!(prepare(&group, DOORBELL + PAGE, ANYWHERE), Ok(at.wrapping_add(PAGE)));
    let device = bench.bind(NIC);
    let taken = std::iter::repeat_with(|| map_page(&device).unwrap()).take(64);
    assert!(taken.into_iter().all(|other| other != at.align_down(PAGE)));
}

#[test]
fn what_a_message_register_cannot_hold_is_no_address_for_it() {
    let bench = Setup::default().aperture(0, 0xffff).bench();
    let group = bench.group(NIC);
    let high = prepare(&group, DOORBELL, ANYWHERE).unwrap();
    assert_eq!(high.get(), 0xf040);
    // The same doorbell for a device with a narrower register.
    assert_eq!(prepare(&group, DOORBELL, DmaAddr::new(0x7fff)).map(DmaAddr::get), Ok(0x7040));
    let none = prepare(&group, DOORBELL, DmaAddr::new(0xfff));
    assert_eq!(none, Err(GroupError::Domain(DomainError::Exhausted)), "page 0 is never handed out");
}

#[test]
fn where_hardware_leaves_messages_alone_they_go_where_they_went() {
    let window = region(0xfee0_0000, 0xfef0_0000, ResvType::Msi);
    let bench = Setup::default().region(NIC, window).bench();
    let group = bench.group(NIC);
    for (doorbell, alone) in [(0xfee0_0000, true), (0xfeef_fffc, true), (0xfef0_0000, false)] {
        assert_eq!(prepare(&group, doorbell, ANYWHERE) == untranslated(doorbell), alone, "{doorbell:#x}");
    }
    // Nothing is translated.
    // SAFETY: devices of the toy IOMMU touch memory only when a test says so.
    let settings = Settings { passthrough: Some(unsafe { Trust::new() }), ..Settings::default() };
    let bench = Setup { settings, ..Setup::default() }.bench();
    assert_eq!(prepare(&bench.group(NIC), DOORBELL, ANYWHERE), untranslated(DOORBELL));
    let other = PciAddress::new(0, 0, 9, 0);
    // SAFETY: as above.
    let of_nobody = unsafe { bench.group(NIC).prepare_msi(other, PhysAddr::new(DOORBELL), ANYWHERE) };
    assert_eq!(of_nobody, Err(GroupError::NoSuchDevice(other)));
}

#[test]
fn an_owners_domain_has_its_doorbells_in_a_window_that_he_sets_aside() {
    let bench = Setup::default().bench();
    let group = bench.group(NIC);
    group.claim_dma_owner(Owner(1)).unwrap();
    assert_eq!(prepare(&group, DOORBELL, ANYWHERE), untranslated(DOORBELL), "nothing passes anyway");
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    group.attach(&domain).unwrap();
    assert_eq!(prepare(&group, DOORBELL, ANYWHERE), untranslated(DOORBELL), "no window");
    let window = |first, last| domain.set_msi_window(DmaAddr::new(first), DmaAddr::new(last));
    // Room for two pages.
    window(0x8800, 0xafff).unwrap();
    assert_eq!(window(0x2_0000, 0x2_ffff), Err(DomainError::InUse), "once");
    for (doorbell, at) in [(DOORBELL, 0x9040), (DOORBELL + 4, 0x9044), (DOORBELL + PAGE, 0xa040)] {
        assert_eq!(prepare(&group, doorbell, ANYWHERE).map(DmaAddr::get), Ok(at));
        assert_eq!(reach(&bench, DmaAddr::new(at)), Some(doorbell));
    }
    let full = Err(GroupError::Domain(DomainError::Exhausted));
    assert_eq!(prepare(&group, DOORBELL + 2 * PAGE, ANYWHERE), full);
    assert_eq!(prepare(&group, DOORBELL, DmaAddr::new(0x9000)), full, "below the limit there is none");
}

#[test]
fn only_a_domain_of_ones_own_has_a_window() {
    let bench = Setup::default().bench();
    let dma = bench.group(NIC).domain().unwrap();
    let result = dma.set_msi_window(DmaAddr::new(0x8000), DmaAddr::new(0x8fff));
    assert_eq!(result, Err(DomainError::InUse));
}

#[test]
fn the_last_page_of_all_is_used_once() {
    let bench = Setup::default().aperture(0, u64::MAX).bench();
    let group = bench.group(NIC);
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    domain.set_msi_window(DmaAddr::new(u64::MAX - 0xfff), ANYWHERE).unwrap();
    group.attach(&domain).unwrap();
    assert_eq!(prepare(&group, DOORBELL, ANYWHERE).map(DmaAddr::get), Ok(u64::MAX - 0xfff + 0x40));
    assert!(prepare(&group, DOORBELL + PAGE, ANYWHERE).is_err());
}

#[test]
fn what_fails_takes_no_address() {
    let bench = Setup::default().aperture(0, 0x1fff).bench();
    let group = bench.group(NIC);
    bench.toy.set_pages_left(0);
    assert!(prepare(&group, DOORBELL, ANYWHERE).is_err());
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    domain.set_msi_window(DmaAddr::new(0x1000), DmaAddr::new(0x1fff)).unwrap();
    group.attach(&domain).unwrap();
    assert!(prepare(&group, DOORBELL, ANYWHERE).is_err());
    bench.toy.set_pages_left(u64::MAX);
    assert_eq!(prepare(&group, DOORBELL, ANYWHERE).map(DmaAddr::get), Ok(0x1040));
    group.detach().unwrap();
    assert_eq!(prepare(&group, DOORBELL, ANYWHERE).map(DmaAddr::get), Ok(0x1040));
}

#[test]
fn a_window_for_software_to_choose_in_is_no_hole_in_a_dma_domain() {
    let window = region(0x4000, 0x8000, ResvType::SwMsi);
    let bench = Setup::default().aperture(0, 0xffff).region(NIC, window).bench();
    let device = bench.bind(NIC);
    assert_eq!(std::iter::from_fn(|| map_page(&device).ok()).count(), 15);
}

#[test]
fn interrupts_are_isolated_when_those_of_every_device_are() {
    let two = [PciAddress::new(0, 0, 4, 0), PciAddress::new(0, 0, 4, 1)];
    let tree = topology(two.map(|address| multifunction(endpoint(address))));
    let mut setup = Setup { topology: tree, ..Setup::default() };
    let group: Arc<Group> = setup.clone().bench().group(two[0]);
    assert!(group.has_isolated_msi());
    setup.knobs.not_remapped.insert(two[1]);
    assert!(!setup.bench().group(two[0]).has_isolated_msi());
}
