//! The machine itself: what firmware does, interrupts, and that QEMU never stays behind.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend_qemu::{Config, Defect, Emulator, Program, ProgramError, QemuError, QemuMachine};
use common::{EDU, PAGE, RW, map, pages, start, with_edu};
use dma_api::{CoherentSlice, DmaBuffer, FromDevice, Streaming};
use iommu_core::PagingFlags;
use platform::Clock;
use platform::pci::PciAddress;
use platform::{DmaAddr, PhysAddr};

/// Every table sums up to zero, so the script has been executed to its end; and what is in them is what there is.
#[test]
fn acpi_tables_are_put_together_as_the_script_says() {
    let Some(machine) = start(with_edu()) else { return };
    for signature in [b"FACP", b"APIC", b"MCFG", b"IVRS", b"WAET"] {
        let table = machine.acpi().table(signature).unwrap();
        let sum = table.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        assert_eq!(sum, 0, "{}", String::from_utf8_lossy(signature));
    }
    // The window of configuration space: base, segment, first and last bus.
    let mcfg = machine.acpi().table(b"MCFG").unwrap();
    assert_eq!(mcfg[44..52], 0xb000_0000_u64.to_le_bytes());
    assert_eq!(mcfg[52..56], [0, 0, 0, 0xff]);
    assert!(machine.acpi().table(b"DMAR").is_err());
    // The driver found the IOMMU where QEMU puts it.
    let driver = machine.driver().unwrap();
    let units: Vec<_> = driver.units().iter().map(|unit| unit.address()).collect();
    assert_eq!(units, [PciAddress::new(0, 0, 1, 0)]);
}

/// Behind two bridges, one in the other, with a device behind each.
#[test]
fn buses_are_numbered_and_registers_have_addresses_behind_bridges() {
    let config = Config::q35()
        .device("pcie-root-port,id=rp,addr=3,chassis=1")
        .device("x3130-upstream,id=up,bus=rp")
        .device("xio3130-downstream,id=down0,bus=up,chassis=2,slot=0")
        .device("xio3130-downstream,id=down1,bus=up,chassis=2,slot=1")
        .device("e1000e,bus=down0")
        .device("e1000e,bus=down1");
    let Some(machine) = start(config) else { return };
    let bridges = machine.topology().iter().filter_map(|node| node.secondary_bus);
    let mut buses: Vec<u8> = bridges.collect();
    buses.sort_unstable();
    assert_eq!(buses, [1, 2, 3, 4]);
    const CONTROL: usize = 0x00;
    const CARDS: [PciAddress; 2] = [PciAddress::new(0, 3, 0, 0), PciAddress::new(0, 4, 0, 0)];
    let registers = CARDS.map(|card| machine.function(card).unwrap().bar(0).unwrap());
    // Each register is its own card's.
    let before = registers.each_ref().map(|registers| registers.read32(CONTROL));
    assert!(before.iter().all(|&value| value != 0 && value != u32::MAX), "{before:x?}");
    registers[0].write32(CONTROL, before[0] ^ 1 << 6);
    assert_eq!(registers[0].read32(CONTROL), before[0] ^ 1 << 6);
    assert_eq!(registers[1].read32(CONTROL), before[1]);
    // The switch's ports redirect nothing, so each card is with its port, and apart from the other.
    let groups = CARDS.map(|card| machine.group(card).unwrap().devices());
    const PORTS: [PciAddress; 2] = [PciAddress::new(0, 2, 0, 0), PciAddress::new(0, 2, 1, 0)];
    assert_eq!(groups, [[PORTS[0], CARDS[0]], [PORTS[1], CARDS[1]]]);
}

/// A device behind a bridge is translated by its own entry.
#[test]
fn a_device_behind_a_bridge_has_its_own_requester_id() {
    let config = Config::q35()
        .device("pcie-root-port,id=rp,addr=3,chassis=1")
        .device("edu,bus=rp,addr=0,dma_mask=0xffffffffffffffff");
    let Some(machine) = start(config) else { return };
    let (address, clock) = (PciAddress::new(0, 1, 0, 0), &**machine.platform());
    let mut page = pages(&machine, 1);
    page.fill(7);
    let phys = page.phys();
    let group = machine.group(address).unwrap();
    // The root port redirects, since enumeration has told it to.
    assert_eq!(group.devices(), [address]);
    let domain = group.alloc_unmanaged(PagingFlags::empty()).unwrap();
    map(&domain, DmaAddr::new(0x5000), PhysAddr::new(phys.get()), PAGE as u64, RW);
    group.attach(&domain).unwrap();
    let edu = backend_qemu::Edu::new(machine.function(address).unwrap()).unwrap();
    edu.write(clock, DmaAddr::new(0x5000), 0, 8).unwrap();
    let (arrived, defect) = (page[..8] == [0; 8], machine.version().has(Defect::BusZeroBehindBridges));
    assert_ne!(arrived, defect, "the device wrote: {arrived}");
    drop(edu);
    group.detach().unwrap();
}

/// A message is a write by the device, through its own domain.
#[test]
fn a_device_sends_its_message_to_who_waits_for_it() {
    const INTERRUPT_STATUS: usize = 0x24;
    const RAISE: usize = 0x60;
    const ACKNOWLEDGE: usize = 0x64;
    let Some(machine) = start(with_edu()) else { return };
    let (function, device) = machine.bind(EDU).unwrap();
    let registers = function.bar(0).unwrap();
    assert_eq!(function.interrupt_count(), 1);
    assert!(function.interrupt(1).is_err());
    let interrupt = function.interrupt(0).unwrap();
    function.set_bus_master(true);
    let platform = machine.platform();
    let soon = || platform.now() + Duration::from_millis(200);
    assert!(interrupt.wait(soon()).is_err(), "an interrupt from nowhere");
    for value in [1, 2, 4] {
        registers.write32(RAISE, value);
        assert_eq!(registers.read32(INTERRUPT_STATUS), value);
        interrupt.wait(platform.now() + Duration::from_secs(10)).unwrap();
        // It was one.
        assert!(interrupt.wait(soon()).is_err());
        registers.write32(ACKNOWLEDGE, value);
    }
    // Nobody waits any more.
    drop(interrupt);
    registers.write32(RAISE, 8);
    registers.write32(ACKNOWLEDGE, 8);
    let again = function.interrupt(0).unwrap();
    assert!(again.wait(soon()).is_err(), "an interrupt of the time before");
    drop(again);
    function.set_bus_master(false);
    drop(device);
    assert_eq!(machine.check_free_memory(), []);
}

#[test]
fn what_qemu_does_not_take_is_an_error_with_its_own_words() {
    if start(with_edu()).is_none() {
        return;
    }
    let error = QemuMachine::start(Config::q35().device("abacus")).unwrap_err();
    let QemuError::Qemu { messages, .. } = &error else { panic!("{error}") };
    assert!(messages.contains("abacus"), "{messages}");
    let nowhere = Program::at(Emulator::X86_64, "/nonexistent/qemu-system-x86_64".into());
    assert!(matches!(nowhere, Err(ProgramError::NotFound(Emulator::X86_64))));
}

/// How many processes have this mark on their command line.
fn processes_with(mark: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.windows(mark.len()).any(|part| part == mark.as_bytes())).count()
}

fn until_gone(mark: &str) {
    let start = Instant::now();
    while processes_with(mark) != 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "QEMU stays behind");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A machine with a name by which its process can be told from others.
fn marked(mark: &str) -> Config {
    with_edu().device(&format!("pcie-root-port,id={mark},addr=9"))
}

#[test]
fn qemu_ends_with_its_machine() {
    let mark = format!("ends-with-its-machine-{}", std::process::id());
    let Some(machine) = start(marked(&mark)) else { return };
    assert_ne!(processes_with(&mark), 0);
    drop(machine);
    assert_eq!(processes_with(&mark), 0);
}

/// A child of this test starts a machine and is killed: nothing of it may stay.
#[test]
fn qemu_ends_with_a_process_that_is_killed() {
    const MARK: &str = "ENDS_WITH_A_PROCESS_THAT_IS_KILLED";
    if let Ok(mark) = std::env::var(MARK) {
        let _machine = start(marked(&mark)).unwrap();
        // Past the test harness, which keeps what is printed to itself.
        std::io::Write::write_all(&mut std::io::stderr(), b"started\n").unwrap();
        loop {
            std::thread::park();
        }
    }
    if start(with_edu()).is_none() {
        return;
    }
    let mark = format!("ends-with-a-killed-process-{}", std::process::id());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "qemu_ends_with_a_process_that_is_killed"])
        .env(MARK, &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let there = processes_with(&mark);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(line, "started\n");
    assert_ne!(there, 0);
    until_gone(&mark);
}

/// Nothing waits for an IOMMU that is gone, and what comes back to its owner is no device's any more.
#[test]
fn what_outlives_its_machine_waits_for_nothing() {
    let Some(machine) = start(with_edu().edu(6)) else { return };
    let (function, device) = machine.bind(EDU).unwrap();
    let device = Arc::new(device);
    let coherent = CoherentSlice::<u64>::zeroed(&device, 512).unwrap();
    let buffer = DmaBuffer::<u8>::zeroed(&device, 8192).unwrap();
    let mapped = Streaming::<_, FromDevice>::map(&device, buffer).unwrap();
    let other = machine.group(PciAddress::new(0, 0, 6, 0)).unwrap();
    let domain = other.alloc_unmanaged(PagingFlags::empty()).unwrap();
    other.attach(&domain).unwrap();
    let iommu = Arc::clone(machine.iommu().unwrap());
    let start = Instant::now();
    drop(machine);
    assert_eq!(mapped.unmap().unwrap().len(), 8192);
    drop(coherent);
    drop(device);
    drop((other, domain, iommu));
    assert_eq!(function.config_read32(0), u32::MAX);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}
