//! What the DMA API keeps per domain (Linux: `struct iommu_dma_cookie`): its I/O addresses and its flush queue.

use alloc::collections::TryReserveError;

use platform::DmaAddr;
use platform::sync::atomic::{AtomicU64, Ordering};

use crate::flush_queue::{FlushQueue, QueueMode};
use crate::iova::IovaDomain;
use crate::ops::DomainOps;

#[derive(Debug)]
pub(crate) struct DmaCookie {
    pub(crate) iovas: IovaDomain,
    pub(crate) queue: FlushQueue,
    /// Bytes given up after a strict invalidation that did not finish.
    quarantined: AtomicU64,
    /// Mappings that went through a bounce buffer.
    pub(crate) bounces: AtomicU64,
}

impl DmaCookie {
    /// The addresses of a domain, without those that are not for its maps (Linux: `iommu_dma_init_domain`).
    pub(crate) fn new(
        ops: &dyn DomainOps,
        closed: impl IntoIterator<Item = (DmaAddr, DmaAddr)>,
        mode: QueueMode,
        cpus: usize,
    ) -> Result<Self, TryReserveError> {
        let (first, last) = ops.aperture();
        let iovas = IovaDomain::new(ops.page_sizes().smallest().max(1), first, last, cpus)?;
        let cookie = Self {
            iovas,
            queue: FlushQueue::new(mode, cpus),
            quarantined: AtomicU64::new(0),
            bounces: AtomicU64::new(0),
        };
        cookie.reserve(closed)?;
        Ok(cookie)
    }

    /// Takes addresses out, given as first and last (Linux: `iova_reserve_iommu_regions`).
    pub(crate) fn reserve(
        &self,
        closed: impl IntoIterator<Item = (DmaAddr, DmaAddr)>,
    ) -> Result<(), TryReserveError> {
        closed.into_iter().try_for_each(|(first, last)| self.iovas.reserve(first, last))
    }

    /// Notes a range that will never be used again.
    #[cold]
    pub(crate) fn quarantine(&self, len: u64) {
        self.quarantined.fetch_add(len, Ordering::Relaxed);
    }

    /// Bytes that will never be used again.
    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed) + self.queue.quarantined()
    }
}
