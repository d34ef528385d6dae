//! What a device may do with a mapping.

bitflags::bitflags! {
    /// Permissions and kind of a mapping, with Linux's values (`IOMMU_READ` and its neighbours).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Prot: u32 {
        /// The device may read (`IOMMU_READ`).
        const READ = 1 << 0;
        /// The device may write (`IOMMU_WRITE`).
        const WRITE = 1 << 1;
        /// The device's accesses are coherent with the CPU's caches (`IOMMU_CACHE`).
        const CACHE = 1 << 2;
        /// The device may not fetch instructions (`IOMMU_NOEXEC`).
        const NOEXEC = 1 << 3;
        /// The target is device memory, not RAM (`IOMMU_MMIO`).
        const MMIO = 1 << 4;
        /// Only privileged accesses are allowed (`IOMMU_PRIV`).
        const PRIV = 1 << 5;
    }
}
