//! A device's file: its configuration space, regions and interrupts.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use platform::pci::{PciAddress, PciError};
use platform::sync::Mutex;
use rustix::io::{pread, pwrite};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
};

use crate::calls::{File, file};
use crate::capability::{chain, long, word};
use crate::error::VfioError;
use crate::group::VfioGroup;
use crate::host::Host;
use crate::interrupt::Interrupts;
use crate::reactor::Reactor;

const COMMAND: u16 = 0x04;
const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;

/// A device, opened. When it is closed it is no bus master any more, and the kernel resets it if it can.
#[derive(Debug)]
pub(crate) struct OpenDevice {
    pub(crate) address: PciAddress,
    host: Host,
    fd: OwnedFd,
    // After the device's file: the kernel lets a group go when its devices are closed.
    _group: Arc<VfioGroup>,
    config: RegionInfo,
    has_reset: bool,
    /// Held while configuration space is written, so that nothing is written after the device was revoked.
    revoked: Mutex<bool>,
    pub(crate) interrupts: Mutex<Interrupts>,
    /// What wakes tasks, from the first that waits on.
    reactor: OnceLock<Reactor>,
}

/// Where a region is in the device's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RegionInfo {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// What of it can be mapped: offsets in the region and lengths, whole pages.
    pub(crate) mappable: Vec<(u64, u64)>,
}

impl RegionInfo {
    /// Reads an answer of `VFIO_DEVICE_GET_REGION_INFO`.
    fn parse(answer: &[u8]) -> Option<Self> {
        const PAGE: u64 = 4096;
        let (flags, first, len, offset) =
            (word(answer, 4)?, word(answer, 12)?, long(answer, 16)?, long(answer, 24)?);
        let mut mappable = Vec::new();
        if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 {
            mappable.push((0, len));
        }
        let links =
            (flags & VFIO_REGION_INFO_FLAG_CAPS != 0).then(|| chain(answer, first)).into_iter().flatten();
        for capability in links.filter(|link| u32::from(link.id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
            let count = capability.word(8)? as usize;
            // It takes the place of "all of it".
            mappable.clear();
            for index in 0..count {
                mappable.push((capability.long(16 + 16 * index)?, capability.long(24 + 16 * index)?));
            }
        }
        mappable.retain(|&(start, size)| {
            let inside = start.checked_add(size).is_some_and(|end| end <= len);
            size != 0 && start % PAGE == 0 && inside
        });
        Some(Self { offset, len, mappable })
    }
}

impl OpenDevice {
    pub(crate) fn open(host: &Host, group: &Arc<VfioGroup>, address: PciAddress) -> Result<Self, VfioError> {
        let fd = group.device(address).map_err(VfioError::call("opening a device"))?;
        let this = file(&*host.kernel, &fd);
        let info = this.device_info().map_err(VfioError::call("asking a device what it has"))?;
        let config = region(&this, VFIO_PCI_CONFIG_REGION_INDEX)
            .map_err(VfioError::call("finding configuration space"))?;
        let interrupts =
            Interrupts::find(&this).map_err(VfioError::call("asking for a device's interrupts"))?;
        Ok(Self {
            address,
            host: host.clone(),
            _group: Arc::clone(group),
            config,
            has_reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            revoked: Mutex::new(false),
            interrupts: Mutex::new(interrupts),
            reactor: OnceLock::new(),
            fd,
        })
    }

    pub(crate) fn file(&self) -> File<'_> {
        file(&*self.host.kernel, &self.fd)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What wakes tasks; started unless it runs.
    pub(crate) fn reactor(&self) -> io::Result<&Reactor> {
        if let Some(running) = self.reactor.get() {
            return Ok(running);
        }
        // Of two that are started at once one ends again.
        let started = Reactor::start()?;
        Ok(self.reactor.get_or_init(|| started))
    }

    pub(crate) fn running_reactor(&self) -> Option<&Reactor> {
        self.reactor.get()
    }

    /// Where region `index` is.
    pub(crate) fn region(&self, index: u32) -> io::Result<RegionInfo> {
        region(&self.file(), index)
    }

    /// # Errors
    /// [`PciError::Gone`] after [`OpenDevice::revoke`].
    pub(crate) fn check(&self) -> Result<(), PciError> {
        if *self.revoked.lock() { Err(PciError::Gone) } else { Ok(()) }
    }

    /// Takes the device from whoever has it: it is no bus master, and its configuration stays as it is.
    pub(crate) fn revoke(&self) {
        let mut revoked = self.revoked.lock();
        *revoked = true;
        self.stop_mastering();
    }

    fn stop_mastering(&self) {
        // The upper half is the status register, whose bits are cleared by writing ones.
        let command = self.config_read32(COMMAND) & 0xffff;
        self.write(COMMAND, command & !BUS_MASTER);
    }

    pub(crate) fn config_read32(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        let inside = offset.is_multiple_of(4) && u64::from(offset) + 4 <= self.config.len;
        let read = inside.then(|| pread(&self.fd, &mut bytes, self.config.offset + u64::from(offset)));
        // As on a bus where nobody answers.
        if read == Some(Ok(4)) { u32::from_le_bytes(bytes) } else { u32::MAX }
    }

    pub(crate) fn config_write32(&self, offset: u16, value: u32) {
        let inside = offset.is_multiple_of(4) && u64::from(offset) + 4 <= self.config.len;
        let revoked = self.revoked.lock();
        if inside && !*revoked {
            // Without it every access to registers that are mapped would be a signal that ends the process.
            self.write(offset, if offset == COMMAND { value | MEMORY } else { value });
        }
    }

    fn write(&self, offset: u16, value: u32) {
        // A device that is gone does not answer; its driver finds that out by reading.
        let _ = pwrite(&self.fd, &value.to_le_bytes(), self.config.offset + u64::from(offset));
    }

    /// Resets the device.
    pub(crate) fn reset(&self) -> Result<(), VfioError> {
        if !self.has_reset {
            return Err(VfioError::NoReset(self.address));
        }
        self.file().reset().map_err(VfioError::call("resetting a device"))
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        self.stop_mastering();
    }
}

fn region(device: &File<'_>, index: u32) -> io::Result<RegionInfo> {
    RegionInfo::parse(&device.region_info(index)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
