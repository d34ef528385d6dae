//! Configuration space of one function.

use super::tree::IommuFunction;
use crate::bus::Identity;

/// Access Control Services of a port or function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acs {
    /// No capability.
    Absent,
    /// There, with these bits offered and these switched on: SV 0, TB 1, RR 2, CR 3, UF 4, EC 5, DT 6.
    Present {
        /// Capability register.
        offered: u16,
        /// Control register.
        enabled: u16,
    },
}

impl Acs {
    /// Everything that isolates, switched on.
    pub const ISOLATED: Self = Self::Present { offered: 0x1d, enabled: 0x1d };
}

/// What a function is on PCI Express, with the numbers of its capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PortType {
    Endpoint = 0,
    RootPort = 4,
    UpstreamPort = 5,
    DownstreamPort = 6,
    PcieToPci = 7,
    RootComplexEndpoint = 9,
}

const PCIE_CAPABILITY: usize = 0x40;
const SECOND_CAPABILITY: usize = 0x80;
const THIRD_CAPABILITY: usize = 0xa0;
const FOURTH_CAPABILITY: usize = 0xc0;
const ACS_CAPABILITY: usize = 0x100;
const FIRST_FREE_EXTENDED: usize = 0x110;

/// The 4 KiB of a function: contents, and which bits software may change.
#[derive(Clone, Debug)]
pub(super) struct ConfigSpace {
    words: Vec<u32>,
    port_type: PortType,
    writable: Vec<u32>,
    /// Size of each BAR pair's region, by index of its lower half; for sizing.
    bars: [u64; 6],
    acs_offset: Option<usize>,
    ats: Option<usize>,
    pasid: Option<usize>,
    pri: Option<usize>,
    msix: Option<usize>,
    msi: Option<usize>,
}

impl ConfigSpace {
    fn new(vendor: u16, device: u16, class: u32, multifunction: bool, header: u8) -> Self {
        let mut space = Self {
            words: vec![0; 1024],
            port_type: PortType::Endpoint,
            writable: vec![0; 1024],
            bars: [0; 6],
            acs_offset: None,
            ats: None,
            pasid: None,
            pri: None,
            msix: None,
            msi: None,
        };
        space.set(0x00, u32::from(device) << 16 | u32::from(vendor));
        space.set(0x08, class << 8);
        space.set(0x0c, u32::from(header) << 16 | if multifunction { 1 << 23 } else { 0 });
        // Memory space and bus master can be switched; the status says that there is a capability list.
        space.writable[1] = 0x0000_0406;
        space.set(0x04, 1 << 20 | 1 << 1);
        space.set(0x34, PCIE_CAPABILITY as u32);
        space
    }

    fn express(&mut self, port_type: PortType) {
        self.port_type = port_type;
        self.set(PCIE_CAPABILITY, 0x0002_0010 | (port_type as u32) << 20);
    }

    fn link(&mut self, from: usize, to: usize) {
        let word = self.get(from) & !0xff00 | (to as u32) << 8;
        self.set(from, word);
    }

    fn acs(&mut self, acs: Acs) {
        if let Acs::Present { offered, enabled } = acs {
            self.set(ACS_CAPABILITY, 0x0001_000d);
            self.set(ACS_CAPABILITY + 4, u32::from(enabled) << 16 | u32::from(offered));
            self.writable[ACS_CAPABILITY / 4 + 1] = u32::from(offered) << 16;
            self.acs_offset = Some(ACS_CAPABILITY);
        }
    }

    /// An endpoint whose regions firmware has put at `bars` (index, address, size).
    pub(super) fn endpoint(
        identity: &Identity,
        bars: &[(u8, u64, u64)],
        integrated: bool,
        multifunction: bool,
        acs: Acs,
    ) -> Self {
        let mut space = Self::new(identity.vendor, identity.device, identity.class, multifunction, 0);
        space.express(if integrated { PortType::RootComplexEndpoint } else { PortType::Endpoint });
        for &(index, address, size) in bars {
            const MEMORY_64: u32 = 4;
            let register = 0x10 + 4 * usize::from(index);
            space.set(register, address as u32 | MEMORY_64);
            space.set(register + 4, (address >> 32) as u32);
            space.writable[register / 4] = !(size as u32 - 1) & !0xf;
            space.writable[register / 4 + 1] = u32::MAX;
            space.bars[usize::from(index)] = size;
        }
        if identity.msix_vectors > 0 {
            const MSIX: u32 = 0x11;
            const IN_BAR_4: u32 = 4;
            let at = SECOND_CAPABILITY;
            space.link(PCIE_CAPABILITY, at);
            space.set(at, MSIX | u32::from(identity.msix_vectors - 1) << 16);
            space.set(at + 4, IN_BAR_4);
            space.set(at + 8, super::msix::PENDING_OFFSET as u32 | IN_BAR_4);
            // Enable, and mask of the whole function.
            space.writable[at / 4] = 0xc000_0000;
            space.msix = Some(at);
        }
        let (mut last, mut at) = match space.msix {
            Some(msix) => (msix, THIRD_CAPABILITY),
            None => (PCIE_CAPABILITY, SECOND_CAPABILITY),
        };
        for capability in &identity.capabilities {
            space.words[at / 4..][..capability.len()].copy_from_slice(capability);
            space.link(last, at);
            (last, at) = (at, at + 4 * capability.len());
        }
        space.acs(acs);
        space
    }

    /// Appends extended capabilities.
    pub(super) fn extend(&mut self, capabilities: &[Vec<u32>]) {
        const ATS: u32 = 0x0f;
        const PASID: u32 = 0x1b;
        const PRI: u32 = 0x13;
        let mut last = self.acs_offset;
        let mut at = if last.is_some() { FIRST_FREE_EXTENDED } else { ACS_CAPABILITY };
        for capability in capabilities {
            self.words[at / 4..][..capability.len()].copy_from_slice(capability);
            if let Some(last) = last {
                let word = self.get(last) & 0x000f_ffff | (at as u32) << 20;
                self.set(last, word);
            }
            if capability[0] & 0xffff == ATS {
                // Enable, and the smallest translation unit.
                self.writable[at / 4 + 1] = 0x801f_0000;
                self.ats = Some(at);
            }
            if capability[0] & 0xffff == PRI {
                // Enable, and how many requests may be under way.
                self.writable[at / 4 + 1] = 1;
                self.writable[at / 4 + 3] = u32::MAX;
                self.pri = Some(at);
                self.update_pri();
            }
            if capability[0] & 0xffff == PASID {
                // Enable, for execution, for privileged requests.
                self.writable[at / 4 + 1] = 0x0007_0000;
                self.pasid = Some(at);
            }
            last = Some(at);
            at = (at + 4 * capability.len()).next_multiple_of(0x10);
        }
    }

    /// A bridge with its bus numbers.
    pub(super) fn bridge(
        device: u16,
        port_type: PortType,
        multifunction: bool,
        buses: [u8; 3],
        acs: Acs,
    ) -> Self {
        const PCI_BRIDGE: u32 = 0x06_0400;
        let mut space = Self::new(0x1022, device, PCI_BRIDGE, multifunction, 1);
        space.express(port_type);
        let [primary, secondary, subordinate] = buses.map(u32::from);
        space.set(0x18, subordinate << 16 | secondary << 8 | primary);
        // Firmware lets what is below reach memory.
        space.set(0x04, 1 << 20 | 0x6);
        space.acs(acs);
        space
    }

    /// The host bridge.
    pub(super) fn host_bridge() -> Self {
        const HOST_BRIDGE: u32 = 0x06_0000;
        let mut space = Self::new(0x1022, 0x1480, HOST_BRIDGE, true, 0);
        space.express(PortType::RootComplexEndpoint);
        space.acs(Acs::ISOLATED);
        space
    }

    /// The IOMMU's own function; its features are in the EFR.
    pub(super) fn iommu(function: IommuFunction) -> Self {
        const IOMMU: u32 = 0x08_0600;
        let IommuFunction { base, np_cache, iotlb_sup, .. } = function;
        let at = usize::from(function.capability);
        let mut space = Self::new(0x1022, 0x1481, IOMMU, true, 0);
        space.acs(Acs::ISOLATED);
        // Firmware has the capability in one place or the other; the express capability goes where it is not.
        let express = if at < SECOND_CAPABILITY { FOURTH_CAPABILITY } else { PCIE_CAPABILITY };
        space.port_type = PortType::RootComplexEndpoint;
        space.set(express, 0x0002_0010 | (space.port_type as u32) << 20);
        space.set(0x34, express as u32);
        space.link(express, at);
        // Capability 0Fh of type 3 and revision 1, with the Extended Feature Register.
        let switches = u32::from(iotlb_sup) << 24 | u32::from(np_cache) << 26;
        space.set(at, 0x0f | 3 << 16 | 1 << 19 | 1 << 27 | switches);
        // Enabled by firmware, which locks the base.
        space.set(at + 4, base as u32 & 0xffff_c000 | 1);
        space.set(at + 8, (base >> 32) as u32);
        // Physical and virtual addresses of 52 and 64 bits.
        space.set(at + 0x10, 52 << 8 | 64 << 15);
        space.link(at, THIRD_CAPABILITY);
        let msi = THIRD_CAPABILITY;
        const MSI_64: u32 = 1 << 23;
        space.set(msi, 0x05 | MSI_64);
        space.writable[msi / 4] = 1 << 16;
        space.writable[msi / 4 + 1] = 0xffff_fffc;
        space.writable[msi / 4 + 2] = u32::MAX;
        space.writable[msi / 4 + 3] = 0xffff;
        space.msi = Some(msi);
        space
    }

    fn get(&self, offset: usize) -> u32 {
        self.words[offset / 4]
    }

    fn set(&mut self, offset: usize, value: u32) {
        self.words[offset / 4] = value;
    }

    pub(super) fn read(&self, offset: u16) -> u32 {
        self.words.get(usize::from(offset) / 4).copied().unwrap_or(u32::MAX)
    }

    pub(super) fn write(&mut self, offset: u16, value: u32) {
        let index = usize::from(offset) / 4;
        if let (Some(word), Some(&writable)) = (self.words.get_mut(index), self.writable.get(index)) {
            *word = *word & !writable | value & writable;
        }
        self.update_pri();
    }

    pub(super) fn bus_master(&self) -> bool {
        self.get(0x04) & 1 << 2 != 0
    }

    pub(super) fn memory_space(&self) -> bool {
        self.get(0x04) & 1 << 1 != 0
    }

    pub(super) fn port_type(&self) -> PortType {
        self.port_type
    }

    /// ACS bits that are switched on.
    pub(super) fn acs_enabled(&self) -> u32 {
        self.acs_offset.map_or(0, |at| self.get(at + 4) >> 16)
    }

    /// Page requests: whether they are on.
    pub(super) fn pri_on(&self) -> Option<bool> {
        Some(self.get(self.pri? + 4) & 1 != 0)
    }

    /// Status follows control: who is off is stopped.
    fn update_pri(&mut self) {
        const STOPPED: u32 = 1 << 24;
        if let Some(at) = self.pri {
            let word = self.get(at + 4);
            self.set(at + 4, if word & 1 == 0 { word | STOPPED } else { word & !STOPPED });
        }
    }

    /// Whether requests may carry a PASID.
    pub(super) fn pasids_on(&self) -> bool {
        self.pasid.is_some_and(|at| self.get(at + 4) >> 16 & 1 != 0)
    }

    /// ATS: whether it is on, and how many invalidations the function can hold.
    pub(super) fn ats(&self) -> Option<(bool, usize)> {
        let at = self.ats?;
        // A depth of 0 stands for 32.
        let depth = match self.get(at + 4) as usize & 0x1f {
            0 => 32,
            depth => depth,
        };
        Some((self.get(at + 4) >> 31 != 0, depth))
    }

    /// First and last bus behind a bridge.
    pub(super) fn buses_behind(&self) -> Option<(u8, u8)> {
        let bridge = self.get(0x0c) >> 16 & 0x7f == 1;
        bridge.then(|| ((self.get(0x18) >> 8) as u8, (self.get(0x18) >> 16) as u8))
    }

    /// Where BAR `index` is and how long, if it is there.
    pub(super) fn bar(&self, index: u8) -> Option<(u64, u64)> {
        let size = *self.bars.get(usize::from(index)).filter(|&&size| size != 0)?;
        let register = 0x10 + 4 * usize::from(index);
        Some((u64::from(self.get(register) & !0xf) | u64::from(self.get(register + 4)) << 32, size))
    }

    /// MSI-X: whether it is on, and whether the function is masked.
    pub(super) fn msix_control(&self) -> (bool, bool) {
        let control = self.msix.map_or(0, |at| self.get(at));
        (control >> 31 & 1 != 0, control >> 30 & 1 != 0)
    }

    /// MSI: address, data, and whether it is on.
    pub(super) fn msi(&self) -> Option<(u64, u32, bool)> {
        let at = self.msi?;
        let address = u64::from(self.get(at + 4)) | u64::from(self.get(at + 8)) << 32;
        Some((address, self.get(at + 12), self.get(at) >> 16 & 1 != 0))
    }
}
