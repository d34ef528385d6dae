//! The machine's memory: a file without a name that QEMU and this process both map.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Guest RAM, zeroed, shared with QEMU.
pub(crate) struct Ram {
    file: File,
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and does not move; it is reached only through exposed addresses.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    pub(crate) fn new(len: usize) -> std::io::Result<Self> {
        let file = unnamed("guest-ram")?;
        file.set_len(len as u64)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0) }?.cast::<u8>();
        // Devices and physical addresses reach it by number.
        let _ = base.expose_provenance();
        Ok(Self { file, base, len })
    }

    /// Where this process sees the first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    /// Maps pieces, each given by its offset and length, once more, one after the other.
    pub(crate) fn map_again(&self, pieces: &[(u64, usize)]) -> std::io::Result<*mut u8> {
        let len = pieces.iter().map(|(_, len)| len).sum();
        // SAFETY: new addresses of the kernel's choice, which nobody can reach yet.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE) }?;
        let mut at = base.cast::<u8>();
        for &(offset, len) in pieces {
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
            // SAFETY: in the addresses that were taken just now.
            if let Err(error) = unsafe { mmap(at.cast(), len, prot, flags, &self.file, offset) } {
                let len = pieces.iter().map(|(_, len)| len).sum();
                // SAFETY: as above; nobody has seen them.
                let _ = unsafe { munmap(base, len) };
                return Err(error.into());
            }
            at = at.wrapping_add(len);
        }
        Ok(base.cast())
    }

    /// Ends it.
    ///
    /// # Safety
    /// `at` and `len` are of one [`Ram::map_again`], which nobody uses any more.
    pub(crate) unsafe fn unmap_again(&self, at: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        let _ = unsafe { munmap(at.cast(), len) };
    }

    /// Puts code at the start.
    pub(crate) fn start_with(&mut self, code: &[u8]) {
        assert!(code.len() <= self.len);
        // SAFETY: the mapping is that long, and nobody else has it yet.
        unsafe { self.base.copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    }

    /// A path by which QEMU opens it.
    pub(crate) fn path(&self) -> String {
        path_of(&self.file)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; everything that was made of it keeps the value.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ram({:#x} bytes)", self.len)
    }
}

/// An empty file that has no name and goes with its last user.
pub(crate) fn unnamed(what: &str) -> std::io::Result<File> {
    Ok(File::from(memfd_create(what, MemfdFlags::CLOEXEC)?))
}

/// A path by which a child of this process opens one of its files.
pub(crate) fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}
