//! Message interrupts as event files.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use platform::pci::{Interrupt, PciError};
use platform::{Clock, Instant, TimedOut};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

use crate::calls::File;
use crate::device::OpenDevice;
use crate::memory::ProcessPlatform;

/// How a device sends messages, and what of that is on.
#[derive(Debug)]
pub(crate) struct Messages {
    /// MSI-X, or MSI.
    index: u32,
    /// How many vectors there can be.
    pub(crate) count: u32,
    /// Whether the kernel wants to hear of all vectors at once.
    at_once: bool,
    /// How many vectors are on; 0 before the first is connected.
    enabled: u32,
}

impl Messages {
    /// MSI-X where the device has it, else MSI.
    pub(crate) fn find(device: &File<'_>) -> io::Result<Self> {
        let mut index = VFIO_PCI_MSIX_IRQ_INDEX;
        let mut info = device.irq_info(index)?;
        if info.count == 0 {
            index = VFIO_PCI_MSI_IRQ_INDEX;
            info = device.irq_info(index)?;
        }
        let at_once = info.flags & VFIO_IRQ_INFO_NORESIZE != 0;
        // A table of MSI-X has 2048 vectors at most.
        Ok(Self { index, count: info.count.min(2048), at_once, enabled: 0 })
    }

    /// Has vector `vector` (less than `count`) signal `event`.
    fn connect(&mut self, device: &File<'_>, vector: u32, event: &OwnedFd) -> Result<(), PciError> {
        let error = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::NODEV) => PciError::Gone,
            _ => PciError::OutOfVectors,
        };
        if vector < self.enabled || self.enabled != 0 && !self.at_once {
            device.set_irqs(self.index, vector, &[Some(event.as_fd())]).map_err(error)?;
            return Ok(());
        }
        if self.enabled != 0 {
            return Err(PciError::OutOfVectors);
        }
        let mut wanted = if self.at_once { self.count } else { vector + 1 };
        while vector < wanted {
            let mut files = vec![None; wanted as usize];
            files[vector as usize] = Some(event.as_fd());
            // When there are fewer, that many.
            match device.set_irqs(self.index, 0, &files).map_err(error)? {
                0 => {
                    self.enabled = wanted;
                    return Ok(());
                }
                fewer => wanted = fewer.min(wanted - 1),
            }
        }
        Err(PciError::OutOfVectors)
    }
}

/// A vector that signals an event file.
pub(crate) struct Vector {
    device: Arc<OpenDevice>,
    platform: Arc<ProcessPlatform>,
    number: u32,
    event: OwnedFd,
}

impl Vector {
    pub(crate) fn connect(
        device: &Arc<OpenDevice>,
        platform: &Arc<ProcessPlatform>,
        vector: u16,
    ) -> Result<Self, PciError> {
        device.check()?;
        let mut messages = device.messages.lock();
        let number = u32::from(vector);
        if number >= messages.count {
            return Err(PciError::NoSuchVector { vector, count: messages.count as u16 });
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = eventfd(0, flags).map_err(|_| PciError::OutOfVectors)?;
        messages.connect(&device.file(), number, &event)?;
        drop(messages);
        Ok(Self { device: Arc::clone(device), platform: Arc::clone(platform), number, event })
    }

    /// Takes what has arrived; false when nothing has.
    fn take(&self) -> bool {
        let taken = rustix::io::read(&self.event, &mut [0; 8]).is_ok();
        if taken {
            // What the device wrote before it raised the interrupt.
            fence(Ordering::Acquire);
        }
        taken
    }
}

impl Interrupt for Vector {
    fn wait(&self, deadline: Instant) -> Result<(), TimedOut> {
        /// The longest wait in one call: no timeout of the system's overflows.
        const TURN: Duration = Duration::from_secs(3600);
        loop {
            if self.take() {
                return Ok(());
            }
            let left = deadline - self.platform.now();
            if left.is_zero() {
                return Err(TimedOut);
            }
            let turn = left.min(TURN);
            let timeout = Timespec { tv_sec: turn.as_secs() as i64, tv_nsec: i64::from(turn.subsec_nanos()) };
            // A signal is as good as a timeout: the clock is asked again.
            let _ = poll(&mut [PollFd::new(&self.event, PollFlags::IN)], Some(&timeout));
        }
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        let index = self.device.messages.lock().index;
        // Closing the device disconnects it as well.
        let _ = self.device.file().set_irqs(index, self.number, &[None]);
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector({} of {})", self.number, self.device.address)
    }
}
