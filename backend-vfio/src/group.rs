//! A group of VFIO: the kernel's IOMMU group as user space has it, and the container that it is in.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use iommu_core::AttachError;
use platform::pci::PciAddress;
use platform::sync::Mutex;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::VFIO_GROUP_FLAGS_VIABLE;

use crate::calls::file;
use crate::container::Container;
use crate::error::VfioError;
use crate::host::Host;
use crate::info::IommuInfo;

/// A group, opened. Nobody else has it meanwhile.
#[derive(Debug)]
pub(crate) struct VfioGroup {
    pub(crate) id: u32,
    pub(crate) host: Host,
    fd: OwnedFd,
    /// What the IOMMU above it can do.
    pub(crate) info: IommuInfo,
    place: Mutex<Place>,
}

/// Where a group is.
#[derive(Debug, Default)]
struct Place {
    container: Option<Arc<Container>>,
    /// Whether it is to reach nothing there: it could not leave, since a device of it is open, so the container is suspended.
    blocked: bool,
}

impl VfioGroup {
    /// Opens the group of a function that is bound to vfio-pci, and finds out what its IOMMU can do.
    pub(crate) fn open(host: &Host, address: PciAddress) -> Result<Self, VfioError> {
        let id = host.group_of(address).ok_or(VfioError::NoIommu(address))?;
        let path = host.dev.join("vfio").join(id.to_string());
        let fd = host.kernel.open(&path).map_err(|error| VfioError::Open { path, error })?;
        let flags =
            file(&*host.kernel, &fd).group_flags().map_err(VfioError::call("asking for a group's status"))?;
        if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            let held_by = holders(host, id);
            return Err(VfioError::NotViable { address, group: id, held_by });
        }
        // The kernel speaks of an IOMMU only in a container that has a group.
        let container = Container::open(host)?;
        let this = file(&*host.kernel, &fd);
        this.set_container(container.fd()).map_err(VfioError::call("putting a group into a container"))?;
        let info = container.choose_iommu(id).and_then(|()| container.ask());
        this.unset_container().map_err(VfioError::call("taking a group out of its container"))?;
        Ok(Self { id, host: host.clone(), fd, info: info?, place: Mutex::default() })
    }

    /// Moves the group into a container.
    pub(crate) fn enter(&self, to: &Arc<Container>) -> Result<(), AttachError> {
        let mut place = self.place.lock();
        let this = file(&*self.host.kernel, &self.fd);
        let old = place.container.clone();
        if let Some(current) = &old {
            if Arc::ptr_eq(current, to) {
                if place.blocked {
                    current.resume()?;
                    place.blocked = false;
                }
                return Ok(());
            }
            this.unset_container().map_err(attach_error)?;
            current.left();
            *place = Place::default();
        }
        let entered = this
            .set_container(to.fd())
            .map_err(attach_error)
            .and_then(|()| to.entered().inspect_err(|_| drop(this.unset_container())));
        if let (Err(_), Some(old)) = (entered, &old) {
            // Where it was it must be let in again; if not, it is nowhere, and reaches nothing.
            if this.set_container(old.fd()).is_ok() && old.entered().is_ok() {
                place.container = Some(Arc::clone(old));
            }
        }
        entered?;
        place.container = Some(Arc::clone(to));
        Ok(())
    }

    /// Takes the group out of its container: its devices reach nothing. While one of them is open the kernel does not let it
    /// out; then all that the container maps is unmapped, until the group is let in again.
    pub(crate) fn leave(&self) -> Result<(), AttachError> {
        let mut place = self.place.lock();
        let Some(container) = place.container.clone() else { return Ok(()) };
        match file(&*self.host.kernel, &self.fd).unset_container() {
            Ok(()) => {
                container.left();
                *place = Place::default();
                Ok(())
            }
            Err(error) if is(&error, Errno::BUSY) => {
                container.suspend()?;
                place.blocked = true;
                Ok(())
            }
            Err(error) => Err(attach_error(error)),
        }
    }

    /// Opens a device of the group, which must be in a container.
    pub(crate) fn device(&self, address: PciAddress) -> io::Result<OwnedFd> {
        let name = CString::new(address.to_string())?;
        file(&*self.host.kernel, &self.fd).device(&name)
    }
}

impl Drop for VfioGroup {
    fn drop(&mut self) {
        // The kernel takes it out when its file is closed, if this fails.
        let _ = self.leave();
    }
}

/// Which functions of a group are with drivers of the kernel that do not stand back for user space.
pub(crate) fn holders(host: &Host, group: u32) -> Vec<(PciAddress, String)> {
    let members =
        host.members(group).into_iter().filter_map(|address| Some((address, host.driver_of(address)?)));
    members.filter(|(address, driver)| !stands_back(host, *address, driver)).collect()
}

/// Whether a driver lets user space have the rest of its function's group: VFIO's own, one that does nothing, and those of
/// bridges (Linux: `driver_managed_dma`).
fn stands_back(host: &Host, address: PciAddress, driver: &str) -> bool {
    driver.starts_with("vfio") || driver == "pci-stub" || driver == "pcieport" && host.is_bridge(address)
}

pub(crate) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

pub(crate) fn attach_error(error: io::Error) -> AttachError {
    match error {
        error if is(&error, Errno::BUSY) => AttachError::Busy,
        error if is(&error, Errno::INVAL) => AttachError::Incompatible,
        error if is(&error, Errno::NOMEM) || is(&error, Errno::NOSPC) => AttachError::Exhausted,
        _ => AttachError::Device,
    }
}
