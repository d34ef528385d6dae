//! The IOMMU's capability in PCI configuration space, and the MSI capability beside it.

use platform::PhysAddr;
use platform::pci::{ConfigSpace, PciAddress};

use crate::hardware::MsiMessage;

/// The IOMMU capability block (specification, "PCI Resources"; Linux: `iommu_init_pci`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IommuCapability {
    header: u32,
    base_low: u32,
    base_high: u32,
}

impl IommuCapability {
    const ID: u32 = 0x0f;
    const TYPE_IOMMU: u32 = 3;
    const ENABLE: u32 = 1;

    /// The capability at `offset` of `function`'s configuration space, or `None` when there is another or none.
    pub fn read(config: &dyn ConfigSpace, function: PciAddress, offset: u16) -> Option<Self> {
        if offset < 0x40 || offset & 3 != 0 || offset > 0xe8 {
            return None;
        }
        let header = config.read32(function, offset);
        let is_iommu = header & 0xff == Self::ID && header >> 16 & 7 == Self::TYPE_IOMMU;
        is_iommu.then(|| Self {
            header,
            base_low: config.read32(function, offset + 4),
            base_high: config.read32(function, offset + 8),
        })
    }

    /// IotlbSup: the unit can invalidate devices' own caches.
    pub const fn iotlb_sup(self) -> bool {
        self.header >> 24 & 1 != 0
    }

    /// NpCache: the unit may remember that nothing was mapped, so new mappings must be invalidated.
    pub const fn np_cache(self) -> bool {
        self.header >> 26 & 1 != 0
    }

    /// EFRSup: the extended feature register exists.
    pub const fn efr_sup(self) -> bool {
        self.header >> 27 & 1 != 0
    }

    /// Enable: the base address is set and locked.
    pub const fn enabled(self) -> bool {
        self.base_low & Self::ENABLE != 0
    }

    /// Where the registers are.
    pub const fn base(self) -> PhysAddr {
        PhysAddr::new((self.base_high as u64) << 32 | (self.base_low & 0xffff_c000) as u64)
    }

    /// Sets the base address and locks it: firmware did not.
    pub fn set_base(config: &dyn ConfigSpace, function: PciAddress, offset: u16, base: PhysAddr) {
        config.write32(function, offset + 8, (base.get() >> 32) as u32);
        config.write32(function, offset + 4, (base.get() as u32 & 0xffff_c000) | Self::ENABLE);
    }
}

/// Programs `message` into the MSI capability of `function` and enables it. Returns false when there is none.
pub(crate) fn enable_msi(config: &dyn ConfigSpace, function: PciAddress, message: MsiMessage) -> bool {
    const ENABLE: u32 = 1 << 16;
    const MULTIPLE: u32 = 7 << 20;
    const IS_64_BIT: u32 = 1 << 23;
    let Some(at) = find_msi(config, function) else { return false };
    let header = config.read32(function, at) & !(ENABLE | MULTIPLE);
    config.write32(function, at, header);
    config.write32(function, at + 4, message.address as u32 & !3);
    let data_at = if header & IS_64_BIT != 0 {
        config.write32(function, at + 8, (message.address >> 32) as u32);
        at + 12
    } else {
        at + 8
    };
    let rest = config.read32(function, data_at) & 0xffff_0000;
    config.write32(function, data_at, rest | (message.data & 0xffff));
    config.write32(function, at, header | ENABLE);
    true
}

/// Turns message interrupts of `function` off.
pub(crate) fn disable_msi(config: &dyn ConfigSpace, function: PciAddress) {
    if let Some(at) = find_msi(config, function) {
        let header = config.read32(function, at);
        config.write32(function, at, header & !(1 << 16));
    }
}

fn find_msi(config: &dyn ConfigSpace, function: PciAddress) -> Option<u16> {
    const MSI: u32 = 0x05;
    let has_list = config.read32(function, 0x04) >> 16 & 0x10 != 0;
    let mut at = if has_list { config.read32(function, 0x34) & 0xfc } else { 0 };
    // A list cannot be longer than the space for it; a damaged one may run in a circle.
    for _ in 0..48 {
        if at < 0x40 {
            break;
        }
        let header = config.read32(function, at as u16);
        if header & 0xff == MSI {
            return Some(at as u16);
        }
        at = header >> 8 & 0xfc;
    }
    None
}

/// Where the extended capability `id` of a function is, if it has it (Linux: `pci_find_ext_capability`).
#[doc(alias = "pci_find_ext_capability")]
pub(crate) fn extended_capability(config: &dyn ConfigSpace, function: PciAddress, id: u16) -> Option<u16> {
    const FIRST: u16 = 0x100;
    let mut at = FIRST;
    // Each takes 8 bytes at least; a damaged list may run in a circle.
    for _ in 0..(0x1000 - FIRST) / 8 {
        let header = config.read32(function, at);
        if header == 0 || header == u32::MAX {
            return None;
        }
        if header as u16 == id {
            // Its registers must be there too.
            return (at <= 0xff0).then_some(at);
        }
        at = (header >> 20) as u16 & 0xffc;
        if at < FIRST {
            return None;
        }
    }
    None
}
