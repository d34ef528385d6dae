//! Groups: devices that hardware cannot keep apart share one domain (Linux: `struct iommu_group`).

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dma_api::{Counted, Device, DeviceBuilder, FaultQueue, OpsCounters};
use platform::Platform;
use platform::pci::{PciAddress, RequesterId};
use platform::sync::Mutex;
use platform::sync::atomic::AtomicBool;
use swiotlb::{Swiotlb, SwiotlbDma};

use crate::default_domain::{self, Settings};
use crate::dma::IommuDma;
use crate::domain::Domain;
use crate::ops::{AttachError, Capability, DomainError, DomainType, IommuOps, ResvRegion, ResvType};
use crate::pci::Reason;

/// A group.
#[derive(Debug)]
pub struct Group {
    id: u32,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) settings: Settings,
    pub(crate) bounce: Option<Arc<Swiotlb>>,
    /// What drivers do while the group is in an identity domain, which counts nothing itself.
    pub(crate) untranslated: Arc<OpsCounters>,
    pub(crate) state: Mutex<State>,
}

/// One device of a group.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) address: PciAddress,
    pub(crate) ops: Arc<dyn IommuOps>,
    pub(crate) untrusted: bool,
    /// Firmware's aliases.
    pub(crate) aliases: Vec<RequesterId>,
    pub(crate) regions: Vec<ResvRegion>,
    pub(crate) faults: Arc<FaultQueue>,
    pub(crate) gone: Arc<AtomicBool>,
}

impl Member {
    fn requires_direct(&self) -> bool {
        self.regions.iter().any(|region| region.kind == ResvType::Direct)
    }

    fn attach(&self, to: &Domain, from: Option<&Domain>) -> Result<(), AttachError> {
        to.ops().attach_dev(self.address, from.map(|from| &**from.ops()))
    }

    /// Puts the device where nothing passes: the last resort, so what fails here fails silently.
    fn block(&self, from: Option<&Domain>) {
        let _ = self.ops.blocked_domain().attach_dev(self.address, from.map(|from| &**from.ops()));
    }
}

/// What a group is at the moment (Linux: `owner_cnt`, `owner`, `domain`, `default_domain`).
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) members: Vec<Member>,
    /// Why its devices share it.
    reasons: Vec<Reason>,
    pub(crate) default_domain: Option<Arc<Domain>>,
    pub(crate) domain: Option<Arc<Domain>>,
    /// Drivers bound to the default domain, or claims by `owner`.
    owners: usize,
    owner: Option<Owner>,
}

impl State {
    fn is_in(&self, domain: &Arc<Domain>) -> bool {
        self.domain.as_ref().is_some_and(|current| Arc::ptr_eq(current, domain))
    }
}

/// Who claims a group for itself: user space, mostly. Only who knows the value that a group was claimed with can release it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(pub u64);

/// Why a device was not bound, or a group not claimed or changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The group has no such device.
    #[error("{0} is not in the group")]
    NoSuchDevice(PciAddress),
    /// The group has no default domain yet (Linux: `-EPROBE_DEFER`).
    #[error("the group has no default domain yet")]
    NotReady,
    /// Somebody else has the group (Linux: `-EBUSY`).
    #[error("the group is in use by another owner")]
    Busy,
    /// The group is bound or claimed already (Linux: `-EPERM`).
    #[error("a driver is bound in the group, or somebody has claimed it")]
    Owned,
    /// In this domain hardware does not confine the device in full; whoever binds it must say that he trusts it.
    #[error("the default domain is {0}: the device is not confined in full, so binding it takes trust")]
    NeedsTrust(DomainType),
    /// The driver or firmware does not allow this type (Linux: `-EINVAL`).
    #[error("a default domain of type {0} is not possible for the group")]
    TypeNotAllowed(DomainType),
    /// A domain could not be made.
    #[error("{0}")]
    Domain(#[from] DomainError),
    /// A device could not be attached.
    #[error("{0}")]
    Attach(#[from] AttachError),
}

/// A driver's claim on its group's default domain, from bind to drop (Linux: `iommu_device_use_default_domain`,
/// `iommu_device_unuse_default_domain`).
#[derive(Debug)]
pub(crate) struct Ownership(Arc<Group>);

impl Ownership {
    /// As [`Group::block`].
    pub(crate) fn block(&self, domain: &Arc<Domain>) {
        self.0.block(domain);
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.owners = state.owners.saturating_sub(1);
    }
}

impl Group {
    pub(crate) fn new(
        id: u32,
        platform: Arc<dyn Platform>,
        settings: Settings,
        bounce: Option<Arc<Swiotlb>>,
        members: Vec<Member>,
        reasons: Vec<Reason>,
    ) -> Self {
        let state = Mutex::new(State { members, reasons, ..State::default() });
        Self { id, platform, settings, bounce, untranslated: Arc::default(), state }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether all its devices are gone, and whoever had them bound or claimed as well.
    pub(crate) fn is_abandoned(&self) -> bool {
        let state = self.state.lock();
        state.members.is_empty() && state.owners == 0
    }

    /// Its devices.
    pub fn devices(&self) -> Vec<PciAddress> {
        self.state.lock().members.iter().map(|member| member.address).collect()
    }

    /// Why its devices share it: a reason for each but the first.
    pub fn explain(&self) -> Vec<Reason> {
        self.state.lock().reasons.clone()
    }

    /// The domain that it is in now.
    pub fn domain(&self) -> Option<Arc<Domain>> {
        self.state.lock().domain.clone()
    }

    /// The domain that it is in when nobody asks for another.
    pub fn default_domain(&self) -> Option<Arc<Domain>> {
        self.state.lock().default_domain.clone()
    }

    /// The type of its default domain (Linux: sysfs `type`).
    pub fn domain_type(&self) -> Option<DomainType> {
        self.default_domain().map(|domain| domain.domain_type())
    }

    /// Binds a driver to a device whose default domain confines it in full: translated and strict. The device counts as
    /// untrusted, whatever was said when it was probed, so a page that it would share with something else is never mapped:
    /// the part of it that is the device's is bounced. Dropping the `Device` (and what was made with it) gives the device
    /// back.
    ///
    /// # Errors
    /// [`GroupError::NeedsTrust`] in a lazy or an identity domain; [`GroupError::NoSuchDevice`], [`GroupError::NotReady`],
    /// [`GroupError::Busy`].
    #[doc(alias = "iommu_device_use_default_domain")]
    pub fn bind(self: &Arc<Self>, address: PciAddress) -> Result<Device, GroupError> {
        self.bind_device(address, false)
    }

    /// Binds a driver to a device whatever its default domain. Only here can a device that was not called untrusted at the
    /// probe have pages that it shares with something else.
    ///
    /// # Errors
    /// As [`Group::bind`], but for `NeedsTrust`.
    ///
    /// # Safety
    /// The caller trusts the device and its driver to touch only memory that they were given, and to stop before it is
    /// given back: an identity domain does not translate at all, a lazy one leaves memory reachable for a while after an
    /// unmap, and any leaves what shares a page with a buffer.
    pub unsafe fn bind_trusted(self: &Arc<Self>, address: PciAddress) -> Result<Device, GroupError> {
        self.bind_device(address, true)
    }

    fn bind_device(self: &Arc<Self>, address: PciAddress, trusted: bool) -> Result<Device, GroupError> {
        let (member, domain, ownership) = self.use_default_domain(address, trusted)?;
        let builder = DeviceBuilder::new(Box::<str>::from(address.to_string()))
            // Hardware confines to whole pages: the rest is bounced, unless somebody trusts the device.
            .untrusted(member.untrusted || !trusted)
            .coherent(member.ops.capable(address, Capability::CacheCoherency))
            .faults(Arc::clone(&member.faults));
        let platform = Arc::clone(&self.platform);
        let bounce = self.bounce.clone();
        Ok(match domain.cookie().cloned() {
            Some(cookie) => {
                let low_first = !self.settings.forcedac;
                let ops = IommuDma::new(domain, cookie, bounce, low_first, member.gone, ownership);
                builder.build(Arc::new(ops), platform)
            }
            None => {
                // SAFETY: only `bind_trusted` comes here, whose caller has said that he trusts device and driver.
                let ops = unsafe { SwiotlbDma::new(Arc::clone(&platform), bounce, ownership) };
                let ops = Counted::new(ops, Arc::clone(&self.untranslated));
                builder.build(Arc::new(ops), platform)
            }
        })
    }

    fn use_default_domain(
        self: &Arc<Self>,
        address: PciAddress,
        trusted: bool,
    ) -> Result<(Member, Arc<Domain>, Ownership), GroupError> {
        let mut state = self.state.lock();
        let member = state.members.iter().find(|member| member.address == address);
        let member = member.cloned().ok_or(GroupError::NoSuchDevice(address))?;
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
        state.owners += 1;
        Ok((member, domain, Ownership(Arc::clone(self))))
    }

    /// Claims the group for an owner of its own; until it attaches a domain all DMA of the group is blocked.
    ///
    /// # Errors
    /// [`GroupError::Owned`] when a driver is bound or another owner has it; [`GroupError::Busy`] when the group is not in
    /// its default domain; [`GroupError::Attach`], with [`AttachError::RequiresDirect`] when firmware needs memory of a
    /// device, which therefore cannot be blocked.
    #[doc(alias = "iommu_group_claim_dma_owner")]
    pub fn claim_dma_owner(&self, owner: Owner) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        if state.owners != 0 {
            return Err(GroupError::Owned);
        }
        let default = state.default_domain.clone().ok_or(GroupError::NotReady)?;
        if !state.is_in(&default) {
            return Err(GroupError::Busy);
        }
        let blocked = self.blocked_domain(&state)?;
        set_domain(&mut state, &blocked)?;
        state.owners = 1;
        state.owner = Some(owner);
        Ok(())
    }

    /// Ends an owner's claim; the group goes back to its default domain.
    ///
    /// # Errors
    /// [`GroupError::Owned`] when `owner` does not have it; [`GroupError::Attach`] when hardware fails: the group is then
    /// blocked.
    #[doc(alias = "iommu_group_release_dma_owner")]
    pub fn release_dma_owner(&self, owner: Owner) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        if state.owner != Some(owner) {
            return Err(GroupError::Owned);
        }
        state.owner = None;
        state.owners = 0;
        let default = state.default_domain.clone().ok_or(GroupError::NotReady)?;
        self.set_domain_no_fail(&mut state, &default)
    }

    /// Makes an empty domain that its owner alone maps (Linux: `iommu_paging_domain_alloc`).
    ///
    /// # Errors
    /// [`GroupError::Domain`].
    #[doc(alias = "iommu_paging_domain_alloc")]
    pub fn alloc_unmanaged(&self) -> Result<Arc<Domain>, GroupError> {
        let state = self.state.lock();
        let member = state.members.first().ok_or(GroupError::NotReady)?;
        let ops = member.ops.domain_alloc_paging(member.address)?;
        let platform = Arc::clone(&self.platform);
        Ok(Arc::new(Domain::new(DomainType::Unmanaged, ops, Arc::clone(&member.ops), platform, None)))
    }

    /// Attaches the whole group to a domain. Whoever calls owns the group: see [`Group::claim_dma_owner`].
    ///
    /// # Errors
    /// [`GroupError::Owned`] while a driver is bound, whose mappings would lead nowhere (Linux leaves that to the caller);
    /// [`AttachError::Busy`] when the group is in a domain that is neither its default nor the blocking one;
    /// [`AttachError::Incompatible`] when the domain is another driver's; [`AttachError::RequiresDirect`]; what the driver
    /// says. On failure every device is where it was.
    #[doc(alias = "iommu_attach_group")]
    pub fn attach(&self, domain: &Arc<Domain>) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        if state.owners != 0 && state.owner.is_none() {
            return Err(GroupError::Owned);
        }
        let free = match (&state.domain, &state.default_domain) {
            (None, _) => true,
            (Some(current), Some(default)) if Arc::ptr_eq(current, default) => true,
            (Some(current), _) => current.domain_type() == DomainType::Blocked,
        };
        if !free {
            return Err(AttachError::Busy.into());
        }
        set_domain(&mut state, domain)
    }

    /// Takes the group off its domain: back to the default one, or to the blocking one while somebody owns it.
    ///
    /// # Errors
    /// [`GroupError::Attach`] when hardware fails: the group is then blocked.
    #[doc(alias = "iommu_detach_group")]
    pub fn detach(&self) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        let next = match state.owner {
            Some(_) => self.blocked_domain(&state)?,
            None => state.default_domain.clone().ok_or(GroupError::NotReady)?,
        };
        self.set_domain_no_fail(&mut state, &next)
    }

    /// Changes the type of the default domain (Linux: sysfs `type`), while no driver is bound. (Linux allows strict to lazy
    /// even then; here a driver that was bound without trust would lose what it was promised.)
    ///
    /// # Errors
    /// [`GroupError::Owned`] while the group is in use; [`GroupError::TypeNotAllowed`]; what making or attaching says.
    pub fn set_type(&self, wanted: DomainType) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        let current = state.default_domain.clone().ok_or(GroupError::NotReady)?;
        if current.domain_type() == wanted {
            return Ok(());
        }
        if state.owners != 0 {
            return Err(GroupError::Owned);
        }
        // A group that was blocked needs a new domain.
        let in_use = state.is_in(&current);
        if in_use && current.domain_type() == DomainType::Dma && wanted == DomainType::DmaFq {
            default_domain::check_type(&state, wanted)?;
            current.make_lazy();
            return Ok(());
        }
        self.setup_default_domain(&mut state, Some(wanted))
    }

    /// Chooses, makes and attaches the default domain (Linux: `iommu_setup_default_domain`).
    pub(crate) fn setup_default_domain(
        &self,
        state: &mut State,
        wanted: Option<DomainType>,
    ) -> Result<(), GroupError> {
        let domain = default_domain::make(self, state, wanted)?;
        // Firmware's own DMA goes on while the group moves, so its memory is mapped before.
        for member in &state.members {
            default_domain::map_direct(&domain, &member.regions)?;
        }
        set_domain(state, &domain)?;
        state.default_domain = Some(domain);
        Ok(())
    }

    /// Takes a device that came later into the group: it goes to the domain that the group is in.
    ///
    /// # Errors
    /// [`GroupError`] with the reason; the device is then in the group, and blocked.
    pub(crate) fn join(&self, member: Member, reason: Option<Reason>) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.reasons.extend(reason);
        state.members.push(member.clone());
        if state.default_domain.is_none() {
            return self.setup_default_domain(&mut state, None);
        }
        admit(&state, &member).inspect_err(|_| member.block(None))
    }

    /// Blocks every device of the group if it is in `domain`: they may still reach memory there that is about to be used
    /// by others.
    pub(crate) fn block(&self, domain: &Arc<Domain>) {
        let mut state = self.state.lock();
        if state.is_in(domain) {
            self.block_all(&mut state);
        }
    }

    fn block_all(&self, state: &mut State) {
        let old = state.domain.take();
        for member in &state.members {
            member.block(old.as_deref());
        }
        state.domain = self.blocked_domain(state).ok();
    }

    fn blocked_domain(&self, state: &State) -> Result<Arc<Domain>, GroupError> {
        let member = state.members.first().ok_or(GroupError::NotReady)?;
        let ops = member.ops.blocked_domain();
        let platform = Arc::clone(&self.platform);
        Ok(Arc::new(Domain::new(DomainType::Blocked, ops, Arc::clone(&member.ops), platform, None)))
    }

    /// Attaches to a domain that must be reached. When that fails the group is blocked, so that no device stays in a domain
    /// that is about to go.
    fn set_domain_no_fail(&self, state: &mut State, domain: &Arc<Domain>) -> Result<(), GroupError> {
        set_domain(state, domain).inspect_err(|_| self.block_all(state))
    }
}

/// Attaches every device of the group, or none: on failure they go back to where they were.
fn set_domain(state: &mut State, domain: &Arc<Domain>) -> Result<(), GroupError> {
    if state.is_in(domain) {
        return Ok(());
    }
    if state.members.iter().any(|member| !Arc::ptr_eq(&member.ops, domain.owner())) {
        return Err(AttachError::Incompatible.into());
    }
    if domain.domain_type() == DomainType::Blocked && state.members.iter().any(Member::requires_direct) {
        return Err(AttachError::RequiresDirect.into());
    }
    let old = state.domain.clone();
    for (index, member) in state.members.iter().enumerate() {
        if let Err(error) = member.attach(domain, old.as_deref()) {
            for undone in &state.members[..index] {
                let back = old.as_ref().is_some_and(|old| undone.attach(old, Some(domain)).is_ok());
                if !back {
                    // It must not stay in a domain that nobody keeps.
                    undone.block(Some(domain));
                }
            }
            return Err(error.into());
        }
    }
    state.domain = Some(Arc::clone(domain));
    Ok(())
}

/// Attaches a device that came later to the domain that its group is in.
fn admit(state: &State, member: &Member) -> Result<(), GroupError> {
    if let Some(default) = &state.default_domain {
        if member.untrusted && default.domain_type() != DomainType::Dma {
            return Err(GroupError::TypeNotAllowed(default.domain_type()));
        }
        if let Some(cookie) = default.cookie() {
            cookie.reserve(&member.regions).map_err(|_| DomainError::Exhausted)?;
        }
        default_domain::map_direct(default, &member.regions)?;
    }
    let Some(current) = &state.domain else { return Ok(()) };
    if !Arc::ptr_eq(&member.ops, current.owner()) {
        return Err(AttachError::Incompatible.into());
    }
    if current.domain_type() == DomainType::Blocked && member.requires_direct() {
        return Err(AttachError::RequiresDirect.into());
    }
    Ok(member.attach(current, None)?)
}
