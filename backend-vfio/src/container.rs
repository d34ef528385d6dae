//! A container of VFIO: a domain whose "physical" addresses are this process's (type1, version 2).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use iommu_core::AttachError;
use platform::sync::Mutex;
use platform::{DmaAddr, MapError, PhysAddr, Prot};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use vfio_bindings::bindings::vfio::{VFIO_API_VERSION, VFIO_TYPE1v2_IOMMU};

use crate::calls::{File, file};
use crate::error::VfioError;
use crate::group::{attach_error, is};
use crate::host::Host;
use crate::info::IommuInfo;

/// A container, with what it maps.
#[derive(Debug)]
pub(crate) struct Container {
    host: Host,
    fd: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Groups in it. Without one it has no IOMMU, and the kernel maps nothing.
    groups: usize,
    /// Whether all that it maps is taken back for the time being.
    suspended: bool,
    /// What is mapped, or will be when there is a group: start to the rest.
    table: BTreeMap<u64, Mapping>,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    at: PhysAddr,
    len: u64,
    prot: Prot,
}

impl State {
    /// Whether the kernel maps what the table says.
    fn is_live(&self) -> bool {
        self.groups != 0 && !self.suspended
    }
}

impl Container {
    pub(crate) fn open(host: &Host) -> Result<Self, VfioError> {
        let path = host.dev.join("vfio/vfio");
        let fd = host.kernel.open(&path).map_err(|error| VfioError::Open { path, error })?;
        let container = Self { host: host.clone(), fd, state: Mutex::default() };
        let version = container.file().api_version().map_err(VfioError::call("asking for VFIO's version"))?;
        if version != VFIO_API_VERSION {
            return Err(VfioError::Version(version));
        }
        if !container.file().has_extension(VFIO_TYPE1v2_IOMMU) {
            return Err(VfioError::NoType1);
        }
        Ok(container)
    }

    fn file(&self) -> File<'_> {
        file(&*self.host.kernel, &self.fd)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Gives the container its IOMMU; it has a group by now.
    pub(crate) fn choose_iommu(&self, group: u32) -> Result<(), VfioError> {
        self.file().set_iommu(VFIO_TYPE1v2_IOMMU).map_err(|error| {
            if is(&error, Errno::PERM) {
                VfioError::UnsafeInterrupts(group)
            } else {
                VfioError::Call { what: "giving a container its IOMMU", error }
            }
        })
    }

    /// What its IOMMU can do.
    pub(crate) fn ask(&self) -> Result<IommuInfo, VfioError> {
        let answer = self.file().iommu_info().map_err(VfioError::call("asking what the IOMMU can do"))?;
        IommuInfo::parse(&answer).ok_or(VfioError::NoRanges)
    }

    /// A group has entered. With the first comes the IOMMU, and what is to be mapped.
    pub(crate) fn entered(&self) -> Result<(), AttachError> {
        let mut state = self.state.lock();
        if state.groups == 0 {
            self.file().set_iommu(VFIO_TYPE1v2_IOMMU).map_err(attach_error)?;
            self.map_all(&state)?;
        }
        state.groups += 1;
        Ok(())
    }

    /// A group has left. With the last goes the IOMMU, and all that the kernel has mapped.
    pub(crate) fn left(&self) {
        let mut state = self.state.lock();
        state.groups -= 1;
        if state.groups == 0 {
            state.suspended = false;
        }
    }

    /// Takes everything back, until [`Container::resume`]. Not while several groups are in it: all would lose it.
    pub(crate) fn suspend(&self) -> Result<(), AttachError> {
        let mut state = self.state.lock();
        if state.groups > 1 {
            return Err(AttachError::Busy);
        }
        if state.is_live() {
            for (&start, mapping) in &state.table {
                self.unmap_exactly(start, mapping.len).map_err(|_| AttachError::Device)?;
            }
            state.suspended = true;
        }
        Ok(())
    }

    /// Maps again what [`Container::suspend`] took back.
    pub(crate) fn resume(&self) -> Result<(), AttachError> {
        let mut state = self.state.lock();
        if state.suspended {
            self.map_all(&state)?;
            state.suspended = false;
        }
        Ok(())
    }

    /// Has the kernel map what the table says: all of it, or nothing.
    fn map_all(&self, state: &State) -> Result<(), AttachError> {
        for (&start, mapping) in &state.table {
            let Mapping { at, len, prot } = *mapping;
            // SAFETY: who mapped it promised that the memory stays valid until it is unmapped, and it is in the table.
            let mapped = unsafe { self.file().map_dma(DmaAddr::new(start), at, len, prot) };
            if let Err(error) = mapped {
                for (&start, mapping) in state.table.range(..start) {
                    self.unmap_exactly(start, mapping.len).map_err(|_| AttachError::Device)?;
                }
                return Err(attach_error(error));
            }
        }
        Ok(())
    }

    /// # Errors
    /// The system's, and that fewer bytes were unmapped than were mapped.
    fn unmap_exactly(&self, start: u64, len: u64) -> io::Result<()> {
        let unmapped = self.file().unmap_dma(DmaAddr::new(start), len)?;
        if unmapped == len { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Maps a range in one call.
    ///
    /// # Safety
    /// The memory stays valid until it is unmapped.
    pub(crate) unsafe fn map(
        &self,
        iova: DmaAddr,
        at: PhysAddr,
        len: u64,
        prot: Prot,
    ) -> Result<(), MapError> {
        let last = iova.last_of(len).ok_or(MapError::OutOfRange(iova))?;
        let mut state = self.state.lock();
        let before = state.table.range(..=last.get()).next_back();
        if before.is_some_and(|(&start, mapping)| start + (mapping.len - 1) >= iova.get()) {
            return Err(MapError::InUse(iova));
        }
        if state.is_live() {
            // SAFETY: the caller's promise.
            unsafe { self.file().map_dma(iova, at, len, prot) }.map_err(|error| map_error(&error, iova))?;
        }
        state.table.insert(iova.get(), Mapping { at, len, prot });
        Ok(())
    }

    /// Unmaps whole mappings that follow each other without a hole, from `iova` on, in one call; returns how many bytes that
    /// were. A mapping that the range would cut ends it: the kernel's do not split.
    pub(crate) fn unmap(&self, iova: DmaAddr, len: u64) -> u64 {
        let mut state = self.state.lock();
        let mut done = 0;
        while let Some(mapping) = iova.get().checked_add(done).and_then(|at| state.table.get(&at)) {
            if mapping.len > len - done {
                break;
            }
            done += mapping.len;
        }
        // What the kernel did not unmap is mapped still.
        if done == 0 || state.is_live() && self.unmap_exactly(iova.get(), done).is_err() {
            return 0;
        }
        let (mut at, mut left) = (iova.get(), done);
        while let Some(mapping) = (left != 0).then(|| state.table.remove(&at)).flatten() {
            at = at.wrapping_add(mapping.len);
            left -= mapping.len;
        }
        done
    }

    /// Where an I/O address leads.
    pub(crate) fn translate(&self, iova: DmaAddr) -> Option<PhysAddr> {
        let state = self.state.lock();
        let (&start, mapping) = state.table.range(..=iova.get()).next_back()?;
        let offset = iova.get() - start;
        (offset < mapping.len).then(|| mapping.at.wrapping_add(offset))
    }
}

/// What the kernel's answer to a map means.
fn map_error(error: &io::Error, iova: DmaAddr) -> MapError {
    let limited = || getrlimit(Resource::Memlock).current.is_some();
    match error {
        error if is(error, Errno::EXIST) => MapError::InUse(iova),
        // Alignment has been checked: what is left are holes of the I/O addresses.
        error if is(error, Errno::INVAL) => MapError::OutOfRange(iova),
        error if is(error, Errno::NOSPC) => MapError::TooManyMappings,
        error if is(error, Errno::NOMEM) && limited() => MapError::PinLimit,
        error if is(error, Errno::NOMEM) => MapError::OutOfMemory,
        _ => MapError::Gone,
    }
}
