//! Devices that keep translations: what is written where in which order, and who never may.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use amd_vi::command::Command;
use amd_vi::invalidate::Cover;
use amd_vi::{AmdVi, Config, Hardware, MsiMessage};
use common::*;
use iommu_core::{Capability, DomainOps, IommuOps, Trust};
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use platform::{DmaAddr, IotlbGather, LeakCounter, Mmio, PhysAddr, Prot};

const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0100) };
/// Its requests carry the name of [`DEV`].
const ALIASED: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0101) };
/// Firmware wants it without ATS.
const FORBIDDEN: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0018) };
const CAPABILITY: u16 = 0x140;
const CONTROL: u16 = CAPABILITY + 4;
const ENABLE: u32 = 1 << 31;
const I: u64 = 1 << 32;

/// Configuration space that notes, when a device's ATS is switched, what its entry says of it.
#[derive(Debug)]
struct Watch {
    config: FakeConfig,
    unit: Arc<FakeUnit>,
    /// Whether ATS was switched on, and the entry in memory.
    switched: Mutex<Vec<(bool, [u64; 4])>>,
    /// Whose domain is flushed by another CPU while ATS goes off next.
    flushed_meanwhile: Mutex<Option<Arc<dyn DomainOps>>>,
    /// Whether that flush was over before ATS was off.
    too_early: AtomicBool,
}

impl Watch {
    fn flush_meanwhile(&self) {
        let Some(domain) = self.flushed_meanwhile.lock().unwrap().take() else { return };
        let (done, over) = mpsc::channel();
        std::thread::spawn(move || {
            domain.flush_iotlb_all().unwrap();
            let _ = done.send(());
        });
        let early = over.recv_timeout(Duration::from_millis(200)).is_ok();
        self.too_early.store(early, Ordering::Relaxed);
    }
}

impl ConfigSpace for Watch {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.config.read32(function, offset)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        if offset == CONTROL {
            let entry = self.unit.entry(function.id.get());
            self.switched.lock().unwrap().push((value & ENABLE != 0, entry));
            if value & ENABLE == 0 {
                self.flush_meanwhile();
            }
        }
        self.config.write32(function, offset, value);
    }
}

/// A machine whose driver may use ATS.
#[derive(Debug)]
struct Board {
    fakes: FakeHardware,
    watch: Arc<Watch>,
}

impl Hardware for Board {
    fn map_mmio(&self, base: PhysAddr, len: u64) -> Option<Arc<dyn Mmio>> {
        self.fakes.map_mmio(base, len)
    }

    fn config_space(&self) -> &dyn ConfigSpace {
        self.fakes.config_space()
    }

    fn msi_message(&self, unit: PciAddress) -> Option<MsiMessage> {
        self.fakes.msi_message(unit)
    }

    fn device_config(&self) -> Option<Arc<dyn ConfigSpace>> {
        Some(self.watch.clone())
    }
}

/// A driver on a machine on which every device has the capability, with a queue of `depth`.
fn bring_up_ats(depth: u32) -> (Arc<FakeUnit>, Arc<Watch>, Arc<AmdVi>) {
    let unit = FakeUnit::new(FEATURES);
    let fakes = hardware(&unit, false);
    // IotlbSup in the unit's capability.
    fakes.config.write32(IOMMU, 0x40, fakes.config.word(IOMMU, 0x40) | 1 << 24);
    for dev in [DEV, ALIASED, FORBIDDEN] {
        // Behind another one, whose registers are not ATS's.
        fakes.config.write32(dev, 0x100, 0x0001_000d | u32::from(CAPABILITY) << 20);
        fakes.config.write32(dev, 0x104, 0x1f);
        fakes.config.write32(dev, CAPABILITY, 0x0001_000f);
        // A smallest unit that somebody before has set.
        fakes.config.write32(dev, CONTROL, depth | 3 << 16);
    }
    let watch = Watch {
        config: fakes.config.clone(),
        unit: unit.clone(),
        switched: Mutex::default(),
        flushed_meanwhile: Mutex::default(),
        too_early: AtomicBool::new(false),
    };
    let board = Board { fakes, watch: Arc::new(watch) };
    // An extended select: 00:03.0 with bit 31, ATS disabled.
    let entries = [ENTRIES, &[0x46, 0x18, 0x00, 0x00, 0, 0, 0, 0x80]].concat();
    // SAFETY: there are no devices that do DMA.
    let config = Config { ats: Some(unsafe { Trust::new() }), ..config() };
    let table = ivrs(0x0020_3040, &[ivhd(0x11, 2, BASE, &entries)]);
    let driver = AmdVi::init(Machine::new(), &table, &board, config).unwrap();
    (unit, board.watch, driver)
}

fn unmap(domain: &dyn DomainOps, iova: u64, len: u64) {
    let leaks = LeakCounter::new();
    let mut gather = IotlbGather::new(&leaks);
    // SAFETY: nobody else uses the domain, and no device does DMA.
    unsafe {
        domain
            .map_pages(DmaAddr::new(iova), PhysAddr::new(0x10_0000), 4096, (len / 4096) as usize, Prot::READ)
            .1
            .unwrap();
        domain.unmap(DmaAddr::new(iova), len, &mut gather);
    }
    domain.iotlb_sync(&gather).unwrap();
}

#[test]
fn invalidations_have_the_specifications_bits() {
    let words = |cover| Command::invalidate_iotlb_pages(0x0100, 0x20, None, cover).words();
    let page = Cover::containing(0x7f00_1234_5000, 0x7f00_1234_5fff);
    assert_eq!(words(page), [0x4000_0100_2000_0100, 0x0000_7f00_1234_5000]);
    let block = Cover::containing(0x7f00_1234_0000, 0x7f00_1234_ffff);
    assert_eq!(words(block), [0x4000_0100_2000_0100, 0x0000_7f00_1234_7001]);
    assert_eq!(words(Cover::ALL), [0x4000_0100_2000_0100, 0x7fff_ffff_ffff_f001]);
    let with_pasid = Command::invalidate_iotlb_pages(0x0100, 0x20, Some(0xa_bcde), page).words();
    assert_eq!(with_pasid, [0x4ade_0100_20bc_0100, 0x0000_7f00_1234_5004]);
    let guest = Command::invalidate_guest_pages(0x1234, 5, Cover::ALL).words();
    assert_eq!(guest, [0x3000_1234_0000_0005, 0x7fff_ffff_ffff_f007]);
}

#[test]
fn the_device_is_switched_on_behind_its_entry_and_off_before_it() {
    let (unit, watch, driver) = bring_up_ats(5);
    driver.probe_device(DEV).unwrap();
    assert!(driver.capable(DEV, Capability::PciAtsSupported));
    let domain = driver.domain_alloc_paging(DEV).unwrap();
    attach(&*domain, DEV, None).unwrap();
    let entry = unit.entry(0x0100);
    assert_ne!(entry[1] & I, 0);
    assert_eq!(std::mem::take(&mut *watch.switched.lock().unwrap()), [(true, entry)]);
    // The smallest unit is a page.
    assert_eq!(watch.config.word(DEV, CONTROL), ENABLE | 5);
    let blocked = driver.blocked_domain().unwrap();
    attach(&*blocked, DEV, Some(&*domain)).unwrap();
    assert_eq!(std::mem::take(&mut *watch.switched.lock().unwrap()), [(false, entry)]);
    assert_eq!(unit.entry(0x0100), [1, 0, 1 | 1 << 60, 0]);
    // Addresses that pass as they are can be asked for as well.
    let identity = driver.identity_domain().unwrap();
    attach(&*identity, DEV, Some(&*blocked)).unwrap();
    assert_ne!(unit.entry(0x0100)[1] & I, 0);
    // SAFETY: no device does DMA.
    unsafe { driver.shutdown(&watch.config) }.unwrap();
    assert_eq!(watch.config.word(DEV, CONTROL), 5);
}

/// Until it is off it uses what it keeps, and it is told nothing any more.
#[test]
fn an_unmap_is_not_over_while_the_device_is_being_switched_off() {
    let (_unit, watch, driver) = bring_up_ats(5);
    driver.probe_device(DEV).unwrap();
    let domain = driver.domain_alloc_paging(DEV).unwrap();
    attach(&*domain, DEV, None).unwrap();
    *watch.flushed_meanwhile.lock().unwrap() = Some(domain.clone());
    attach(&*driver.blocked_domain().unwrap(), DEV, Some(&*domain)).unwrap();
    assert!(watch.flushed_meanwhile.lock().unwrap().is_none(), "it was switched off");
    assert!(!watch.too_early.load(Ordering::Relaxed));
}

#[test]
fn a_device_is_told_after_its_unit_with_the_same_range() {
    for (says, depth) in [(5, 5), (0, 32)] {
        let (unit, _, driver) = bring_up_ats(says);
        driver.probe_device(DEV).unwrap();
        let domain = driver.domain_alloc_paging(DEV).unwrap();
        unit.take_commands();
        attach(&*domain, DEV, None).unwrap();
        // What it kept before goes when it comes.
        let told = |second: u64| (4 << 60 | 0x0100 << 32 | depth << 24 | 0x0100, second);
        assert_eq!(unit.take_invalidations().last(), Some(&told(0x7fff_ffff_ffff_f001)));
        unmap(&*domain, 0x1_0000, 0x1_0000);
        let id = unit.entry(0x0100)[1] & 0xffff;
        let commands = unit.take_invalidations();
        assert_eq!(commands, [(3 << 60 | id << 32, 0x1_7003), told(0x1_7001)]);
        domain.flush_iotlb_all().unwrap();
        assert_eq!(unit.take_invalidations()[1], told(0x7fff_ffff_ffff_f001));
        // And nothing more when it is gone.
        driver.release_device(DEV);
        unit.take_commands();
        unmap(&*domain, 0x1_0000, 0x1_0000);
        assert!(unit.take_invalidations().iter().all(|(first, _)| first >> 60 != 4));
    }
}

#[test]
fn who_never_keeps_translations() {
    let (unit, watch, driver) = bring_up_ats(5);
    driver.probe_untrusted_device(DEV).unwrap();
    for dev in [ALIASED, FORBIDDEN] {
        driver.probe_device(dev).unwrap();
    }
    for dev in [DEV, ALIASED, FORBIDDEN] {
        assert!(!driver.capable(dev, Capability::PciAtsSupported), "{dev}");
        let domain = driver.domain_alloc_paging(dev).unwrap();
        attach(&*domain, dev, None).unwrap();
        assert_eq!(unit.entry(dev.id.get())[1] & I, 0, "{dev}");
    }
    assert_eq!(*watch.switched.lock().unwrap(), []);
}

#[test]
fn a_lost_event_may_be_the_one_that_counts() {
    let (unit, _, driver) = bring_up_ats(5);
    driver.probe_device(DEV).unwrap();
    let domain = driver.domain_alloc_paging(DEV).unwrap();
    attach(&*domain, DEV, None).unwrap();
    domain.flush_iotlb_all().unwrap();
    // The log has overflowed: a device's silence would not be seen.
    for _ in 0..300 {
        unit.log(2 << 60 | 0x10, 0);
    }
    assert!(domain.flush_iotlb_all().is_err());
    assert_eq!(driver.handle_interrupt(&mut |_| {}).overflows, 1);
    domain.flush_iotlb_all().unwrap();
}

#[test]
fn whose_silence_it_was() {
    let (unit, watch, driver) = bring_up_ats(5);
    driver.probe_device(DEV).unwrap();
    let domain = driver.domain_alloc_paging(DEV).unwrap();
    attach(&*domain, DEV, None).unwrap();
    // Another device's.
    unit.log(7 << 60 | 0x0018, 0);
    domain.flush_iotlb_all().unwrap();
    // Its own, taken out of the log before anybody looks.
    unit.log(7 << 60 | 0x0100, 0);
    assert_eq!(driver.handle_interrupt(&mut |_| {}).events, 2);
    assert!(domain.flush_iotlb_all().is_err());
    assert_eq!(watch.config.word(DEV, CONTROL) & ENABLE, 0);
    assert_eq!(unit.entry(0x0100)[1] & I, 0);
    unit.take_commands();
    domain.flush_iotlb_all().unwrap();
    assert!(unit.take_invalidations().iter().all(|(first, _)| first >> 60 != 4));
}
