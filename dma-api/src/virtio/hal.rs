//! `virtio_drivers::Hal`, whose functions have no `self`: a type for each device.

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use platform::DmaAddr;
use platform::sync::Mutex;
use virtio_drivers::{BufferDirection, PAGE_SIZE, PhysAddr};

use crate::{Attrs, CoherentMemory, Device, Direction};

/// Makes a type that implements `virtio_drivers::Hal` by the [`Device`] in its [`HalSlot`]: one type for each device.
///
/// `virtio_hal! { pub struct DiskHal; }` makes `DiskHal`, and `DiskHal::slot()`, where the device goes before the driver is
/// made.
///
/// What `Hal` asks for is done by the methods of the same names of [`HalSlot`], which say what happens when it cannot be.
#[macro_export]
macro_rules! virtio_hal {
    ($(#[$meta:meta])* $vis:vis struct $name:ident;) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        $vis struct $name;

        impl $name {
            /// Where the device of this type is.
            $vis fn slot() -> &'static $crate::virtio::HalSlot {
                static SLOT: $crate::virtio::HalSlot = $crate::virtio::HalSlot::new();
                &SLOT
            }
        }

        // SAFETY: the slot's methods do what the trait asks of those of the same names, and one type has one slot.
        unsafe impl $crate::virtio::virtio_drivers::Hal for $name {
            #[track_caller]
            fn dma_alloc(
                pages: usize,
                _direction: $crate::virtio::virtio_drivers::BufferDirection,
            ) -> ($crate::virtio::virtio_drivers::PhysAddr, ::core::ptr::NonNull<u8>) {
                Self::slot().dma_alloc(pages)
            }

            unsafe fn dma_dealloc(
                paddr: $crate::virtio::virtio_drivers::PhysAddr,
                vaddr: ::core::ptr::NonNull<u8>,
                pages: usize,
            ) -> i32 {
                // SAFETY: the caller's promise, handed on.
                unsafe { Self::slot().dma_dealloc(paddr, vaddr, pages) }
            }

            unsafe fn mmio_phys_to_virt(
                paddr: $crate::virtio::virtio_drivers::PhysAddr,
                _size: usize,
            ) -> ::core::ptr::NonNull<u8> {
                Self::slot().mmio_phys_to_virt(paddr)
            }

            #[track_caller]
            unsafe fn share(
                buffer: ::core::ptr::NonNull<[u8]>,
                direction: $crate::virtio::virtio_drivers::BufferDirection,
            ) -> $crate::virtio::virtio_drivers::PhysAddr {
                // SAFETY: the caller's promise, handed on.
                unsafe { Self::slot().share(buffer, direction) }
            }

            unsafe fn unshare(
                paddr: $crate::virtio::virtio_drivers::PhysAddr,
                buffer: ::core::ptr::NonNull<[u8]>,
                direction: $crate::virtio::virtio_drivers::BufferDirection,
            ) {
                // SAFETY: the caller's promise, handed on.
                unsafe { Self::slot().unshare(paddr, buffer, direction) }
            }
        }
    };
}

/// Where the device of a type of [`virtio_hal!`](crate::virtio_hal) is.
#[derive(Debug)]
pub struct HalSlot {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    device: Option<Arc<Device>>,
    /// Live allocations: each queue of a driver has some.
    allocations: usize,
}

impl Default for HalSlot {
    fn default() -> Self {
        Self::new()
    }
}

impl HalSlot {
    /// No device yet.
    pub const fn new() -> Self {
        Self { state: Mutex::new(State { device: None, allocations: 0 }) }
    }

    /// Puts a device in, for the next driver.
    ///
    /// # Errors
    /// The device comes back when there is one already.
    pub fn set(&self, device: Arc<Device>) -> Result<(), Arc<Device>> {
        let mut state = self.state.lock();
        match state.device {
            Some(_) => Err(device),
            None => {
                state.device = Some(device);
                Ok(())
            }
        }
    }

    /// Takes the device out. `None` while a driver lives, which is as long as it has memory of [`HalSlot::dma_alloc`], and
    /// when there is no device.
    pub fn take(&self) -> Option<Arc<Device>> {
        let mut state = self.state.lock();
        if state.allocations == 0 { state.device.take() } else { None }
    }

    fn device(&self) -> Option<Arc<Device>> {
        self.state.lock().device.clone()
    }

    /// `Hal::dma_alloc`: coherent memory, whatever its direction.
    ///
    /// The address is 0 when there is no device, or no memory; then `virtio-drivers` answers with `Error::DmaError`. Memory
    /// that the device would find at address 0 counts as none.
    #[track_caller]
    pub fn dma_alloc(&self, pages: usize) -> (PhysAddr, NonNull<u8>) {
        const NONE: (PhysAddr, NonNull<u8>) = (0, NonNull::dangling());
        let Some(bytes) = pages.checked_mul(PAGE_SIZE) else { return NONE };
        let device = {
            let mut state = self.state.lock();
            let Some(device) = state.device.clone() else { return NONE };
            // From now on the device stays in.
            state.allocations += 1;
            device
        };
        match device.alloc_coherent(bytes, Attrs::empty()) {
            Ok(memory) if memory.dma.get() != 0 => (memory.dma.get(), memory.cpu),
            unusable => {
                if let Ok(memory) = unusable {
                    // SAFETY: it is from this device, freed once. When that fails the ops keep and count it.
                    let _ = unsafe { device.free_coherent(memory, Attrs::empty()) };
                }
                self.state.lock().allocations -= 1;
                NONE
            }
        }
    }

    /// `Hal::dma_dealloc`. When the device may still reach the memory the ops keep and count it; that is no failure for the
    /// driver, which has no more to do with it. -1 when there is nothing to free, at which `virtio-drivers` panics.
    ///
    /// # Safety
    /// The arguments are those of one [`HalSlot::dma_alloc`] of this slot, freed once.
    pub unsafe fn dma_dealloc(&self, paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let Some(device) = self.device() else { return -1 };
        let memory = CoherentMemory { cpu: vaddr, dma: DmaAddr::new(paddr), size: pages * PAGE_SIZE };
        // SAFETY: the caller's promise; as long as the memory is out the device in the slot is the one that it came from.
        let _ = unsafe { device.free_coherent(memory, Attrs::empty()) };
        self.state.lock().allocations -= 1;
        0
    }

    /// `Hal::mmio_phys_to_virt`, which only the PCI transport of `virtio-drivers` itself calls. Registers are no plain memory
    /// everywhere that this stack runs, so there is no pointer to give.
    ///
    /// # Panics
    /// Always: [`VirtioPci`](super::VirtioPci) is the transport.
    pub fn mmio_phys_to_virt(&self, paddr: PhysAddr) -> NonNull<u8> {
        panic!(
            "there is no pointer to the registers at {paddr:#x}: the transport to use is dma_api::virtio::VirtioPci"
        )
    }

    /// `Hal::share`: maps the buffer where it is, or through the bounce pool when it is not the machine's RAM or the backend
    /// does not let this device have it.
    ///
    /// # Panics
    /// When it cannot be mapped (`Hal` has no word for that): among others when the bounce pool is full, or the buffer longer
    /// than a bounce can be. The panic does not unwind: earlier buffers of the same request are mapped, and unwinding would
    /// give their memory back while the device reaches it.
    ///
    /// # Safety
    /// The buffer is valid and not empty, and nobody has a reference to it that the direction forbids until it is unshared.
    /// (The queues of `virtio-drivers` ask this of whoever adds buffers to them.)
    #[track_caller]
    pub unsafe fn share(&self, buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let Some(device) = self.device() else { give_up("share memory", &"the type has no device") };
        // SAFETY: the caller's promise; a `[u8]` is initialised.
        match unsafe { device.map_single(buffer.cast(), buffer.len(), dir(direction), Attrs::empty()) } {
            Ok(address) => address.get(),
            Err(error) => give_up("share memory", &error),
        }
    }

    /// `Hal::unshare`: ends the mapping, and copies back what was bounced.
    ///
    /// # Panics
    /// When the unmap does not complete. The buffer is somebody's who would use it again at once, so it cannot be quarantined,
    /// and the panic does not unwind.
    ///
    /// # Safety
    /// The arguments are those of one [`HalSlot::share`] of this slot and what it returned, ended once.
    pub unsafe fn unshare(&self, paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let Some(device) = self.device() else { give_up("unshare memory", &"the type has no device") };
        let address = DmaAddr::new(paddr);
        // SAFETY: the caller's promise.
        let unmapped = unsafe { device.unmap_single(address, buffer.len(), dir(direction), Attrs::empty()) };
        if let Err(quarantined) = unmapped {
            give_up("unshare memory", &quarantined);
        }
    }
}

fn dir(direction: BufferDirection) -> Direction {
    match direction {
        BufferDirection::DriverToDevice => Direction::ToDevice,
        BufferDirection::DeviceToDriver => Direction::FromDevice,
        BufferDirection::Both => Direction::Bidirectional,
    }
}

/// Panics so that nobody can catch it: a panic while one unwinds aborts.
#[cold]
#[track_caller]
fn give_up(what: &str, why: &dyn fmt::Display) -> ! {
    struct NoUnwind;
    impl Drop for NoUnwind {
        fn drop(&mut self) {
            panic!("memory is lent to a device: there is no way to unwind");
        }
    }
    let _no_unwind = NoUnwind;
    panic!("cannot {what}: {why}")
}
