//! What a device can reach, and how its requests may look.

use platform::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::BusRanges;

/// A device's masks and limits (Linux: `dma_mask`, `coherent_dma_mask`, `struct device_dma_parameters`). Every call of
/// [`crate::DmaMapOps`] gets them; they may change while the device is in use, mappings made before keep what they had.
#[derive(Debug)]
pub struct DeviceParms {
    streaming_mask: AtomicU64,
    coherent_mask: AtomicU64,
    max_segment_size: AtomicU64,
    segment_boundary: AtomicU64,
    min_align_mask: AtomicU64,
    needs_sync: AtomicBool,
    coherent: bool,
    untrusted: bool,
    bus_ranges: BusRanges,
    bus_limit: u64,
}

impl DeviceParms {
    /// Linux's defaults: 32-bit masks, segments of 64 KiB, a segment boundary of 4 GiB, no alignment to keep.
    ///
    /// `coherent` says that the device's accesses agree with the CPU's caches; `untrusted` that the device may be
    /// hostile, so that pages shared with other data are never mapped (Linux: `pci_dev.untrusted`).
    pub fn new(coherent: bool, untrusted: bool) -> Self {
        const LOW_32: u64 = 0xffff_ffff;
        Self {
            streaming_mask: AtomicU64::new(LOW_32),
            coherent_mask: AtomicU64::new(LOW_32),
            max_segment_size: AtomicU64::new(64 * 1024),
            segment_boundary: AtomicU64::new(LOW_32),
            min_align_mask: AtomicU64::new(0),
            needs_sync: AtomicBool::new(!coherent),
            coherent,
            untrusted,
            bus_ranges: BusRanges::identity(),
            bus_limit: u64::MAX,
        }
    }

    /// The same behind a bus that shows memory in `ranges` and lets only addresses up to `limit` through, whatever the
    /// device's masks.
    #[must_use]
    pub fn behind_bus(self, ranges: BusRanges, limit: u64) -> Self {
        Self { bus_ranges: ranges, bus_limit: limit, ..self }
    }

    /// The same limits, for memory whose address must keep the bits in `mask` as well.
    #[must_use]
    pub fn keeping(&self, mask: u64) -> Self {
        let copy = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Relaxed));
        Self {
            streaming_mask: copy(&self.streaming_mask),
            coherent_mask: copy(&self.coherent_mask),
            max_segment_size: copy(&self.max_segment_size),
            segment_boundary: copy(&self.segment_boundary),
            min_align_mask: AtomicU64::new(self.min_align_mask() | mask),
            needs_sync: AtomicBool::new(self.needs_sync()),
            coherent: self.coherent,
            untrusted: self.untrusted,
            bus_ranges: self.bus_ranges.clone(),
            bus_limit: self.bus_limit,
        }
    }

    /// Where the bus shows memory to the device, when no IOMMU translates (Linux: `dev->dma_range_map`).
    #[doc(alias = "dma_range_map")]
    #[inline]
    pub fn bus_ranges(&self) -> &BusRanges {
        &self.bus_ranges
    }

    /// The last address that the bus lets through (Linux: `dev->bus_dma_limit`).
    #[doc(alias = "bus_dma_limit")]
    #[inline]
    pub fn bus_limit(&self) -> u64 {
        self.bus_limit
    }

    /// The last address that streaming maps may use, by the device's mask and the bus's limit.
    #[inline]
    pub fn streaming_limit(&self) -> u64 {
        self.streaming_mask().min(self.bus_limit)
    }

    /// The last address that coherent memory may have, by the device's mask and the bus's limit.
    #[inline]
    pub fn coherent_limit(&self) -> u64 {
        self.coherent_mask().min(self.bus_limit)
    }

    /// The addresses that streaming maps may use, as a mask of ones (Linux: `dma_get_mask`).
    #[inline]
    pub fn streaming_mask(&self) -> u64 {
        self.streaming_mask.load(Ordering::Relaxed)
    }

    /// The addresses that coherent memory may have.
    #[inline]
    pub fn coherent_mask(&self) -> u64 {
        self.coherent_mask.load(Ordering::Relaxed)
    }

    /// The longest segment of a scatter list, in bytes (Linux: `dma_get_max_seg_size`).
    #[inline]
    pub fn max_segment_size(&self) -> u64 {
        self.max_segment_size.load(Ordering::Relaxed)
    }

    /// The mask of a power of two that no segment may cross (Linux: `dma_get_seg_boundary`).
    #[inline]
    pub fn segment_boundary(&self) -> u64 {
        self.segment_boundary.load(Ordering::Relaxed)
    }

    /// Address bits that a bounced buffer must keep (Linux: `dma_get_min_align_mask`).
    #[inline]
    pub fn min_align_mask(&self) -> u64 {
        self.min_align_mask.load(Ordering::Relaxed)
    }

    /// Whether the device's accesses agree with the CPU's caches (Linux: `dev_is_dma_coherent`).
    #[inline]
    pub fn is_coherent(&self) -> bool {
        self.coherent
    }

    /// Whether the device may be hostile (Linux: `dev_is_untrusted`).
    #[inline]
    pub fn is_untrusted(&self) -> bool {
        self.untrusted
    }

    /// Whether syncs do anything for this device: not while it is coherent and nothing was ever bounced for it (Linux:
    /// `dma_dev_need_sync`).
    #[inline]
    pub fn needs_sync(&self) -> bool {
        self.needs_sync.load(Ordering::Relaxed)
    }

    /// Called by a backend that bounces a buffer for this device: from now on syncs matter (Linux:
    /// `dma_reset_need_sync`).
    pub fn set_needs_sync(&self) {
        self.needs_sync.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_streaming_mask(&self, mask: u64) {
        self.streaming_mask.store(mask, Ordering::Relaxed);
    }

    pub(crate) fn set_coherent_mask(&self, mask: u64) {
        self.coherent_mask.store(mask, Ordering::Relaxed);
    }

    /// Sets the longest segment of a scatter list, in bytes, 1 at least (Linux: `dma_set_max_seg_size`).
    #[doc(alias = "dma_set_max_seg_size")]
    pub fn set_max_segment_size(&self, bytes: u64) {
        self.max_segment_size.store(bytes.max(1), Ordering::Relaxed);
    }

    /// Sets the boundary that no segment may cross, as a mask of ones (Linux: `dma_set_seg_boundary`). Anything else counts
    /// as the largest such mask below it, which keeps the device's boundary too: 0x3ffe as 0x1fff.
    #[doc(alias = "dma_set_seg_boundary")]
    pub fn set_segment_boundary(&self, mask: u64) {
        let span = mask.checked_add(1).map_or(0, |end| 1u64 << end.ilog2());
        self.segment_boundary.store(span.wrapping_sub(1), Ordering::Relaxed);
    }

    /// Sets the address bits that a bounced buffer must keep, as a mask of ones (Linux: `dma_set_min_align_mask`). Anything
    /// else counts as the smallest such mask above it, which keeps those bits too: 0x600 as 0x7ff.
    #[doc(alias = "dma_set_min_align_mask")]
    pub fn set_min_align_mask(&self, mask: u64) {
        let mask = u64::MAX.checked_shr(mask.leading_zeros()).unwrap_or(0);
        self.min_align_mask.store(mask, Ordering::Relaxed);
    }
}
