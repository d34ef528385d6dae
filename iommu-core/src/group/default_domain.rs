//! The domain that a group is in when nobody asks for another: its type, its making, and firmware's mappings in it.

use alloc::sync::Arc;

use platform::PhysAddr;

use super::attach::set_domain;
use super::{Group, GroupError, Member, State};
use crate::cookie::DmaCookie;
use crate::domain::Domain;
use crate::flush_queue::QueueMode;
use crate::ops::{Capability, DomainError, DomainOps, DomainType, PagingFlags};
use crate::resv::{ResvRegion, ResvType};

impl Group {
    /// Changes the type of the default domain (Linux: sysfs `type`), while no driver is bound; from strict to lazy even then,
    /// in place, when somebody says trust. `None` lets drivers and settings choose anew (`auto`).
    ///
    /// # Errors
    /// [`GroupError::NotReady`] without a default domain; [`GroupError::NeedsTrust`] for what takes
    /// [`Group::set_type_trusted`]: an identity domain, and a lazy one while a driver is bound that was promised a strict
    /// one; [`GroupError::Owned`] while the group is in use; [`GroupError::TypeNotAllowed`]; what making or attaching says.
    /// The group is then as it was.
    pub fn set_type(&self, wanted: impl Into<Option<DomainType>>) -> Result<(), GroupError> {
        self.change_type(wanted.into(), false)
    }

    /// As [`Group::set_type`], for any type.
    ///
    /// # Errors
    /// As [`Group::set_type`], but for `NeedsTrust`.
    ///
    /// # Safety
    /// The caller trusts every device of the group, whoever drives it, to touch only memory that it was given, and to stop
    /// before that is given back: an identity domain does not translate at all, and a lazy one leaves memory reachable for a
    /// while after an unmap.
    pub unsafe fn set_type_trusted(&self, wanted: impl Into<Option<DomainType>>) -> Result<(), GroupError> {
        self.change_type(wanted.into(), true)
    }

    fn change_type(&self, wanted: Option<DomainType>, trusted: bool) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        let current = state.default_domain.clone().ok_or(GroupError::NotReady)?;
        // A group that was blocked needs a new domain.
        let in_use = state.is_in(&current);
        if wanted == Some(current.domain_type()) && (in_use || state.owners != 0) {
            return Ok(());
        }
        if in_use && current.domain_type() == DomainType::Dma && wanted == Some(DomainType::DmaFq) {
            if state.owners != 0 && !trusted {
                return Err(GroupError::NeedsTrust(DomainType::DmaFq));
            }
            check_type(&state, DomainType::DmaFq)?;
            return Ok(current.make_lazy()?);
        }
        if state.owners != 0 {
            return Err(GroupError::Owned);
        }
        if wanted == Some(DomainType::Identity) && !trusted {
            return Err(GroupError::NeedsTrust(DomainType::Identity));
        }
        self.setup_default_domain(&mut state, wanted)
    }

    /// Chooses, makes and attaches the default domain (Linux: `iommu_setup_default_domain`).
    ///
    /// # Errors
    /// [`GroupError`] with the reason. The group is then where it was.
    #[doc(alias = "iommu_setup_default_domain")]
    pub(crate) fn setup_default_domain(
        &self,
        state: &mut State,
        wanted: Option<DomainType>,
    ) -> Result<(), GroupError> {
        self.blocking_domain(state)?;
        let domain = make(self, state, wanted)?;
        // Firmware's own DMA goes on while the group moves, so its memory is mapped before.
        let mapped = map_all_direct(state, &domain);
        let (old, before) = (state.default_domain.replace(Arc::clone(&domain)), state.domain.clone());
        // What could not be mapped before may be mapped now that devices are attached: some tables know no page sizes until
        // then.
        let set_up =
            set_domain(state, &domain).and_then(|()| mapped.or_else(|_| map_all_direct(state, &domain)));
        if let Err(error) = set_up {
            state.default_domain = old;
            if let Some(before) = before.filter(|before| !state.is_in(before)) {
                self.set_domain_no_fail(state, &before)?;
            } else if state.is_in(&domain) {
                state.block_all();
                state.domain = None;
            }
            return Err(error);
        }
        if let Some(old) = old
            && let Some(cookie) = old.cookie()
        {
            // The last of it, since its counts end here.
            if old.is_lazy() {
                cookie.queue.drain(&old, &cookie.iovas);
            }
            state.past.add_cookie(cookie);
        }
        Ok(())
    }
}

/// What the drivers of the group's devices, or their being untrusted, insist on.
fn demanded(state: &State) -> Result<Option<DomainType>, GroupError> {
    let mut demanded = None;
    for member in &state.members {
        match (demanded, member.ops.def_domain_type(member.address)) {
            (None, some) => demanded = some,
            (Some(one), Some(other)) if one != other => demanded = Some(DomainType::Identity),
            _ => {}
        }
    }
    if state.members.iter().any(|member| member.untrusted) {
        // A hostile device is translated, whatever its driver would like.
        return match demanded {
            None | Some(DomainType::Dma) => Ok(Some(DomainType::Dma)),
            Some(other) => Err(GroupError::TypeNotAllowed(other)),
        };
    }
    Ok(demanded)
}

/// Whether the group may have a default domain of this type.
fn check_type(state: &State, wanted: DomainType) -> Result<(), GroupError> {
    let allowed = match demanded(state)? {
        None => matches!(wanted, DomainType::Identity | DomainType::Dma | DomainType::DmaFq),
        Some(demanded) => wanted == demanded,
    };
    let deferrable =
        || state.members.iter().all(|member| member.ops.capable(member.address, Capability::DeferredFlush));
    if allowed && (wanted != DomainType::DmaFq || deferrable()) {
        Ok(())
    } else {
        Err(GroupError::TypeNotAllowed(wanted))
    }
}

/// Makes a default domain: of the wanted type, or of the type that drivers and settings choose (Linux:
/// `iommu_get_default_domain_type`, `iommu_group_alloc_default_domain`).
fn make(group: &Group, state: &State, wanted: Option<DomainType>) -> Result<Arc<Domain>, GroupError> {
    if let Some(wanted) = wanted {
        check_type(state, wanted)?;
        return alloc(group, state, wanted);
    }
    if let Some(demanded) = demanded(state)? {
        return alloc(group, state, demanded);
    }
    let chosen = group.settings.default_type();
    // A driver that cannot defer is strict, and one that does not want to until it is asked by name.
    let strict = || state.members.iter().any(|member| member.ops.strict_by_default(member.address));
    let possible = check_type(state, chosen).is_ok() && (chosen != DomainType::DmaFq || !strict());
    let chosen = if possible { chosen } else { DomainType::Dma };
    // What nobody asked for by name falls back.
    match alloc(group, state, chosen) {
        Err(GroupError::Domain(_)) if chosen != DomainType::Dma => alloc(group, state, DomainType::Dma),
        result => result,
    }
}

fn alloc(group: &Group, state: &State, kind: DomainType) -> Result<Arc<Domain>, GroupError> {
    /// Slots for per-CPU state: more threads than this share. A model has two CPUs.
    const CPUS: usize = if cfg!(loom) { 2 } else { 8 };
    let member = state.members.first().ok_or(GroupError::NotReady)?;
    let platform = Arc::clone(&group.platform);
    let owner = Arc::clone(&member.ops);
    match kind {
        DomainType::Identity => {
            let ops = owner.identity_domain().ok_or(DomainError::Unsupported)?;
            Ok(Arc::new(Domain::new(kind, ops, owner, platform, None)))
        }
        DomainType::Dma | DomainType::DmaFq => {
            let ops = alloc_paging(state)?;
            let closed = state.members.iter().flat_map(Member::closed);
            let single = state.members.iter().any(|member| member.shadow_on_flush);
            let mode = if single { QueueMode::Single } else { QueueMode::PerCpu };
            let cookie = DmaCookie::new(&*ops, closed, mode, CPUS).map_err(|_| DomainError::Exhausted)?;
            let domain = Domain::new(DomainType::Dma, ops, owner, platform, Some(cookie));
            if kind == DomainType::DmaFq {
                domain.make_lazy()?;
            }
            Ok(Arc::new(domain))
        }
        other => Err(GroupError::TypeNotAllowed(other)),
    }
}

/// A paging domain whose devices can use PASIDs beside it, if they have any and the driver can do that.
fn alloc_paging(state: &State) -> Result<Arc<dyn DomainOps>, GroupError> {
    let member = state.members.first().ok_or(GroupError::NotReady)?;
    if state.members.iter().any(|member| member.max_pasids != 0) {
        match member.ops.domain_alloc_paging_flags(member.address, PagingFlags::PASID) {
            Err(DomainError::Unsupported) => {}
            result => return Ok(result?),
        }
    }
    Ok(member.ops.domain_alloc_paging(member.address)?)
}

fn map_all_direct(state: &State, domain: &Domain) -> Result<(), GroupError> {
    state.members.iter().try_for_each(|member| map_direct(domain, &member.regions))
}

/// Maps what firmware uses to itself (Linux: `iommu_create_device_direct_mappings`), page by page, skipping what is
/// mapped already.
pub(super) fn map_direct(domain: &Domain, regions: &[ResvRegion]) -> Result<(), GroupError> {
    if !domain.domain_type().is_dma() {
        return Ok(());
    }
    let page = domain.page_sizes().smallest();
    let direct = regions.iter().filter(|r| matches!(r.kind, ResvType::Direct | ResvType::DirectRelaxable));
    for region in direct {
        let Some(last) = region.start.last_of(region.len) else { continue };
        let mut at = region.start.align_down(page);
        while at <= last {
            if domain.iova_to_phys(at).is_none() {
                // SAFETY: the memory is firmware's, for as long as the machine runs; its addresses are reserved.
                let (_, mapped) = unsafe { domain.map(at, PhysAddr::new(at.get()), page, region.prot) };
                mapped.map_err(|_| GroupError::Domain(DomainError::Exhausted))?;
            }
            match at.checked_add(page) {
                Some(next) => at = next,
                None => break,
            }
        }
    }
    Ok(())
}
