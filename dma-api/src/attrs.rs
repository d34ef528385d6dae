//! Attributes of a mapping or an allocation.

bitflags::bitflags! {
    /// What a driver asks for beside the ordinary, with Linux's values (`DMA_ATTR_*`). A backend ignores what has no
    /// meaning for it, as Linux's do. `DMA_ATTR_CC_SHARED` is not here: no memory is encrypted.
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
        /// Physically contiguous memory, even behind an IOMMU (`DMA_ATTR_FORCE_CONTIGUOUS`). Coherent memory always is.
        const FORCE_CONTIGUOUS = 1 << 6;
        /// Do not bother to find large pages for memory in several pieces (`DMA_ATTR_ALLOC_SINGLE_PAGES`).
        const ALLOC_SINGLE_PAGES = 1 << 7;
        /// Do not report failures (`DMA_ATTR_NO_WARN`). Nothing here reports one but by what it returns.
        const NO_WARN = 1 << 8;
        /// Privileged accesses only (`DMA_ATTR_PRIVILEGED`).
        const PRIVILEGED = 1 << 9;
        /// The target is device memory, not RAM (`DMA_ATTR_MMIO`).
        const MMIO = 1 << 10;
        /// The driver knows that it maps the same memory twice (`DMA_ATTR_DEBUGGING_IGNORE_CACHELINES`): [`crate::Checked`]
        /// does not report it.
        const DEBUGGING_IGNORE_CACHELINES = 1 << 11;
        /// The CPU and the device use the memory at once, so fail where it would be bounced or caches would have to be
        /// maintained (`DMA_ATTR_REQUIRE_COHERENT`).
        const REQUIRE_COHERENT = 1 << 12;
    }
}
