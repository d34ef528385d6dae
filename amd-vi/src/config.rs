//! What can be chosen (Linux: the `amd_iommu=` and `ivrs_*` parameters).

use alloc::vec::Vec;
use core::time::Duration;

use iommu_core::Trust;

use crate::irq_remap::IrqRemapConfig;
use crate::ivrs::Override;

/// The format of a page table (Linux: `amd_iommu=pgtbl_v1`, `amd_iommu=pgtbl_v2`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PageTableFormat {
    /// AMD's own (v1, host).
    #[default]
    V1,
    /// A CPU's (v2, guest).
    V2,
}

/// Choices for a driver; the defaults are Linux's where it has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Levels that a host page table may grow to from 3, at most 6, cut down to what the unit can do. Four reach 48 bits, and
    /// each more costs every walk above that a step.
    pub levels: u8,
    /// Logarithm of the entries of a command buffer, 8 to 15.
    pub log2_commands: u32,
    /// Logarithm of the entries of an event log, 8 to 15.
    pub log2_events: u32,
    /// Logarithm of the entries of a log of page requests, 8 to 15.
    pub log2_page_requests: u32,
    /// How long a completion may take. A device may take a second to answer an IOTLB invalidation, so longer than that.
    pub command_timeout: Duration,
    /// Interrupt remapping, if the kernel takes every message that a device is to send from [`AmdVi::irq_remap`](crate::AmdVi::irq_remap):
    /// other messages of devices, and of IO-APICs and timers, then raise nothing. Without it, devices can forge interrupts.
    pub irq_remap: Option<IrqRemapConfig>,
    /// Leave the message interrupts of attached devices unchecked (IV clear), as Linux does without interrupt remapping, instead
    /// of passing on those alone that go to a vector (IV set, IntCtl 01b). QEMU needs it: it delivers what is to be passed
    /// on as vector 0. Without effect where interrupts are remapped.
    pub unchecked_interrupts: bool,
    /// The format of page tables where nothing else decides: devices with PASIDs have v2. Where the unit lacks it the other one
    /// is taken.
    pub page_table: PageTableFormat,
    /// Whether devices may keep translations themselves (ATS), which they then use without being checked: that takes trust in
    /// every device that can. Those that the core is told not to trust never do. (In Linux all others do, unless `pci=noats`.)
    pub ats: Option<Trust>,
    /// Corrections of the firmware's table, the user's own before those of
    /// [`overrides_for`](crate::ivrs::overrides_for) the machine: of several for one thing the first counts.
    pub overrides: Vec<Override>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            levels: 4,
            log2_commands: 9,
            log2_events: 9,
            log2_page_requests: 9,
            command_timeout: Duration::from_secs(5),
            irq_remap: None,
            unchecked_interrupts: false,
            page_table: PageTableFormat::default(),
            ats: None,
            overrides: Vec::new(),
        }
    }
}
