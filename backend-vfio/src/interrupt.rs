//! Interrupts as event files: MSI-X, MSI and INTx.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll};
use std::time::Duration;

use platform::pci::{Interrupt, PciError};
use platform::{Clock, Instant, TimedOut};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

use crate::calls::File;
use crate::device::OpenDevice;
use crate::memory::ProcessPlatform;

/// How a device interrupts, and what of that is on.
#[derive(Debug)]
pub(crate) struct Interrupts {
    /// MSI-X, MSI where there is none, or INTx where there is neither.
    index: u32,
    /// How many vectors there can be.
    pub(crate) count: u32,
    /// Whether the kernel wants to hear of all vectors at once.
    at_once: bool,
    /// How many vectors are on; 0 before the first is connected.
    enabled: u32,
    /// How many of these somebody has.
    connected: u32,
    /// Whether somebody has the pin of a device that sends messages.
    pin: bool,
}

impl Interrupts {
    pub(crate) fn find(device: &File<'_>) -> io::Result<Self> {
        for index in [VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX] {
            let info = device.irq_info(index)?;
            if info.count != 0 {
                let at_once = info.flags & VFIO_IRQ_INFO_NORESIZE != 0;
                // A table of MSI-X has 2048 vectors at most.
                return Ok(Self {
                    index,
                    count: info.count.min(2048),
                    at_once,
                    enabled: 0,
                    connected: 0,
                    pin: false,
                });
            }
        }
        Ok(Self {
            index: VFIO_PCI_INTX_IRQ_INDEX,
            count: 0,
            at_once: false,
            enabled: 0,
            connected: 0,
            pin: false,
        })
    }

    /// Has vector `vector` (less than `count`) signal `event`.
    fn connect(&mut self, device: &File<'_>, vector: u32, event: &OwnedFd) -> Result<(), PciError> {
        if vector < self.enabled || self.enabled != 0 && !self.at_once {
            device.set_irqs(self.index, vector, &[Some(event.as_fd())]).map_err(pci_error)?;
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
            match device.set_irqs(self.index, 0, &files).map_err(pci_error)? {
                0 => {
                    self.enabled = wanted;
                    return Ok(());
                }
                fewer => wanted = fewer.min(wanted - 1),
            }
        }
        Err(PciError::OutOfVectors)
    }

    /// Whether nothing stands in the way of the device's first kind.
    pub(crate) fn may_connect(&self) -> bool {
        !self.pin
    }

    /// Whether nothing stands in the way of the pin.
    pub(crate) fn may_connect_pin(&self) -> bool {
        !self.pin && self.connected == 0
    }

    /// Ends what `connect` has begun; with the last vector the kind, so that another can be on.
    fn disconnect(&mut self, device: &File<'_>, index: u32, vector: u32) -> io::Result<()> {
        if index == self.index {
            self.connected = self.connected.saturating_sub(1);
            if self.connected != 0 {
                return device.set_irqs(index, vector, &[None]).map(drop);
            }
            self.enabled = 0;
        } else {
            self.pin = false;
        }
        device.act_on_irqs(index, 0, 0, VFIO_IRQ_SET_ACTION_TRIGGER)
    }
}

fn pci_error(error: io::Error) -> PciError {
    match Errno::from_io_error(&error) {
        Some(Errno::NODEV) => PciError::Gone,
        _ => PciError::OutOfVectors,
    }
}

/// An interrupt of a device that signals an event file: a message (MSI-X or MSI), or the level of a pin (INTx).
///
/// There are three ways to wait: the calling thread does ([`Interrupt::wait`]), a task of whatever executor does
/// ([`Vector::arrived`]), or the program watches the file itself ([`AsFd`]) and takes what has arrived ([`Vector::try_take`]).
///
/// ```no_run
/// # async fn example(vfio: &backend_vfio::Vfio, address: platform::pci::PciAddress) -> Result<(), Box<dyn std::error::Error>> {
/// let vector = vfio.vector(address, 0)?;
/// vector.arrived().await?;
/// # Ok(()) }
/// ```
///
/// The kernel masks INTx when it arrives, since the pin stays as it is until the device's driver has dealt with the device. The
/// next wait, or [`Vector::try_take`], unmasks it: by then the driver has. What the pin still says then arrives again.
pub struct Vector {
    device: Arc<OpenDevice>,
    platform: Arc<ProcessPlatform>,
    index: u32,
    number: u32,
    event: OwnedFd,
    /// Whether the kernel has masked it: INTx that was taken.
    masked: AtomicBool,
}

impl Vector {
    /// A vector of the device's first kind of interrupts.
    pub(crate) fn connect(
        device: &Arc<OpenDevice>,
        platform: &Arc<ProcessPlatform>,
        vector: u16,
    ) -> Result<Self, PciError> {
        device.check()?;
        let mut interrupts = device.interrupts.lock();
        let number = u32::from(vector);
        if number >= interrupts.count {
            return Err(PciError::NoSuchVector { vector, count: interrupts.count as u16 });
        }
        let event = new_event()?;
        interrupts.connect(&device.file(), number, &event)?;
        interrupts.connected += 1;
        let index = interrupts.index;
        drop(interrupts);
        Ok(Self::new(device, platform, index, number, event))
    }

    /// The device's pin, whatever else it has.
    pub(crate) fn connect_pin(
        device: &Arc<OpenDevice>,
        platform: &Arc<ProcessPlatform>,
    ) -> Result<Self, PciError> {
        device.check()?;
        let info = device.file().irq_info(VFIO_PCI_INTX_IRQ_INDEX).map_err(pci_error)?;
        if info.count == 0 {
            return Err(PciError::NoSuchVector { vector: 0, count: 0 });
        }
        let event = new_event()?;
        let mut interrupts = device.interrupts.lock();
        device.file().set_irqs(VFIO_PCI_INTX_IRQ_INDEX, 0, &[Some(event.as_fd())]).map_err(pci_error)?;
        if interrupts.index == VFIO_PCI_INTX_IRQ_INDEX {
            (interrupts.enabled, interrupts.connected) = (1, 1);
        } else {
            interrupts.pin = true;
        }
        drop(interrupts);
        Ok(Self::new(device, platform, VFIO_PCI_INTX_IRQ_INDEX, 0, event))
    }

    fn new(
        device: &Arc<OpenDevice>,
        platform: &Arc<ProcessPlatform>,
        index: u32,
        number: u32,
        event: OwnedFd,
    ) -> Self {
        let (device, platform) = (Arc::clone(device), Arc::clone(platform));
        Self { device, platform, index, number, event, masked: AtomicBool::new(false) }
    }

    fn is_pin(&self) -> bool {
        self.index == VFIO_PCI_INTX_IRQ_INDEX
    }

    /// Takes what has arrived, without waiting: whether anything has, since the last time.
    pub fn try_take(&self) -> bool {
        if self.masked.swap(false, Ordering::Relaxed) {
            // A device that is gone interrupts no more.
            let _ = self.unmask();
        }
        let taken = rustix::io::read(&self.event, &mut [0; 8]).is_ok();
        if taken {
            self.masked.store(self.is_pin(), Ordering::Relaxed);
            // What the device wrote before it raised the interrupt.
            fence(Ordering::Acquire);
        }
        taken
    }

    /// Waits as a task: the executor's thread is free meanwhile. One task at a time; with several the last one is woken. A thread
    /// of the crate's, one for each device, watches the file.
    ///
    /// # Errors
    /// The system's, when it gives no thread or no file to watch with.
    pub async fn arrived(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_arrived(context)).await
    }

    fn poll_arrived(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.try_take() {
            return Poll::Ready(Ok(()));
        }
        let event = self.event.as_fd();
        let watched = self
            .device
            .reactor()
            .and_then(|reactor| reactor.wake_when_readable(self.reactor_number(), event, context.waker()));
        match watched {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// A number that no other vector of the device has at the same time.
    fn reactor_number(&self) -> u64 {
        use std::os::fd::AsRawFd;
        self.event.as_raw_fd() as u64
    }

    /// Keeps INTx from arriving; a pin that is up meanwhile arrives when it is unmasked.
    ///
    /// # Errors
    /// The kernel's: it masks no messages.
    pub fn mask(&self) -> io::Result<()> {
        self.device.file().act_on_irqs(self.index, self.number, 1, VFIO_IRQ_SET_ACTION_MASK)
    }

    /// Lets INTx arrive again.
    ///
    /// # Errors
    /// As [`Vector::mask`].
    pub fn unmask(&self) -> io::Result<()> {
        self.device.file().act_on_irqs(self.index, self.number, 1, VFIO_IRQ_SET_ACTION_UNMASK)
    }
}

fn new_event() -> Result<OwnedFd, PciError> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|_| PciError::OutOfVectors)
}

impl Interrupt for Vector {
    fn wait(&self, deadline: Instant) -> Result<(), TimedOut> {
        /// The longest wait in one call: no timeout of the system's overflows.
        const TURN: Duration = Duration::from_secs(3600);
        loop {
            if self.try_take() {
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

/// The file that can be read when the interrupt has arrived; [`Vector::try_take`] reads it.
impl AsFd for Vector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        if let Some(reactor) = self.device.running_reactor() {
            reactor.forget(self.reactor_number(), self.event.as_fd());
        }
        // Closing the device disconnects it as well.
        let _ = self.device.interrupts.lock().disconnect(&self.device.file(), self.index, self.number);
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector({} of {})", self.number, self.device.address)
    }
}
