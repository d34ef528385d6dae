//! Message interrupts without a processor: a device's message is a write to memory, so it is sent to a page of the machine's
//! RAM, and whoever waits looks there.
//!
//! The page is at the same address for every device: it is mapped to itself in every domain of the DMA API, as Linux maps
//! the doorbell of an interrupt controller whose messages are translated (`IOMMU_RESV_SW_MSI`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use iommu_core::{
    Capability, DeviceGroup, DomainError, DomainOps, DomainType, HwInfo, IommuOps, PageResponse, PagingFlags,
    ProbeError, Probed, ResvRegion, ResvType,
};
use platform::frames::FRAME_SIZE;
use platform::pci::{Interrupt, PciAddress};
use platform::sync::Mutex;
use platform::time::poll_until;
use platform::{Clock, DmaAddr, FrameRequest, Frames, Instant, OutOfFrames, PhysAddr, Prot, TimedOut};

use crate::platform::QemuPlatform;

/// A message is 32 bits, and none shares a word with another.
const SLOT: u64 = 8;
const SLOTS: usize = FRAME_SIZE / SLOT as usize;
/// What a message writes.
const DATA: u32 = 1;

/// The page that messages go to. It is never given back: it stays mapped as long as there are domains.
pub(crate) struct MessagePage {
    platform: Arc<QemuPlatform>,
    at: PhysAddr,
    /// Which slots are somebody's.
    taken: Mutex<[bool; SLOTS]>,
}

impl MessagePage {
    pub(crate) fn new(platform: &Arc<QemuPlatform>) -> Result<Arc<Self>, OutOfFrames> {
        // Every device reaches 32 bits.
        let request = FrameRequest { limit: PhysAddr::new(u32::MAX.into()), ..FrameRequest::ONE };
        let at = platform.alloc(request)?;
        Ok(Arc::new(Self { platform: Arc::clone(platform), at, taken: Mutex::new([false; SLOTS]) }))
    }

    /// Where devices write, as their domains must have it.
    pub(crate) fn region(&self) -> ResvRegion {
        ResvRegion {
            start: DmaAddr::new(self.at.get()),
            len: FRAME_SIZE as u64,
            kind: ResvType::DirectRelaxable,
            prot: Prot::WRITE,
        }
    }

    /// A message of one's own, if there is one left.
    pub(crate) fn allocate(self: &Arc<Self>) -> Option<Message> {
        let mut taken = self.taken.lock();
        let slot = taken.iter().position(|taken| !taken)?;
        taken[slot] = true;
        drop(taken);
        let message = Message { page: Arc::clone(self), slot };
        // What came after its last owner had gone.
        message.take();
        Some(message)
    }
}

impl fmt::Debug for MessagePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessagePage({})", self.at)
    }
}

/// One message: where a device writes it, and what.
#[derive(Debug)]
pub(crate) struct Message {
    page: Arc<MessagePage>,
    slot: usize,
}

impl Message {
    pub(crate) fn address(&self) -> u64 {
        self.page.at.get() + SLOT * self.slot as u64
    }

    pub(crate) fn data(&self) -> u32 {
        DATA
    }

    /// Whether it has arrived since the last call.
    fn take(&self) -> bool {
        let at = PhysAddr::new(self.address());
        // SAFETY: the page is allocated as long as the machine runs; devices write whole words.
        let word = unsafe { self.page.platform.window().word(at) };
        word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::Acquire) != 0
    }
}

impl Interrupt for Message {
    fn wait(&self, deadline: Instant) -> Result<(), TimedOut> {
        let platform = &*self.page.platform;
        poll_until(platform, deadline - platform.now(), || self.take())
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.page.taken.lock()[self.slot] = false;
    }
}

/// An IOMMU driver in whose domains the message page is mapped.
#[derive(Debug)]
pub(crate) struct WithMessages {
    pub(crate) driver: Arc<dyn IommuOps>,
    pub(crate) page: Arc<MessagePage>,
}

// SAFETY: all but one region is the driver's; the region is RAM that is allocated as long as the machine runs and holds nothing
// but messages.
unsafe impl IommuOps for WithMessages {
    fn name(&self) -> &str {
        self.driver.name()
    }

    fn capable(&self, dev: PciAddress, capability: Capability) -> bool {
        self.driver.capable(dev, capability)
    }

    fn hw_info(&self, dev: PciAddress) -> Option<HwInfo> {
        self.driver.hw_info(dev)
    }

    fn probe_device(&self, dev: PciAddress) -> Result<Probed, ProbeError> {
        self.driver.probe_device(dev)
    }

    fn probe_untrusted_device(&self, dev: PciAddress) -> Result<Probed, ProbeError> {
        self.driver.probe_untrusted_device(dev)
    }

    fn probe_finalize(&self, dev: PciAddress) {
        self.driver.probe_finalize(dev);
    }

    fn release_device(&self, dev: PciAddress) {
        self.driver.release_device(dev);
    }

    fn device_group(&self, dev: PciAddress) -> DeviceGroup {
        self.driver.device_group(dev)
    }

    fn domain_alloc_paging(&self, dev: PciAddress) -> Result<Arc<dyn DomainOps>, DomainError> {
        self.driver.domain_alloc_paging(dev)
    }

    fn domain_alloc_paging_flags(
        &self,
        dev: PciAddress,
        flags: PagingFlags,
    ) -> Result<Arc<dyn DomainOps>, DomainError> {
        self.driver.domain_alloc_paging_flags(dev, flags)
    }

    fn identity_domain(&self) -> Option<Arc<dyn DomainOps>> {
        self.driver.identity_domain()
    }

    fn blocked_domain(&self) -> Option<Arc<dyn DomainOps>> {
        self.driver.blocked_domain()
    }

    fn release_domain(&self) -> Option<Arc<dyn DomainOps>> {
        self.driver.release_domain()
    }

    fn def_domain_type(&self, dev: PciAddress) -> Option<DomainType> {
        self.driver.def_domain_type(dev)
    }

    fn strict_by_default(&self, dev: PciAddress) -> bool {
        self.driver.strict_by_default(dev)
    }

    fn resv_regions(&self, dev: PciAddress) -> Vec<ResvRegion> {
        let mut regions = self.driver.resv_regions(dev);
        regions.push(self.page.region());
        regions
    }

    fn is_attach_deferred(&self, dev: PciAddress) -> bool {
        self.driver.is_attach_deferred(dev)
    }

    fn page_response(&self, dev: PciAddress, response: PageResponse) {
        self.driver.page_response(dev, response);
    }
}
