//! Which devices VFIO can take, and what stands in the way of the others. It looks, and changes nothing.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;

use platform::pci::PciAddress;

use crate::group::holders;
use crate::host::Host;

/// A PCI function, as user space finds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor and device, the numbers of its maker.
    pub id: (u16, u16),
    /// Class code: base class in 23:16, subclass in 15:8, interface in 7:0.
    pub class: u32,
    /// The kernel's driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group, if it is behind an IOMMU that is on.
    pub group: Option<u32>,
    /// The type of the group's default domain, as sysfs says it.
    pub domain_type: Option<String>,
    /// What stands in the way, in the order in which it is to be dealt with; nothing when VFIO can take it now.
    pub obstacles: Vec<Obstacle>,
}

/// What stands between a device and VFIO.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Obstacle {
    /// It is a bridge: VFIO takes endpoints only.
    Bridge,
    /// It is in no IOMMU group.
    NoIommu,
    /// The kernel's VFIO is not loaded.
    NotLoaded,
    /// It is not bound to vfio-pci.
    NotBound {
        /// Which one.
        address: PciAddress,
        /// Who has it.
        driver: Option<String>,
    },
    /// Another function of its group is with a driver that does not stand back.
    HeldBy {
        /// Which one.
        address: PciAddress,
        /// Who has it.
        driver: String,
    },
    /// This user may not open the group's file.
    NotPermitted(PathBuf),
    /// Another process has the group.
    InUse(PathBuf),
    /// The group's file does not open.
    DoesNotOpen {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.write_str("it is a bridge, and VFIO takes endpoints only"),
            Self::NoIommu => f.write_str("it is in no IOMMU group: no IOMMU is on"),
            Self::NotLoaded => f.write_str("the kernel's VFIO is not loaded"),
            Self::NotBound { driver: Some(driver), .. } => write!(f, "the driver {driver} has it"),
            Self::NotBound { driver: None, .. } => f.write_str("it is not bound to vfio-pci"),
            Self::HeldBy { address, driver } => {
                write!(f, "{address} shares its group, and the driver {driver} has that")
            }
            Self::NotPermitted(path) => write!(f, "this user may not open {}", path.display()),
            Self::InUse(path) => write!(f, "another process has {}", path.display()),
            Self::DoesNotOpen { path, why } => write!(f, "{} does not open: {why}", path.display()),
        }
    }
}

impl Obstacle {
    /// What an administrator would type to take it out of the way, or would do where there is nothing to type.
    pub fn remedy(&self) -> Vec<String> {
        match self {
            Self::Bridge | Self::DoesNotOpen { .. } => Vec::new(),
            Self::NoIommu => vec![
                "# switch the IOMMU on in the firmware's settings (AMD-Vi or VT-d); on Intel, boot with intel_iommu=on".into(),
            ],
            Self::NotLoaded => vec!["modprobe -a vfio_iommu_type1 vfio-pci".into()],
            Self::NotBound { address, driver } => rebind(*address, driver.is_some()),
            Self::HeldBy { address, .. } => rebind(*address, true),
            Self::NotPermitted(path) => vec![format!("chown $USER {}", path.display())],
            Self::InUse(path) => vec![format!("fuser -v {}", path.display())],
        }
    }
}

/// Brings a function to vfio-pci, from the driver that has it.
fn rebind(address: PciAddress, bound: bool) -> Vec<String> {
    let function = format!("/sys/bus/pci/devices/{address}");
    let mut commands = vec![format!("echo vfio-pci > {function}/driver_override")];
    if bound {
        commands.push(format!("echo {address} > {function}/driver/unbind"));
    }
    commands.push(format!("echo {address} > /sys/bus/pci/drivers_probe"));
    commands
}

/// Every PCI function of a system.
///
/// # Errors
/// The system's, when it has no PCI or does not show it.
pub fn survey(host: &Host) -> io::Result<Vec<Candidate>> {
    Ok(host.functions()?.into_iter().map(|address| look(host, address)).collect())
}

fn look(host: &Host, address: PciAddress) -> Candidate {
    let group = host.group_of(address);
    let number = |what| host.number(address, what).unwrap_or(0);
    let driver = host.driver_of(address);
    Candidate {
        address,
        id: (number("vendor") as u16, number("device") as u16),
        class: number("class"),
        domain_type: group.and_then(|group| host.domain_type(group)),
        obstacles: obstacles(host, address, group, driver.as_deref()),
        driver,
        group,
    }
}

fn obstacles(host: &Host, address: PciAddress, group: Option<u32>, driver: Option<&str>) -> Vec<Obstacle> {
    if host.is_bridge(address) {
        return vec![Obstacle::Bridge];
    }
    let Some(group) = group else { return vec![Obstacle::NoIommu] };
    let mut found = Vec::new();
    if !host.dev.join("vfio/vfio").exists() || !host.sys.join("bus/pci/drivers/vfio-pci").exists() {
        found.push(Obstacle::NotLoaded);
    }
    if !driver.is_some_and(|driver| driver.starts_with("vfio")) {
        found.push(Obstacle::NotBound { address, driver: driver.map(String::from) });
    }
    let others = holders(host, group).into_iter().filter(|(other, _)| *other != address);
    found.extend(others.map(|(address, driver)| Obstacle::HeldBy { address, driver }));
    // Before that, nobody can say who may open it.
    if found.is_empty() {
        found.extend(cannot_open(host.dev.join("vfio").join(group.to_string())));
    }
    found
}

/// Why a group's file does not open; it is closed again at once.
fn cannot_open(path: PathBuf) -> Option<Obstacle> {
    let error = OpenOptions::new().read(true).write(true).open(&path).err()?;
    Some(match error.kind() {
        io::ErrorKind::ResourceBusy => Obstacle::InUse(path),
        io::ErrorKind::PermissionDenied => Obstacle::NotPermitted(path),
        _ => Obstacle::DoesNotOpen { path, why: error.to_string() },
    })
}
