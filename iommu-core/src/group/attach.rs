//! Which domain a group is in: attaching, detaching, replacing, and what becomes of devices when that fails.

use alloc::sync::Arc;

use platform::pci::PciAddress;

use super::default_domain::map_direct;
use super::{Group, GroupError, Member, State};
use crate::domain::Domain;
use crate::ops::{AttachError, DomainError, DomainType, PagingFlags};

impl Group {
    /// Makes an empty domain that its owner alone maps, and that can do what `flags` say (Linux:
    /// `iommu_paging_domain_alloc_flags`).
    ///
    /// # Errors
    /// [`GroupError::Domain`].
    #[doc(alias = "iommu_paging_domain_alloc")]
    #[doc(alias = "iommu_paging_domain_alloc_flags")]
    pub fn alloc_unmanaged(&self, flags: PagingFlags) -> Result<Arc<Domain>, GroupError> {
        let state = self.state.lock();
        let member = state.members.first().ok_or(GroupError::NotReady)?;
        let ops = member.ops.domain_alloc_paging_flags(member.address, flags)?;
        let platform = Arc::clone(&self.platform);
        Ok(Arc::new(Domain::new(DomainType::Unmanaged, ops, Arc::clone(&member.ops), platform, None)))
    }

    /// Attaches the whole group to a domain. Whoever calls owns the group: see [`Group::claim_dma_owner`].
    ///
    /// # Errors
    /// [`GroupError::Owned`] while a driver is bound, whose mappings would lead nowhere (Linux leaves that to the caller);
    /// [`AttachError::Busy`] when the group is in a domain that is neither its default nor the blocking one, or a device is
    /// being reset; [`AttachError::Incompatible`] when the domain is another driver's, or the DMA API's for another group;
    /// [`GroupError::NeedsTrust`] for an identity domain, to which [`Group::set_type_trusted`] leads;
    /// [`AttachError::RequiresDirect`]; what the driver says. On failure every device is where it was.
    #[doc(alias = "iommu_attach_group")]
    pub fn attach(&self, domain: &Arc<Domain>) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.check_attach(domain)?;
        state.check_free()?;
        set_domain(&mut state, domain)
    }

    /// As [`Group::attach`], by a device that has the group to itself.
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`]; [`GroupError::NotSingleton`]; as [`Group::attach`].
    #[doc(alias = "iommu_attach_device")]
    pub fn attach_device(&self, address: PciAddress, domain: &Arc<Domain>) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.check_singleton(address)?;
        state.check_attach(domain)?;
        state.check_free()?;
        set_domain(&mut state, domain)
    }

    /// Moves the group to a domain from whichever it is in, with no time between in which it is in none (Linux:
    /// `iommu_replace_group_handle`).
    ///
    /// # Errors
    /// As [`Group::attach`], but for the domain that the group is in.
    #[doc(alias = "iommu_replace_group_handle")]
    pub fn replace(&self, domain: &Arc<Domain>) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.check_attach(domain)?;
        set_domain(&mut state, domain)
    }

    /// Takes the group off its domain: back to the default one, or to the blocking one while somebody owns it.
    ///
    /// # Errors
    /// [`GroupError::Attach`] when hardware fails: the group is then blocked.
    #[doc(alias = "iommu_detach_group")]
    pub fn detach(&self) -> Result<(), GroupError> {
        self.detach_from(&mut self.state.lock())
    }

    /// As [`Group::detach`], by a device that has the group to itself, from the domain that it is in.
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`]; [`GroupError::NotSingleton`]; [`GroupError::NotAttached`] when `domain` is another
    /// (Linux warns and does nothing); as [`Group::detach`].
    #[doc(alias = "iommu_detach_device")]
    pub fn detach_device(&self, address: PciAddress, domain: &Arc<Domain>) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.check_singleton(address)?;
        if !state.is_in(domain) {
            return Err(GroupError::NotAttached);
        }
        self.detach_from(&mut state)
    }

    fn detach_from(&self, state: &mut State) -> Result<(), GroupError> {
        let next = match state.owner {
            Some(_) => self.blocking_domain(state)?,
            None => state.default_domain.clone().ok_or(GroupError::NotReady)?,
        };
        self.set_domain_no_fail(state, &next)
    }

    /// Takes a device that came later into the group: it goes to the domain that the group is in.
    ///
    /// # Errors
    /// [`GroupError`] with the reason; the device is then not in the group, and reaches nothing.
    pub(crate) fn join(&self, member: Member) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        let address = member.address;
        state.members.push(member);
        let admitted = match state.default_domain {
            None => self.setup_default_domain(&mut state, None),
            Some(_) => admit(&state),
        };
        admitted.inspect_err(|_| drop(state.remove(address)))
    }

    /// Blocks every device of the group if it is in `domain`: they may still reach memory there that is about to be used
    /// by others.
    pub(crate) fn block(&self, domain: &Arc<Domain>) {
        let mut state = self.state.lock();
        if state.is_in(domain) {
            state.block_all();
        }
    }

    /// Attaches a device whose attach waited for its driver's first map (Linux: `iommu_deferred_attach`).
    ///
    /// # Errors
    /// What the driver says: the attach is then still deferred.
    #[doc(alias = "iommu_deferred_attach")]
    pub(crate) fn attach_deferred(&self, address: PciAddress) -> Result<(), AttachError> {
        let state = self.state.lock();
        let Some(member) = state.members.iter().find(|member| member.address == address) else {
            return Err(AttachError::Device);
        };
        // (Never while it is reset: the fence ends the deferral.)
        match &state.domain {
            Some(domain) if member.status.is_deferred() => member.attach(domain, None),
            _ => Ok(()),
        }
    }

    /// The domain in which nothing passes: the driver's, or an empty one that stays empty (Linux:
    /// `__iommu_group_alloc_blocking_domain`). A group has it before it is in any other, since blocking must not fail.
    pub(super) fn blocking_domain(&self, state: &mut State) -> Result<Arc<Domain>, GroupError> {
        if let Some(blocking) = &state.blocking {
            return Ok(Arc::clone(blocking));
        }
        let member = state.members.first().ok_or(GroupError::NotReady)?;
        let ops = match member.ops.blocked_domain() {
            Some(ops) => ops,
            None => member.ops.domain_alloc_paging(member.address)?,
        };
        let platform = Arc::clone(&self.platform);
        let blocking = Domain::new(DomainType::Blocked, ops, Arc::clone(&member.ops), platform, None);
        Ok(Arc::clone(state.blocking.insert(Arc::new(blocking))))
    }

    /// Attaches to a domain that must be reached. When that fails the group is blocked, so that no device stays in a domain
    /// that is about to go.
    pub(super) fn set_domain_no_fail(
        &self,
        state: &mut State,
        domain: &Arc<Domain>,
    ) -> Result<(), GroupError> {
        switch(state, domain).inspect_err(|_| state.block_all())
    }
}

impl State {
    /// Whether somebody who owns the group may move it to `domain`.
    fn check_attach(&self, domain: &Arc<Domain>) -> Result<(), GroupError> {
        if self.owners != 0 && self.owner.is_none() {
            return Err(GroupError::Owned);
        }
        let own = self.default_domain.as_ref().is_some_and(|default| Arc::ptr_eq(default, domain));
        match domain.domain_type() {
            _ if own => Ok(()),
            DomainType::Unmanaged | DomainType::Blocked => Ok(()),
            DomainType::Identity => Err(GroupError::NeedsTrust(DomainType::Identity)),
            // Its flush queue blocks the devices of its own group.
            _ => Err(AttachError::Incompatible.into()),
        }
    }

    /// Whether the group is in a domain that nobody has attached it to.
    fn check_free(&self) -> Result<(), GroupError> {
        match &self.domain {
            Some(current) if current.domain_type() == DomainType::Unmanaged => Err(AttachError::Busy.into()),
            _ => Ok(()),
        }
    }

    fn check_singleton(&self, address: PciAddress) -> Result<(), GroupError> {
        match &self.members[..] {
            [only] if only.address == address => Ok(()),
            members if members.iter().any(|member| member.address == address) => {
                Err(GroupError::NotSingleton(address))
            }
            _ => Err(GroupError::NoSuchDevice(address)),
        }
    }

    pub(super) fn block_all(&mut self) {
        let old = self.domain.take();
        for member in &self.members {
            member.block(self.blocking.as_ref(), old.as_ref());
        }
        self.domain = self.blocking.clone();
    }
}

/// Whether the devices may be put into `domain`.
fn check_compatible(members: &[Member], domain: &Domain) -> Result<(), AttachError> {
    if members.iter().any(|member| !Arc::ptr_eq(&member.ops, domain.owner())) {
        return Err(AttachError::Incompatible);
    }
    if domain.domain_type() == DomainType::Blocked && members.iter().any(Member::requires_direct) {
        return Err(AttachError::RequiresDirect);
    }
    Ok(())
}

/// Attaches every device of the group, or none: on failure they go back to where they were (Linux:
/// `__iommu_group_set_domain`).
pub(super) fn set_domain(state: &mut State, domain: &Arc<Domain>) -> Result<(), GroupError> {
    if state.members.iter().any(|member| member.resetting) {
        return Err(AttachError::Busy.into());
    }
    check_compatible(&state.members, domain)?;
    switch(state, domain)
}

/// As [`set_domain`], whatever speaks against it. A device that is being reset stays blocked until that is done.
fn switch(state: &mut State, domain: &Arc<Domain>) -> Result<(), GroupError> {
    if state.is_in(domain) {
        return Ok(());
    }
    let old = state.domain.clone();
    let is_default = state.default_domain.as_ref().is_some_and(|default| Arc::ptr_eq(default, domain));
    // Who runs on tables of the system before stays there until he is used.
    let stays = |member: &Member| member.resetting || is_default && member.status.is_deferred();
    for (index, member) in state.members.iter().enumerate().filter(|(_, member)| !stays(member)) {
        if let Err(error) = member.attach(domain, old.as_deref()) {
            for undone in state.members[..index].iter().filter(|member| !stays(member)) {
                let back = old.as_ref().is_some_and(|old| undone.attach(old, Some(domain)).is_ok());
                if !back {
                    // It must not stay in a domain that nobody keeps.
                    undone.block(state.blocking.as_ref(), Some(domain));
                }
            }
            return Err(error.into());
        }
    }
    state.domain = Some(Arc::clone(domain));
    Ok(())
}

/// Attaches the newest device to the domain that its group is in, whoever's that is.
fn admit(state: &State) -> Result<(), GroupError> {
    let member = state.members.last().ok_or(GroupError::NotReady)?;
    if let Some(default) = &state.default_domain {
        if member.untrusted && default.domain_type() != DomainType::Dma {
            return Err(GroupError::TypeNotAllowed(default.domain_type()));
        }
        if let Some(cookie) = default.cookie() {
            cookie.reserve(member.closed()).map_err(|_| DomainError::Exhausted)?;
        }
        map_direct(default, &member.regions)?;
    }
    let Some(current) = &state.domain else { return Ok(()) };
    check_compatible(core::slice::from_ref(member), current)?;
    let is_default = state.default_domain.as_ref().is_some_and(|default| Arc::ptr_eq(default, current));
    if is_default && member.status.is_deferred() {
        return Ok(());
    }
    Ok(member.attach(current, None)?)
}
