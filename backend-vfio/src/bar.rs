//! A device's registers: mapped where the kernel allows that, else by reading and writing the device's file.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use platform::Mmio;
use rustix::io::{pread, pwrite};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::device::{OpenDevice, RegionInfo};

/// A memory region of a device.
#[derive(Debug)]
pub(crate) struct Bar {
    device: Arc<OpenDevice>,
    offset: u64,
    len: usize,
    mapped: Vec<Mapped>,
}

/// A part of it that is mapped into this process.
#[derive(Debug)]
struct Mapped {
    start: usize,
    len: usize,
    at: NonNull<u8>,
}

// SAFETY: the mapping is the process's, and its accesses are volatile and of one instruction.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn new(device: &OpenDevice, region: &RegionInfo, start: u64, len: u64) -> Option<Self> {
        let (start, len) = (usize::try_from(start).ok()?, usize::try_from(len).ok()?);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let from = region.offset.checked_add(start as u64)?;
        // SAFETY: the system chooses a place that is free, and shows registers of the device there.
        let at = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, device.fd(), from) };
        Some(Self { start, len, at: NonNull::new(at.ok()?.cast())? })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`, and all accesses go through this value.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

impl Bar {
    pub(crate) fn new(device: Arc<OpenDevice>, region: RegionInfo) -> Self {
        // What cannot be mapped after all is reached the slow way.
        let mapped = region.mappable.iter();
        let mapped = mapped.filter_map(|&(start, len)| Mapped::new(&device, &region, start, len)).collect();
        Self { offset: region.offset, len: usize::try_from(region.len).unwrap_or(usize::MAX), device, mapped }
    }

    /// Where an aligned access of `width` bytes is in the process, if it is mapped.
    fn mapped(&self, offset: usize, width: usize) -> Option<NonNull<u8>> {
        self.mapped.iter().find_map(|part| {
            let within = offset.checked_sub(part.start)?;
            // SAFETY: the access lies in the mapping.
            (within < part.len && part.len - within >= width).then(|| unsafe { part.at.add(within) })
        })
    }

    fn is_valid(&self, offset: usize, width: usize) -> bool {
        offset.is_multiple_of(width) && offset < self.len && self.len - offset >= width
    }
}

/// Reading and writing words of one width.
macro_rules! access {
    ($read:ident, $write:ident, $word:ty) => {
        fn $read(&self, offset: usize) -> $word {
            const WIDTH: usize = size_of::<$word>();
            if !self.is_valid(offset, WIDTH) {
                return <$word>::MAX;
            }
            if let Some(at) = self.mapped(offset, WIDTH) {
                // SAFETY: an aligned word of the device's registers, which stay mapped as long as `self` lives.
                return <$word>::from_le(unsafe { at.cast::<$word>().read_volatile() });
            }
            let mut bytes = [0; WIDTH];
            match pread(self.device.fd(), &mut bytes, self.offset + offset as u64) {
                Ok(WIDTH) => <$word>::from_le_bytes(bytes),
                _ => <$word>::MAX,
            }
        }

        fn $write(&self, offset: usize, value: $word) {
            const WIDTH: usize = size_of::<$word>();
            if !self.is_valid(offset, WIDTH) {
                return;
            }
            // What the CPU stored before is visible when the write arrives.
            fence(Ordering::Release);
            if let Some(at) = self.mapped(offset, WIDTH) {
                // SAFETY: as for reading.
                return unsafe { at.cast::<$word>().write_volatile(value.to_le()) };
            }
            // A device that is gone drops it.
            let _ = pwrite(self.device.fd(), &value.to_le_bytes(), self.offset + offset as u64);
        }
    };
}

// SAFETY: mappings live as long as the value, and accesses are checked against the region's and the mapping's bounds.
unsafe impl Mmio for Bar {
    fn len(&self) -> usize {
        self.len
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);
}
