//! The system that the crate runs on: its kernel, and where its files are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use platform::pci::{PciAddress, RequesterId};

use crate::kernel::{Kernel, Linux};

/// A system. Tests make one of files of their own.
#[derive(Clone, Debug)]
pub struct Host {
    /// Answers VFIO's calls.
    pub kernel: Arc<dyn Kernel>,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
}

impl Default for Host {
    /// The system that this process runs on.
    fn default() -> Self {
        Self { kernel: Arc::new(Linux), sys: "/sys".into(), dev: "/dev".into() }
    }
}

impl Host {
    /// The folder of a PCI function in sysfs.
    pub(crate) fn function(&self, address: PciAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }

    /// Every PCI function, in order.
    ///
    /// # Errors
    /// The system's, when sysfs cannot be read.
    pub fn functions(&self) -> io::Result<Vec<PciAddress>> {
        let mut all = functions_in(&self.sys.join("bus/pci/devices"))?;
        all.sort();
        Ok(all)
    }

    /// The number of a function's IOMMU group; `None` when it has none, since it is behind no IOMMU.
    pub fn group_of(&self, address: PciAddress) -> Option<u32> {
        link_name(&self.function(address).join("iommu_group"))?.parse().ok()
    }

    /// The functions of a group, in order. What cannot be read is no function.
    pub fn members(&self, group: u32) -> Vec<PciAddress> {
        let folder = self.sys.join("kernel/iommu_groups").join(group.to_string()).join("devices");
        let mut members = functions_in(&folder).unwrap_or_default();
        members.sort();
        members
    }

    /// The type of a group's default domain, where the system shows it.
    pub(crate) fn domain_type(&self, group: u32) -> Option<String> {
        let path = self.sys.join("kernel/iommu_groups").join(group.to_string()).join("type");
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    }

    /// The kernel's driver that has a function.
    pub fn driver_of(&self, address: PciAddress) -> Option<String> {
        link_name(&self.function(address).join("driver"))
    }

    /// A number of a function's, as sysfs writes it: hexadecimal after `0x`.
    pub(crate) fn number(&self, address: PciAddress, what: &str) -> Option<u32> {
        let text = fs::read_to_string(self.function(address).join(what)).ok()?;
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    }

    pub(crate) fn is_bridge(&self, address: PciAddress) -> bool {
        const BRIDGE: u32 = 0x06;
        self.number(address, "class").is_some_and(|class| class >> 16 == BRIDGE)
    }
}

fn functions_in(folder: &Path) -> io::Result<Vec<PciAddress>> {
    let names = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| parse_address(name.to_str()?)).collect())
}

fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

/// An address as Linux writes it: `segment:bus:device.function` in hexadecimal, or without the segment, which is then 0.
pub fn parse_address(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (segment, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let number = |digits: &str, last: u32| {
        let number = u32::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
        (number <= last).then_some(number)
    };
    let id = RequesterId::from_parts(
        number(bus, 0xff)? as u8,
        number(device, 31)? as u8,
        number(function, 7)? as u8,
    );
    Some(PciAddress { segment: number(segment, 0xffff)? as u16, id })
}
