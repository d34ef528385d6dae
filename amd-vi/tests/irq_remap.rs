//! Interrupt remapping: what is written to tables, entries and registers, and which commands say so, in the specification's bits.

mod common;

use std::sync::atomic::Ordering;

use amd_vi::ivrs::{Madt, Warning};
use amd_vi::{AmdVi, Config, Hardware, IrqRemapConfig, MsiMessage, NoIrqRemap};
use common::*;
use iommu_core::{Capability, IommuOps, IrqRemapError, IrqSource, IrqTarget, RemappedIrqs, SyncError};
use platform::pci::{ConfigSpace, PciAddress, RequesterId};
use platform::sync::pair;
use platform::{Mmio, PhysAddr};

/// XTSup, IASup, GASup.
const X2APIC_FEATURES: u64 = FEATURES | 1 << 2 | 1 << 7;
const MSI_CAP_MMIO_SUP: u64 = 1 << 46;
const EFR2: usize = 0x1a0;
const CONTROL: usize = 0x18;
const GA_EN: u64 = 1 << 17;
const MODE_2K: u64 = 1 << 43;
const XT_EN: u64 = 1 << 50;

/// The IO-APIC 33 and the HPET 0 at 00:14.0.
const SPECIALS: &[u8] = &[0x48, 0, 0, 0xd7, 33, 0xa0, 0x00, 1, 0x48, 0, 0, 0, 0, 0xa0, 0x00, 2];
const SOUTHBRIDGE: u16 = 0x00a0;

const DEV: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0010) };
/// It uses the name of 01:00.0.
const ALIASED: PciAddress = PciAddress { segment: 0, id: RequesterId::new(0x0101) };
const TARGET: IrqTarget = IrqTarget::fixed(0x41, 3);

fn msi(function: PciAddress) -> IrqSource<'static> {
    IrqSource::Msi { function, aliases: &[] }
}

fn setup_with(features: u64, efr2: u64, irq_remap: IrqRemapConfig) -> Setup {
    let (machine, unit) = (Machine::new(), FakeUnit::new(features));
    unit.set_register(EFR2, efr2);
    let hardware = hardware(&unit, false);
    let entries = [ENTRIES, SPECIALS].concat();
    let table = ivrs(0x0020_3040, &[ivhd(0x10, 2, BASE, &entries)]);
    let config = Config { irq_remap: Some(irq_remap), ..config() };
    let driver = AmdVi::init(machine.clone(), &table, &hardware, config).unwrap();
    Setup { machine, unit, hardware, driver }
}

/// Remapping with entries of 32 bits, 512 in a table.
fn setup() -> Setup {
    setup_with(FEATURES, 0, IrqRemapConfig::default())
}

fn x2apic() -> IrqRemapConfig {
    IrqRemapConfig { x2apic: true, ..Default::default() }
}

/// Where a device's table is, as its entry says.
fn table(setup: &Setup, device: u16) -> u64 {
    setup.unit.entry(device)[2] & 0x000f_ffff_ffff_ffc0
}

fn entry_32(table: u64, index: u64) -> u32 {
    (word(table + 4 * (index & !1)).load(Ordering::Relaxed) >> (32 * (index & 1))) as u32
}

fn index_of(irqs: &dyn RemappedIrqs) -> u32 {
    irqs.message(0).unwrap().data
}

#[test]
fn without_being_asked_for_nothing_is_remapped() {
    let setup = bring_up();
    assert_eq!(setup.driver.irq_remap().unwrap_err(), NoIrqRemap::NotAskedFor);
    assert!(!setup.driver.capable(DEV, Capability::IsolatedMsi));
    assert_eq!(setup.unit.register(CONTROL) & (GA_EN | XT_EN | MODE_2K), 0);
}

#[test]
fn at_first_every_message_is_aborted() {
    let setup = setup();
    assert!(setup.driver.irq_remap().is_ok() && setup.driver.capable(DEV, Capability::IsolatedMsi));
    // The units' own function and what is behind no unit send what they like.
    assert!(!setup.driver.capable(IOMMU, Capability::IsolatedMsi));
    for device in 0..0x200 {
        // IV, and IntCtl 0; INIT, ExtInt, NMI and the two lines of the IO-APIC as firmware says.
        let expected = if device == SOUTHBRIDGE { 1 | 7 << 56 | 3 << 62 } else { 1 };
        assert_eq!(setup.unit.entry(device)[2], expected, "device {device:#06x}");
    }
    // Nor does a domain let them through.
    setup.driver.probe_device(DEV).unwrap();
    attach(&*setup.driver.identity_domain().unwrap(), DEV, None).unwrap();
    assert_eq!(setup.unit.entry(0x10)[2..], [1, 0]);
}

#[test]
fn the_first_interrupt_brings_the_table() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    setup.unit.take_commands();
    let irqs = remap.alloc(msi(DEV), 1).unwrap();
    let table = table(&setup, 0x10);
    // IV, IntTabLen 9, IntCtl 2; 128-byte aligned.
    assert_eq!(setup.unit.entry(0x10), [1, 0, 1 | 9 << 1 | table | 2 << 60, 0]);
    assert!(table != 0 && table.is_multiple_of(128));
    assert_eq!(setup.unit.take_invalidations(), [(0x2000_0000_0000_0010, 0), (0x5000_0000_0000_0010, 0)]);
    assert_eq!(irqs.message(0), Ok(MsiMessage { address: 0xfee0_0000, data: 0 }));
    assert_eq!(irqs.message(1), Err(IrqRemapError::Index(1)));
    assert_eq!(entry_32(table, 0), 0, "it leads nowhere yet");
    // Another one is in the same table, and the device table stays as it is.
    let more = remap.alloc(msi(DEV), 1).unwrap();
    assert_eq!((more.count(), index_of(&*more)), (1, 1));
    assert_eq!(setup.unit.take_invalidations(), []);
    // A device has a table of its own.
    let other = remap.alloc(msi(PciAddress::new(0, 0, 3, 0)), 1).unwrap();
    assert_ne!(self::table(&setup, 0x18), table);
    drop(other);
}

#[test]
fn a_target_is_written_and_the_old_one_forgotten() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    let irqs = remap.alloc(msi(DEV), 2).unwrap();
    let table = table(&setup, 0x10);
    setup.unit.take_commands();
    irqs.set_target(0, TARGET).unwrap();
    irqs.set_target(1, IrqTarget::fixed(0x42, 4)).unwrap();
    assert_eq!([entry_32(table, 0), entry_32(table, 1)], [0x0041_0301, 0x0042_0401]);
    assert_eq!(setup.unit.take_invalidations(), [(0x5000_0000_0000_0010, 0); 2]);
    irqs.set_target(0, IrqTarget::fixed(0x43, 5)).unwrap();
    irqs.mask(1).unwrap();
    assert_eq!([entry_32(table, 0), entry_32(table, 1)], [0x0043_0501, 2]);
    assert_eq!(setup.unit.take_invalidations(), [(0x5000_0000_0000_0010, 0); 2]);
    assert_eq!(irqs.set_target(0, IrqTarget::fixed(15, 0)), Err(IrqRemapError::Vector(15)));
    assert_eq!(irqs.set_target(0, IrqTarget::fixed(16, 0x100)), Err(IrqRemapError::Destination(0x100)));
    assert_eq!(irqs.set_target(2, TARGET), Err(IrqRemapError::Index(2)));
    assert_eq!(irqs.mask(2), Err(IrqRemapError::Index(2)));
    assert_eq!(entry_32(table, 0), 0x0043_0501);
    assert_eq!(setup.unit.take_invalidations(), []);
}

#[test]
fn a_device_keeps_its_interrupts_in_every_domain() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    setup.driver.probe_device(DEV).unwrap();
    let irqs = remap.alloc(msi(DEV), 1).unwrap();
    let half = setup.unit.entry(0x10)[2..].to_vec();
    let paging = setup.driver.domain_alloc_paging(DEV).unwrap();
    let identity = setup.driver.identity_domain().unwrap();
    attach(&*paging, DEV, None).unwrap();
    assert_eq!(setup.unit.entry(0x10)[2..], half);
    attach(&*identity, DEV, Some(&*paging)).unwrap();
    assert_eq!(setup.unit.entry(0x10)[2..], half);
    setup.driver.release_device(DEV);
    assert_eq!((setup.unit.entry(0x10)[0], &setup.unit.entry(0x10)[2..]), (1, &*half));
    // And interrupts come to a device that does DMA, without a moment in which it is blocked.
    let other = PciAddress::new(0, 0, 3, 0);
    setup.driver.probe_device(other).unwrap();
    attach(&*identity, other, None).unwrap();
    let before = setup.unit.entry(0x18);
    setup.unit.take_entries();
    let _more = remap.alloc(msi(other), 1).unwrap();
    let seen = setup.unit.take_entries();
    assert!(seen.iter().all(|(_, words)| words[..2] == before[..2]) && !seen.is_empty(), "{seen:x?}");
    drop(irqs);
}

#[test]
fn the_names_of_a_device_share_a_table() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    let bridge = PciAddress::new(0, 0, 4, 0);
    let source = IrqSource::Msi { function: ALIASED, aliases: &[bridge, ALIASED] };
    let irqs = remap.alloc(source, 1).unwrap();
    let tables = [0x0101, 0x0100, 0x0020].map(|name| table(&setup, name));
    assert!(tables[0] != 0 && tables == [tables[0]; 3], "{tables:x?}");
    // A change is told for each name.
    setup.unit.take_commands();
    irqs.set_target(0, TARGET).unwrap();
    let told: Vec<u64> = setup.unit.take_invalidations().iter().map(|(first, _)| *first).collect();
    assert_eq!(told, [0x5000_0000_0000_0101, 0x5000_0000_0000_0100, 0x5000_0000_0000_0020]);
    // Who has one of the names has that table and another entry.
    let of_alias = remap.alloc(msi(PciAddress::new(0, 1, 0, 0)), 1).unwrap();
    assert_eq!(index_of(&*of_alias), 1);
    // Two tables cannot be made one.
    let _other = remap.alloc(msi(DEV), 1).unwrap();
    let both = IrqSource::Msi { function: DEV, aliases: &[bridge] };
    assert_eq!(remap.alloc(both, 1).unwrap_err(), IrqRemapError::Aliases);
}

#[test]
fn blocks_are_aligned_and_a_table_ends() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    let one = remap.alloc(msi(DEV), 1).unwrap();
    let four = remap.alloc(msi(DEV), 4).unwrap();
    let three = remap.alloc(msi(DEV), 3).unwrap();
    assert_eq!([index_of(&*one), index_of(&*four), index_of(&*three)], [0, 4, 8]);
    assert_eq!((three.count(), three.message(2).unwrap().data), (3, 10));
    for count in [0, 513, u16::MAX] {
        assert_eq!(remap.alloc(msi(DEV), count).unwrap_err(), IrqRemapError::Count(count));
    }
    assert_eq!(remap.alloc(msi(DEV), 512).unwrap_err(), IrqRemapError::Exhausted);
    let many: Vec<_> = std::iter::from_fn(|| remap.alloc(msi(DEV), 1).ok()).collect();
    assert_eq!(many.len(), 512 - 8);
    assert_eq!(remap.alloc(msi(DEV), 1).unwrap_err(), IrqRemapError::Exhausted);
    drop(four);
    let again = remap.alloc(msi(DEV), 2).unwrap();
    assert_eq!(index_of(&*again), 4);
}

#[test]
fn what_is_given_back_is_forgotten_before_it_is_used_again() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    let irqs = remap.alloc(msi(DEV), 2).unwrap();
    let table = table(&setup, 0x10);
    irqs.set_target(0, TARGET).unwrap();
    irqs.set_target(1, TARGET).unwrap();
    setup.unit.take_commands();
    drop(irqs);
    assert_eq!([entry_32(table, 0), entry_32(table, 1)], [0, 0]);
    assert_eq!(setup.unit.take_invalidations(), [(0x5000_0000_0000_0010, 0)]);
    let again = remap.alloc(msi(DEV), 2).unwrap();
    assert_eq!(index_of(&*again), 0);
    assert_eq!(remap.quarantined(), 0);
    // A unit that does not answer may have them in use for ever.
    again.set_target(0, TARGET).unwrap();
    setup.unit.switches.lose_completions.store(true, Ordering::Relaxed);
    assert_eq!(again.set_target(1, TARGET), Err(IrqRemapError::Sync(SyncError)));
    drop(again);
    setup.unit.switches.lose_completions.store(false, Ordering::Relaxed);
    assert_eq!((remap.quarantined(), entry_32(table, 0)), (2, 0));
    assert_eq!(index_of(&*remap.alloc(msi(DEV), 2).unwrap()), 2);
}

#[test]
fn a_table_that_a_unit_was_not_told_of_is_told_of_next_time() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    setup.unit.switches.lose_completions.store(true, Ordering::Relaxed);
    assert_eq!(remap.alloc(msi(DEV), 1).unwrap_err(), IrqRemapError::Sync(SyncError));
    let first = table(&setup, 0x10);
    setup.unit.switches.lose_completions.store(false, Ordering::Relaxed);
    setup.unit.take_commands();
    let irqs = remap.alloc(msi(DEV), 1).unwrap();
    assert_eq!(table(&setup, 0x10), first, "the unit may be reading it");
    assert_eq!(setup.unit.take_invalidations()[0], (0x2000_0000_0000_0010, 0));
    assert_eq!(index_of(&*irqs), 0);
}

#[test]
fn pins_have_the_entries_of_their_numbers_and_timers_others() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    let pin = |pin| remap.alloc(IrqSource::IoApic { id: 33, pin }, 1);
    let timer = remap.alloc(IrqSource::Hpet { number: 0 }, 1).unwrap();
    let (two, last) = (pin(2).unwrap(), pin(31).unwrap());
    assert_eq!([index_of(&*timer), index_of(&*two), index_of(&*last)], [32, 2, 31]);
    let table = table(&setup, SOUTHBRIDGE);
    assert_eq!(setup.unit.entry(SOUTHBRIDGE)[2], 1 | 9 << 1 | table | 7 << 56 | 2 << 60 | 3 << 62);
    assert_eq!(pin(2).unwrap_err(), IrqRemapError::Busy);
    drop(two);
    assert_eq!(index_of(&*pin(2).unwrap()), 2);
    assert_eq!(pin(32).unwrap_err(), IrqRemapError::Pin(32));
    let several = remap.alloc(IrqSource::IoApic { id: 33, pin: 4 }, 2);
    assert_eq!(several.unwrap_err(), IrqRemapError::Count(2));
    for source in [
        IrqSource::IoApic { id: 34, pin: 0 },
        IrqSource::Hpet { number: 1 },
        msi(IOMMU),
        msi(PciAddress::new(1, 0, 2, 0)),
        msi(PciAddress::new(0, 2, 0, 0)),
        // A name that the unit has no entry for.
        IrqSource::Msi { function: DEV, aliases: &[PciAddress::new(0, 0x80, 0, 0)] },
    ] {
        assert_eq!(remap.alloc(source, 1).unwrap_err(), IrqRemapError::NoSuchSource, "{source:?}");
    }
}

#[test]
fn of_two_io_apics_of_one_number_the_first_counts() {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    let hardware = hardware(&unit, false);
    // As firmware has it that numbers every IO-APIC 0.
    let again = [0x48, 0, 0, 0, 33, 0x01, 0x00, 1];
    let table = ivrs(0x0020_3040, &[ivhd(0x10, 2, BASE, &[ENTRIES, SPECIALS, &again].concat())]);
    let config = Config { irq_remap: Some(IrqRemapConfig::default()), ..config() };
    let driver = AmdVi::init(machine, &table, &hardware, config).unwrap();
    let _irqs = driver.irq_remap().unwrap().alloc(IrqSource::IoApic { id: 33, pin: 2 }, 1).unwrap();
    assert_eq!([SOUTHBRIDGE, 1].map(|name| unit.entry(name)[2] >> 60 & 3), [2, 0]);
}

#[test]
fn the_redirection_entry_of_a_message() {
    use iommu_core::io_apic_entry;
    let entry = |address, data| io_apic_entry(MsiMessage { address, data });
    assert_eq!(entry(0xfee0_0000, 0x05), 0x05);
    assert_eq!(entry(0xfee0_0004, 0x7fe), 0x0ffe);
    // Destination 3: bits 19:12 of the address are 63:56 of the entry. Then what VT-d has in bits 11:4.
    assert_eq!(entry(0xfee0_3000, 0x141), 0x0300_0000_0000_0141);
    assert_eq!(entry(0xfee0_0ff0, 0), 0x00ff_0000_0000_0000);
}

#[test]
fn with_x2apic_entries_have_128_bits_and_are_switched_on_first() {
    let setup = setup_with(X2APIC_FEATURES, 0, x2apic());
    let remap = setup.driver.irq_remap().unwrap();
    assert_eq!(remap.last_destination(), if pair::is_available() { u32::MAX } else { 0xff });
    if !pair::is_available() {
        return;
    }
    let on: Vec<u64> =
        setup.unit.take_writes().iter().filter(|(at, _)| *at == CONTROL).map(|(_, value)| *value).collect();
    let at = |bits: u64| on.iter().position(|value| value & bits == bits).unwrap();
    assert!(at(GA_EN) < at(XT_EN) && at(XT_EN) < at(1), "{on:x?}");
    let irqs = remap.alloc(msi(DEV), 2).unwrap();
    irqs.set_target(1, IrqTarget::fixed(0x41, 0x0501_0203)).unwrap();
    let at = table(&setup, 0x10) + 16;
    let words = [0, 8].map(|offset| word(at + offset).load(Ordering::Relaxed));
    assert_eq!(words, [0x0000_0000_0102_0301, 0x0500_0000_0000_0041]);
    irqs.mask(1).unwrap();
    let words = [0, 8].map(|offset| word(at + offset).load(Ordering::Relaxed));
    assert_eq!(words, [2, 0]);
}

#[test]
fn x2apic_takes_a_unit_that_has_it_and_a_kernel_that_asks() {
    let xt_without_ga = FEATURES | 1 << 2;
    for (features, config) in
        [(FEATURES, x2apic()), (xt_without_ga, x2apic()), (X2APIC_FEATURES, IrqRemapConfig::default())]
    {
        let setup = setup_with(features, 0, config);
        assert_eq!(setup.driver.irq_remap().unwrap().last_destination(), 0xff);
        assert_eq!(setup.unit.register(CONTROL) & (GA_EN | XT_EN), 0);
    }
}

#[test]
fn tables_have_2048_entries_where_the_unit_can() {
    let setup = setup_with(FEATURES, 1 << 8, IrqRemapConfig::default());
    assert_eq!(setup.unit.register(CONTROL) & (3 << 43), MODE_2K);
    let remap = setup.driver.irq_remap().unwrap();
    let irqs = remap.alloc(msi(DEV), 1024).unwrap();
    let more = remap.alloc(msi(DEV), 1024).unwrap();
    assert_eq!(setup.unit.entry(0x10)[2] & 0x1f, 1 | 11 << 1);
    // With the destination's mode logical, whatever bits 10:8 of the data look like.
    assert_eq!(more.message(1023), Ok(MsiMessage { address: 0xfee0_0004, data: 0x7ff }));
    more.set_target(1023, TARGET).unwrap();
    assert_eq!(entry_32(table(&setup, 0x10), 0x7ff), 0x0041_0301);
    drop(irqs);
}

#[test]
fn nothing_is_remapped_where_firmware_forgot_an_io_apic() {
    let (machine, unit) = (Machine::new(), FakeUnit::new(FEATURES));
    let hardware = hardware(&unit, false);
    let start = |specials: &[u8], io_apics: Option<Vec<u8>>| {
        let table = ivrs(0x0020_3040, &[ivhd(0x10, 2, BASE, &[ENTRIES, specials].concat())]);
        let madt = io_apics.map(|io_apics| Madt { io_apics });
        let irq_remap = Some(IrqRemapConfig { x2apic: false, madt });
        AmdVi::init(machine.clone(), &table, &hardware, Config { irq_remap, ..config() }).unwrap()
    };
    let why = |driver: &AmdVi| driver.irq_remap().err();
    assert_eq!(why(&start(SPECIALS, Some(vec![33]))), None);
    assert_eq!(why(&start(SPECIALS, Some(vec![]))), None, "one that is not there does no harm");
    let missing = NoIrqRemap::Firmware(Warning::IoApicNotListed { id: 34 });
    assert_eq!(why(&start(SPECIALS, Some(vec![33, 34]))), Some(missing));
    let no_southbridge = NoIrqRemap::Firmware(Warning::NoSouthbridgeIoApic);
    let driver = start(&[], None);
    assert_eq!(why(&driver), Some(no_southbridge));
    // Then they pass as before.
    driver.probe_device(DEV).unwrap();
    attach(&*driver.identity_domain().unwrap(), DEV, None).unwrap();
    assert_eq!(unit.entry(0x10)[2], 1 | 1 << 60);
    assert!(!driver.capable(DEV, Capability::IsolatedMsi));
}

#[test]
fn flags_are_not_lost_to_an_entry_without_flags() {
    let setup = setup();
    assert_eq!(setup.unit.entry(SOUTHBRIDGE)[2], 1 | 7 << 56 | 3 << 62, "the HPET's entry comes later");
}

#[derive(Debug)]
struct WithX2apic(FakeHardware);

impl Hardware for WithX2apic {
    fn map_mmio(&self, base: PhysAddr, len: u64) -> Option<std::sync::Arc<dyn Mmio>> {
        self.0.map_mmio(base, len)
    }

    fn config_space(&self) -> &dyn ConfigSpace {
        self.0.config_space()
    }

    fn msi_message(&self, unit: PciAddress) -> Option<MsiMessage> {
        self.0.msi_message(unit)
    }

    fn x2apic_target(&self, _unit: PciAddress) -> Option<IrqTarget> {
        Some(IrqTarget::fixed(0x41, 0x0501_0203))
    }
}

#[test]
fn the_units_own_interrupt_goes_to_an_x2apic() {
    const INT_CAP_XT_EN: u64 = 1 << 51;
    const EVENT_INT_EN: u64 = 1 << 3;
    // XTSup alone is not enough.
    for (features, by_register) in [(X2APIC_FEATURES | MSI_CAP_MMIO_SUP, true), (X2APIC_FEATURES, false)] {
        let (machine, unit) = (Machine::new(), FakeUnit::new(features));
        let hardware = WithX2apic(hardware(&unit, false));
        let table = ivrs(0x0020_3040, &[ivhd(0x10, 2, BASE, ENTRIES)]);
        let driver = AmdVi::init(machine, &table, &hardware, config()).unwrap();
        let registers = [0x170, 0x178, 0x180].map(|at| unit.register(at));
        let expected = if by_register { [0x0500_0041_0102_0300; 3] } else { [0; 3] };
        assert_eq!(registers, expected);
        let control = unit.register(CONTROL);
        assert_eq!((control & INT_CAP_XT_EN != 0, control & EVENT_INT_EN != 0), (by_register, true));
        // Before the interrupt is on.
        let writes = unit.take_writes();
        let place = |wanted: &dyn Fn(usize, u64) -> bool| {
            writes.iter().position(|&(at, value)| wanted(at, value)).unwrap()
        };
        if by_register {
            let on = place(&|at, value| at == CONTROL && value & EVENT_INT_EN != 0);
            assert!(place(&|at, _| at == 0x170) < on);
        }
        let msi_on = hardware.0.config.word(IOMMU, 0x64) >> 16 & 1 != 0;
        assert_eq!(msi_on, !by_register);
        drop(driver);
    }
}

#[test]
fn shutdown_gives_tables_back() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    let irqs = remap.alloc(IrqSource::Msi { function: ALIASED, aliases: &[] }, 1).unwrap();
    irqs.set_target(0, TARGET).unwrap();
    let Setup { machine, hardware, driver, .. } = setup;
    // SAFETY: there are no devices.
    unsafe { driver.shutdown(&hardware.config) }.unwrap();
    assert_eq!(irqs.set_target(0, TARGET), Err(IrqRemapError::Sync(SyncError)));
    drop(driver);
    drop(remap);
    assert!(machine.live.load(Ordering::Relaxed) > 0, "the entries are somebody's");
    drop(irqs);
    assert_eq!(machine.live.load(Ordering::Relaxed), 0);
}

#[test]
fn the_dump_shows_tables() {
    let setup = setup();
    let remap = setup.driver.irq_remap().unwrap();
    let irqs = remap.alloc(msi(DEV), 2).unwrap();
    irqs.set_target(1, TARGET).unwrap();
    let text = setup.driver.dump().to_string();
    let table = table(&setup, 0x10);
    let lines = format!(
        "interrupt table of 0000:00:02.0 at {table:#x}, 2 of 512 entries taken\n  0x000 {:032x}\n  0x001 {:032x}\n",
        0, 0x0041_0301
    );
    assert!(text.contains(&lines), "{text}");
    assert!(text.contains("interrupts are remapped"), "{text}");
}
