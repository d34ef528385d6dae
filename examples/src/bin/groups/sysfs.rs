//! A machine from sysfs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use iommu_core::pci::{DeviceId, Node, QUIRKS};
use platform::pci::{ConfigSpace, PciAddress};

use crate::classes;
use crate::machine::{Machine, MachineError};

/// How much of a function's configuration space everybody may read, in bytes.
const HEADER: usize = 64;
/// Where PCI Express keeps the capabilities that only PCI Express has.
const EXTENDED: usize = 256;

/// Configuration spaces as far as they could be read.
#[derive(Default)]
struct Read(BTreeMap<PciAddress, Vec<u8>>);

impl ConfigSpace for Read {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        let offset = usize::from(offset);
        let word = self.0.get(&function).and_then(|bytes| bytes.get(offset..offset + 4));
        match word {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            // There may be more, but nobody says so: an empty list of capabilities.
            _ => 0,
        }
    }

    fn write32(&self, _function: PciAddress, _offset: u16, _value: u32) {}
}

/// Reads the machine whose sysfs is at `sysfs`.
pub(crate) fn read(sysfs: &Path) -> Result<Machine, MachineError> {
    let devices = sysfs.join("bus/pci/devices");
    let listed =
        fs::read_dir(&devices).map_err(|error| MachineError::Read { path: devices.clone(), error })?;
    let mut machine = Machine::default();
    let mut config = Read::default();
    let (mut headers_only, mut unreadable) = (0, 0);
    let mut names: Vec<String> =
        listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    for name in names {
        let folder = devices.join(&name);
        let Ok(address) = name.parse::<PciAddress>() else {
            // Linux gives what is behind Intel's VMD a segment that no bus has.
            machine.hidden.extend(real_device(&folder).map(|real| (name, real)));
            continue;
        };
        let Ok(bytes) = fs::read(folder.join("config")) else {
            unreadable += 1;
            continue;
        };
        headers_only += usize::from(bytes.len() <= HEADER);
        config.0.insert(address, bytes);
        machine.topology.insert(node(&config, address, &folder));
        let class = machine.topology.get(address).map_or(0, |node| node.class);
        machine.classes.insert(address, classes::words(class));
        if let Some(group) = group(&folder) {
            machine.linux_groups.insert(address, group);
        }
    }
    if config.0.is_empty() {
        return Err(MachineError::Empty(devices));
    }
    if headers_only > 0 {
        machine.notes.push(format!(
            "{headers_only} of {} functions show only the first {HEADER} bytes of their configuration space: the kind of a \
             port and its Access Control Services take root to be read. What could not be read counts as not isolating, so \
             groups may be larger here than they are, never smaller.",
            config.0.len()
        ));
    }
    let is_express = |address: &PciAddress| {
        machine
            .topology
            .get(*address)
            .is_some_and(|node| node.port_type != iommu_core::pci::PortType::Conventional)
    };
    let short =
        config.0.iter().filter(|(address, bytes)| is_express(address) && bytes.len() <= EXTENDED).count();
    if short > 0 {
        machine.notes.push(format!(
            "{short} PCI Express functions show only {EXTENDED} bytes of their configuration space, without Access Control \
             Services (the machine reaches no more: no MMCONFIG). These count as not there."
        ));
    }
    if unreadable > 0 {
        machine
            .notes
            .push(format!("{unreadable} functions are left out: their configuration space cannot be read."));
    }
    machine.apply_quirks();
    Ok(machine)
}

/// A function from its configuration space, and what Linux knows better.
fn node(config: &Read, address: PciAddress, folder: &Path) -> Node {
    let mut node = Node::read(config, address, QUIRKS);
    // Whoever is not the first of its slot is not alone.
    node.multifunction |= address.id.function() != 0;
    if folder.join("physfn").exists() {
        // A virtual function: its configuration space has no ids, and Linux takes it to be alone.
        node.multifunction = false;
        let ids = number(&folder.join("vendor")).zip(number(&folder.join("device")));
        node.id = ids.map(|(vendor, device)| DeviceId { vendor, device, subsystem: None });
    }
    node
}

/// A number as sysfs writes it: 0x8086.
fn number(file: &Path) -> Option<u16> {
    let text = fs::read_to_string(file).ok()?;
    u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// The number of the group that Linux put a function into.
fn group(folder: &Path) -> Option<u32> {
    let link = fs::read_link(folder.join("iommu_group")).ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

/// Who makes the requests of a hidden function: the nearest function above it that is none.
fn real_device(folder: &Path) -> Option<PciAddress> {
    let path = fs::canonicalize(folder).ok()?;
    path.ancestors().find_map(|above| above.file_name()?.to_str()?.parse().ok())
}
