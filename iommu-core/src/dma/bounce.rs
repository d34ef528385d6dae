//! Copies for memory that a device must not reach, or that it shares a granule with (Linux: the swiotlb parts of dma-iommu.c).

use core::ptr::NonNull;

use dma_api::{Attrs, DeviceParms, Direction, DmaError};
use platform::sync::atomic::Ordering;
use platform::{DmaAddr, PhysAddr};
use swiotlb::Swiotlb;

use super::{IommuDma, dma_info_to_prot};

impl IommuDma {
    /// Makes a copy of `len` bytes at `cpu` that is alone in its granules, with zeros around it, in a place as `limits` say.
    ///
    /// # Safety
    /// As `DmaMapOps::map_foreign`.
    pub(super) unsafe fn bounce(
        &self,
        parms: &DeviceParms,
        limits: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<(&Swiotlb, PhysAddr), DmaError> {
        if attrs.contains(Attrs::REQUIRE_COHERENT) {
            return Err(DmaError::NotCoherent);
        }
        let pool = self.bounce.as_deref().ok_or(DmaError::NotRam)?;
        parms.set_needs_sync();
        let granule = self.granule;
        // SAFETY: the caller's promise.
        let copy = unsafe { pool.map(limits, cpu, len, granule - 1, dir, attrs) }?;
        // Whatever the attributes: the device must not find in memory what was there before the copy and its zeros.
        let granules = copy.span_in(len as u64, granule).map_or(len, |span| span as usize);
        self.clean(parms, copy.align_down(granule), granules);
        Ok((pool, copy))
    }

    /// Maps a copy of `len` bytes at `cpu` (Linux: `iommu_dma_map_swiotlb`).
    ///
    /// # Safety
    /// As `DmaMapOps::map_foreign`.
    #[cold]
    pub(super) unsafe fn map_bounced(
        &self,
        parms: &DeviceParms,
        cpu: NonNull<u8>,
        len: usize,
        dir: Direction,
        attrs: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        // SAFETY: the caller's promise.
        let (pool, copy) = unsafe { self.bounce(parms, parms, cpu, len, dir, attrs) }?;
        let prot = dma_info_to_prot(dir, parms.is_coherent(), attrs);
        // SAFETY: the copy stays the device's until it is unmapped.
        match unsafe { self.map_range(parms.streaming_limit(), copy, len, prot) } {
            Ok(address) => {
                self.cookie().bounces.fetch_add(1, Ordering::Relaxed);
                Ok(address)
            }
            Err(error) => {
                // SAFETY: the copy was made just now, and no device has seen it.
                unsafe { pool.unmap(copy, len, dir, attrs | Attrs::SKIP_CPU_SYNC) };
                Err(error)
            }
        }
    }

    /// The bounce pool, when memory is in it.
    #[inline]
    pub(super) fn pool_of(&self, phys: PhysAddr) -> Option<&Swiotlb> {
        self.bounce.as_deref().filter(|pool| pool.contains(phys))
    }
}
