//! Devices as PCI functions: configuration space, registers, interrupts, reset.

mod common;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use backend_vfio::{Vfio, VfioError};
use common::{AUDIO, BAR0, BAR2, Bed, CONFIG, Call, NIC, NVME};
use platform::pci::{Interrupt, PciError};
use platform::{Clock, Mmio, TimedOut};

const COMMAND: u64 = CONFIG + 4;
const BUS_MASTER: u32 = 4;

fn open(bed: &Bed) -> Vfio {
    bed.open(&[NVME]).unwrap()
}

#[test]
fn configuration_space_is_read_and_written_in_words() {
    let bed = Bed::new();
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    assert_eq!(function.config_read32(4), 0x0103);
    bed.mock.set_word(NVME, CONFIG + 0xffc, 0x1234_5678);
    assert_eq!(function.config_read32(0xffc), 0x1234_5678);
    function.config_write32(0x3c, 0xabcd_ef01);
    assert_eq!(bed.mock.word(NVME, CONFIG + 0x3c), 0xabcd_ef01);
    for nowhere in [2, 0xfff, 0x1000, u16::MAX - 3] {
        function.config_write32(nowhere, 0);
        assert_eq!(function.config_read32(nowhere), u32::MAX);
    }
}

#[test]
fn a_device_is_a_bus_master_only_while_it_is_held() {
    let bed = Bed::new();
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    assert_eq!(bed.mock.word(NVME, COMMAND) & BUS_MASTER, 0);
    function.set_bus_master(true);
    assert_eq!(bed.mock.word(NVME, COMMAND), 0x0103 | BUS_MASTER);
    let other = vfio.function(NVME).unwrap();
    drop(function);
    assert_ne!(bed.mock.word(NVME, COMMAND) & BUS_MASTER, 0, "somebody has it still");
    drop(other);
    assert_eq!(bed.mock.word(NVME, COMMAND), 0x0103);
}

#[test]
fn registers_cannot_be_switched_off_under_a_mapping() {
    let bed = Bed::new();
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    function.config_write32(4, 0);
    assert_eq!(bed.mock.word(NVME, COMMAND), 2, "memory decoding is off");
}

fn round_trip(bed: &Bed, registers: &dyn Mmio, at: u64, offset: usize) {
    registers.write64(offset, 0x0123_4567_89ab_cdef);
    assert_eq!(bed.mock.word(NVME, at + offset as u64), 0x89ab_cdef);
    assert_eq!(bed.mock.word(NVME, at + offset as u64 + 4), 0x0123_4567);
    assert_eq!(registers.read64(offset), 0x0123_4567_89ab_cdef);
    assert_eq!(registers.read32(offset + 4), 0x0123_4567);
    assert_eq!(registers.read16(offset + 2), 0x89ab);
    assert_eq!(registers.read8(offset + 7), 0x01);
    registers.write32(offset, 0x1111_1111);
    registers.write16(offset, 0x2222);
    registers.write8(offset, 0x33);
    assert_eq!(bed.mock.word(NVME, at + offset as u64), 0x1111_2233);
}

#[test]
fn registers_are_reached_wherever_they_are_mapped_or_not() {
    let bed = Bed::new();
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    let registers = function.bar(0).unwrap();
    assert_eq!(registers.len(), 0x4000);
    round_trip(&bed, &*registers, BAR0, 0);
    round_trip(&bed, &*registers, BAR0, 0x3ff8);
    // The first and the last page of this one are mapped, what is between them is not.
    let sparse = function.bar(2).unwrap();
    for offset in [0, 0xff8, 0x1000, 0x2ff8, 0x3000, 0x3ff8] {
        round_trip(&bed, &*sparse, BAR2, offset);
    }
    for nowhere in [4, 0x4000, 0x3ffc, usize::MAX - 7] {
        sparse.write64(nowhere, 0);
        assert_eq!(sparse.read64(nowhere), u64::MAX);
    }
    // They outlive the function.
    drop((function, vfio));
    assert_eq!(registers.read32(0), 0x1111_2233);
}

#[test]
fn only_the_allowed_parts_of_registers_are_mapped() {
    // No other test has this device: the process's mappings are everybody's.
    let bed = Bed::new();
    let vfio = bed.open(&[NIC, AUDIO]).unwrap();
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let of_device = maps.lines().filter(|line| line.contains("memfd:device-0000:02:00.0"));
        let mut offsets: Vec<_> =
            of_device.filter_map(|line| line.split_whitespace().nth(2)).map(String::from).collect();
        offsets.sort();
        offsets
    };
    let sparse = vfio.function(NIC).unwrap().bar(2).unwrap();
    assert_eq!(mapped(), ["00100000", "00103000"]);
    drop(sparse);
    assert!(mapped().is_empty());
}

#[test]
fn what_is_no_memory_region_is_no_bar() {
    let bed = Bed::new();
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    // 1 has no region, 4 is of I/O ports, 7 would be configuration space.
    for index in [1, 4, 6, 7, 255] {
        assert_eq!(function.bar(index).err(), Some(PciError::NoSuchBar(index)));
    }
}

/// What a device does when it interrupts.
fn signal(file: i32) {
    // SAFETY: the vector that has the file lives.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    assert_eq!(rustix::io::write(file, &1_u64.to_ne_bytes()), Ok(8));
}

fn irqs(bed: &Bed) -> Vec<(u32, u32, Vec<i32>)> {
    let calls = bed.mock.calls().into_iter();
    calls
        .filter_map(|call| match call {
            Call::SetIrqs { index, start, files } => Some((index, start, files)),
            _ => None,
        })
        .collect()
}

fn soon(vfio: &Vfio) -> platform::Instant {
    vfio.platform().now() + Duration::from_secs(10)
}

fn has_arrived(vfio: &Vfio, vector: &dyn Interrupt) -> bool {
    vector.wait(vfio.platform().now()) == Ok(())
}

#[test]
fn an_interrupt_is_waited_for_and_remembered() {
    let bed = Bed::new();
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    let vector = function.interrupt(3).unwrap();
    let calls = irqs(&bed);
    let [(2, 0, files)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(files.len(), 8, "all vectors of MSI-X are switched on at once");
    let file = files[3];
    assert!(files.iter().enumerate().all(|(index, &it)| (it == -1) == (index != 3)));
    let started = vfio.platform().now();
    let wait = Duration::from_millis(30);
    assert_eq!(vector.wait(started + wait), Err(TimedOut));
    assert!(vfio.platform().now() - started >= wait);
    signal(file);
    signal(file);
    assert!(has_arrived(&vfio, &*vector), "it was forgotten");
    assert!(!has_arrived(&vfio, &*vector), "two are one");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            signal(file);
        });
        assert_eq!(vector.wait(soon(&vfio)), Ok(()));
    });
    let other = function.interrupt(0).unwrap();
    let calls = irqs(&bed);
    assert!(matches!(&calls[..], [(2, 0, files)] if files.len() == 1 && files[0] != -1), "{calls:?}");
    drop(vector);
    drop(other);
    assert_eq!(irqs(&bed), [(2, 3, vec![-1])], "with the last, all of them");
}

#[test]
fn where_vectors_can_come_later_no_more_than_needed_are_switched_on() {
    let bed = Bed::new();
    bed.mock.knobs(|knobs| knobs.resize = true);
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    let _first = function.interrupt(1).unwrap();
    let _second = function.interrupt(5).unwrap();
    let calls = irqs(&bed);
    assert!(
        matches!(&calls[..], [(2, 0, two), (2, 5, one)] if two.len() == 2 && one.len() == 1),
        "{calls:?}"
    );
}

#[test]
fn a_system_that_is_short_of_vectors_gives_what_it_has() {
    let bed = Bed::new();
    bed.mock.knobs(|knobs| knobs.vectors = 3);
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    assert_eq!(function.interrupt_count(), 8);
    let _vector = function.interrupt(2).unwrap();
    assert_eq!(function.interrupt(3).err(), Some(PciError::OutOfVectors));
    assert_eq!(function.interrupt(8).err(), Some(PciError::NoSuchVector { vector: 8, count: 8 }));
}

#[test]
fn a_device_without_msi_x_has_msi() {
    let bed = Bed::new();
    bed.mock.knobs(|knobs| knobs.msix = 0);
    let vfio = open(&bed);
    let function = vfio.function(NVME).unwrap();
    assert_eq!(function.interrupt_count(), 1);
    let _vector = function.interrupt(0).unwrap();
    assert!(matches!(&irqs(&bed)[..], [(1, 0, _)]));
}

#[test]
fn reset_is_a_call_or_an_error_that_names_the_device() {
    let bed = Bed::new();
    let vfio = open(&bed);
    vfio.reset(NVME).unwrap();
    assert_eq!(bed.mock.calls().last(), Some(&Call::Reset));
    drop(vfio);
    bed.mock.knobs(|knobs| knobs.reset = false);
    let error = open(&bed).reset(NVME).unwrap_err();
    assert!(matches!(error, VfioError::NoReset(NVME)), "{error}");
}
