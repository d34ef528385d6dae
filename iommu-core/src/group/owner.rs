//! Who has a group: drivers bound to its default domain, or one owner of his own (Linux: `owner_cnt`, `owner`).

use alloc::sync::Arc;

use platform::pci::PciAddress;

use super::attach::set_domain;
use super::{Group, GroupError, Member, State};
use crate::domain::Domain;
use crate::ops::{AttachError, DomainType};

/// Who claims a group for itself: user space, mostly. Only who knows the value that a group was claimed with can release it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(pub u64);

/// A driver's claim on its group's default domain, from bind to drop (Linux: `iommu_device_use_default_domain`,
/// `iommu_device_unuse_default_domain`).
#[derive(Debug)]
pub(crate) struct Ownership {
    group: Arc<Group>,
    device: PciAddress,
}

impl Ownership {
    /// As [`Group::block`].
    pub(crate) fn block(&self, domain: &Arc<Domain>) {
        self.group.block(domain);
    }

    /// As [`Group::attach_deferred`].
    pub(crate) fn attach_deferred(&self) -> Result<(), AttachError> {
        self.group.attach_deferred(self.device)
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        state.owners = state.owners.saturating_sub(1);
    }
}

impl Group {
    /// Takes a share in the default domain for a driver.
    #[doc(alias = "iommu_device_use_default_domain")]
    pub(super) fn use_default_domain(
        self: &Arc<Self>,
        address: PciAddress,
        trusted: bool,
    ) -> Result<(Member, Arc<Domain>, Ownership), GroupError> {
        let mut state = self.state.lock();
        let member = state.member(address)?.clone();
        let domain = state.default_domain.clone().ok_or(GroupError::NotReady)?;
        match domain.domain_type() {
            DomainType::Dma => {}
            other if !trusted => return Err(GroupError::NeedsTrust(other)),
            _ => {}
        }
        // (Linux lets a first driver bind in a domain that is not the default; its mappings would lead nowhere.)
        if !state.is_in(&domain) || state.owner.is_some() {
            return Err(GroupError::Busy);
        }
        // The driver that is there has given out PASIDs.
        if state.owners != 0 && !state.pasids.is_empty() {
            return Err(GroupError::Busy);
        }
        state.owners += 1;
        Ok((member, domain, Ownership { group: Arc::clone(self), device: address }))
    }

    /// Claims the group for an owner of its own; until it attaches a domain all DMA of the group is blocked.
    ///
    /// # Errors
    /// [`GroupError::Owned`] when a driver is bound or somebody has claimed it; [`GroupError::Busy`] when the group is not in
    /// its default domain, or has PASIDs attached; [`GroupError::Attach`], with [`AttachError::RequiresDirect`] when firmware
    /// needs memory of a device, which therefore cannot be blocked.
    #[doc(alias = "iommu_group_claim_dma_owner")]
    pub fn claim_dma_owner(&self, owner: Owner) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        if state.owners != 0 {
            return Err(GroupError::Owned);
        }
        self.take_ownership(&mut state, owner)
    }

    /// As [`Group::claim_dma_owner`], device by device: several devices of the group may be claimed by one owner, and each
    /// claim is released for itself.
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`]; [`GroupError::Owned`] when somebody else has the group; as [`Group::claim_dma_owner`].
    #[doc(alias = "iommu_device_claim_dma_owner")]
    pub fn claim_device_dma_owner(&self, address: PciAddress, owner: Owner) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.member(address)?;
        if state.owners == 0 {
            return self.take_ownership(&mut state, owner);
        }
        if state.owner != Some(owner) {
            return Err(GroupError::Owned);
        }
        state.owners += 1;
        Ok(())
    }

    fn take_ownership(&self, state: &mut State, owner: Owner) -> Result<(), GroupError> {
        let default = state.default_domain.clone().ok_or(GroupError::NotReady)?;
        if !state.is_in(&default) || !state.pasids.is_empty() {
            return Err(GroupError::Busy);
        }
        let blocking = self.blocking_domain(state)?;
        set_domain(state, &blocking)?;
        state.owners = 1;
        state.owner = Some(owner);
        Ok(())
    }

    /// Ends one claim of an owner; with his last one the group goes back to its default domain, whatever he has attached.
    ///
    /// # Errors
    /// [`GroupError::Owned`] when `owner` does not have it; [`GroupError::Busy`] with the last claim while PASIDs are attached
    /// (Linux warns); [`GroupError::Attach`] when hardware fails: the group is then blocked, and released all the same.
    #[doc(alias = "iommu_group_release_dma_owner")]
    #[doc(alias = "iommu_device_release_dma_owner")]
    pub fn release_dma_owner(&self, owner: Owner) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        if state.owner != Some(owner) {
            return Err(GroupError::Owned);
        }
        if state.owners > 1 {
            state.owners -= 1;
            return Ok(());
        }
        if !state.pasids.is_empty() {
            return Err(GroupError::Busy);
        }
        state.owner = None;
        state.owners = 0;
        let default = state.default_domain.clone().ok_or(GroupError::NotReady)?;
        self.set_domain_no_fail(&mut state, &default)
    }
}
