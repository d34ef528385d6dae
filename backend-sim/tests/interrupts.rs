//! Interrupts end to end: a driver's arrive by the entries that it was given, and no device raises another's. The simulated
//! unit remembers every entry until it is told to forget it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amd_vi::IrqRemapConfig;
use backend_sim::SimMachine;
use backend_sim::sim_hardware::Machine;
use backend_sim::sim_hardware::bus::BusError;
use backend_sim::sim_hardware::interrupts::Vector;
use common::boot;
use conformance::Bench;
use dma_api::DmaBuffer;
use iommu_core::{
    Capability, DestinationMode, FaultFlags, FaultKind, IrqDelivery, IrqRemap, IrqSource, IrqTarget,
    io_apic_entry,
};
use nvme_driver::Controller;
use platform::pci::{ConfigSpace, Function, MsiMessage, PciAddress};
use platform::sync::pair;
use platform::{DmaAddr, Mmio};

const RANGE: DmaAddr = DmaAddr::new(0xfee0_0000);
const SOON: Duration = Duration::from_secs(10);
const A_WHILE: Duration = Duration::from_millis(30);
const ENGINE: PciAddress = PciAddress { segment: 0, id: Machine::ENGINE };
const NVME: PciAddress = PciAddress { segment: 0, id: Machine::NVME };

const XAPIC: IrqRemapConfig = IrqRemapConfig { x2apic: false, madt: None };
const X2APIC: IrqRemapConfig = IrqRemapConfig { x2apic: true, madt: None };
const NUM_INT_REMAP_2K: u64 = 1 << 8;

/// Entries of 32 and of 128 bits, 512 and 2048 of them in a table.
fn each_machine(test: impl Fn(&SimMachine)) {
    for (irq_remap, efr2) in [(XAPIC, 0), (XAPIC, NUM_INT_REMAP_2K), (X2APIC, 0), (X2APIC, NUM_INT_REMAP_2K)]
    {
        let machine = boot(|config| {
            config.driver.irq_remap = Some(irq_remap.clone());
            if let Some(unit) = &mut config.iommu {
                unit.efr2 = efr2;
            }
        });
        test(&machine);
    }
}

fn msi(function: PciAddress) -> IrqSource<'static> {
    IrqSource::Msi { function, aliases: &[] }
}

fn remap(machine: &SimMachine) -> Arc<dyn IrqRemap> {
    machine.irq_remap().expect("interrupts are remapped")
}

fn vector(machine: &SimMachine) -> Vector {
    machine.hardware().interrupts.allocate().expect("a vector")
}

fn target(vector: &Vector, destination: u32) -> IrqTarget {
    IrqTarget::fixed(vector.number(), destination)
}

/// The message that raised a vector last.
fn last(machine: &SimMachine, vector: &Vector) -> (u64, u32) {
    machine.hardware().interrupts.last_message(vector.number()).expect("a message")
}

/// Sends what a function with these registers would as its message; whether it was let through.
fn send(bench: &impl Bench, message: MsiMessage) -> bool {
    bench.device_write(DmaAddr::new(message.address), &message.data.to_le_bytes()).is_ok()
}

fn nvme(machine: &SimMachine) -> (Arc<dyn Function>, Controller) {
    // SAFETY: the simulated controller does as it is told, and memory of the machine is no memory of the process.
    let (function, device) = unsafe { machine.trust(NVME) }.unwrap();
    let controller = Controller::new(function.clone(), Arc::new(device), 2).unwrap();
    (function, controller)
}

/// What MSI-X vector `index` of the controller sends, and how often it was masked.
fn programmed(function: &dyn Function, index: usize) -> (u64, u32) {
    let table = function.bar(4).unwrap();
    (table.read64(16 * index), table.read32(16 * index + 8))
}

fn read_a_block(controller: &Controller) {
    let mut queue = controller.io_queue(1, 8).unwrap();
    queue.read(0, DmaBuffer::zeroed(controller.device(), 512).unwrap()).unwrap();
    queue.wait(SOON).unwrap().result.unwrap();
}

#[test]
fn the_drivers_interrupts_arrive_through_its_table() {
    each_machine(|machine| {
        let (function, controller) = nvme(machine);
        read_a_block(&controller);
        // A message is an entry's number, which is lower than every vector that a processor takes from a device.
        for index in 0..2 {
            let (address, data) = programmed(&*function, index);
            assert_eq!((address & !4, data), (RANGE.get(), index as u32));
        }
        assert_eq!(machine.take_faults(), []);
        assert_eq!(machine.hardware().interrupts.spurious(), 0);
        assert!(
            machine.iommu().unwrap().group_of(NVME).unwrap().capable(NVME, Capability::IsolatedMsi).unwrap()
        );
        drop(controller);
    });
}

#[test]
fn a_forged_message_raises_nothing() {
    each_machine(|machine| {
        let (_function, controller) = nvme(machine);
        let victim = vector(machine);
        let engine = machine.engine(Machine::ENGINE).unwrap();
        machine.take_faults();
        // Every vector, as if nothing were remapped; one of these numbers is an entry of the engine's own, and raises its own.
        for data in 1..=0xff_u32 {
            assert!(!send(&engine, MsiMessage { address: RANGE.get(), data }), "{data:#x}");
        }
        let faults = machine.take_faults();
        assert_eq!(faults.len(), 0xff);
        for fault in faults {
            assert_eq!((fault.kind, fault.requester), (FaultKind::Page, ENGINE));
            assert_eq!((fault.address, fault.flags), (RANGE, FaultFlags::INTERRUPT));
        }
        assert!(send(&engine, MsiMessage { address: RANGE.get(), data: 0 }));
        // NMI, INIT, ExtInt: firmware does not let this device send them.
        for mode in [4, 5, 7] {
            let data = mode << 8 | u32::from(victim.number());
            assert!(!send(&engine, MsiMessage { address: RANGE.get(), data }), "mode {mode}");
        }
        assert!(!victim.wait(A_WHILE));
        assert_eq!(machine.hardware().interrupts.spurious(), 0);
        read_a_block(&controller);
    });
}

#[test]
fn without_remapping_any_device_raises_any_vector() {
    let machine = boot(|config| config.driver.irq_remap = None);
    assert!(machine.irq_remap().is_none());
    assert!(
        !machine.iommu().unwrap().group_of(ENGINE).unwrap().capable(ENGINE, Capability::IsolatedMsi).unwrap()
    );
    let victim = vector(&machine);
    let engine = machine.engine(Machine::ENGINE).unwrap();
    let (address, data) = victim.message();
    assert!(send(&engine, MsiMessage { address, data }));
    assert!(victim.wait(SOON), "the test would see a forged message");
}

#[test]
fn an_interrupt_moves_while_its_message_stays() {
    each_machine(|machine| {
        let engine = machine.engine(Machine::ENGINE).unwrap();
        let irqs = remap(machine).alloc(msi(ENGINE), 1).unwrap();
        let message = irqs.message(0).unwrap();
        let vectors = [(); 2].map(|()| vector(machine));
        assert!(!send(&engine, message), "nobody has said where to");
        for round in 0..4 {
            let (here, there) = (&vectors[round % 2], &vectors[(round + 1) % 2]);
            irqs.set_target(0, target(here, round as u32)).unwrap();
            assert!(send(&engine, message));
            assert!(here.wait(SOON) && !there.wait(Duration::ZERO));
            assert_eq!(last(machine, here).0 >> 12 & 0xff, round as u64);
        }
        irqs.mask(0).unwrap();
        machine.take_faults();
        assert!(!send(&engine, message));
        assert_eq!(machine.take_faults(), [], "masked is not forged");
        irqs.set_target(0, target(&vectors[0], 0)).unwrap();
        assert!(send(&engine, message) && vectors[0].wait(SOON));
        // Given back, it is nobody's.
        drop(irqs);
        assert!(!send(&engine, message));
        assert_eq!(machine.take_faults().len(), 1);
        assert!(!vectors.iter().any(|vector| vector.wait(Duration::ZERO)));
    });
}

#[test]
fn all_of_a_target_arrives() {
    for (config, destination, low, high) in
        [(XAPIC, 0xa5, 0xfee0_0000_u64 | 0xa5 << 12, 0), (X2APIC, 0x0501_0203, 0xfee0_3000, 0x0501_0200)]
    {
        let machine = boot(|it| it.driver.irq_remap = Some(config.clone()));
        // A processor that cannot change 16 bytes at once has no such destinations.
        assert_eq!(remap(&machine).last_destination() == u32::MAX, config.x2apic && pair::is_available());
        if destination > remap(&machine).last_destination() {
            continue;
        }
        let engine = machine.engine(Machine::ENGINE).unwrap();
        let irqs = remap(&machine).alloc(msi(ENGINE), 1).unwrap();
        let vector = vector(&machine);
        let logical = IrqTarget {
            mode: DestinationMode::Logical,
            delivery: IrqDelivery::LowestPriority,
            ..target(&vector, destination)
        };
        for (target, bits, delivery) in [(target(&vector, destination), 0, 0), (logical, 4, 0x100)] {
            irqs.set_target(0, target).unwrap();
            assert!(send(&engine, irqs.message(0).unwrap()) && vector.wait(SOON));
            let expected = (low | bits | high << 32, delivery | u32::from(vector.number()));
            assert_eq!(last(&machine, &vector), expected);
        }
    }
}

#[test]
fn a_block_is_as_many_interrupts_of_one_message() {
    each_machine(|machine| {
        let engine = machine.engine(Machine::ENGINE).unwrap();
        let irqs = remap(machine).alloc(msi(ENGINE), 8).unwrap();
        let vectors: Vec<_> = (0..8).map(|_| vector(machine)).collect();
        (0..).zip(&vectors).for_each(|(index, it)| irqs.set_target(index, target(it, 0)).unwrap());
        let first = irqs.message(0).unwrap();
        // A function with multiple MSI puts the number into the low bits.
        for (index, vector) in (0..).zip(&vectors) {
            assert_eq!(irqs.message(index as u16).unwrap(), MsiMessage { data: first.data | index, ..first });
            assert!(send(&engine, MsiMessage { data: first.data | index, ..first }) && vector.wait(SOON));
        }
    });
}

#[test]
fn the_last_of_2048_entries_works() {
    let machine = boot(|config| config.driver.irq_remap = Some(XAPIC));
    let engine = machine.engine(Machine::ENGINE).unwrap();
    let remap = remap(&machine);
    // The engine has one of the first half.
    let irqs = remap.alloc(msi(ENGINE), 1024).unwrap();
    let vector = vector(&machine);
    irqs.set_target(1023, target(&vector, 0)).unwrap();
    let last = irqs.message(1023).unwrap();
    assert_eq!(last.data, 0x7ff);
    assert!(send(&engine, last) && vector.wait(SOON));
}

#[test]
fn io_apic_and_timer_are_remapped_as_firmware_names_them() {
    each_machine(|machine| {
        let (remap, hardware) = (remap(machine), machine.hardware());
        let (io_apic, hpet) = (&hardware.io_apic, &hardware.hpet);
        let program = |pin: u32, entry: u64| {
            for (half, value) in [(0x11, (entry >> 32) as u32), (0x10, entry as u32)] {
                io_apic.write32(0x00, half + 2 * pin);
                io_apic.write32(0x10, value);
            }
        };
        let vectors = [(); 2].map(|()| vector(machine));
        // As firmware left it, or as an attacker would have it.
        program(4, u64::from(vectors[0].number()));
        assert_eq!(io_apic.raise(4), Err(BusError::TargetAbort));
        let pin = remap.alloc(IrqSource::IoApic { id: Machine::IO_APIC_ID, pin: 4 }, 1).unwrap();
        let timer = remap.alloc(IrqSource::Hpet { number: Machine::HPET_NUMBER }, 1).unwrap();
        pin.set_target(0, target(&vectors[0], 0)).unwrap();
        timer.set_target(0, target(&vectors[1], 0)).unwrap();
        program(4, io_apic_entry(pin.message(0).unwrap()));
        assert_eq!(io_apic.raise(4), Ok(()));
        assert!(vectors[0].wait(SOON));
        let MsiMessage { address, data } = timer.message(0).unwrap();
        hpet.write64(0x110, address << 32 | u64::from(data));
        hpet.write64(0x100, 1 << 2 | 1 << 14);
        assert_eq!(hpet.expire(), Ok(()));
        assert!(vectors[1].wait(SOON) && !vectors[0].wait(Duration::ZERO));
        // NMI passes: firmware says so of the IO-APIC, whatever it says of the timer under the same name.
        program(5, 0x400 | u64::from(vectors[1].number()));
        assert_eq!(io_apic.raise(5), Ok(()));
        drop(pin);
        assert_eq!(io_apic.raise(4), Err(BusError::TargetAbort));
    });
}

/// Whoever moves an interrupt loses none, and no message goes to one target's processor with the other's vector.
#[test]
fn an_interrupt_that_moves_is_never_torn() {
    for config in [XAPIC, X2APIC] {
        let machine = boot(|it| it.driver.irq_remap = Some(config.clone()));
        let engine = machine.engine(Machine::ENGINE).unwrap();
        let irqs = remap(&machine).alloc(msi(ENGINE), 1).unwrap();
        let vectors = [(); 2].map(|()| vector(&machine));
        let targets = [target(&vectors[0], 0x11), target(&vectors[1], 0x22)];
        irqs.set_target(0, targets[0]).unwrap();
        machine.take_faults();
        let (message, done) = (irqs.message(0).unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| {
                for round in 0..20_000 {
                    irqs.set_target(0, targets[round % 2]).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            let mut seen = [false; 2];
            while !done.load(Ordering::Acquire) {
                assert!(send(&engine, message), "a message was refused");
                for (index, vector) in vectors.iter().enumerate() {
                    let last = machine.hardware().interrupts.last_message(vector.number());
                    let Some((address, data)) = last else { continue };
                    let expected = 0xfee0_0000 | u64::from(targets[index].destination) << 12;
                    assert_eq!((address, data), (expected, u32::from(vector.number())));
                    seen[index] = true;
                }
            }
            mover.join().unwrap();
            assert_eq!(seen, [true; 2]);
        });
        assert_eq!(machine.take_faults(), []);
    }
}

/// The unit's own interrupt, which no table remaps: by its MSI, or where the register for x2APIC says.
#[test]
fn the_units_own_interrupt_arrives() {
    for (config, by_register) in [(None, false), (Some(XAPIC), false), (Some(X2APIC), true)] {
        let machine = boot(|it| it.driver.irq_remap = config.clone());
        let (registers, pci) =
            (machine.hardware().registers_at(0xfeb8_0000).unwrap(), &machine.hardware().pci);
        let unit = machine.driver().unwrap().units()[0].address();
        let general = registers.read64(0x170);
        let (msi_on, msi_data) = (pci.read32(unit, 0xa0) >> 16 & 1 != 0, pci.read32(unit, 0xac));
        assert_eq!((registers.read64(0x18) >> 51 & 1 != 0, msi_on), (by_register, !by_register));
        let vector = if by_register { (general >> 32) as u8 } else { msi_data as u8 };
        let engine = machine.engine(Machine::ENGINE).unwrap();
        assert_eq!(machine.hardware().interrupts.last_message(vector), None);
        assert!(engine.device_write(DmaAddr::new(0x5000), &[0; 8]).is_err());
        assert_eq!(machine.take_faults().len(), 1);
        assert_eq!(machine.hardware().interrupts.last_message(vector), Some((RANGE.get(), vector.into())));
    }
}
