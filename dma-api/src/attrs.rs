//! Attributes of a mapping or an allocation.

bitflags::bitflags! {
    /// What a driver asks for beside the ordinary, with Linux's values (`DMA_ATTR_*`). A backend ignores what has no
    /// meaning for it, as Linux's do.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Attrs: u32 {
        /// Reads and writes may pass each other (`DMA_ATTR_WEAK_ORDERING`).
        const WEAK_ORDERING = 1 << 1;
        /// Writes may be combined (`DMA_ATTR_WRITE_COMBINE`).
        const WRITE_COMBINE = 1 << 2;
        /// The CPU will not look at the memory (`DMA_ATTR_NO_KERNEL_MAPPING`).
        const NO_KERNEL_MAPPING = 1 << 4;
        /// Map and unmap do not hand the memory over; the driver syncs what it needs (`DMA_ATTR_SKIP_CPU_SYNC`).
        const SKIP_CPU_SYNC = 1 << 5;
        /// Physically contiguous memory, even behind an IOMMU (`DMA_ATTR_FORCE_CONTIGUOUS`).
        const FORCE_CONTIGUOUS = 1 << 6;
        /// Do not bother to find large pages (`DMA_ATTR_ALLOC_SINGLE_PAGES`).
        const ALLOC_SINGLE_PAGES = 1 << 7;
        /// Do not report failures (`DMA_ATTR_NO_WARN`).
        const NO_WARN = 1 << 8;
        /// Privileged accesses only (`DMA_ATTR_PRIVILEGED`).
        const PRIVILEGED = 1 << 9;
        /// The target is device memory, not RAM (`DMA_ATTR_MMIO`).
        const MMIO = 1 << 10;
    }
}
