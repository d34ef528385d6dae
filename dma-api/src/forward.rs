//! The one list of the members of `DmaMapOps`.

/// Hands members of `DmaMapOps` on, as they are: all of them for a pointer to ops, and for a decorator those that it leaves
/// alone. This is the one place that lists each member.
macro_rules! forward_members {
    ($self:ident => $to:expr; $($member:ident),+ $(,)?) => {
        $(forward_members!(@member $self, $to, $member);)+
    };
    ($self:ident => $to:expr) => {
        forward_members!($self => $to;
            alloc, free, alloc_pages, free_pages, map_phys, unmap_phys, map_foreign, map_sg, unmap_sg, sync_for_cpu,
            sync_for_device, sync_sg_for_cpu, sync_sg_for_device, iova_ops, dma_supported, required_mask,
            max_mapping_size, opt_mapping_size, merge_boundary
        );
    };
    (@member $self:ident, $to:expr, alloc) => {
        fn alloc(&$self, dev: &DeviceParms, size: usize, attrs: Attrs) -> Result<CoherentMemory, DmaError> {
            $to.alloc(dev, size, attrs)
        }
    };
    (@member $self:ident, $to:expr, free) => {
        unsafe fn free(
            &$self,
            dev: &DeviceParms,
            memory: CoherentMemory,
            attrs: Attrs,
        ) -> Result<(), Quarantined> {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.free(dev, memory, attrs) }
        }
    };
    (@member $self:ident, $to:expr, alloc_pages) => {
        fn alloc_pages(
            &$self,
            dev: &DeviceParms,
            size: usize,
            dir: Direction,
            attrs: Attrs,
        ) -> Result<PageMemory, DmaError> {
            $to.alloc_pages(dev, size, dir, attrs)
        }
    };
    (@member $self:ident, $to:expr, free_pages) => {
        unsafe fn free_pages(
            &$self,
            dev: &DeviceParms,
            memory: PageMemory,
            dir: Direction,
            attrs: Attrs,
        ) -> Result<(), Quarantined> {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.free_pages(dev, memory, dir, attrs) }
        }
    };
    (@member $self:ident, $to:expr, map_phys) => {
        #[inline]
        unsafe fn map_phys(
            &$self,
            dev: &DeviceParms,
            phys: PhysAddr,
            len: usize,
            dir: Direction,
            attrs: Attrs,
        ) -> Result<DmaAddr, DmaError> {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.map_phys(dev, phys, len, dir, attrs) }
        }
    };
    (@member $self:ident, $to:expr, unmap_phys) => {
        #[inline]
        unsafe fn unmap_phys(
            &$self,
            dev: &DeviceParms,
            address: DmaAddr,
            len: usize,
            dir: Direction,
            attrs: Attrs,
        ) -> Result<(), Quarantined> {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.unmap_phys(dev, address, len, dir, attrs) }
        }
    };
    (@member $self:ident, $to:expr, map_foreign) => {
        unsafe fn map_foreign(
            &$self,
            dev: &DeviceParms,
            cpu: NonNull<u8>,
            len: usize,
            dir: Direction,
            attrs: Attrs,
        ) -> Result<DmaAddr, DmaError> {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.map_foreign(dev, cpu, len, dir, attrs) }
        }
    };
    (@member $self:ident, $to:expr, map_sg) => {
        unsafe fn map_sg(
            &$self,
            dev: &DeviceParms,
            list: &mut [SgEntry],
            dir: Direction,
            attrs: Attrs,
        ) -> Result<usize, DmaError> {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.map_sg(dev, list, dir, attrs) }
        }
    };
    (@member $self:ident, $to:expr, unmap_sg) => {
        unsafe fn unmap_sg(
            &$self,
            dev: &DeviceParms,
            list: &[SgEntry],
            dir: Direction,
            attrs: Attrs,
        ) -> Result<(), Quarantined> {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.unmap_sg(dev, list, dir, attrs) }
        }
    };
    (@member $self:ident, $to:expr, sync_for_cpu) => {
        unsafe fn sync_for_cpu(&$self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.sync_for_cpu(dev, address, len, dir) }
        }
    };
    (@member $self:ident, $to:expr, sync_for_device) => {
        unsafe fn sync_for_device(&$self, dev: &DeviceParms, address: DmaAddr, len: usize, dir: Direction) {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.sync_for_device(dev, address, len, dir) }
        }
    };
    (@member $self:ident, $to:expr, sync_sg_for_cpu) => {
        unsafe fn sync_sg_for_cpu(&$self, dev: &DeviceParms, list: &[SgEntry], dir: Direction) {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.sync_sg_for_cpu(dev, list, dir) }
        }
    };
    (@member $self:ident, $to:expr, sync_sg_for_device) => {
        unsafe fn sync_sg_for_device(&$self, dev: &DeviceParms, list: &[SgEntry], dir: Direction) {
            // SAFETY: the caller's promise, handed on.
            unsafe { $to.sync_sg_for_device(dev, list, dir) }
        }
    };
    (@member $self:ident, $to:expr, iova_ops) => {
        fn iova_ops(&$self) -> Option<Box<dyn IovaOps + '_>> {
            $to.iova_ops()
        }
    };
    (@member $self:ident, $to:expr, dma_supported) => {
        fn dma_supported(&$self, dev: &DeviceParms, mask: u64) -> bool {
            $to.dma_supported(dev, mask)
        }
    };
    (@member $self:ident, $to:expr, required_mask) => {
        fn required_mask(&$self, dev: &DeviceParms) -> u64 {
            $to.required_mask(dev)
        }
    };
    (@member $self:ident, $to:expr, max_mapping_size) => {
        fn max_mapping_size(&$self, dev: &DeviceParms) -> usize {
            $to.max_mapping_size(dev)
        }
    };
    (@member $self:ident, $to:expr, opt_mapping_size) => {
        fn opt_mapping_size(&$self) -> usize {
            $to.opt_mapping_size()
        }
    };
    (@member $self:ident, $to:expr, merge_boundary) => {
        fn merge_boundary(&$self) -> u64 {
            $to.merge_boundary()
        }
    };
}
pub(crate) use forward_members;
