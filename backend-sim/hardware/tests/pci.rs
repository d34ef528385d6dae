//! The PCI tree: which way a request takes, under which name, and what configuration space says.

mod common;

use std::sync::Arc;

use common::*;
use parking_lot::Mutex;
use platform::pci::RequesterId;
use sim_hardware::ats::Source;
use sim_hardware::bus::{BusError, Remapper, Translated};
use sim_hardware::interrupts::InterruptController;
use sim_hardware::pci::{Acs, Builder, PciTree};
use sim_hardware::ram::Ram;

const fn id(bus: u8, device: u8, function: u8) -> RequesterId {
    RequesterId::from_parts(bus, device, function)
}

/// Notes what reaches the root complex, and lets it pass.
#[derive(Default)]
struct Recorder(Mutex<Vec<(RequesterId, u64, bool)>>);

impl Recorder {
    fn take(&self) -> Vec<(RequesterId, u64, bool)> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Remapper for Recorder {
    fn with_translation(
        &self,
        source: Source,
        address: u64,
        len: u64,
        write: bool,
        access: &mut dyn FnMut(Translated) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        self.0.lock().push((source.requester, address, write));
        access(Translated { phys: address, len })
    }

    fn interrupt(
        &self,
        requester: RequesterId,
        address: u64,
        data: u32,
        deliver: &mut dyn FnMut(u64, u32),
    ) -> Result<(), BusError> {
        self.0.lock().push((requester, address, true));
        deliver(address, data);
        Ok(())
    }
}

/// ACS control bits.
const REQUEST_REDIRECT: u16 = 1 << 2;
const UPSTREAM_FORWARDING: u16 = 1 << 4;
/// Where the ACS capability's registers are: capability in the lower half, control in the upper.
const ACS: u16 = 0x104;

const ROOT_PORT: RequesterId = id(0, 1, 0);
const FIRST_PORT: RequesterId = id(2, 0, 0);
const FIRST: RequesterId = id(3, 0, 0);
const SECOND: RequesterId = id(4, 0, 0);
const OTHER_ROOT: RequesterId = id(5, 0, 0);
const SLOT: [RequesterId; 2] = [id(0, 3, 0), id(0, 3, 1)];

/// A switch with two devices below one root port, a device below another, and a slot of two functions.
struct Tree {
    ram: Arc<Ram>,
    pci: Arc<PciTree>,
    recorder: Arc<Recorder>,
    first: Arc<Probe>,
    second: Arc<Probe>,
    other: Arc<Probe>,
    slot: [Arc<Probe>; 2],
}

fn acs(enabled: u16) -> Acs {
    Acs::Present { offered: 0x1d, enabled }
}

impl Tree {
    /// With the ACS of the root port, of the first downstream port, and of the slot's functions.
    fn new(root: Acs, port: Acs, function: Acs) -> Self {
        let ram = Ram::new(&[(0, 64 << 20)]).unwrap();
        let recorder = Arc::new(Recorder::default());
        let probes: [Arc<Probe>; 5] = Default::default();
        let [first, second, other, slot_0, slot_1] = probes;
        let pci = Builder::new()
            .root_port(ROOT_PORT, 1, 4, root)
            .upstream_port(id(1, 0, 0), 2, 4)
            .downstream_port(FIRST_PORT, 3, 3, port)
            .endpoint(FIRST, first.clone(), false, Acs::Absent)
            .downstream_port(id(2, 1, 0), 4, 4, Acs::Absent)
            .endpoint(SECOND, second.clone(), false, Acs::Absent)
            .root_port(id(0, 2, 0), 5, 5, Acs::Absent)
            .endpoint(OTHER_ROOT, other.clone(), false, Acs::Absent)
            .endpoint(SLOT[0], slot_0.clone(), true, function)
            .endpoint(SLOT[1], slot_1.clone(), true, function)
            .build(ram.clone(), Some(recorder.clone()), InterruptController::new());
        for endpoint in [FIRST, SECOND, OTHER_ROOT, SLOT[0], SLOT[1]] {
            bus_master_on(&pci, endpoint);
        }
        Self { ram, pci, recorder, first, second, other, slot: [slot_0, slot_1] }
    }

    /// Sends a write from one device to another's registers; whether it went past the root complex.
    fn passes_the_root(&self, from: &Probe, to: (RequesterId, &Probe)) -> bool {
        let at = bar(&self.pci, to.0, 0) + 0x20;
        assert_eq!(from.write(at, 0x77), Ok(()));
        assert_eq!(to.1.take_written(), [(0x20, 8, 0x77)], "it arrives in any case");
        assert_eq!(from.read_bytes(at, 4), Ok(PROBE_REGISTER.to_le_bytes()[..4].to_vec()));
        match self.recorder.take().len() {
            0 => false,
            2 => true,
            other => panic!("{other} requests at the root"),
        }
    }
}

#[test]
fn without_acs_peers_below_a_switch_talk_past_the_root() {
    let tree = Tree::new(Acs::ISOLATED, Acs::Absent, Acs::Absent);
    assert!(!tree.passes_the_root(&tree.first, (SECOND, &tree.second)));
    assert!(!tree.passes_the_root(&tree.second, (FIRST, &tree.first)));
}

#[test]
fn redirect_sends_requests_up() {
    let tree = Tree::new(Acs::ISOLATED, acs(REQUEST_REDIRECT), Acs::Absent);
    assert!(tree.passes_the_root(&tree.first, (SECOND, &tree.second)));
    // It is the port where a request enters that decides.
    assert!(!tree.passes_the_root(&tree.second, (FIRST, &tree.first)));
}

#[test]
fn acs_that_is_offered_but_off_does_nothing_until_it_is_switched_on() {
    let tree = Tree::new(Acs::ISOLATED, acs(0), Acs::Absent);
    assert!(!tree.passes_the_root(&tree.first, (SECOND, &tree.second)));
    config_write(&tree.pci, FIRST_PORT, ACS, u32::from(REQUEST_REDIRECT) << 16);
    assert!(tree.passes_the_root(&tree.first, (SECOND, &tree.second)));
    // Bits that are not offered cannot be switched on, and the capability register cannot be written.
    config_write(&tree.pci, FIRST_PORT, ACS, u32::MAX);
    assert_eq!(config_read(&tree.pci, FIRST_PORT, ACS), 0x001d_001d);
}

#[test]
fn a_root_port_without_forwarding_turns_requests_back() {
    // Redirected by the switch, and sent down again by the root port: UF is what stops that.
    let tree = Tree::new(acs(REQUEST_REDIRECT), acs(REQUEST_REDIRECT), Acs::Absent);
    assert!(!tree.passes_the_root(&tree.first, (SECOND, &tree.second)));
    config_write(&tree.pci, ROOT_PORT, ACS, u32::from(UPSTREAM_FORWARDING) << 16);
    assert!(tree.passes_the_root(&tree.first, (SECOND, &tree.second)));
}

#[test]
fn root_ports_do_not_talk_past_the_root_complex() {
    let tree = Tree::new(Acs::Absent, Acs::Absent, Acs::Absent);
    assert!(tree.passes_the_root(&tree.first, (OTHER_ROOT, &tree.other)));
    assert!(tree.passes_the_root(&tree.other, (FIRST, &tree.first)));
    assert!(tree.passes_the_root(&tree.other, (SLOT[0], &tree.slot[0])));
}

#[test]
fn functions_of_one_slot_talk_unless_their_acs_redirects() {
    let open = Tree::new(Acs::ISOLATED, Acs::ISOLATED, Acs::Absent);
    assert!(!open.passes_the_root(&open.slot[0], (SLOT[1], &open.slot[1])));
    let closed = Tree::new(Acs::ISOLATED, Acs::ISOLATED, acs(REQUEST_REDIRECT));
    assert!(closed.passes_the_root(&closed.slot[0], (SLOT[1], &closed.slot[1])));
}

#[test]
fn requests_bear_the_name_of_their_function() {
    let tree = Tree::new(Acs::Absent, Acs::Absent, Acs::Absent);
    let devices = [
        (FIRST, &tree.first),
        (SECOND, &tree.second),
        (OTHER_ROOT, &tree.other),
        (SLOT[0], &tree.slot[0]),
        (SLOT[1], &tree.slot[1]),
    ];
    for (name, device) in devices {
        assert_eq!(device.write(DATA, u64::from(name.get())), Ok(()));
        assert_eq!(device.read(DATA), Ok(u64::from(name.get())));
        assert_eq!(device.write_bytes(0xfee0_0000, &[0x40, 0, 0, 0]), Ok(()));
        let seen = [(name, DATA, true), (name, DATA, false), (name, 0xfee0_0000, true)];
        assert_eq!(tree.recorder.take(), seen);
    }
    // As the specification packs it: bus, device, function.
    assert_eq!((FIRST.get(), SLOT[1].get()), (0x0300, 0x0019));
}

#[test]
fn without_bus_master_nothing_leaves() {
    let tree = Tree::new(Acs::Absent, Acs::Absent, Acs::Absent);
    // The device's own switch, its downstream port's, its root port's.
    for function in [FIRST, FIRST_PORT, id(1, 0, 0), ROOT_PORT] {
        config_write(&tree.pci, function, 0x04, 0x2);
        assert_eq!(tree.first.read(DATA), Err(BusError::MasterAbort), "{function}");
        assert_eq!(tree.first.write(DATA, 1), Err(BusError::MasterAbort));
        assert_eq!(tree.ram.read64(DATA), Ok(0));
        bus_master_on(&tree.pci, function);
        assert_eq!(tree.first.read(DATA), Ok(0), "{function}");
    }
    // Others go on.
    config_write(&tree.pci, FIRST_PORT, 0x04, 0x2);
    assert!(tree.second.read(DATA).is_ok());
}

#[test]
fn nobody_answers_where_there_is_nothing() {
    let tree = Tree::new(Acs::Absent, Acs::Absent, Acs::Absent);
    for nothing in [64 << 20, 0xbfff_fff8, 0xfeb8_0000, u64::MAX - 7] {
        assert_eq!(tree.first.read(nothing), Err(BusError::MasterAbort), "{nothing:#x}");
        assert_eq!(tree.first.write(nothing, 1), Err(BusError::MasterAbort));
    }
    // Half in memory is not in memory.
    assert_eq!(tree.first.read((64 << 20) - 4), Err(BusError::MasterAbort));
    // A device does not answer itself.
    let own = bar(&tree.pci, FIRST, 0);
    assert_eq!(tree.first.write(own, 1), Err(BusError::MasterAbort));
    assert_eq!(tree.first.take_written(), []);
}

#[test]
fn a_bar_tells_its_size_and_moves_the_registers() {
    let tree = Tree::new(Acs::Absent, Acs::Absent, Acs::Absent);
    let before = bar(&tree.pci, SECOND, 0);
    assert_eq!(config_read(&tree.pci, SECOND, 0x10) & 0xf, 4, "64 bits, not prefetchable");
    // All ones read back as the size.
    config_write(&tree.pci, SECOND, 0x04, 0);
    config_write(&tree.pci, SECOND, 0x10, u32::MAX);
    config_write(&tree.pci, SECOND, 0x14, u32::MAX);
    assert_eq!(config_read(&tree.pci, SECOND, 0x10), 0xffff_f004);
    assert_eq!(config_read(&tree.pci, SECOND, 0x14), 0xffff_ffff);
    // BAR 1 of a pair of 64 bits is its upper half; BAR 2 is not there.
    config_write(&tree.pci, SECOND, 0x18, u32::MAX);
    assert_eq!(config_read(&tree.pci, SECOND, 0x18), 0);

    config_write(&tree.pci, SECOND, 0x10, 0xe000_0000);
    config_write(&tree.pci, SECOND, 0x14, 0);
    assert!(tree.first.write(0xe000_0000, 1).is_err(), "memory space is off");
    bus_master_on(&tree.pci, SECOND);
    assert_eq!(tree.first.write(0xe000_0008, 5), Ok(()));
    assert_eq!(tree.second.take_written(), [(8, 8, 5)]);
    assert!(tree.first.write(before, 1).is_err(), "where it was there is nothing");
}

#[test]
fn a_cpu_reaches_registers_while_memory_space_is_on() {
    let tree = Tree::new(Acs::Absent, Acs::Absent, Acs::Absent);
    let registers = tree.pci.mmio(FIRST, 0).expect("BAR 0");
    assert_eq!(registers.len(), 4096);
    assert_eq!(registers.read32(0x10), PROBE_REGISTER as u32);
    registers.write32(0x14, 7);
    registers.write64(0x18, 8);
    // Misaligned, or beyond the end.
    registers.write64(0x1c, 9);
    registers.write32(4096, 9);
    assert_eq!((registers.read32(4096), registers.read64(4)), (u32::MAX, u64::MAX));
    assert_eq!(tree.first.take_written(), [(0x14, 4, 7), (0x18, 8, 8)]);
    config_write(&tree.pci, FIRST, 0x04, 0);
    registers.write32(0x14, 7);
    assert_eq!(registers.read32(0x10), u32::MAX);
    assert_eq!(tree.first.take_written(), []);
    assert!(tree.pci.mmio(FIRST, 1).is_none() && tree.pci.mmio(id(9, 0, 0), 0).is_none());
}

#[test]
fn identities_and_capabilities() {
    let tree = Tree::new(Acs::ISOLATED, Acs::Absent, Acs::Absent);
    assert_eq!(config_read(&tree.pci, FIRST, 0x00), 0x0001_1234);
    assert_eq!(config_read(&tree.pci, FIRST, 0x08) >> 8, 0xff_0000);
    config_write(&tree.pci, FIRST, 0x00, 0);
    assert_eq!(config_read(&tree.pci, FIRST, 0x00), 0x0001_1234, "read only");
    // Nobody there.
    assert_eq!(config_read(&tree.pci, id(9, 0, 0), 0x00), u32::MAX);
    // The PCI Express capability's port type, bits 23:20: endpoint, root port, upstream, downstream, integrated.
    let kinds = [(FIRST, 0), (ROOT_PORT, 4), (id(1, 0, 0), 5), (FIRST_PORT, 6), (SLOT[0], 9)];
    for (function, kind) in kinds {
        let at = config_read(&tree.pci, function, 0x34) as u16;
        let express = config_read(&tree.pci, function, at);
        assert_eq!((express & 0xff, express >> 20 & 0xf), (0x10, kind), "{function}");
    }
    // Bridges: header type 1 and their bus numbers; the slot says that it has several functions.
    assert_eq!(config_read(&tree.pci, ROOT_PORT, 0x0c) >> 16 & 0xff, 1);
    assert_eq!(config_read(&tree.pci, ROOT_PORT, 0x18), 0x0004_0100);
    assert_eq!(config_read(&tree.pci, SLOT[0], 0x0c) >> 16 & 0xff, 0x80);
    // ACS: extended capability 000Dh at 100h, or nothing.
    assert_eq!(config_read(&tree.pci, ROOT_PORT, 0x100) & 0xffff, 0x000d);
    assert_eq!(config_read(&tree.pci, FIRST_PORT, 0x100), 0);
    let all: Vec<_> = tree.pci.functions().collect();
    assert_eq!(all.len(), 11, "{all:?}");
}

#[test]
fn a_long_request_is_written_to_registers_in_pieces() {
    let tree = Tree::new(Acs::Absent, Acs::Absent, Acs::Absent);
    let at = bar(&tree.pci, SECOND, 0);
    let bytes: Vec<u8> = (1..=14).collect();
    assert_eq!(tree.first.write_bytes(at + 4, &bytes), Ok(()));
    let pieces = [(4, 4, 0x0403_0201), (8, 8, 0x0c0b_0a09_0807_0605), (16, 1, 13), (17, 1, 14)];
    assert_eq!(tree.second.take_written(), pieces);
}
