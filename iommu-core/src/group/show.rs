//! What Linux's sysfs and debugfs tell of a group, as text.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::Group;
use crate::ops::DomainType;

impl fmt::Display for Group {
    /// Its number, name and type; where it is now, if that is not its default domain; its devices, each with its driver; and
    /// its reserved regions (Linux: `/sys/kernel/iommu_groups/N`, `debugfs/iommu`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |kind: Option<DomainType>| kind.map_or("unknown".into(), |kind| kind.to_string());
        let (default, domain) = (self.default_domain(), self.domain());
        write!(f, "group {}", self.id())?;
        if let Some(name) = self.name() {
            write!(f, " {name:?}")?;
        }
        write!(f, ": {}", kind(self.domain_type()))?;
        if domain.as_ref().map(Arc::as_ptr) != default.as_ref().map(Arc::as_ptr) {
            write!(f, ", now {}", kind(domain.map(|domain| domain.domain_type())))?;
        }
        let devices: Vec<_> = {
            let state = self.state.lock();
            state.members.iter().map(|member| (member.address, Arc::clone(&member.ops))).collect()
        };
        for (address, ops) in devices {
            write!(f, "\n  {address} behind {}", ops.name())?;
        }
        self.resv_regions().iter().try_for_each(|region| write!(f, "\n  {region}"))
    }
}
