//! The guest's system: what a distribution's programs do otherwise.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;

use backend_vfio::Host;
use platform::pci::PciAddress;
use rustix::mount::{MountFlags, mount};

use crate::Failure;

/// QEMU's teaching devices: they copy as they are told.
pub(crate) const EDU: PciAddress = PciAddress::new(0, 0, 4, 0);
pub(crate) const OTHER_EDU: PciAddress = PciAddress::new(0, 0, 6, 0);
pub(crate) const NVME: PciAddress = PciAddress::new(0, 0, 5, 0);

/// Mounts what the kernel shows of itself.
pub(crate) fn start() -> Result<(), Failure> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, at, kind, MountFlags::empty(), None)
            .map_err(|error| format!("mounting {at}: {error}"))?;
    }
    Ok(())
}

/// Loads VFIO, and gives the devices to vfio-pci.
pub(crate) fn give_to_vfio() -> Result<(), Failure> {
    let mut modules: Vec<_> = fs::read_dir("/modules")?.flatten().map(|entry| entry.path()).collect();
    // Their names begin with their places in the order.
    modules.sort();
    for module in modules {
        load(&module).map_err(|error| format!("loading {}: {error}", module.display()))?;
    }
    for address in [EDU, OTHER_EDU, NVME] {
        let function = format!("/sys/bus/pci/devices/{address}");
        fs::write(format!("{function}/driver_override"), "vfio-pci")?;
        fs::write("/sys/bus/pci/drivers_probe", address.to_string())?;
        // For the checks that are nobody in particular.
        let group = Host::default().group_of(address).ok_or_else(|| format!("{address} has no group"))?;
        fs::set_permissions(format!("/dev/vfio/{group}"), fs::Permissions::from_mode(0o666))?;
    }
    Ok(())
}

fn load(module: &std::path::Path) -> Result<(), Failure> {
    /// The kernel unpacks it (`MODULE_INIT_COMPRESSED_FILE`).
    const PACKED: i32 = 4;
    let packed = module.extension().is_some_and(|extension| extension != "ko");
    let file = fs::File::open(module)?;
    let flags = if packed { PACKED } else { 0 };
    Ok(rustix::system::finit_module(&file, c"", flags as _)?)
}

/// Ends the machine: QEMU's `isa-debug-exit` makes its exit status of what is written to its port.
pub(crate) fn end(passed: bool) -> ExitCode {
    const PORT: u64 = 0xf4;
    let status = if passed { 0x10 } else { 0x11 };
    let write = || -> std::io::Result<()> {
        std::io::stdout().flush()?;
        let mut port = OpenOptions::new().write(true).open("/dev/port")?;
        port.seek(SeekFrom::Start(PORT))?;
        port.write_all(&[status])
    };
    if let Err(error) = write() {
        println!("guest: /dev/port: {error}");
    }
    // The kernel stops when its first program ends, and QEMU with it: with another status.
    ExitCode::FAILURE
}
