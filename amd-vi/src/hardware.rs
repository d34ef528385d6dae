//! What the driver asks of the machine besides `platform`: registers, configuration space, an interrupt message.

use alloc::sync::Arc;
use core::fmt;

use iommu_core::IrqTarget;
pub use platform::pci::MsiMessage;
use platform::pci::{ConfigSpace, PciAddress};
use platform::{Mmio, PhysAddr};

/// The machine as the driver meets it while it brings the IOMMUs up.
pub trait Hardware: fmt::Debug {
    /// The registers at `base`, `len` bytes of them, or `None` when nothing is there (Linux: `iommu_map_mmio_space`).
    #[doc(alias = "iommu_map_mmio_space")]
    fn map_mmio(&self, base: PhysAddr, len: u64) -> Option<Arc<dyn Mmio>>;

    /// Configuration space of the machine.
    fn config_space(&self) -> &dyn ConfigSpace;

    /// The message that the IOMMU at `unit` is to send when it wants [`crate::AmdVi::handle_interrupt`] called, or `None`
    /// when the machine has no interrupt for it; then somebody must call that from time to time.
    fn msi_message(&self, unit: PciAddress) -> Option<MsiMessage>;

    /// Where that interrupt is to go instead, on a machine whose local APICs are in x2APIC mode. A unit that can send it so
    /// (XTSup and MsiCapMmioSup) is told this and not [`Hardware::msi_message`].
    fn x2apic_target(&self, unit: PciAddress) -> Option<IrqTarget> {
        let _ = unit;
        None
    }

    /// Configuration space of the devices, for the driver to keep: it switches their ATS on and off. Without it no device has
    /// any.
    fn device_config(&self) -> Option<Arc<dyn ConfigSpace>> {
        None
    }
}
