//! Corrections of the table: Linux's `ivrs_ioapic`, `ivrs_hpet` and `ivrs_acpihid` parameters.

use alloc::string::{String, ToString};
use core::str::FromStr;

use platform::pci::{PciAddress, RequesterId};

use super::{DeviceEntry, Ivhd, Ivrs, SpecialKind, Uid, Warning};
use crate::dte::PersistentFlags;

/// What a device's requester ID really is, whatever the table says of it.
///
/// It is read from a kernel parameter with its name, in any of Linux's forms (addresses are
/// `[SEGMENT:]BUS:DEVICE.FUNCTION` in hexadecimal, identifiers of IO-APICs and HPETs decimal):
///
/// | now | older |
/// |---|---|
/// | `ivrs_ioapic=10@0001:00:14.0` | `ivrs_ioapic[10]=0001:00:14.0` |
/// | `ivrs_hpet=0@00:14.0` | `ivrs_hpet[0]=00:14.0` |
/// | `ivrs_acpihid=AMDI0020:0@00:14.5` | `ivrs_acpihid[00:14.5]=AMDI0020:0` |
///
/// ```
/// use amd_vi::ivrs::{Override, SpecialKind};
/// use platform::pci::PciAddress;
///
/// let correction: Override = "ivrs_ioapic=10@00:14.0".parse()?;
/// let device = PciAddress::new(0, 0, 0x14, 0);
/// assert_eq!(correction, Override::Special { kind: SpecialKind::IoApic, handle: 10, device });
/// # Ok::<(), amd_vi::ivrs::OverrideError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[doc(alias = "ivrs_ioapic")]
#[doc(alias = "ivrs_hpet")]
#[doc(alias = "ivrs_acpihid")]
pub enum Override {
    /// An IO-APIC or an HPET.
    Special {
        /// Which of the two.
        kind: SpecialKind,
        /// The IO-APIC's identifier or the HPET's number.
        handle: u8,
        /// The requester ID that it uses.
        device: PciAddress,
    },
    /// A device that is known to ACPI only.
    Acpi {
        /// The hardware identifier, padded with zeros.
        hid: [u8; 8],
        /// The unique identifier without leading zeros.
        uid: String,
        /// The requester ID that it uses.
        device: PciAddress,
    },
}

/// Why a parameter is no [`Override`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverrideError {
    /// The parameter has another name than the three.
    #[error("the parameter is none of ivrs_ioapic, ivrs_hpet and ivrs_acpihid")]
    Name,
    /// It has neither of the two forms.
    #[error("the parameter has neither the form NAME=ID@ADDRESS nor NAME[…]=…")]
    Form,
    /// What identifies an IO-APIC or an HPET is no decimal number from 0 to 255.
    #[error("the identifier is no decimal number from 0 to 255")]
    Handle,
    /// What identifies an ACPI device is not HID:UID with a HID of one to eight characters.
    #[error("the ACPI device is not HID:UID with one to eight characters before the colon")]
    AcpiDevice,
    /// The requester ID is not `[SEGMENT:]BUS:DEVICE.FUNCTION` in hexadecimal.
    #[error("the address is not [SEGMENT:]BUS:DEVICE.FUNCTION in hexadecimal")]
    Address,
}

impl FromStr for Override {
    type Err = OverrideError;

    fn from_str(parameter: &str) -> Result<Self, OverrideError> {
        let names = [("ivrs_ioapic", 0), ("ivrs_hpet", 1), ("ivrs_acpihid", 2)];
        let (which, rest) = names
            .into_iter()
            .find_map(|(name, which)| Some((which, parameter.strip_prefix(name)?)))
            .filter(|(_, rest)| rest.starts_with(['=', '[']))
            .ok_or(OverrideError::Name)?;
        let (first, second) = if let Some(rest) = rest.strip_prefix('=') {
            // Whatever a UID is made of, the address has no @.
            rest.rsplit_once('@')
        } else {
            rest.strip_prefix('[').and_then(|rest| rest.split_once("]="))
        }
        .ok_or(OverrideError::Form)?;
        let older = rest.starts_with('[');
        match which {
            0 => special(SpecialKind::IoApic, first, second),
            1 => special(SpecialKind::Hpet, first, second),
            // The older form has them the other way round.
            _ if older => acpi(second, first),
            _ => acpi(first, second),
        }
    }
}

fn special(kind: SpecialKind, handle: &str, device: &str) -> Result<Override, OverrideError> {
    let digits = !handle.is_empty() && handle.bytes().all(|byte| byte.is_ascii_digit());
    let handle = if digits { handle.parse().ok() } else { None };
    Ok(Override::Special { kind, handle: handle.ok_or(OverrideError::Handle)?, device: address(device)? })
}

fn acpi(id: &str, device: &str) -> Result<Override, OverrideError> {
    let (name, uid) = id.split_once(':').ok_or(OverrideError::AcpiDevice)?;
    let mut hid = [0; 8];
    match hid.get_mut(..name.len()) {
        Some(start) if !name.is_empty() && !uid.is_empty() => start.copy_from_slice(name.as_bytes()),
        _ => return Err(OverrideError::AcpiDevice),
    }
    let significant = uid.trim_start_matches('0');
    let uid = if significant.is_empty() { "0" } else { significant };
    Ok(Override::Acpi { hid, uid: uid.to_string(), device: address(device)? })
}

fn address(text: &str) -> Result<PciAddress, OverrideError> {
    (|| {
        let (left, function) = text.split_once('.')?;
        let (left, device) = left.rsplit_once(':')?;
        let (segment, bus) = left.split_once(':').unwrap_or(("0", left));
        let (segment, bus) = (hex(segment, 0xffff)?, hex(bus, 0xff)?);
        let (device, function) = (hex(device, 31)?, hex(function, 7)?);
        Some(PciAddress::new(segment, bus as u8, device as u8, function as u8))
    })()
    .ok_or(OverrideError::Address)
}

/// A number of hexadecimal digits alone: no sign.
fn hex(text: &str, most: u16) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(text, 16).ok().filter(|number| digits && *number <= most)
}

impl Override {
    /// The requester ID that it gives.
    pub const fn device(&self) -> PciAddress {
        match self {
            Self::Special { device, .. } | Self::Acpi { device, .. } => *device,
        }
    }

    fn is_about(&self, entry: &DeviceEntry) -> bool {
        match (self, entry) {
            (Self::Special { kind, handle, .. }, DeviceEntry::Special { kind: of, handle: number, .. }) => {
                kind == of && handle == number
            }
            (Self::Acpi { hid, uid, .. }, DeviceEntry::Acpi { hid: of, uid: number, .. }) => {
                hid == of && number.matches(uid)
            }
            _ => false,
        }
    }

    fn to_entry(&self) -> DeviceEntry {
        let (device, flags) = (self.device().id.get(), PersistentFlags::new());
        match self {
            Self::Special { kind, handle, .. } => {
                DeviceEntry::Special { kind: *kind, handle: *handle, device, flags }
            }
            Self::Acpi { hid, uid, .. } => {
                let uid = Uid::String(uid.as_bytes().to_vec());
                DeviceEntry::Acpi { device, flags, hid: *hid, cid: [0; 8], uid }
            }
        }
    }
}

impl Ivrs {
    /// Corrects the table (Linux: `add_early_maps`). Of several corrections of one thing the first counts.
    ///
    /// Entries about the thing move to the given device in the blocks of its segment, and go from other segments. When none
    /// has moved, the unit that translates for the device gets one, or the only unit of its segment; without either the
    /// correction is passed over with [`Warning::OverrideWithoutUnit`].
    #[doc(alias = "add_early_maps")]
    pub fn apply(&mut self, overrides: &[Override]) {
        // The last is applied first, so that the first has the last word.
        for correction in overrides.iter().rev() {
            let target = correction.device();
            let mut moved = false;
            for ivhd in &mut self.ivhds {
                let here = ivhd.address.segment == target.segment;
                ivhd.entries.retain_mut(|entry| {
                    if !correction.is_about(entry) {
                        return true;
                    }
                    if let DeviceEntry::Special { device, .. } | DeviceEntry::Acpi { device, .. } = entry {
                        *device = target.id.get();
                    }
                    moved |= here;
                    here
                });
            }
            if moved {
                continue;
            }
            match self.unit_of_mut(target) {
                Some(ivhd) => ivhd.entries.push(correction.to_entry()),
                None => self.warnings.push(Warning::OverrideWithoutUnit { device: target }),
            }
        }
    }

    /// The block that counts of the unit that translates for a device: of the last that names it, else of the only one in its
    /// segment (some IO-APICs use the requester ID of the IOMMU itself, which no block names).
    fn unit_of_mut(&mut self, target: PciAddress) -> Option<&mut Ivhd> {
        let id = target.id.get();
        let names = |entry: &DeviceEntry| {
            let (first, last) = entry.devices();
            let alias = matches!(*entry, DeviceEntry::Alias { alias, .. } if alias == id);
            alias || first <= id && id <= last
        };
        let mut units = self.units();
        units.retain(|ivhd| ivhd.address.segment == target.segment);
        let unit = units.iter().rfind(|ivhd| ivhd.entries.iter().any(names)).or(match &*units {
            [only] => Some(only),
            _ => None,
        })?;
        let (address, kind) = (unit.address, unit.kind);
        self.ivhds.iter_mut().rfind(|ivhd| ivhd.address == address && ivhd.kind == kind)
    }

    /// The requester ID of a device that ACPI knows by `hid` and `uid` (Linux: `get_acpihid_device_id`): of the entry with
    /// both, or of the only one with this hardware identifier.
    #[doc(alias = "get_acpihid_device_id")]
    pub fn acpi_device(&self, hid: &str, uid: &str) -> Option<PciAddress> {
        let mut same_hid = None;
        let mut several = false;
        for unit in self.units() {
            for entry in &unit.entries {
                let DeviceEntry::Acpi { device, hid: of, uid: number, .. } = entry else { continue };
                let end = of.iter().position(|byte| *byte == 0).unwrap_or(of.len());
                if of.get(..end) != Some(hid.as_bytes()) {
                    continue;
                }
                let found = PciAddress { segment: unit.address.segment, id: RequesterId::new(*device) };
                if number.matches(uid) {
                    return Some(found);
                }
                several |= same_hid.replace(found).is_some();
            }
        }
        same_hid.filter(|_| !several)
    }
}
