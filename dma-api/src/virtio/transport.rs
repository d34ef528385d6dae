//! `virtio_drivers::transport::Transport` over a PCI function (VIRTIO 1.2, section 4.1, without the legacy interface).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::time::Duration;

use platform::pci::{Function, PciError};
use platform::time::{TimedOut, poll_until};
use platform::{Mmio, Platform};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Device, DmaError};

/// How long a reset may take.
const RESET_TIMEOUT: Duration = Duration::from_secs(1);

/// The device's memory is where the platform says: its accesses go through the DMA API.
const ACCESS_PLATFORM: u64 = 1 << 33;

// The common configuration structure: section 4.1.4.3.
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const DEVICE_STATUS: usize = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;
const COMMON_LEN: usize = 0x38;

/// Why a function cannot be a virtio transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioPciError {
    /// Not virtio's vendor ID, or no device that `virtio-drivers` knows.
    #[error("{vendor:04x}:{device:04x} is no virtio device, or of an unknown type")]
    NotVirtio {
        /// PCI vendor ID.
        vendor: u16,
        /// PCI device ID.
        device: u16,
    },
    /// A capability is missing that every device of virtio 1.0 and later has.
    #[error("the function has no capability for its {0}")]
    NoCapability(&'static str),
    /// A capability leads out of its BAR, or its structure is too short.
    #[error("the {0} is too short, or leaves its BAR")]
    BadCapability(&'static str),
    /// A BAR is not there.
    #[error("{0}")]
    Pci(#[from] PciError),
    /// The backend does not serve the 64 address bits that virtio has.
    #[error("{0}")]
    Dma(#[from] DmaError),
    /// The device does not finish its reset.
    #[error("the device does not finish its reset")]
    ResetTimedOut,
}

/// A virtio device on PCI, for the drivers of `virtio-drivers`. Dropped, it resets the device and stops its DMA.
///
/// It accepts `VIRTIO_F_ACCESS_PLATFORM` for the driver wherever the device offers it: the addresses that drivers get from a
/// [`virtio_hal!`](crate::virtio_hal) are those of the DMA API. A driver's queue is refused (`Error::InvalidParam`) when the
/// device has not accepted the features, is broken, or is gone: `virtio-drivers` does not look at that itself.
#[derive(Debug)]
pub struct VirtioPci {
    function: Arc<dyn Function>,
    platform: Arc<dyn Platform>,
    device_type: DeviceType,
    common: Structure,
    notify: Structure,
    notify_off_multiplier: usize,
    isr: Structure,
    config: Option<Structure>,
    /// Where each queue that is set up is notified.
    doorbells: BTreeMap<u16, usize>,
}

/// A structure in a BAR.
#[derive(Debug)]
struct Structure {
    registers: Arc<dyn Mmio>,
    offset: usize,
    len: usize,
}

impl Structure {
    /// The structure that the capability at `at` leads to, of at least `min` bytes.
    fn new(function: &dyn Function, at: u16, what: &'static str, min: usize) -> Result<Self, VirtioPciError> {
        let registers = function.bar(function.config_read32(at + 4) as u8)?;
        let (offset, len) =
            (function.config_read32(at + 8) as usize, function.config_read32(at + 12) as usize);
        let end = offset.checked_add(len).filter(|&end| end <= registers.len() && len >= min);
        end.ok_or(VirtioPciError::BadCapability(what))?;
        Ok(Self { registers, offset, len })
    }

    fn read8(&self, at: usize) -> u8 {
        self.registers.read8(self.offset + at)
    }

    fn write8(&self, at: usize, value: u8) {
        self.registers.write8(self.offset + at, value);
    }

    fn read16(&self, at: usize) -> u16 {
        self.registers.read16(self.offset + at)
    }

    fn write16(&self, at: usize, value: u16) {
        self.registers.write16(self.offset + at, value);
    }

    fn read32(&self, at: usize) -> u32 {
        self.registers.read32(self.offset + at)
    }

    fn write32(&self, at: usize, value: u32) {
        self.registers.write32(self.offset + at, value);
    }

    /// Fields of 64 bits are written in halves.
    fn write64(&self, at: usize, value: u64) {
        self.write32(at, value as u32);
        self.write32(at + 4, (value >> 32) as u32);
    }

    /// How wide the accesses to a value of `len` bytes aligned to `align` are: a field's own width, at most 4 bytes.
    fn width(&self, at: usize, len: usize, align: usize) -> Result<usize, Error> {
        let width = align.min(4);
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::ConfigSpaceTooSmall);
        }
        if at.is_multiple_of(width) { Ok(width) } else { Err(Error::InvalidParam) }
    }
}

impl VirtioPci {
    /// Finds the device's structures, resets it, and lets it do DMA as `device`, which is the same function.
    ///
    /// # Errors
    /// [`VirtioPciError`] with the reason.
    pub fn new(function: Arc<dyn Function>, device: &Device) -> Result<Self, VirtioPciError> {
        let device_type = device_type(&*function)?;
        let capabilities = capabilities(&*function);
        let find =
            |kind: u8, what| capabilities.get(&kind).copied().ok_or(VirtioPciError::NoCapability(what));
        let structure = |at, what, min| Structure::new(&*function, at, what, min);
        let notify = find(2, "notifications")?;
        let transport = Self {
            platform: Arc::clone(device.platform()),
            device_type,
            common: structure(find(1, "common configuration")?, "common configuration", COMMON_LEN)?,
            notify: structure(notify, "notification structure", 2)?,
            notify_off_multiplier: function.config_read32(notify + 16) as usize,
            isr: structure(find(3, "ISR status")?, "ISR status", 1)?,
            config: match capabilities.get(&4) {
                Some(&at) => Some(structure(at, "device configuration", 0)?),
                None => None,
            },
            doorbells: BTreeMap::new(),
            function,
        };
        device.set_mask(u64::MAX)?;
        transport.reset().map_err(|_| VirtioPciError::ResetTimedOut)?;
        transport.function.set_bus_master(true);
        Ok(transport)
    }

    fn reset(&self) -> Result<(), TimedOut> {
        self.common.write8(DEVICE_STATUS, 0);
        poll_until(&*self.platform, RESET_TIMEOUT, || self.common.read8(DEVICE_STATUS) == 0)
    }

    /// Where a queue is notified; `None` when the device says a place outside of its structure.
    fn doorbell(&self, queue: u16) -> Option<usize> {
        self.common.write16(QUEUE_SELECT, queue);
        let at = usize::from(self.common.read16(QUEUE_NOTIFY_OFF)).checked_mul(self.notify_off_multiplier)?;
        (at.checked_add(2)? <= self.notify.len).then_some(at)
    }
}

/// The type of a virtio device. A transitional one says it as its subsystem ID.
fn device_type(function: &dyn Function) -> Result<DeviceType, VirtioPciError> {
    const VENDOR: u16 = 0x1af4;
    const TRANSITIONAL: core::ops::Range<u16> = 0x1000..0x1040;
    let id = function.config_read32(0x00);
    let (vendor, device) = (id as u16, (id >> 16) as u16);
    let number = if TRANSITIONAL.contains(&device) {
        Some((function.config_read32(0x2c) >> 16) as u16)
    } else {
        device.checked_sub(TRANSITIONAL.end)
    };
    let known = number.filter(|_| vendor == VENDOR).and_then(|number| DeviceType::try_from(number).ok());
    known.ok_or(VirtioPciError::NotVirtio { vendor, device })
}

/// Where the capabilities for virtio's structures are, by type: of each the first with a BAR that there can be (section
/// 4.1.4).
fn capabilities(function: &dyn Function) -> BTreeMap<u8, u16> {
    const VENDOR_SPECIFIC: u8 = 0x09;
    const MOST: usize = 48;
    let mut found = BTreeMap::new();
    let mut at = function.config_read32(0x34) as u16 & 0xfc;
    for _ in 0..MOST {
        if at < 0x40 {
            break;
        }
        let [id, next, len, kind] = function.config_read32(at).to_le_bytes();
        // The one for notifications has a field more.
        let needed = if kind == 2 { 20 } else { 16 };
        if id == VENDOR_SPECIFIC && len >= needed && function.config_read32(at + 4) as u8 <= 5 {
            found.entry(kind).or_insert(at);
        }
        at = u16::from(next) & 0xfc;
    }
    found
}

impl Transport for VirtioPci {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |select| {
            self.common.write32(DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read32(DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        let features = driver_features | self.read_device_features() & ACCESS_PLATFORM;
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.common.write32(DRIVER_FEATURE_SELECT, select);
            self.common.write32(DRIVER_FEATURE, half);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        let status = self.get_status();
        let usable =
            status.contains(DeviceStatus::FEATURES_OK) && !status.contains(DeviceStatus::DEVICE_NEEDS_RESET);
        if !usable || self.doorbell(queue).is_none() {
            return 0;
        }
        self.common.write16(QUEUE_SELECT, queue);
        self.common.read16(QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        if let Some(&at) = self.doorbells.get(&queue) {
            self.notify.write16(at, queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.common.read8(DEVICE_STATUS).into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            // A device that stays as it was takes no features afterwards, and so gets no queue.
            let _ = self.reset();
        } else {
            self.common.write8(DEVICE_STATUS, status.bits() as u8);
        }
    }

    /// Of no interest to a device on PCI.
    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let Some(doorbell) = self.doorbell(queue) else { return };
        self.doorbells.insert(queue, doorbell);
        self.common.write16(QUEUE_SIZE, size as u16);
        self.common.write64(QUEUE_DESC, descriptors);
        self.common.write64(QUEUE_DRIVER, driver_area);
        self.common.write64(QUEUE_DEVICE, device_area);
        self.common.write16(QUEUE_ENABLE, 1);
    }

    /// A queue on PCI goes with the reset of the whole device, which is when this is dropped.
    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.common.write16(QUEUE_SELECT, queue);
        self.common.read16(QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.isr.read8(0).into())
    }

    fn read_config_generation(&self) -> u32 {
        self.common.read8(CONFIG_GENERATION).into()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let config = self.config.as_ref().ok_or(Error::ConfigSpaceMissing)?;
        let width = config.width(offset, size_of::<T>(), align_of::<T>())?;
        let mut value = T::new_zeroed();
        for (index, field) in value.as_mut_bytes().chunks_mut(width).enumerate() {
            let at = offset + index * width;
            match width {
                4 => field.copy_from_slice(&config.read32(at).to_le_bytes()),
                2 => field.copy_from_slice(&config.read16(at).to_le_bytes()),
                _ => field[0] = config.read8(at),
            }
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<(), Error> {
        let config = self.config.as_ref().ok_or(Error::ConfigSpaceMissing)?;
        let width = config.width(offset, size_of::<T>(), align_of::<T>())?;
        for (index, field) in value.as_bytes().chunks(width).enumerate() {
            let at = offset + index * width;
            match *field {
                [a, b, c, d] => config.write32(at, u32::from_le_bytes([a, b, c, d])),
                [a, b] => config.write16(at, u16::from_le_bytes([a, b])),
                _ => config.write8(at, field[0]),
            }
        }
        Ok(())
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        // A device that does not finish is cut off all the same, before the driver frees its queues.
        let _ = self.reset();
        self.function.set_bus_master(false);
    }
}
