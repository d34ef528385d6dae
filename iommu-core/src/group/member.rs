//! A device of a group.

use alloc::sync::Arc;
use alloc::vec::Vec;

use platform::pci::{PciAddress, RequesterId};
use platform::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use platform::{DmaAddr, trace};

use crate::domain::Domain;
use crate::fault::FaultPort;
use crate::ops::{AttachError, DeviceGroup, IommuOps, Probed};
use crate::pci::HostBridge;
use crate::resv::{ResvRegion, ResvType};

/// What a driver's maps must know of its device.
#[derive(Debug)]
pub(crate) struct Status {
    /// What keeps the driver from mapping: one word, since each map looks at it.
    bits: AtomicU8,
    /// Whether I/O addresses below 4 GiB ran out for this device once, or need not be tried: if not, they come first, since
    /// some devices can do less than they say (Linux: `pci_32bit_workaround`).
    low_is_full: AtomicBool,
}

impl Status {
    const GONE: u8 = 1;
    const DEFERRED: u8 = 2;

    fn new(deferred: bool, forcedac: bool) -> Self {
        Self {
            bits: AtomicU8::new(if deferred { Self::DEFERRED } else { 0 }),
            low_is_full: AtomicBool::new(forcedac),
        }
    }

    /// Nothing does.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.bits.load(Ordering::Relaxed) == 0
    }

    /// The device has been removed.
    pub(crate) fn is_gone(&self) -> bool {
        self.bits.load(Ordering::Relaxed) & Self::GONE != 0
    }

    pub(crate) fn set_gone(&self) {
        self.bits.fetch_or(Self::GONE, Ordering::Relaxed);
    }

    /// The device waits for its driver's first map with being attached.
    pub(crate) fn is_deferred(&self) -> bool {
        self.bits.load(Ordering::Relaxed) & Self::DEFERRED != 0
    }

    #[inline]
    pub(crate) fn is_low_full(&self) -> bool {
        self.low_is_full.load(Ordering::Relaxed)
    }

    pub(crate) fn set_low_full(&self) {
        self.low_is_full.store(true, Ordering::Relaxed);
    }

    fn clear_deferred(&self) {
        self.bits.fetch_and(!Self::DEFERRED, Ordering::Relaxed);
    }
}

/// One device of a group. Only who holds the group's lock moves it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) address: PciAddress,
    pub(crate) ops: Arc<dyn IommuOps>,
    pub(crate) untrusted: bool,
    /// Firmware's aliases.
    pub(crate) aliases: Vec<RequesterId>,
    pub(crate) regions: Vec<ResvRegion>,
    /// What is between its root bus and memory.
    pub(crate) bridge: Arc<HostBridge>,
    /// 0 for a device without PASIDs.
    pub(crate) max_pasids: u32,
    /// See [`Probed`].
    pub(crate) shadow_on_flush: bool,
    pub(crate) grouping: DeviceGroup,
    pub(crate) port: Arc<FaultPort>,
    pub(crate) status: Arc<Status>,
    /// It is being reset, and blocked meanwhile.
    pub(crate) resetting: bool,
}

impl Member {
    /// A device that `ops` has claimed.
    pub(crate) fn new(
        address: PciAddress,
        untrusted: bool,
        ops: Arc<dyn IommuOps>,
        probed: Probed,
        bridge: HostBridge,
        forcedac: bool,
    ) -> Self {
        Self {
            address,
            untrusted,
            aliases: probed.aliases,
            regions: ops.resv_regions(address),
            bridge: Arc::new(bridge),
            max_pasids: probed.max_pasids,
            shadow_on_flush: probed.shadow_on_flush,
            grouping: ops.device_group(address),
            port: Arc::new(FaultPort::new(address, Arc::clone(&ops))),
            status: Arc::new(Status::new(ops.is_attach_deferred(address), forcedac)),
            resetting: false,
            ops,
        }
    }

    /// Whether firmware needs memory of the device at all times (Linux: `require_direct`).
    pub(super) fn requires_direct(&self) -> bool {
        self.regions.iter().any(|region| region.kind == ResvType::Direct)
    }

    /// I/O addresses, first and last, that are not for its maps. Direct regions are mapped to themselves already, relaxable or
    /// not; in a window of software's choice doorbells are put where there is room.
    pub(super) fn closed(&self) -> impl Iterator<Item = (DmaAddr, DmaAddr)> + '_ {
        let regions = self.regions.iter().filter(|region| region.kind != ResvType::SwMsi);
        let ends = |region: &ResvRegion| Some((region.start, region.start.last_of(region.len)?));
        regions.filter_map(ends).chain(self.bridge.closed())
    }

    /// Attaches the device, now: an attach that was deferred is not any more.
    pub(super) fn attach(&self, to: &Arc<Domain>, from: Option<&Domain>) -> Result<(), AttachError> {
        trace::event("attach_device_to_domain", u64::from(self.address.id.get()), 0);
        let from = from.filter(|_| !self.status.is_deferred()).map(|from| &**from.ops());
        // SAFETY: members are moved under the group's lock. An identity domain got here by `Settings`, `set_type_trusted` or
        // the driver, each of which vouches for the device; the group keeps the domain that it is in.
        unsafe { to.ops().attach_dev(self.address, from) }?;
        self.status.clear_deferred();
        self.port.set_domain(0, Some(to));
        Ok(())
    }

    /// Puts a device that goes where its driver wants it (Linux: `release_domain`). What fails here the driver's
    /// `release_device` makes good.
    pub(super) fn release(&self, from: Option<&Domain>) {
        let Some(to) = self.ops.release_domain() else { return };
        // SAFETY: members are moved under the group's lock; the driver vouches for what it has as a release domain.
        let _ = unsafe { to.attach_dev(self.address, from.map(|from| &**from.ops())) };
    }

    /// Puts the device where nothing passes: the last resort. When that fails as well nobody knows what the device reaches,
    /// so the domain that it may be in is never freed.
    pub(super) fn block(&self, blocking: Option<&Arc<Domain>>, from: Option<&Arc<Domain>>) {
        let blocked = blocking.is_some_and(|to| self.attach(to, from.map(|from| &**from)).is_ok());
        if !blocked {
            core::mem::forget(from.cloned());
        }
    }
}
