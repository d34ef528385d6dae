//! What is known of devices that their configuration space does not say (Linux: `drivers/pci/quirks.c`).

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use platform::pci::{PciAddress, RequesterId};

use super::topology::{AcsFlags, BridgeFlags, Node, PortType, Topology};

/// One line of knowledge: which devices, and what of them. [`super::QUIRKS`] is a table of these; whoever knows more
/// applies a table of his own as well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quirk {
    /// The vendor.
    pub vendor: u16,
    /// The vendor's numbers of the devices.
    pub devices: RangeInclusive<u16>,
    /// The card, by subsystem vendor and device, when only that one is meant.
    pub subsystem: Option<(u16, u16)>,
    /// What the function must be; anything, when this is empty.
    pub port_types: &'static [PortType],
    /// What is known.
    pub rule: QuirkRule,
}

/// What is known of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum QuirkRule {
    /// It keeps its peers apart as if it had all services of [`AcsFlags::ISOLATED`] switched on (Linux:
    /// `pci_dev_acs_enabled`).
    Isolates,
    /// The same, but only for a function of several on a root bus: AMD's southbridges, where there is an AMD IOMMU (Linux:
    /// `pci_quirk_amd_sb_acs`).
    IsolatesOnRootBus,
    /// Its ACS control register is not at byte 6 of the capability but at byte 8 (Linux: `pci_quirk_intel_spt_pch_acs`).
    /// It is heeded when configuration space is read.
    AcsControlInDword,
    /// What it offers of [`AcsFlags::ISOLATED`] is switched on, though reading says that nothing is (Linux:
    /// `pci_quirk_enable_intel_spt_pch_acs`).
    AcsSwitchedOn,
    /// Its requests may carry the name of this function of its slot (Linux: `quirk_dma_func0_alias`,
    /// `quirk_dma_func1_alias`).
    AliasOfFunction(u8),
    /// Its requests may carry the name of this device and function of its bus (Linux: `quirk_fixed_dma_alias`).
    AliasOfDevice(u8, u8),
    /// Its requests may carry the names of the first so many functions of any device of its bus (Linux:
    /// `quirk_pex_vca_alias`, `quirk_plx_ntb_dma_alias`).
    AliasOfAll(u8),
    /// It is a bridge from PCI Express to conventional PCI that does not say so, when it is right below PCI Express (Linux:
    /// `quirk_use_pcie_bridge_dma_alias`).
    PcieBridgeAlias,
    /// It is a bridge from PCI Express that leaves the names of requests as they are (Linux:
    /// `PCI_DEV_FLAGS_PCI_BRIDGE_NO_ALIAS`).
    NoBridgeAlias,
    /// The IOMMU sits at this bridge (Linux: `quirk_bridge_cavm_thrx2_pcie_root`).
    TranslationRoot,
}

impl Quirk {
    /// Of all devices with these numbers.
    pub const fn new(vendor: u16, devices: RangeInclusive<u16>, rule: QuirkRule) -> Self {
        Self { vendor, devices, subsystem: None, port_types: &[], rule }
    }

    /// Whether a function is meant.
    pub fn fits(&self, node: &Node) -> bool {
        node.id.is_some_and(|id| {
            id.vendor == self.vendor
                && self.devices.contains(&id.device)
                && self.subsystem.is_none_or(|card| id.subsystem == Some(card))
                && (self.port_types.is_empty() || self.port_types.contains(&node.port_type))
        })
    }
}

impl Topology {
    /// Notes what is known of the functions that are in the tree by now. Tables may be applied one after the other.
    pub fn apply(&mut self, quirks: &[Quirk]) {
        let all: Vec<PciAddress> = self.iter().map(|node| node.address).collect();
        for address in all {
            let Some(node) = self.get(address) else { continue };
            let rules: Vec<QuirkRule> =
                quirks.iter().filter(|quirk| quirk.fits(node)).map(|quirk| quirk.rule).collect();
            if rules.is_empty() {
                continue;
            }
            let parent = self.parent(node).map(|bridge| bridge.port_type);
            if let Some(node) = self.get_mut(address) {
                rules.into_iter().for_each(|rule| node.learn(rule, parent));
            }
        }
    }
}

impl Node {
    /// Notes what a rule says. `parent` is what the bridge above is, if there is one.
    fn learn(&mut self, rule: QuirkRule, parent: Option<PortType>) {
        let devfn = |device, function| RequesterId::from_parts(0, device, function).devfn();
        match rule {
            QuirkRule::Isolates => self.quirks.acs = Some(AcsFlags::ISOLATED),
            QuirkRule::IsolatesOnRootBus => {
                if self.multifunction && parent.is_none() {
                    self.quirks.acs = Some(AcsFlags::ISOLATED);
                }
            }
            // It was heeded when the capability was read.
            QuirkRule::AcsControlInDword => {}
            QuirkRule::AcsSwitchedOn => {
                if let Some((offered, on)) = &mut self.acs
                    && on.is_empty()
                {
                    *on = *offered & AcsFlags::ISOLATED;
                }
            }
            QuirkRule::AliasOfFunction(function) => {
                self.quirks.aliases.insert(devfn(self.address.id.device(), function));
            }
            QuirkRule::AliasOfDevice(device, function) => {
                self.quirks.aliases.insert(devfn(device, function));
            }
            QuirkRule::AliasOfAll(functions) => {
                let all = (0..32).flat_map(|device| (0..functions.min(8)).map(move |of| devfn(device, of)));
                self.quirks.aliases.extend(all);
            }
            QuirkRule::PcieBridgeAlias => {
                let below_express = parent
                    .is_some_and(|parent| !matches!(parent, PortType::Conventional | PortType::PcieToPci));
                if self.secondary_bus.is_some() && self.port_type == PortType::Conventional && below_express {
                    self.quirks.bridge |= BridgeFlags::PCIE_BRIDGE_ALIAS;
                }
            }
            QuirkRule::NoBridgeAlias => self.quirks.bridge |= BridgeFlags::NO_ALIAS,
            QuirkRule::TranslationRoot => self.quirks.bridge |= BridgeFlags::XLATE_ROOT,
        }
    }
}
