//! The virtio transport over a PCI function, with registers that a test writes: what it finds, what it refuses, what it accesses
//! how.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::Bench;
use dma_api::virtio::virtio_drivers::Error;
use dma_api::virtio::virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use dma_api::virtio::{VirtioPci, VirtioPciError};
use platform::Mmio;
use platform::pci::{Function, Interrupt, PciAddress, PciError};

const BAR: usize = 0x1000;
const COMMON: usize = 0x100;
const NOTIFY: usize = 0x200;
const ISR: usize = 0x300;
const CONFIG: usize = 0x400;
const CONFIG_LEN: u32 = 14;

// VIRTIO 1.2, section 4.1.4.3.
const STATUS: usize = COMMON + 0x14;
const QUEUE_SIZE: usize = COMMON + 0x18;
const QUEUE_NOTIFY_OFF: usize = COMMON + 0x1e;

const ACKNOWLEDGE_DRIVER_FEATURES: u8 = 1 | 2 | 8;
const NEEDS_RESET: u8 = 0x40;

/// Registers that hold what is written, each access noted: offset, width, and whether it wrote.
#[derive(Debug)]
struct Registers {
    bytes: Mutex<Vec<u8>>,
    accesses: Mutex<Vec<(usize, usize, bool)>>,
    /// The status stays what it is.
    stuck: AtomicBool,
}

impl Registers {
    fn read(&self, offset: usize, width: usize) -> u64 {
        self.accesses.lock().unwrap().push((offset, width, false));
        let bytes = self.bytes.lock().unwrap();
        bytes[offset..offset + width].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        self.accesses.lock().unwrap().push((offset, width, true));
        if offset != STATUS || !self.stuck.load(Ordering::Relaxed) {
            self.poke(offset, &value.to_le_bytes()[..width]);
        }
    }

    fn poke(&self, offset: usize, bytes: &[u8]) {
        self.bytes.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn take_accesses(&self) -> Vec<(usize, usize, bool)> {
        std::mem::take(&mut self.accesses.lock().unwrap())
    }
}

// SAFETY: the registers are a vector of this value's own.
unsafe impl Mmio for Registers {
    fn len(&self) -> usize {
        BAR
    }

    fn read8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }

    fn write8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }

    fn read16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }

    fn write16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }

    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, 4) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value.into());
    }

    fn read64(&self, _offset: usize) -> u64 {
        unreachable!("virtio has no access of 64 bits")
    }

    fn write64(&self, _offset: usize, _value: u64) {
        unreachable!("virtio has no access of 64 bits")
    }
}

/// A function with registers in BAR 2 and the configuration space that a test says.
#[derive(Debug)]
struct Fake {
    config: Mutex<Vec<u32>>,
    registers: Arc<Registers>,
}

// SAFETY: the region lives as long as whoever has it.
unsafe impl Function for Fake {
    fn address(&self) -> PciAddress {
        PciAddress::default()
    }

    fn config_read32(&self, offset: u16) -> u32 {
        self.config.lock().unwrap()[usize::from(offset) / 4]
    }

    fn config_write32(&self, offset: u16, value: u32) {
        self.config.lock().unwrap()[usize::from(offset) / 4] = value;
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Mmio>, PciError> {
        if index == 2 { Ok(self.registers.clone()) } else { Err(PciError::NoSuchBar(index)) }
    }

    fn interrupt_count(&self) -> u16 {
        0
    }

    fn interrupt(&self, vector: u16) -> Result<Box<dyn Interrupt>, PciError> {
        Err(PciError::NoSuchVector { vector, count: 0 })
    }
}

/// A capability: ID, length, type, BAR, offset and length of the structure, notification multiplier.
type Capability = (u8, u8, u8, u8, usize, u32, u32);

const GOOD: [Capability; 4] = [
    (9, 16, 1, 2, COMMON, 0x38, 0),
    (9, 20, 2, 2, NOTIFY, 0x40, 4),
    (9, 16, 3, 2, ISR, 1, 0),
    (9, 16, 4, 2, CONFIG, CONFIG_LEN, 0),
];

/// A block device with these capabilities. The last one leads to the first again.
fn fake(capabilities: &[Capability]) -> Arc<Fake> {
    let mut config = vec![0; 64];
    config[0] = 0x1042_1af4;
    config[0x34 / 4] = 0x40;
    for (number, &(id, len, kind, bar, offset, size, multiplier)) in capabilities.iter().enumerate() {
        let next = 0x40 + 20 * ((number + 1) % capabilities.len()) as u8;
        let at = 0x40 / 4 + 5 * number;
        let word = u32::from_le_bytes([id, next, len, kind]);
        config[at..at + 5].copy_from_slice(&[word, bar.into(), offset as u32, size, multiplier]);
    }
    let registers = Registers {
        bytes: Mutex::new(vec![0; BAR]),
        accesses: Mutex::default(),
        stuck: AtomicBool::new(false),
    };
    Arc::new(Fake { config: Mutex::new(config), registers: Arc::new(registers) })
}

fn transport(fake: &Arc<Fake>) -> Result<VirtioPci, VirtioPciError> {
    VirtioPci::new(fake.clone(), &Bench::new().device)
}

/// A transport as a driver has it before it sets its queue up.
fn negotiated(fake: &Arc<Fake>) -> VirtioPci {
    let transport = transport(fake).unwrap();
    fake.registers.poke(STATUS, &[ACKNOWLEDGE_DRIVER_FEATURES]);
    fake.registers.poke(QUEUE_SIZE, &[64, 0]);
    fake.registers.take_accesses();
    transport
}

fn bus_master(fake: &Fake) -> bool {
    fake.config_read32(0x04) & 1 << 2 != 0
}

#[test]
fn a_device_is_known_by_its_numbers() {
    // Modern: 1040h and the type. Transitional: the subsystem ID is the type.
    let known = [
        (0x1042_1af4, 0, DeviceType::Block),
        (0x1041_1af4, 0x0002_1af4, DeviceType::Network),
        (0x1001_1af4, 0x0002_1af4, DeviceType::Block),
        (0x103f_1af4, 0x0004_1af4, DeviceType::EntropySource),
    ];
    for (id, subsystem, device_type) in known {
        let fake = fake(&GOOD);
        fake.config_write32(0x00, id);
        fake.config_write32(0x2c, subsystem);
        assert_eq!(transport(&fake).unwrap().device_type(), device_type);
    }
    let unknown =
        [(0x1042_1022, 0), (0x0fff_1af4, 2 << 16), (0x1040_1af4, 2 << 16), (0x1001_1af4, 0), (u32::MAX, 0)];
    for (id, subsystem) in unknown {
        let fake = fake(&GOOD);
        fake.config_write32(0x00, id);
        fake.config_write32(0x2c, subsystem);
        let error = VirtioPciError::NotVirtio { vendor: id as u16, device: (id >> 16) as u16 };
        assert_eq!(transport(&fake).unwrap_err(), error);
        assert!(!bus_master(&fake));
    }
}

#[test]
fn what_a_device_must_have_is_missed_by_name() {
    let names = ["common configuration", "notifications", "ISR status"];
    for (missing, name) in names.into_iter().enumerate() {
        let mut capabilities = GOOD.to_vec();
        // Another vendor's, which looks the same.
        capabilities[missing].0 = 0x0a;
        assert_eq!(transport(&fake(&capabilities)).unwrap_err(), VirtioPciError::NoCapability(name));
    }
    // Only this may be missing.
    let transport = transport(&fake(&GOOD[..3])).unwrap();
    assert_eq!(transport.read_config_space::<u32>(0), Err(Error::ConfigSpaceMissing));
}

#[test]
fn capabilities_that_make_no_sense_are_passed_over_or_refused() {
    let with = |bad: Capability| fake(&[&[bad][..], &GOOD].concat());
    // A BAR that there cannot be, or a length too short for its type: the next of that type counts.
    for bad in
        [(9, 16, 1, 6, 0, 0x38, 0), (9, 12, 3, 2, 0, 1, 0), (9, 16, 2, 2, 0, 4, 0), (9, 16, 5, 7, 0, 0, 0)]
    {
        assert!(transport(&with(bad)).is_ok(), "{bad:?}");
    }
    let refused = [
        ((9, 16, 1, 2, COMMON, 0x37, 0), "common configuration"),
        ((9, 16, 1, 2, BAR - 0x30, 0x38, 0), "common configuration"),
        ((9, 20, 2, 2, NOTIFY, 1, 0), "notification structure"),
        ((9, 16, 3, 2, ISR, 0, 0), "ISR status"),
        ((9, 16, 4, 2, u32::MAX as usize, u32::MAX, 0), "device configuration"),
    ];
    for (bad, name) in refused {
        let fake = with(bad);
        assert_eq!(transport(&fake).unwrap_err(), VirtioPciError::BadCapability(name));
        assert!(!bus_master(&fake));
    }
    let error = VirtioPciError::Pci(PciError::NoSuchBar(0));
    assert_eq!(transport(&with((9, 16, 1, 0, COMMON, 0x38, 0))).unwrap_err(), error);
}

#[test]
fn a_device_is_reset_before_it_may_do_dma_and_after() {
    let fake = fake(&GOOD);
    fake.registers.poke(STATUS, &[0xf]);
    let transport = transport(&fake).unwrap();
    assert!(bus_master(&fake));
    assert_eq!(transport.get_status(), DeviceStatus::empty());
    fake.registers.poke(STATUS, &[0xf]);
    drop(transport);
    assert_eq!(fake.registers.read(STATUS, 1), 0);
    assert!(!bus_master(&fake));
}

#[test]
fn a_device_that_does_not_reset_is_cut_off() {
    let fake = fake(&GOOD);
    fake.registers.poke(STATUS, &[1]);
    fake.registers.stuck.store(true, Ordering::Relaxed);
    assert_eq!(transport(&fake).unwrap_err(), VirtioPciError::ResetTimedOut);
    assert!(!bus_master(&fake));
    fake.registers.stuck.store(false, Ordering::Relaxed);
    let transport = negotiated(&fake);
    fake.registers.stuck.store(true, Ordering::Relaxed);
    drop(transport);
    assert!(!bus_master(&fake));
}

#[test]
fn the_platforms_addresses_are_accepted_for_the_driver() {
    // Both halves of these registers are one word here, so the device offers the half that it was asked for last.
    for (offered, taken) in [(1 << 1, 1 << 1), (0, 0)] {
        let fake = fake(&GOOD);
        let mut transport = negotiated(&fake);
        fake.registers.poke(COMMON + 0x04, &u32::to_le_bytes(offered));
        assert_eq!(transport.read_device_features(), u64::from(offered) << 32 | u64::from(offered));
        transport.write_driver_features(1 << 9);
        assert_eq!(fake.registers.read(COMMON + 0x0c, 4), taken, "VIRTIO_F_ACCESS_PLATFORM is bit 33");
    }
}

#[test]
fn a_queue_that_cannot_work_has_no_room() {
    let fake = fake(&GOOD);
    let mut transport = negotiated(&fake);
    assert_eq!(transport.max_queue_size(0), 64);
    for status in [1 | 2, ACKNOWLEDGE_DRIVER_FEATURES | NEEDS_RESET, 0xff] {
        fake.registers.poke(STATUS, &[status]);
        assert_eq!(transport.max_queue_size(0), 0, "{status:#x}");
    }
    fake.registers.poke(STATUS, &[ACKNOWLEDGE_DRIVER_FEATURES]);
    // 0x40 bytes, 4 for each: places 0 to 15.
    for (place, size) in [(15, 64), (16, 0), (u16::MAX, 0)] {
        fake.registers.poke(QUEUE_NOTIFY_OFF, &place.to_le_bytes());
        assert_eq!(transport.max_queue_size(0), size, "{place}");
    }
    fake.registers.take_accesses();
    transport.queue_set(0, 16, 0x1000, 0x2000, 0x3000);
    transport.notify(0);
    let notified = |&(at, _, write): &(usize, usize, bool)| write && at != COMMON + 0x16;
    assert!(!fake.registers.take_accesses().iter().any(notified), "nothing is set up beside its structure");
}

#[test]
fn a_queue_is_set_up_field_by_field_and_notified_at_its_place() {
    let fake = fake(&GOOD);
    let mut transport = negotiated(&fake);
    fake.registers.poke(QUEUE_NOTIFY_OFF, &[3, 0]);
    assert!(!transport.queue_used(1));
    transport.queue_set(1, 16, 0x1_0000_1000, 0x2000, 0x3_0000_3000);
    assert!(transport.queue_used(1));
    let word = |at, width| fake.registers.read(COMMON + at, width);
    assert_eq!((word(0x16, 2), word(0x18, 2), word(0x1c, 2)), (1, 16, 1));
    assert_eq!((word(0x20, 8), word(0x28, 8), word(0x30, 8)), (0x1_0000_1000, 0x2000, 0x3_0000_3000));
    fake.registers.take_accesses();
    transport.notify(1);
    assert_eq!(fake.registers.take_accesses(), [(NOTIFY + 12, 2, true)]);
    assert_eq!(fake.registers.read(NOTIFY + 12, 2), 1);
    fake.registers.take_accesses();
    transport.notify(2);
    assert_eq!(fake.registers.take_accesses(), [], "that queue was never set up");
    fake.registers.poke(ISR, &[3]);
    let both = InterruptStatus::QUEUE_INTERRUPT | InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT;
    assert!(transport.ack_interrupt() == both);
    fake.registers.poke(COMMON + 0x15, &[9]);
    assert_eq!(transport.read_config_generation(), 9);
}

#[test]
fn the_configuration_is_accessed_in_fields_widths() {
    let fake = fake(&GOOD);
    let mut transport = negotiated(&fake);
    fake.registers.poke(CONFIG, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    let accesses =
        |width, at: &[usize], write| -> Vec<_> { at.iter().map(|at| (CONFIG + at, width, write)).collect() };
    assert_eq!(transport.read_config_space(0), Ok(0x0807_0605_0403_0201_u64));
    assert_eq!(fake.registers.take_accesses(), accesses(4, &[0, 4], false));
    assert_eq!(transport.read_config_space(4), Ok(0x0807_0605_u32));
    assert_eq!(fake.registers.take_accesses(), accesses(4, &[4], false));
    assert_eq!(transport.read_config_space(12), Ok(0x0e0d_u16));
    assert_eq!(fake.registers.take_accesses(), accesses(2, &[12], false));
    assert_eq!(transport.read_config_space(11), Ok([12_u8, 13, 14]));
    assert_eq!(fake.registers.take_accesses(), accesses(1, &[11, 12, 13], false));

    assert_eq!(transport.read_config_space::<u32>(12), Err(Error::ConfigSpaceTooSmall));
    assert_eq!(transport.read_config_space::<u32>(usize::MAX), Err(Error::ConfigSpaceTooSmall));
    assert_eq!(transport.read_config_space::<u32>(2), Err(Error::InvalidParam));
    assert_eq!(transport.write_config_space(12, 0_u32), Err(Error::ConfigSpaceTooSmall));
    assert_eq!(transport.write_config_space(1, 0_u16), Err(Error::InvalidParam));
    assert_eq!(fake.registers.take_accesses(), []);

    transport.write_config_space(0, 0x1122_3344_u32).unwrap();
    transport.write_config_space(4, 0x5566_u16).unwrap();
    transport.write_config_space(7, [0x77_u8, 0x88]).unwrap();
    let writes = [accesses(4, &[0], true), accesses(2, &[4], true), accesses(1, &[7, 8], true)].concat();
    assert_eq!(fake.registers.take_accesses(), writes);
    let found = fake.registers.bytes.lock().unwrap()[CONFIG..CONFIG + 10].to_vec();
    assert_eq!(found, [0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 7, 0x77, 0x88, 10]);
}
