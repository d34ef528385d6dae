//! What is between a root bus and memory.

use alloc::vec::Vec;

use dma_api::BusRanges;
use platform::DmaAddr;

/// What firmware says of the bridge to a root bus (Linux: `struct pci_host_bridge`).
#[derive(Clone, PartialEq, Eq, Debug)]
#[doc(alias = "pci_host_bridge")]
pub struct HostBridge {
    /// Addresses on the bus, first and last, at which functions answer themselves (Linux: `windows`): a request to one may
    /// never come as far as the IOMMU.
    pub windows: Vec<(DmaAddr, DmaAddr)>,
    /// Which memory the bus shows to its functions, and where (Linux: `dma_ranges`). What is between the ranges goes nowhere.
    pub dma_ranges: BusRanges,
    /// The last address that the bus lets through (Linux: `bus_dma_limit`).
    pub dma_limit: u64,
}

impl Default for HostBridge {
    /// One that lets everything through, as most do.
    fn default() -> Self {
        Self { windows: Vec::new(), dma_ranges: BusRanges::identity(), dma_limit: u64::MAX }
    }
}

impl HostBridge {
    /// I/O addresses, first and last, that must not be used below it (Linux: `iova_reserve_pci_windows`).
    #[doc(alias = "iova_reserve_pci_windows")]
    pub(crate) fn closed(&self) -> impl Iterator<Item = (DmaAddr, DmaAddr)> + '_ {
        self.windows.iter().copied().chain(self.dma_ranges.gaps())
    }
}
