//! A device's reset: while it lasts the device reaches nothing, and nobody moves its group (Linux:
//! `pci_dev_reset_iommu_prepare`, `pci_dev_reset_iommu_done`).

use alloc::sync::Arc;

use platform::pci::PciAddress;

use super::{Group, GroupError, State};
use crate::ops::{AttachError, Capability};

/// A device is being reset. Ends when it is dropped; the device is where its group is from then on.
#[derive(Debug)]
#[must_use = "the fence falls when it is dropped"]
pub struct ResetFence {
    group: Arc<Group>,
    /// The device, if it is fenced and that has not ended.
    device: Option<PciAddress>,
}

impl Group {
    /// Fences a device before it is reset: a device with a translation cache of its own (ATS) answers no invalidation
    /// meanwhile, so it and its PASIDs are blocked, and whoever would move its group is told [`AttachError::Busy`]. Other
    /// devices need no fence; for them this does nothing.
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`]; [`AttachError::Busy`] when a device of the group is being reset; what the driver says.
    /// The device is then not fenced.
    #[doc(alias = "pci_dev_reset_iommu_prepare")]
    pub fn fence_reset(self: &Arc<Self>, address: PciAddress) -> Result<ResetFence, GroupError> {
        let mut state = self.state.lock();
        let member = state.member(address)?;
        if state.members.iter().any(|member| member.resetting) {
            return Err(AttachError::Busy.into());
        }
        let has_cache = member.ops.capable(address, Capability::PciAtsSupported);
        let device = has_cache.then_some(address);
        if has_cache {
            let blocking = self.blocking_domain(&mut state)?;
            let current = state.domain.clone();
            let pasids = state.pasids.clone();
            let member = state.member_mut(address)?;
            member.attach(&blocking, current.as_deref())?;
            pasids.iter().for_each(|(&pasid, domain)| member.block_pasid(pasid, domain));
            member.resetting = true;
        }
        Ok(ResetFence { group: Arc::clone(self), device })
    }

    #[doc(alias = "pci_dev_reset_iommu_done")]
    fn end_reset(&self, address: PciAddress) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        let Ok(member) = state.member_mut(address) else { return Ok(()) };
        member.resetting = false;
        state.restore(address).inspect_err(|_| state.block_all())
    }
}

impl State {
    /// Puts a device from the blocking domain to where its group is.
    fn restore(&self, address: PciAddress) -> Result<(), GroupError> {
        let member = self.member(address)?;
        if let Some(domain) = self.domain.as_ref() {
            member.attach(domain, self.blocking.as_deref())?;
        }
        for (&pasid, domain) in self.pasids.iter().filter(|_| member.max_pasids != 0) {
            member.set_pasid(pasid, domain, None)?;
        }
        Ok(())
    }
}

impl ResetFence {
    /// Ends the reset, and says what became of it.
    ///
    /// # Errors
    /// [`GroupError::Attach`] when the device could not be put back: its group is then blocked.
    pub fn done(mut self) -> Result<(), GroupError> {
        self.device.take().map_or(Ok(()), |device| self.group.end_reset(device))
    }
}

impl Drop for ResetFence {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            // Who drops it does not ask; a group that could not be restored is blocked.
            let _ = self.group.end_reset(device);
        }
    }
}
