//! The simulated machine as `amd-vi` meets it while it brings the IOMMU up.

use std::fmt;
use std::sync::Arc;

use amd_vi::Hardware;
use iommu_core::IrqTarget;
use platform::pci::{ConfigSpace, MsiMessage, PciAddress};
use platform::{Mmio, PhysAddr};
use sim_hardware::Machine;
use sim_hardware::interrupts::Vector;

/// The message that raises a vector where it is not remapped.
pub(crate) fn message_of(vector: &Vector) -> MsiMessage {
    let (address, data) = vector.message();
    MsiMessage { address, data }
}

/// The machine, with the vector that its IOMMU's interrupt is to raise.
pub(crate) struct SimHardware<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) vector: Option<&'a Vector>,
    pub(crate) x2apic: bool,
}

/// The one processor's local APIC.
pub(crate) const PROCESSOR: u32 = 0;

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
        self.vector.map(message_of)
    }

    fn x2apic_target(&self, _unit: PciAddress) -> Option<IrqTarget> {
        self.vector.filter(|_| self.x2apic).map(|vector| IrqTarget::fixed(vector.number(), PROCESSOR))
    }
}

impl fmt::Debug for SimHardware<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimHardware({:?})", self.machine)
    }
}
