//! Domains for the PASIDs of a group's devices, beside the one for requests without (Linux: `pasid_array`).

use alloc::collections::btree_map::Entry;
use alloc::sync::Arc;

use super::{Group, GroupError, Member, State};
use crate::domain::Domain;
use crate::ops::{AttachError, DomainOps, DomainType};

impl Group {
    /// Attaches a PASID of the group's devices to a domain (Linux: `iommu_attach_device_pasid`). Devices that have no PASIDs
    /// stay out of it.
    ///
    /// # Errors
    /// [`GroupError::InvalidPasid`] for 0, which stands for requests without a PASID, and for one that a device cannot send;
    /// [`AttachError::Unsupported`] when domain, devices or driver know no PASIDs; [`AttachError::Busy`] when the PASID has a
    /// domain, or a device is being reset; [`AttachError::Incompatible`] and [`GroupError::NeedsTrust`] as
    /// [`Group::attach`]; what the driver says. On failure the PASID has no domain.
    #[doc(alias = "iommu_attach_device_pasid")]
    pub fn attach_pasid(&self, domain: &Arc<Domain>, pasid: u32) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.check_pasid(domain, pasid)?;
        // Taken before any device is told: who is in the table cannot be attached twice.
        match state.pasids.entry(pasid) {
            Entry::Occupied(_) => return Err(AttachError::Busy.into()),
            Entry::Vacant(entry) => entry.insert(Arc::clone(domain)),
        };
        set_pasid(&state, pasid, domain, None).inspect_err(|_| {
            state.pasids.remove(&pasid);
        })
    }

    /// Moves a PASID from its domain to another, with no time between in which it has none (Linux:
    /// `iommu_replace_device_pasid`).
    ///
    /// # Errors
    /// [`GroupError::NotAttached`] when it has no domain; [`AttachError::Incompatible`] when it is the same; as
    /// [`Group::attach_pasid`]. On failure it has the old one.
    #[doc(alias = "iommu_replace_device_pasid")]
    pub fn replace_pasid(&self, domain: &Arc<Domain>, pasid: u32) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.check_pasid(domain, pasid)?;
        let old = state.pasids.get(&pasid).cloned().ok_or(GroupError::NotAttached)?;
        if Arc::ptr_eq(&old, domain) {
            return Err(AttachError::Incompatible.into());
        }
        set_pasid(&state, pasid, domain, Some(&old))?;
        state.pasids.insert(pasid, Arc::clone(domain));
        Ok(())
    }

    /// Takes a PASID off its domain: requests with it are blocked (Linux: `iommu_detach_device_pasid`).
    ///
    /// # Errors
    /// [`GroupError::NotAttached`] when it has none; [`AttachError::Busy`] while a device is reset.
    #[doc(alias = "iommu_detach_device_pasid")]
    pub fn detach_pasid(&self, pasid: u32) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        if state.members.iter().any(|member| member.resetting) {
            return Err(AttachError::Busy.into());
        }
        let old = state.pasids.remove(&pasid).ok_or(GroupError::NotAttached)?;
        state.members.iter().for_each(|member| member.block_pasid(pasid, &old));
        Ok(())
    }

    /// The domain of a PASID.
    #[doc(alias = "iommu_attach_handle_get")]
    pub fn pasid_domain(&self, pasid: u32) -> Option<Arc<Domain>> {
        self.state.lock().pasids.get(&pasid).cloned()
    }
}

impl State {
    /// Whether a PASID may go to `domain`.
    fn check_pasid(&self, domain: &Arc<Domain>, pasid: u32) -> Result<(), GroupError> {
        let with_pasids = || self.members.iter().filter(|member| member.max_pasids != 0);
        let first = with_pasids().next().ok_or(AttachError::Unsupported)?;
        // The blocked domain takes PASIDs off again.
        let detaches = first.ops.blocked_domain().is_some_and(|blocked| blocked.has_set_dev_pasid());
        if !detaches || !domain.ops().has_set_dev_pasid() {
            return Err(AttachError::Unsupported.into());
        }
        match domain.domain_type() {
            DomainType::Unmanaged | DomainType::Sva | DomainType::Nested => {}
            DomainType::Identity => return Err(GroupError::NeedsTrust(DomainType::Identity)),
            _ => return Err(AttachError::Incompatible.into()),
        }
        if pasid == 0 || with_pasids().any(|member| pasid >= member.max_pasids) {
            return Err(GroupError::InvalidPasid(pasid));
        }
        if with_pasids().any(|member| !Arc::ptr_eq(&member.ops, domain.owner())) {
            return Err(AttachError::Incompatible.into());
        }
        if self.members.iter().any(|member| member.resetting) {
            return Err(AttachError::Busy.into());
        }
        Ok(())
    }
}

impl Member {
    /// Attaches a PASID of the device.
    pub(super) fn set_pasid(
        &self,
        pasid: u32,
        to: &Arc<Domain>,
        from: Option<&Arc<Domain>>,
    ) -> Result<(), AttachError> {
        // SAFETY: members are moved under the group's lock. Nobody can vouch for a PASID, so `to` is no identity domain; the
        // group keeps the domain of each PASID.
        unsafe { to.ops().set_dev_pasid(self.address, pasid, from.map(|from| &**from.ops())) }?;
        self.port.set_domain(pasid, Some(to));
        Ok(())
    }

    /// Takes a PASID of the device off its domain. When that fails the domain is never freed: the device may use it.
    pub(super) fn block_pasid(&self, pasid: u32, from: &Arc<Domain>) {
        if self.max_pasids == 0 {
            return;
        }
        self.port.set_domain(pasid, None);
        let from_ops = Some(&**from.ops());
        // SAFETY: members are moved under the group's lock; nothing passes in the blocked domain.
        let block =
            |to: Arc<dyn DomainOps>| unsafe { to.set_dev_pasid(self.address, pasid, from_ops) }.is_ok();
        if !self.ops.blocked_domain().is_some_and(block) {
            core::mem::forget(Arc::clone(from));
        }
    }
}

/// Sets a PASID of every device that has PASIDs, or of none: on failure each goes back to `old`, or is blocked.
fn set_pasid(
    state: &State,
    pasid: u32,
    domain: &Arc<Domain>,
    old: Option<&Arc<Domain>>,
) -> Result<(), GroupError> {
    let members = || state.members.iter().filter(|member| member.max_pasids != 0);
    for (done, member) in members().enumerate() {
        if let Err(error) = member.set_pasid(pasid, domain, old) {
            for undone in members().take(done) {
                let back = |old: &&Arc<Domain>| undone.set_pasid(pasid, old, Some(domain)).is_ok();
                if old.filter(back).is_none() {
                    undone.block_pasid(pasid, domain);
                }
            }
            return Err(error.into());
        }
    }
    Ok(())
}
