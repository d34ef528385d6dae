//! PASIDs that mean the same for every device of the machine (Linux: `iommu_alloc_global_pasid`).

use alloc::collections::BTreeSet;
use alloc::sync::Arc;

use platform::sync::Mutex;

/// Which are taken.
#[derive(Debug, Default)]
pub(crate) struct Pasids(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// The highest that was ever taken; 0 is for requests without one.
    highest: u32,
    /// Those up to it that were given back.
    free: BTreeSet<u32>,
}

/// A PASID that nobody else has, on any device, until it is dropped (Linux: `iommu_free_global_pasid`): for a process whose
/// address space several devices use, or for hardware that takes it from a register of the CPU (`ENQCMD`). Whoever attaches it
/// ([`crate::Group::attach_pasid`]) detaches it before.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
#[doc(alias = "iommu_alloc_global_pasid")]
#[doc(alias = "iommu_free_global_pasid")]
pub struct GlobalPasid {
    pasid: u32,
    pasids: Arc<Pasids>,
}

impl GlobalPasid {
    /// Its number.
    pub fn get(&self) -> u32 {
        self.pasid
    }
}

impl Drop for GlobalPasid {
    fn drop(&mut self) {
        self.pasids.0.lock().free.insert(self.pasid);
    }
}

impl Pasids {
    /// Takes the lowest that is free and below `end`.
    pub(crate) fn take(self: &Arc<Self>, end: u32) -> Option<GlobalPasid> {
        let mut taken = self.0.lock();
        let pasid = match taken.free.first() {
            Some(&pasid) => pasid,
            None => taken.highest.checked_add(1)?,
        };
        if pasid >= end {
            return None;
        }
        taken.free.remove(&pasid);
        taken.highest = taken.highest.max(pasid);
        Some(GlobalPasid { pasid, pasids: Arc::clone(self) })
    }
}
