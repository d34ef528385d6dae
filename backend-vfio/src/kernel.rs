//! What this crate asks of the kernel: two calls. A test answers them itself.

use std::ffi::c_void;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

/// The kernel's VFIO.
///
/// # Safety
/// Safe types rest on what it answers:
/// - memory that was unmapped from a container is out of its devices' reach when the call returns;
/// - what a device's region says of itself is so: its file shows it at that offset, and memory mapped from there touches
///   nothing but the device.
pub unsafe trait Kernel: Send + Sync + fmt::Debug {
    /// Opens a file of VFIO for reading and writing.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path) -> io::Result<OwnedFd>;

    /// Makes a call on such a file (or on what an earlier call returned), and returns its result. `argument` is the number
    /// or the address that the call takes.
    ///
    /// # Errors
    /// The system's.
    ///
    /// # Safety
    /// `argument` is what `request` takes; memory that it maps stays valid until it is unmapped.
    unsafe fn ioctl(&self, fd: BorrowedFd<'_>, request: u32, argument: *mut c_void) -> io::Result<u32>;
}

/// The number of VFIO's call `index`: VFIO writes neither direction nor size into it (`_IO(';', 100 + index)`).
pub const fn request(index: u32) -> u32 {
    (VFIO_TYPE as u32) << 8 | (VFIO_BASE + index)
}

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

// SAFETY: the kernel's promises.
unsafe impl Kernel for Linux {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        // Closed on exec, as std does it.
        Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
    }

    unsafe fn ioctl(&self, fd: BorrowedFd<'_>, request: u32, argument: *mut c_void) -> io::Result<u32> {
        // SAFETY: the caller's promise.
        Ok(unsafe { rustix::ioctl::ioctl(fd, Call { request, argument }) }?)
    }
}

struct Call {
    request: u32,
    argument: *mut c_void,
}

// SAFETY: the call may write to its argument, as `IS_MUTATING` says; the result is only a number.
unsafe impl Ioctl for Call {
    type Output = u32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.request as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        Ok(output as u32)
    }
}
