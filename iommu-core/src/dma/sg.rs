//! Scatter lists that are not mapped in one piece: because some elements must be bounced, or because a map failed.

use dma_api::{Attrs, DeviceParms, Direction, DmaError, DmaMapOps, SgEntry};
use platform::{DmaAddr, MapError};

use super::IommuDma;
use crate::scatter::Layout;

impl IommuDma {
    /// Maps each element for itself, since some must be bounced.
    ///
    /// # Safety
    /// As `DmaMapOps::map_sg`.
    pub(super) unsafe fn map_sg_singly(
        &self,
        parms: &DeviceParms,
        list: &mut [SgEntry],
        dir: Direction,
        attrs: Attrs,
    ) -> Result<usize, DmaError> {
        for index in 0..list.len() {
            let SgEntry { phys, len, .. } = list[index];
            // SAFETY: the caller's promise, for each element.
            match unsafe { self.map_phys(parms, phys, len, dir, attrs) } {
                Ok(address) => {
                    list[index].dma_address = address;
                    list[index].dma_len = len;
                }
                Err(error) => {
                    let attrs = attrs | Attrs::SKIP_CPU_SYNC;
                    let mut undone = Ok(());
                    for entry in &list[..index] {
                        // SAFETY: mapped just now, each for itself.
                        let unmapped =
                            unsafe { self.unmap_phys(parms, entry.dma_address, entry.dma_len, dir, attrs) };
                        undone = undone.and(unmapped);
                    }
                    // The caller must not take his memory back while the device may reach it.
                    return Err(undone.err().map_or(error, DmaError::NotUndone));
                }
            }
        }
        Ok(list.len())
    }

    /// Takes a list back of which `mapped` was mapped, and of the next element the bytes in `partly`.
    #[cold]
    pub(super) fn undo_sg(
        &self,
        iova: DmaAddr,
        layout: Layout,
        mapped: &[SgEntry],
        partly: (DmaAddr, u64),
        error: MapError,
    ) -> DmaError {
        let mut gather = self.domain.gather();
        let mut places = layout.restart();
        let whole = mapped.iter().filter_map(|entry| places.place(entry));
        let whole = whole.map(|place| (iova.wrapping_add(place.offset), place.len));
        for (at, len) in whole.chain([partly]).filter(|&(_, len)| len != 0) {
            // SAFETY: the addresses were taken by the failed map, and nobody else knows them.
            unsafe { self.domain.unmap(at, len, &mut gather) };
        }
        self.end_undo(iova, layout.size, &mut gather, error)
    }
}

/// Whether a list has elements that share a page with something else.
pub(super) fn has_partial_pages(list: &[SgEntry], granule: u64) -> bool {
    list.iter().any(|entry| (entry.phys.get() | entry.len as u64) & (granule - 1) != 0)
}
