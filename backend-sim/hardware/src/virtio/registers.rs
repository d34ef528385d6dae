//! The common configuration structure (VIRTIO 1.2, section 4.1.4.3).

use super::queue::Virtqueue;

/// Bytes of the structure.
pub(super) const LEN: usize = 0x38;
/// What a vector register holds without a vector.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// MSI-X vectors: one may be for changes of the configuration, one for the queue.
pub(super) const VECTORS: u16 = 2;
/// Entries of the queue at most.
const MAX_QUEUE_SIZE: u16 = 128;

const FEATURES_OK: u8 = 1 << 3;
const DRIVER_OK: u8 = 1 << 2;
const NEEDS_RESET: u8 = 1 << 6;
/// ACKNOWLEDGE, DRIVER and FAILED say something to people alone.
const NO_EFFECT: u8 = 1 << 0 | 1 << 1 | 1 << 7;

const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;

/// The registers, and what they ask of the worker.
pub(super) struct Registers {
    offered: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queue_size: u16,
    queue_vector: u16,
    queue_enabled: bool,
    /// Descriptor area, driver area, device area.
    areas: [u64; 3],
    /// The driver has written the queue's number, and nobody has looked since.
    pub(super) notified: bool,
    /// The driver has written 0 to the status, which goes on being read as it was until the worker has let go.
    pub(super) resetting: bool,
    /// The machine is going away.
    pub(super) stopping: bool,
}

impl Registers {
    /// After reset, with the device's features beside those that every such device has.
    pub(super) fn new(features: u64) -> Self {
        Self {
            offered: features | VERSION_1 | ACCESS_PLATFORM,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queue_size: MAX_QUEUE_SIZE,
            queue_vector: NO_VECTOR,
            queue_enabled: false,
            areas: [0; 3],
            notified: false,
            resetting: false,
            stopping: false,
        }
    }

    /// The reset is done.
    pub(super) fn reset(&mut self) {
        *self = Self { stopping: self.stopping, ..Self::new(self.offered) };
    }

    /// Whether the device may use its queue.
    pub(super) fn is_running(&self) -> bool {
        let ready = self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        ready && self.queue_enabled && !self.resetting && !self.stopping
    }

    /// The queue as it was set up.
    pub(super) fn queue(&self) -> Virtqueue {
        Virtqueue::new(self.areas, self.queue_size)
    }

    /// The driver has broken the rules: the device stops, and says so by the vector that this returns.
    pub(super) fn needs_reset(&mut self) -> u16 {
        self.status |= NEEDS_RESET;
        self.config_vector
    }

    /// What the queue's interrupts are sent by.
    pub(super) fn queue_vector(&self) -> u16 {
        self.queue_vector
    }

    /// The structure as a driver reads it.
    pub(super) fn image(&self) -> [u8; LEN] {
        const QUEUES: u16 = 1;
        let mut image = [0; LEN];
        let mut put = |at: usize, field: &[u8]| image[at..at + field.len()].copy_from_slice(field);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(0x0c, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &QUEUES.to_le_bytes());
        // The configuration never changes, so its generation at 15h stays 0.
        put(0x14, &[self.status]);
        put(0x16, &self.queue_select.to_le_bytes());
        // A queue that is not there has size 0. The queue's place for notifications, at 1Eh, is the first.
        if self.queue_select == 0 {
            put(0x18, &self.queue_size.to_le_bytes());
            put(0x1a, &self.queue_vector.to_le_bytes());
            put(0x1c, &u16::from(self.queue_enabled).to_le_bytes());
            for (number, area) in self.areas.iter().enumerate() {
                put(0x20 + 8 * number, &area.to_le_bytes());
            }
        }
        image
    }

    /// A driver writes. A field is written in its own width alone, one of 64 bits in halves (section 4.1.3.1).
    pub(super) fn write(&mut self, offset: u64, width: u8, value: u64) {
        if self.resetting {
            return;
        }
        let of_queue = self.queue_select == 0;
        let sets_queue_up = of_queue && !self.queue_enabled;
        match (offset, width) {
            (0x00, 4) => self.device_feature_select = value as u32,
            (0x08, 4) => self.driver_feature_select = value as u32,
            (0x0c, 4) if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_feature_select, value as u32);
            }
            (0x10, 2) => self.config_vector = vector(value as u16),
            (0x14, 1) => self.write_status(value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            (0x18, 2) if sets_queue_up => {
                let size = value as u16;
                if size.is_power_of_two() && size <= MAX_QUEUE_SIZE {
                    self.queue_size = size;
                }
            }
            (0x1a, 2) if of_queue => self.queue_vector = vector(value as u16),
            (0x1c, 2) if sets_queue_up => self.queue_enabled = value == 1,
            (0x20..0x38, 4) if sets_queue_up => {
                let (area, high) = ((offset - 0x20) / 8, offset / 4 % 2);
                set_half(&mut self.areas[area as usize], high as u32, value as u32);
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            // The worker has to let go of what it was given, if it was given anything.
            match self.status {
                0 => self.reset(),
                _ => self.resetting = true,
            }
            return;
        }
        // Bits are only ever added.
        self.status |= value & NO_EFFECT;
        let needed = VERSION_1 | ACCESS_PLATFORM;
        let agreed = self.driver_features & !self.offered == 0 && self.driver_features & needed == needed;
        if value & FEATURES_OK != 0 && agreed {
            self.status |= FEATURES_OK;
        }
        if value & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
        }
    }
}

/// A vector register after a write: what is no vector is none.
fn vector(value: u16) -> u16 {
    if value < VECTORS { value } else { NO_VECTOR }
}

/// The low (0) or high (1) half of a word; there are no others.
fn half(word: u64, select: u32) -> u32 {
    match select {
        0 => word as u32,
        1 => (word >> 32) as u32,
        _ => 0,
    }
}

fn set_half(word: &mut u64, select: u32, value: u32) {
    match select {
        0 => *word = *word & !0xffff_ffff | u64::from(value),
        1 => *word = *word & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
