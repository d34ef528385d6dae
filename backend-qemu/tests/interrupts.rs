//! Interrupt remapping: a message arrives at the processor and as the vector that its entry says, by tables of both widths, and
//! a forged one arrives nowhere. What has arrived is what QEMU's local APICs say.

mod common;

use std::sync::Arc;

use amd_vi::IrqRemapConfig;
use amd_vi::ivrs::Madt;
use backend_qemu::{Config, Defect, QemuMachine};
use common::{EDU, start, with_edu};
use iommu_core::{Capability, IrqRemap, IrqSource, IrqTarget, io_apic_entry};
use platform::PhysAddr;
use platform::pci::{Function, MsiMessage};
use platform::sync::pair;

/// `edu`'s registers.
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;

/// A machine of two processors, and what its driver gives interrupts with. `wide`: 128-bit entries.
fn start_with(wide: bool, options: &str) -> Option<(QemuMachine, Arc<dyn IrqRemap>)> {
    let remap = IrqRemapConfig { x2apic: wide, madt: None };
    let driver = amd_vi::Config { irq_remap: Some(remap), ..Default::default() };
    let machine = start(with_edu().processors(2).iommu_option(options).driver(driver))?;
    let remap = machine.driver().unwrap().irq_remap().unwrap();
    let wide = wide && pair::is_available();
    assert_eq!(remap.last_destination(), if wide { u32::MAX } else { 0xff });
    Some((machine, remap))
}

/// What has arrived at each of the two processors.
#[track_caller]
fn raised(machine: &QemuMachine) -> [Vec<u8>; 2] {
    [0, 1].map(|processor| machine.raised_interrupts(processor).unwrap())
}

/// Has `edu` send a message that it is told to.
fn send(edu: &dyn Function, message: MsiMessage) {
    let at = msi(edu);
    edu.config_write32(at + 4, message.address as u32);
    edu.config_write32(at + 8, (message.address >> 32) as u32);
    edu.config_write32(at + 12, message.data);
    let control = edu.config_read32(at);
    edu.config_write32(at, control | 1 << 16);
    let registers = edu.bar(0).unwrap();
    registers.write32(RAISE, 1);
    registers.write32(ACKNOWLEDGE, 1);
    edu.config_write32(at, control & !(1 << 16));
}

/// Its MSI capability, of 64 bits.
fn msi(edu: &dyn Function) -> u16 {
    let mut at = edu.config_read32(0x34) as u16 & 0xfc;
    while edu.config_read32(at) & 0xff != 0x05 {
        at = (edu.config_read32(at) >> 8) as u16 & 0xfc;
        assert!(at >= 0x40, "no MSI");
    }
    assert_eq!(edu.config_read32(at) >> 23 & 1, 1);
    at
}

fn exercise(wide: bool, options: &str) {
    let Some((machine, remap)) = start_with(wide, options) else { return };
    assert!(machine.group(EDU).unwrap().capable(EDU, Capability::IsolatedMsi).unwrap());
    let (edu, _device) = machine.bind(EDU).unwrap();
    edu.set_bus_master(true);
    assert_eq!(raised(&machine), [vec![], vec![]]);
    let irqs = remap.alloc(IrqSource::Msi { function: EDU, aliases: &[] }, 2).unwrap();
    let [first, second] = [0, 1].map(|index| irqs.message(index).unwrap());
    irqs.set_target(0, IrqTarget::fixed(0x41, 0)).unwrap();
    irqs.set_target(1, IrqTarget::fixed(0x52, 1)).unwrap();
    send(&*edu, first);
    assert_eq!(raised(&machine), [vec![0x41], vec![]]);
    send(&*edu, second);
    assert_eq!(raised(&machine), [vec![0x41], vec![0x52]]);
    // The entry changes, the message does not.
    irqs.set_target(0, IrqTarget::fixed(0x63, 1)).unwrap();
    send(&*edu, first);
    assert_eq!(raised(&machine), [vec![0x41], vec![0x52, 0x63]]);
    // Masked.
    irqs.set_target(1, IrqTarget::fixed(0x74, 0)).unwrap();
    irqs.mask(1).unwrap();
    send(&*edu, second);
    // Forged: the vector that it would like, and entries that are nobody's.
    machine.take_faults();
    for data in [0x85, 2, 0x1ff] {
        send(&*edu, MsiMessage { data, ..first });
    }
    // NMI, INIT and ExtInt, which firmware does not let it send.
    for mode in [4, 5, 7] {
        send(&*edu, MsiMessage { data: mode << 8 | 0x85, ..first });
    }
    let faults = machine.take_faults();
    assert!(
        machine.version().has(Defect::NoInterruptEvents),
        "write down what a version says of them: {faults:?}"
    );
    assert_eq!(faults, []);
    // Given back.
    drop(irqs);
    send(&*edu, first);
    assert_eq!(raised(&machine), [vec![0x41], vec![0x52, 0x63]]);
    machine.health().unwrap();
}

#[test]
fn messages_arrive_by_entries_of_32_bits() {
    exercise(false, "intremap=on");
}

#[test]
fn messages_arrive_by_entries_of_128_bits() {
    exercise(true, "intremap=on,xtsup=on");
}

/// The same forged message without remapping, so that the tests above would see it.
#[test]
fn without_remapping_a_device_raises_what_it_likes() {
    let Some(machine) = start(with_edu().processors(2)) else { return };
    assert!(!machine.group(EDU).unwrap().capable(EDU, Capability::IsolatedMsi).unwrap());
    let (edu, _device) = machine.bind(EDU).unwrap();
    edu.set_bus_master(true);
    send(&*edu, MsiMessage { address: 0xfee0_1000, data: 0x85 });
    let spoilt = machine.version().has(Defect::ForwardsNoInterrupt);
    assert_eq!(raised(&machine), if spoilt { [vec![0], vec![]] } else { [vec![], vec![0x85]] });
}

/// A pin of the IO-APIC, by the name that firmware's table gives it.
#[test]
fn a_pin_arrives_by_its_entry() {
    const IO_APIC: PhysAddr = PhysAddr::new(0xfec0_0000);
    /// Where a PC of this type has the interrupt line of its device 5.
    const PIN: u8 = 21;
    for (wide, options) in [(false, "intremap=on"), (true, "intremap=on,xtsup=on")] {
        let Some((machine, remap)) = start_with(wide, options) else { return };
        let io_apics = Madt::parse(machine.acpi().table(b"APIC").unwrap()).unwrap().io_apics;
        let [id] = io_apics[..] else { panic!("one IO-APIC: {io_apics:?}") };
        let registers = machine.registers(IO_APIC, 0x20);
        let program = |entry: u64| {
            for (half, value) in [(0x11, (entry >> 32) as u32), (0x10, entry as u32)] {
                registers.write32(0x00, half + 2 * u32::from(PIN));
                registers.write32(0x10, value);
            }
        };
        let edu = machine.function(EDU).unwrap();
        let line = edu.bar(0).unwrap();
        let raise = || {
            line.write32(RAISE, 1);
            line.write32(ACKNOWLEDGE, 1);
        };
        // As an attacker would have it who has got hold of the IO-APIC.
        program(0x85);
        raise();
        if machine.version().has(Defect::IoApicNotRemapped) {
            assert_eq!(raised(&machine), [vec![0x85], vec![]]);
            continue;
        }
        assert_eq!(raised(&machine), [vec![], vec![]]);
        let irqs = remap.alloc(IrqSource::IoApic { id, pin: PIN }, 1).unwrap();
        irqs.set_target(0, IrqTarget::fixed(0x46, 1)).unwrap();
        program(io_apic_entry(irqs.message(0).unwrap()));
        raise();
        assert_eq!(raised(&machine), [vec![], vec![0x46]]);
        drop(irqs);
        machine.health().unwrap();
    }
}

/// An IO-APIC that the machine has and firmware's table does not: QEMU without remapping names none.
#[test]
fn what_firmware_does_not_name_is_not_remapped() {
    let driver = amd_vi::Config { irq_remap: Some(IrqRemapConfig::default()), ..Default::default() };
    let config: Config = with_edu().iommu_option("intremap=off").driver(driver);
    let Some(machine) = start(config) else { return };
    let why = machine.driver().unwrap().irq_remap().unwrap_err();
    assert!(matches!(why, amd_vi::NoIrqRemap::Firmware(_)), "{why}");
}
