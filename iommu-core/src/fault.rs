//! Faults as values, and their way to who wants to know.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use dma_api::{DeviceFault, FaultQueue};
use platform::DmaAddr;
use platform::pci::PciAddress;
use platform::sync::Mutex;

use crate::domain::Domain;
use crate::iopf::Partial;
use crate::ops::IommuOps;

bitflags::bitflags! {
    /// What an IOMMU says of a refused request.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct FaultFlags: u32 {
        /// The device wanted to write; else to read (`IOMMU_FAULT_WRITE`).
        const WRITE = 1 << 0;
        /// There was a translation.
        const PRESENT = 1 << 1;
        /// It does not allow this access.
        const PERMISSION = 1 << 2;
        /// An entry of a table was not as it must be.
        const RESERVED = 1 << 3;
        /// The request was an interrupt.
        const INTERRUPT = 1 << 4;
        /// The device asked for a translation.
        const TRANSLATION = 1 << 5;
    }
}

/// What kind of fault it was.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// A request that no translation allows.
    Page,
    /// The IOMMU's entry for the device was not as it must be.
    DeviceEntry,
    /// The IOMMU could not read its tables.
    Hardware,
    /// A request of a kind that the device may not send.
    Request,
}

/// One refused request of a device (Linux: `report_iommu_fault`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// Whose requester ID it carried.
    pub requester: PciAddress,
    /// The address space of a process that it named, if any.
    pub pasid: Option<u32>,
    /// The I/O address.
    pub address: DmaAddr,
    /// The domain identifier that the IOMMU had for it.
    pub domain: u32,
    /// Read or write, and what was wrong.
    pub flags: FaultFlags,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FaultKind::Page => "page fault",
            FaultKind::DeviceEntry => "illegal device entry",
            FaultKind::Hardware => "hardware error",
            FaultKind::Request => "invalid request",
        };
        let what = if self.flags.contains(FaultFlags::WRITE) { "write" } else { "read" };
        write!(f, "{kind}: {what} of {} at {} in domain {}", self.requester, self.address, self.domain)?;
        let rest = self.flags - FaultFlags::WRITE;
        if !rest.is_empty() {
            f.write_str(", ")?;
            bitflags::parser::to_writer(&rest, f)?;
        } else if self.kind == FaultKind::Page {
            f.write_str(", not mapped")?;
        }
        Ok(())
    }
}

/// Who wants to hear of the faults of a domain first (Linux: `iommu_fault_handler_t`).
pub trait FaultHandler: Send + Sync + fmt::Debug {
    /// Takes a fault of a device in the domain, without a lock held. `true` when that was all that there is to do; else it
    /// goes on to the program's log and to the device's driver.
    fn handle(&self, fault: &Fault) -> bool;
}

/// Where a device's faults and page requests go. The group's lock is not needed to find it: an attach may hold that for long.
#[derive(Debug)]
pub(crate) struct FaultPort {
    pub(crate) address: PciAddress,
    pub(crate) ops: Arc<dyn IommuOps>,
    /// The device's driver's.
    pub(crate) queue: Arc<FaultQueue>,
    /// The domains that the device is in, by PASID; 0 is for requests without one.
    domains: Mutex<BTreeMap<u32, Weak<Domain>>>,
    pub(crate) partial: Partial,
}

impl FaultPort {
    pub(crate) fn new(address: PciAddress, ops: Arc<dyn IommuOps>) -> Self {
        let (queue, domains, partial) = (Arc::new(FaultQueue::new()), Mutex::default(), Partial::default());
        Self { address, ops, queue, domains, partial }
    }

    /// Says where the device is now.
    pub(crate) fn set_domain(&self, pasid: u32, domain: Option<&Arc<Domain>>) {
        let mut domains = self.domains.lock();
        match domain {
            Some(domain) => domains.insert(pasid, Arc::downgrade(domain)),
            None => domains.remove(&pasid),
        };
    }

    pub(crate) fn domain(&self, pasid: Option<u32>) -> Option<Arc<Domain>> {
        self.domains.lock().get(&pasid.unwrap_or(0))?.upgrade()
    }
}

/// Which devices a requester ID may stand for: a device's own, and those that others have as an alias.
#[derive(Debug, Default)]
pub(crate) struct FaultRoutes(Mutex<BTreeMap<PciAddress, Vec<Arc<FaultPort>>>>);

impl FaultRoutes {
    pub(crate) fn add(&self, requester: PciAddress, port: &Arc<FaultPort>) {
        self.0.lock().entry(requester).or_default().push(Arc::clone(port));
    }

    /// Forgets a device under all its names.
    pub(crate) fn remove(&self, device: PciAddress) {
        self.0.lock().retain(|_, ports| {
            ports.retain(|port| port.address != device);
            !ports.is_empty()
        });
    }

    pub(crate) fn of(&self, requester: PciAddress) -> Vec<Arc<FaultPort>> {
        self.0.lock().get(&requester).cloned().unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<Arc<FaultPort>> {
        self.0.lock().values().flatten().cloned().collect()
    }
}

impl Fault {
    /// What the device's driver hears of it.
    pub(crate) fn for_driver(&self) -> DeviceFault {
        DeviceFault { address: self.address, write: self.flags.contains(FaultFlags::WRITE) }
    }
}

/// The program's faults: the newest that fit, and counts.
#[derive(Debug, Default)]
pub(crate) struct FaultLog {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    faults: VecDeque<Fault>,
    total: u64,
    lost: u64,
}

impl FaultLog {
    const CAPACITY: usize = 1024;

    /// Counts a fault that somebody has dealt with.
    pub(crate) fn count(&self) {
        self.inner.lock().total += 1;
    }

    pub(crate) fn push(&self, fault: Fault) {
        let mut inner = self.inner.lock();
        inner.total += 1;
        if inner.faults.len() == Self::CAPACITY {
            inner.faults.pop_front();
            inner.lost += 1;
        }
        inner.faults.push_back(fault);
    }

    pub(crate) fn take(&self) -> impl Iterator<Item = Fault> + use<> {
        core::mem::take(&mut self.inner.lock().faults).into_iter()
    }

    /// How many there were, and how many of them nobody took in time.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.total, inner.lost)
    }
}
