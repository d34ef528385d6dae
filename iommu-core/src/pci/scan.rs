//! A topology from configuration space.

use alloc::vec::Vec;

use platform::pci::{ConfigSpace, PciAddress};

use super::quirk::{Quirk, QuirkRule};
use super::topology::{AcsFlags, DeviceId, Node, PortType, Topology};

const HEADER_TYPE: u16 = 0x0c;
const BUS_NUMBERS: u16 = 0x18;
const SUBSYSTEM: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;
const EXTENDED_CAPABILITIES: u16 = 0x100;
const ID_PCI_EXPRESS: u8 = 0x10;
const ID_ACS: u16 = 0x0d;

impl Topology {
    /// Reads all functions of a segment: bus 0 and what is behind its bridges. `quirks` are applied ([`Topology::apply`]);
    /// [`super::QUIRKS`] has those that are known.
    pub fn scan(config: &dyn ConfigSpace, segment: u16, quirks: &[Quirk]) -> Self {
        let mut topology = Self::new();
        // A bridge that names a bus already read would send us in circles.
        let mut seen = [false; 256];
        let mut buses = Vec::from([0]);
        while let Some(bus) = buses.pop() {
            if !core::mem::replace(&mut seen[usize::from(bus)], true) {
                scan_bus(config, segment, bus, |address, multifunction| {
                    let node = Node { multifunction, ..Node::read(config, address, quirks) };
                    buses.extend(node.secondary_bus);
                    topology.insert(node);
                });
            }
        }
        topology.apply(quirks);
        topology
    }
}

fn scan_bus(config: &dyn ConfigSpace, segment: u16, bus: u8, mut found: impl FnMut(PciAddress, bool)) {
    for device in 0..32 {
        let first = PciAddress::new(segment, bus, device, 0);
        if absent(config, first) {
            continue;
        }
        let multifunction = config.read32(first, HEADER_TYPE) >> 23 & 1 != 0;
        for function in 0..if multifunction { 8 } else { 1 } {
            let address = PciAddress::new(segment, bus, device, function);
            if !absent(config, address) {
                found(address, multifunction);
            }
        }
    }
}

fn absent(config: &dyn ConfigSpace, address: PciAddress) -> bool {
    matches!(config.read32(address, 0) & 0xffff, 0xffff | 0)
}

impl Node {
    /// Reads one function that is there. Of `quirks` only what changes how its registers are read is heeded
    /// ([`QuirkRule::AcsControlInDword`]). Whether its slot has several functions is what its own header says.
    pub fn read(config: &dyn ConfigSpace, address: PciAddress, quirks: &[Quirk]) -> Self {
        let header = config.read32(address, HEADER_TYPE) >> 16;
        let bridge = header & 0x7f == 1;
        let secondary = (config.read32(address, BUS_NUMBERS) >> 8) as u8;
        let halves = |word: u32| (word as u16, (word >> 16) as u16);
        let (vendor, device) = halves(config.read32(address, 0));
        let subsystem = (header & 0x7f == 0).then(|| halves(config.read32(address, SUBSYSTEM)));
        let mut node = Self {
            id: Some(DeviceId { vendor, device, subsystem }),
            class: config.read32(address, 0x08) >> 8,
            port_type: port_type(config, address),
            multifunction: header & 0x80 != 0,
            // A bridge that nobody has numbered has nothing behind it.
            secondary_bus: (bridge && secondary != 0).then_some(secondary),
            ..Self::new(address)
        };
        node.acs = acs(config, address, |at| {
            let in_dword = |quirk: &Quirk| quirk.rule == QuirkRule::AcsControlInDword && quirk.fits(&node);
            let capability = config.read32(address, at + 4);
            let control = match quirks.iter().any(in_dword) {
                true => config.read32(address, (at + 8) & 0xffc),
                false => capability >> 16,
            };
            let flags = |bits: u32| AcsFlags::from_bits_truncate(bits as u16);
            (flags(capability), flags(control))
        });
        node
    }
}

fn port_type(config: &dyn ConfigSpace, address: PciAddress) -> PortType {
    let Some(at) = capability(config, address, ID_PCI_EXPRESS) else { return PortType::Conventional };
    match config.read32(address, at) >> 20 & 0xf {
        4 => PortType::RootPort,
        5 => PortType::UpstreamPort,
        6 => PortType::DownstreamPort,
        7 => PortType::PcieToPci,
        8 => PortType::PciToPcie,
        9 => PortType::RootComplexEndpoint,
        10 => PortType::EventCollector,
        _ => PortType::Endpoint,
    }
}

fn capability(config: &dyn ConfigSpace, address: PciAddress, id: u8) -> Option<u16> {
    const STATUS_LIST: u32 = 1 << 20;
    if config.read32(address, 0x04) & STATUS_LIST == 0 {
        return None;
    }
    let mut at = config.read32(address, CAPABILITIES) as u16 & 0xfc;
    // There is room for 48 capabilities; a longer list goes in circles.
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        let header = config.read32(address, at);
        if header as u8 == id {
            return Some(at);
        }
        at = (header >> 8) as u16 & 0xfc;
    }
    None
}

/// Finds the ACS capability and reads it.
fn acs<T>(config: &dyn ConfigSpace, address: PciAddress, read: impl FnOnce(u16) -> T) -> Option<T> {
    let mut at = EXTENDED_CAPABILITIES;
    for _ in 0..(4096 - 256) / 8 {
        let header = config.read32(address, at);
        if header == 0 || header == u32::MAX {
            return None;
        }
        if header as u16 == ID_ACS {
            return Some(read(at));
        }
        at = (header >> 20) as u16 & 0xffc;
        if at < EXTENDED_CAPABILITIES {
            return None;
        }
    }
    None
}
