//! Groups: devices that hardware cannot keep apart share one domain (Linux: `struct iommu_group`).

mod attach;
mod default_domain;
mod member;
mod owner;
mod pasid;
mod reset;
mod show;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dma_api::{Counted, Device, DeviceBuilder, DmaError, Gated, OpsCounters};
use platform::Platform;
use platform::pci::PciAddress;
use platform::sync::Mutex;
use swiotlb::{Swiotlb, SwiotlbDma};

pub(crate) use member::{Member, Status};
pub use owner::Owner;
pub(crate) use owner::Ownership;
pub use reset::ResetFence;

use crate::dma::IommuDma;
use crate::domain::Domain;
use crate::iommu::Statistics;
use crate::ops::{AttachError, Capability, DomainError, DomainType, HwInfo};
use crate::pci::{Reason, Shared, explain, outline};
use crate::resv::{ResvRegion, merged};
use crate::settings::Settings;

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

/// What a group is at the moment (Linux: `owner_cnt`, `owner`, `domain`, `default_domain`, `blocking_domain`, `pasid_array`).
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) members: Vec<Member>,
    /// Why its devices share it: all that ties two functions together.
    reasons: Vec<Reason>,
    name: Option<Box<str>>,
    pub(crate) default_domain: Option<Arc<Domain>>,
    pub(crate) domain: Option<Arc<Domain>>,
    blocking: Option<Arc<Domain>>,
    /// Drivers bound to the default domain, or claims by `owner`.
    owners: usize,
    owner: Option<Owner>,
    pasids: BTreeMap<u32, Arc<Domain>>,
    /// What default domains have counted that were replaced.
    pub(crate) past: Statistics,
}

impl State {
    fn is_in(&self, domain: &Arc<Domain>) -> bool {
        self.domain.as_ref().is_some_and(|current| Arc::ptr_eq(current, domain))
    }

    pub(crate) fn member(&self, address: PciAddress) -> Result<&Member, GroupError> {
        let member = self.members.iter().find(|member| member.address == address);
        member.ok_or(GroupError::NoSuchDevice(address))
    }

    fn member_mut(&mut self, address: PciAddress) -> Result<&mut Member, GroupError> {
        let member = self.members.iter_mut().find(|member| member.address == address);
        member.ok_or(GroupError::NoSuchDevice(address))
    }

    /// Lets a device go: it reaches nothing any more (Linux: `iommu_deinit_device`).
    fn remove(&mut self, address: PciAddress) -> Option<Member> {
        let at = self.members.iter().position(|member| member.address == address)?;
        let member = self.members.remove(at);
        self.reasons.retain(|reason| {
            let (one, other) = reason.ends();
            one != address && other != address
        });
        member.status.set_gone();
        for (&pasid, domain) in &self.pasids {
            member.block_pasid(pasid, domain);
        }
        // Hardware is left alone when it was never told of the device.
        if !member.status.is_deferred() {
            member.release(self.domain.as_deref());
        }
        member.ops.release_device(address);
        Some(member)
    }
}

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
    /// Somebody else has the group, or it is not in its default domain (Linux: `-EBUSY`).
    #[error("the group is in use by another owner")]
    Busy,
    /// The group is bound or claimed already (Linux: `-EPERM`).
    #[error("a driver is bound in the group, or somebody has claimed it")]
    Owned,
    /// In a domain of this type hardware does not confine devices in full; somebody must say that he trusts them.
    #[error("in a domain of type {0} a device is not confined in full: that takes trust in it")]
    NeedsTrust(DomainType),
    /// The device shares its group (Linux: `-EINVAL`).
    #[error("{0} shares its group with other devices")]
    NotSingleton(PciAddress),
    /// The domain is not the one that is attached (Linux: a warning, or `-EINVAL`).
    #[error("no such domain is attached")]
    NotAttached,
    /// A device of the group cannot send this PASID (Linux: `-EINVAL`).
    #[error("PASID {0} is not possible for the group")]
    InvalidPasid(u32),
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

impl Drop for Group {
    /// Takes its devices off domains that go with it.
    fn drop(&mut self) {
        let state = self.state.lock();
        for member in state.members.iter().filter(|member| !member.status.is_deferred()) {
            state.pasids.iter().for_each(|(&pasid, domain)| member.block_pasid(pasid, domain));
            if let Some(domain) = &state.domain {
                member.block(state.blocking.as_ref(), Some(domain));
            }
        }
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

    /// The name that somebody gave it (Linux: sysfs `name`).
    pub fn name(&self) -> Option<Box<str>> {
        self.state.lock().name.clone()
    }

    /// Names it (Linux: `iommu_group_set_name`).
    #[doc(alias = "iommu_group_set_name")]
    pub fn set_name(&self, name: &str) {
        self.state.lock().name = Some(name.into());
    }

    /// For each pair of its devices why they share it, in words for people ([`Shared`] can be printed).
    pub fn explain(&self) -> Vec<Shared> {
        let (devices, reasons) = self.ties();
        explain(&devices, &reasons)
    }

    /// The same in short: as few reasons as tie all its devices together. Nothing for a device that is alone.
    pub fn outline(&self) -> Vec<Reason> {
        let (devices, reasons) = self.ties();
        outline(&devices, &reasons)
    }

    fn ties(&self) -> (Vec<PciAddress>, Vec<Reason>) {
        let state = self.state.lock();
        let mut devices: Vec<_> = state.members.iter().map(|member| member.address).collect();
        devices.sort();
        (devices, state.reasons.clone())
    }

    /// Notes what ties devices of it together, as far as it does not know it.
    pub(crate) fn learn(&self, reasons: Vec<Reason>) {
        let mut state = self.state.lock();
        for reason in reasons {
            if !state.reasons.contains(&reason) {
                state.reasons.push(reason);
            }
        }
    }

    /// The reserved regions of its devices, in order of their addresses, those of one type that touch or overlap as one
    /// (Linux: `iommu_get_group_resv_regions`, sysfs `reserved_regions`).
    #[doc(alias = "iommu_get_group_resv_regions")]
    pub fn resv_regions(&self) -> Vec<ResvRegion> {
        let state = self.state.lock();
        merged(state.members.iter().flat_map(|member| member.regions.iter().copied()))
    }

    /// Whether the IOMMU of one of its devices can do something (Linux: `device_iommu_capable`).
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`].
    #[doc(alias = "device_iommu_capable")]
    pub fn capable(&self, address: PciAddress, capability: Capability) -> Result<bool, GroupError> {
        let ops = Arc::clone(&self.state.lock().member(address)?.ops);
        Ok(ops.capable(address, capability))
    }

    /// What the IOMMU of one of its devices lets user space know (Linux: `IOMMU_GET_HW_INFO`).
    ///
    /// # Errors
    /// [`GroupError::NoSuchDevice`].
    pub fn hw_info(&self, address: PciAddress) -> Result<Option<HwInfo>, GroupError> {
        let ops = Arc::clone(&self.state.lock().member(address)?.ops);
        Ok(ops.hw_info(address))
    }

    /// Lets a device go. Its driver's maps are answered with `Gone` from now on, and it reaches nothing.
    pub(crate) fn remove(&self, address: PciAddress) {
        let removed = self.state.lock().remove(address);
        // Not under the lock: it may be the last to have its driver.
        drop(removed);
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
            .behind_bus(member.bridge.dma_ranges.clone(), member.bridge.dma_limit)
            .faults(Arc::clone(&member.port.queue));
        let platform = Arc::clone(&self.platform);
        let bounce = self.bounce.clone();
        Ok(match domain.cookie().cloned() {
            Some(cookie) => {
                let ops = IommuDma::new(domain, cookie, bounce, member.status, ownership);
                builder.build(Arc::new(ops), platform)
            }
            None => {
                // SAFETY: only `bind_trusted` comes here, whose caller has said that he trusts device and driver.
                let ops = unsafe { SwiotlbDma::new(Arc::clone(&platform), bounce, ()) };
                let gate = move || check_usable(&member.status, &ownership);
                let ops = Counted::new(Gated::new(ops, gate), Arc::clone(&self.untranslated));
                builder.build(Arc::new(ops), platform)
            }
        })
    }
}

/// Whether a bound device may map: it is still there, and attached, by this if that was deferred.
#[inline]
pub(crate) fn check_usable(status: &Status, ownership: &Ownership) -> Result<(), DmaError> {
    if status.is_plain() { Ok(()) } else { make_usable(status, ownership) }
}

#[cold]
fn make_usable(status: &Status, ownership: &Ownership) -> Result<(), DmaError> {
    if status.is_gone() {
        return Err(DmaError::Gone);
    }
    ownership.attach_deferred().map_err(|error| match error {
        AttachError::Exhausted => DmaError::OutOfMemory,
        _ => DmaError::NotAttached,
    })
}
