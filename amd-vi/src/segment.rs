//! What the devices of a PCI segment share: their table, and which unit and which name each of them has.

use alloc::vec::Vec;

use crate::device_table::DeviceTable;
use crate::ivrs::DeviceEntry;

/// What the devices of a PCI segment share (Linux: `struct amd_iommu_pci_seg`).
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) table: DeviceTable,
    /// The last device of the table.
    pub(crate) highest: u16,
    /// Which unit translates for a range of devices; the last one that contains a device counts (Linux: `rlookup_table`).
    pub(crate) ranges: Vec<(u16, u16, usize)>,
    /// Which requester ID the devices of a range use on the bus (Linux: `alias_table`).
    pub(crate) aliases: Vec<(u16, u16, u16)>,
    /// Which devices firmware wants without ATS.
    pub(crate) no_ats: Vec<(u16, u16)>,
}

impl Segment {
    pub(crate) fn unit_of(&self, device: u16) -> Option<usize> {
        let holds = |&&(first, last, _): &&(u16, u16, usize)| first <= device && device <= last;
        self.ranges.iter().rev().find(holds).map(|&(_, _, unit)| unit)
    }

    pub(crate) fn alias_of(&self, device: u16) -> Option<u16> {
        let holds = |&&(first, last, _): &&(u16, u16, u16)| first <= device && device <= last;
        self.aliases.iter().rev().find(holds).map(|&(_, _, alias)| alias).filter(|alias| *alias != device)
    }

    /// Whether firmware wants a device without ATS.
    pub(crate) fn forbids_ats(&self, device: u16) -> bool {
        self.no_ats.iter().any(|(first, last)| (*first..=*last).contains(&device))
    }

    /// Takes in what an IVHD says of its devices.
    pub(crate) fn add_entry(&mut self, unit: usize, entry: &DeviceEntry) {
        let (first, last) = entry.devices();
        if first > last {
            return;
        }
        self.ranges.push((first, last, unit));
        const ATS_DISABLED: u32 = 1 << 31;
        match *entry {
            DeviceEntry::Alias { alias, .. } => {
                self.ranges.push((alias, alias, unit));
                self.aliases.push((first, last, alias));
            }
            DeviceEntry::Devices { extended: Some(extended), .. } if extended & ATS_DISABLED != 0 => {
                self.no_ats.push((first, last));
            }
            _ => {}
        }
    }
}
