//! The domain that a group is in when nobody asks for another: its type, its making, and firmware's mappings in it.

use alloc::sync::Arc;

use platform::PhysAddr;

use crate::cookie::DmaCookie;
use crate::domain::Domain;
use crate::group::{Group, GroupError, State};
use crate::ops::{Capability, DomainError, DomainType, ResvRegion, ResvType};

/// What an administrator decides (Linux: kernel parameters).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Devices are not translated unless they must be (`iommu.passthrough=1`).
    pub passthrough: bool,
    /// Unmaps may leave their invalidation to a flush queue (`iommu.strict=0`).
    pub lazy: bool,
    /// Devices get addresses above 4 GiB at once (`iommu.forcedac=1`).
    pub forcedac: bool,
}

impl Settings {
    fn default_type(self) -> DomainType {
        match (self.passthrough, self.lazy) {
            (true, _) => DomainType::Identity,
            (false, true) => DomainType::DmaFq,
            (false, false) => DomainType::Dma,
        }
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
pub(crate) fn check_type(state: &State, wanted: DomainType) -> Result<(), GroupError> {
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
pub(crate) fn make(
    group: &Group,
    state: &State,
    wanted: Option<DomainType>,
) -> Result<Arc<Domain>, GroupError> {
    if let Some(wanted) = wanted {
        check_type(state, wanted)?;
        return alloc(group, state, wanted);
    }
    if let Some(demanded) = demanded(state)? {
        return alloc(group, state, demanded);
    }
    let chosen = group.settings.default_type();
    // A driver that cannot defer is strict.
    let chosen = if check_type(state, chosen).is_ok() { chosen } else { DomainType::Dma };
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
            let ops = owner.domain_alloc_paging(member.address)?;
            let regions: alloc::vec::Vec<_> =
                state.members.iter().flat_map(|member| member.regions.iter().copied()).collect();
            let cookie = DmaCookie::new(&*ops, &regions, CPUS).map_err(|_| DomainError::Exhausted)?;
            Ok(Arc::new(Domain::new(kind, ops, owner, platform, Some(cookie))))
        }
        other => Err(GroupError::TypeNotAllowed(other)),
    }
}

/// Maps what firmware uses to itself (Linux: `iommu_create_device_direct_mappings`), page by page, skipping what is
/// mapped already.
pub(crate) fn map_direct(domain: &Domain, regions: &[ResvRegion]) -> Result<(), GroupError> {
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
