//! What firmware does to the PCI tree: bus numbers, addresses for registers, windows of bridges, ACS.

use std::collections::BTreeMap;
use std::ops::Range;

use platform::pci::{ConfigSpace, PciAddress};

/// Bridges decode in steps of this.
const BRIDGE_STEP: u64 = 1 << 20;

const COMMAND: u16 = 0x04;
const HEADER_TYPE: u16 = 0x0c;
const BAR0: u16 = 0x10;
const BUS_NUMBERS: u16 = 0x18;
const MEMORY_WINDOW: u16 = 0x20;
const PREFETCHABLE_WINDOW: u16 = 0x24;
const EXTENDED_CAPABILITIES: u16 = 0x100;

const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
/// A window whose end is before its start.
const CLOSED: u32 = 0x0000_fff0;

/// A memory region of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    pub(crate) base: u64,
    pub(crate) len: u64,
}

/// The memory regions of each function, by the number of their base address register.
pub(crate) type Bars = BTreeMap<(PciAddress, u8), Bar>;

/// Sets up all that is behind bus 0, with registers in this range.
pub(crate) fn enumerate(config: &dyn ConfigSpace, registers: &Range<u64>) -> Bars {
    let Range { start: next, end } = *registers;
    let mut enumerator = Enumerator { config, last_bus: 0, next, end, bars: Bars::new() };
    enumerator.bus(0);
    enumerator.bars
}

struct Enumerator<'a> {
    config: &'a dyn ConfigSpace,
    last_bus: u8,
    /// The next free address.
    next: u64,
    /// The first that is no more.
    end: u64,
    bars: Bars,
}

impl Enumerator<'_> {
    fn bus(&mut self, bus: u8) {
        for device in 0..32 {
            let first = PciAddress::new(0, bus, device, 0);
            if self.is_absent(first) {
                continue;
            }
            let multifunction = self.config.read32(first, HEADER_TYPE) >> 23 & 1 != 0;
            for function in 0..if multifunction { 8 } else { 1 } {
                let address = PciAddress::new(0, bus, device, function);
                if !self.is_absent(address) {
                    self.function(address);
                }
            }
        }
    }

    fn is_absent(&self, address: PciAddress) -> bool {
        self.config.read32(address, 0) & 0xffff == 0xffff
    }

    fn function(&mut self, address: PciAddress) {
        self.enable_acs(address);
        match self.config.read32(address, HEADER_TYPE) >> 16 & 0x7f {
            0 => {
                self.assign_bars(address, 6);
                self.set_command(address, MEMORY);
            }
            1 => {
                self.assign_bars(address, 2);
                self.bridge(address);
                // What is behind it does DMA when its own switch says so.
                self.set_command(address, MEMORY | BUS_MASTER);
            }
            _ => {}
        }
    }

    fn set_command(&self, address: PciAddress, bits: u32) {
        // The upper half is the status register, whose bits are cleared by writing ones.
        let command = self.config.read32(address, COMMAND) & 0xffff;
        self.config.write32(address, COMMAND, command | bits);
    }

    fn bridge(&mut self, address: PciAddress) {
        let Some(secondary) = self.last_bus.checked_add(1) else { return };
        self.last_bus = secondary;
        let numbers =
            |last: u8| u32::from(address.id.bus()) | u32::from(secondary) << 8 | u32::from(last) << 16;
        // Everything may be behind it until it is known what is.
        self.config.write32(address, BUS_NUMBERS, numbers(u8::MAX));
        self.next = self.next.next_multiple_of(BRIDGE_STEP);
        let start = self.next;
        self.bus(secondary);
        self.next = self.next.next_multiple_of(BRIDGE_STEP);
        self.config.write32(address, BUS_NUMBERS, numbers(self.last_bus));
        let window = if self.next > start {
            let last = self.next - 1;
            (start >> 16) as u32 & 0xfff0 | last as u32 & 0xfff0_0000
        } else {
            CLOSED
        };
        self.config.write32(address, MEMORY_WINDOW, window);
        self.config.write32(address, PREFETCHABLE_WINDOW, CLOSED);
    }

    fn assign_bars(&mut self, address: PciAddress, count: u8) {
        let mut index = 0;
        while index < count {
            index += self.assign_bar(address, index);
        }
    }

    /// Gives one memory region an address; returns how many registers it takes. What finds no room stays without.
    fn assign_bar(&mut self, address: PciAddress, index: u8) -> u8 {
        const IO: u32 = 1;
        const IS_64_BIT: u32 = 1 << 2;
        const FLAGS: u32 = 0xf;
        let register = BAR0 + 4 * u16::from(index);
        let probe = |register| {
            self.config.write32(address, register, u32::MAX);
            self.config.read32(address, register)
        };
        let low = probe(register);
        if low & IO != 0 || low == 0 {
            self.config.write32(address, register, 0);
            return 1;
        }
        let wide = low & IS_64_BIT != 0;
        let high = if wide { probe(register + 4) } else { u32::MAX };
        let len = (u64::from(high) << 32 | u64::from(low & !FLAGS)).wrapping_neg();
        let base =
            self.next.checked_next_multiple_of(len).filter(|base| len <= self.end.saturating_sub(*base));
        self.config.write32(address, register, base.unwrap_or(0) as u32);
        if wide {
            self.config.write32(address, register + 4, 0);
        }
        if let Some(base) = base {
            self.next = base + len;
            self.bars.insert((address, index), Bar { base, len });
        }
        if wide { 2 } else { 1 }
    }

    /// Has the function send requests of its peers up to the IOMMU, as far as it can (Linux: `pci_enable_acs`).
    fn enable_acs(&self, address: PciAddress) {
        const ACS: u32 = 0x000d;
        // Source validation, request redirect, completion redirect, upstream forwarding.
        const WANTED: u32 = 0x1d;
        let mut at = EXTENDED_CAPABILITIES;
        // A list cannot be longer than the space for it.
        for _ in 0..960 {
            let header = self.config.read32(address, at);
            if header == 0 || header == u32::MAX {
                return;
            }
            if header & 0xffff == ACS {
                let capable = self.config.read32(address, at + 4) & 0xffff;
                self.config.write32(address, at + 4, (capable & WANTED) << 16);
            }
            at = (header >> 20) as u16 & 0xffc;
            if at < EXTENDED_CAPABILITIES {
                return;
            }
        }
    }
}
