//! The simulated machine as `amd-vi` meets it while it brings the IOMMU up.

use std::fmt;
use std::sync::Arc;

use amd_vi::{Hardware, MsiMessage};
use platform::pci::{ConfigSpace, PciAddress};
use platform::{Mmio, PhysAddr};
use sim_hardware::Machine;

/// The machine, with the message that its IOMMU's interrupt is to be.
pub(crate) struct SimHardware<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) message: Option<MsiMessage>,
}

impl Hardware for SimHardware<'_> {
    fn map_mmio(&self, base: PhysAddr, len: u64) -> Option<Arc<dyn Mmio>> {
        self.machine.registers_at(base.get()).filter(|registers| registers.len() as u64 >= len)
    }

    fn config_space(&self) -> &dyn ConfigSpace {
        &*self.machine.pci
    }

    fn device_config(&self) -> Option<Arc<dyn ConfigSpace>> {
        Some(Arc::clone(&self.machine.pci) as _)
    }

    fn msi_message(&self, _unit: PciAddress) -> Option<MsiMessage> {
        self.message
    }
}

impl fmt::Debug for SimHardware<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimHardware({:?})", self.machine)
    }
}
