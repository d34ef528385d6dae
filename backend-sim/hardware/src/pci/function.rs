//! One function of the tree: its configuration space, and what it decodes.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use platform::Mmio;
use platform::pci::RequesterId;

use super::config_space::{ConfigSpace, PortType};
use super::msix::Msix;
use crate::ats::{Atc, Services};
use crate::bus::DeviceModel;

/// One function of the tree. What every request asks is kept beside the configuration space, free of its lock.
#[derive(Debug)]
pub(super) struct FunctionState {
    pub(super) id: RequesterId,
    pub(super) device: Option<Arc<dyn DeviceModel>>,
    pub(super) msix: OnceLock<Arc<Msix>>,
    pub(super) services: Services,
    config: Mutex<ConfigSpace>,
    port_type: PortType,
    buses_behind: Option<(u8, u8)>,
    memory_space: AtomicBool,
    acs: AtomicU32,
    regions: Vec<DecodedRegion>,
}

#[derive(Debug)]
struct DecodedRegion {
    bar: u8,
    start: AtomicU64,
    size: u64,
}

impl FunctionState {
    pub(super) fn new(id: RequesterId, config: ConfigSpace, device: Option<Arc<dyn DeviceModel>>) -> Self {
        let region = |bar| {
            let (start, size) = config.bar(bar)?;
            Some(DecodedRegion { bar, start: AtomicU64::new(start), size })
        };
        let function = Self {
            id,
            device,
            msix: OnceLock::new(),
            services: Services {
                atc: config.ats().map(|(_, depth)| Atc::new(depth)),
                pri: config.pri_on().map(|_| Arc::default()),
                ..Services::default()
            },
            port_type: config.port_type(),
            buses_behind: config.buses_behind(),
            memory_space: AtomicBool::default(),
            acs: AtomicU32::default(),
            regions: [0, 2, 4].into_iter().filter_map(region).collect(),
            config: Mutex::new(config),
        };
        function.latch(&function.config.lock());
        function
    }

    /// Takes over what the configuration space says now.
    fn latch(&self, config: &ConfigSpace) {
        self.services.bus_master.store(config.bus_master(), Ordering::Release);
        self.memory_space.store(config.memory_space(), Ordering::Release);
        self.acs.store(config.acs_enabled(), Ordering::Release);
        self.services.pasids.store(config.pasids_on(), Ordering::Release);
        if let (Some(pri), Some(on)) = (&self.services.pri, config.pri_on()) {
            pri.set_enabled(on);
        }
        if let (Some(atc), Some((on, _))) = (&self.services.atc, config.ats()) {
            atc.set_enabled(on);
        }
        for region in &self.regions {
            if let Some((start, _)) = config.bar(region.bar) {
                region.start.store(start, Ordering::Release);
            }
        }
    }

    pub(super) fn config_read(&self, offset: u16) -> u32 {
        self.config.lock().read(offset)
    }

    pub(super) fn config_write(&self, offset: u16, value: u32) {
        let mut config = self.config.lock();
        config.write(offset, value);
        self.latch(&config);
    }

    pub(super) fn msix_control(&self) -> (bool, bool) {
        self.config.lock().msix_control()
    }

    /// MSI: address, data, and whether it is on.
    pub(super) fn msi(&self) -> Option<(u64, u32, bool)> {
        self.config.lock().msi()
    }

    /// Whether it is a bridge from PCI Express to conventional PCI.
    pub(super) fn is_pcie_to_pci(&self) -> bool {
        self.port_type == PortType::PcieToPci
    }

    /// First and last bus behind a bridge.
    pub(super) fn buses_behind(&self) -> Option<(u8, u8)> {
        self.buses_behind
    }

    pub(super) fn is_upstream_port(&self) -> bool {
        self.port_type == PortType::UpstreamPort
    }

    pub(super) fn is_bus_master(&self) -> bool {
        self.services.bus_master.load(Ordering::Acquire)
    }

    /// ACS bits that are switched on.
    pub(super) fn acs(&self) -> u32 {
        self.acs.load(Ordering::Acquire)
    }

    /// The region and offset at an address, while memory space is on.
    pub(super) fn region_at(&self, address: u64) -> Option<(u8, u64)> {
        if !self.memory_space.load(Ordering::Acquire) {
            return None;
        }
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.start.load(Ordering::Acquire))?;
            (offset < region.size).then_some((region.bar, offset))
        })
    }

    /// A CPU's way to the registers behind a BAR.
    pub(super) fn region(self: &Arc<Self>, bar: u8) -> Option<Region> {
        let region = self.regions.iter().find(|region| region.bar == bar)?;
        Some(Region { function: Arc::clone(self), bar, size: region.size as usize })
    }

    pub(super) fn mmio_read(&self, bar: u8, offset: u64, width: u8) -> u64 {
        match (&self.device, self.msix.get()) {
            (_, Some(msix)) if bar == 4 => {
                let low = u64::from(msix.read(offset & !3));
                if width == 8 {
                    low | u64::from(msix.read(offset + 4)) << 32
                } else {
                    low >> (8 * (offset & 3))
                }
            }
            (Some(device), _) => device.mmio_read(bar, offset, width),
            _ => u64::MAX,
        }
    }

    pub(super) fn mmio_write(&self, bar: u8, offset: u64, width: u8, value: u64) {
        match (&self.device, self.msix.get()) {
            (_, Some(msix)) if bar == 4 => {
                // The table is written in whole dwords.
                if width >= 4 {
                    msix.write(offset, value as u32);
                }
                if width == 8 {
                    msix.write(offset + 4, (value >> 32) as u32);
                }
            }
            (Some(device), _) => device.mmio_write(bar, offset, width, value),
            _ => {}
        }
    }

    /// A peer reads.
    pub(super) fn read_bytes(&self, bar: u8, offset: u64, into: &mut [u8]) {
        for (index, byte) in into.iter_mut().enumerate() {
            let at = offset + index as u64;
            *byte = (self.mmio_read(bar, at & !3, 4) >> (8 * (at & 3))) as u8;
        }
    }

    /// A peer writes.
    pub(super) fn write_bytes(&self, bar: u8, offset: u64, from: &[u8]) {
        let mut at = 0;
        while at < from.len() {
            let left = from.len() - at;
            let place = offset + at as u64;
            let width = if place.is_multiple_of(8) && left >= 8 {
                8
            } else if place.is_multiple_of(4) && left >= 4 {
                4
            } else {
                1
            };
            let value =
                from[at..at + width].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            self.mmio_write(bar, place, width as u8, value);
            at += width;
        }
    }
}

/// A region of registers as a CPU sees it.
#[derive(Debug)]
pub(super) struct Region {
    function: Arc<FunctionState>,
    bar: u8,
    size: usize,
}

impl Region {
    fn holds(&self, offset: usize, width: usize) -> bool {
        let on = self.function.memory_space.load(Ordering::Acquire);
        on && offset.is_multiple_of(width) && offset < self.size && self.size - offset >= width
    }

    fn read(&self, offset: usize, width: u8) -> u64 {
        if self.holds(offset, usize::from(width)) {
            self.function.mmio_read(self.bar, offset as u64, width)
        } else {
            u64::MAX
        }
    }

    fn write(&self, offset: usize, width: u8, value: u64) {
        if self.holds(offset, usize::from(width)) {
            self.function.mmio_write(self.bar, offset as u64, width, value);
        }
    }
}

// SAFETY: the region is a device model's registers, nothing else.
unsafe impl Mmio for Region {
    fn len(&self) -> usize {
        self.size
    }

    fn read8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }

    fn write8(&self, offset: usize, value: u8) {
        self.write(offset, 1, u64::from(value));
    }

    fn read16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }

    fn write16(&self, offset: usize, value: u16) {
        self.write(offset, 2, u64::from(value));
    }

    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, 4) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, 4, u64::from(value));
    }

    fn read64(&self, offset: usize) -> u64 {
        self.read(offset, 8)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write(offset, 8, value);
    }
}
