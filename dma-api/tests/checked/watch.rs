//! A device under watch, with calls that break their contracts.

use std::sync::Arc;

use dma_api::{
    Attrs, CoherentMemory, Device, DeviceBuilder, DeviceParms, Direction, DmaBuffer, DmaDebug, DmaError,
    DmaMapOps, Mistake, Quarantined, SgEntry,
};
use platform::{DmaAddr, PhysAddr};

use crate::common::{Call, Host, Mock, PAGE, pattern};

pub(crate) const NAME: &str = "0000:00:03.0";
pub(crate) const NONE: Attrs = Attrs::empty();

/// A checked device over the mock, which panics on an unmap that is not as its map was.
pub(crate) struct Watch {
    pub(crate) host: Arc<Host>,
    pub(crate) mock: Arc<Mock>,
    pub(crate) debug: Arc<DmaDebug>,
    pub(crate) device: Arc<Device>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self::with(DmaDebug::new(), true)
    }

    pub(crate) fn with(debug: DmaDebug, coherent: bool) -> Self {
        let host = Arc::new(Host::new());
        let mock = Mock::new(&host);
        let debug = Arc::new(debug);
        let device = DeviceBuilder::new(NAME).coherent(coherent).build(mock.clone(), host.clone());
        Self { host, mock, device: Arc::new(device.checked(&debug)), debug }
    }

    /// The reports are this one.
    pub(crate) fn said(&self) -> Mistake {
        let reports = self.debug.take_reports();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert_eq!(&*reports[0].device, NAME);
        reports[0].mistake.clone()
    }

    pub(crate) fn silent(&self) {
        assert_eq!(self.debug.take_reports(), []);
    }

    pub(crate) fn buffer(&self, pages: usize) -> DmaBuffer<u8> {
        let mut buffer = DmaBuffer::zeroed(&self.device, pages * PAGE).unwrap();
        buffer.copy_from_slice(&pattern(3, pages * PAGE));
        buffer
    }

    #[track_caller]
    pub(crate) fn map_with(&self, phys: PhysAddr, len: usize, dir: Direction, attrs: Attrs) -> DmaAddr {
        // SAFETY: a test's memory is there as long as its machine, and no device of the test touches it.
        unsafe { self.device.map_phys(phys, len, dir, attrs) }.unwrap()
    }

    #[track_caller]
    pub(crate) fn map(&self, phys: PhysAddr, len: usize, dir: Direction) -> DmaAddr {
        self.map_with(phys, len, dir, NONE)
    }

    pub(crate) fn unmap(&self, address: DmaAddr, len: usize, dir: Direction) -> Result<(), Quarantined> {
        // SAFETY: what breaks the contract does not reach the mock, which checks it.
        unsafe { self.device.unmap_single(address, len, dir, NONE) }
    }

    #[track_caller]
    pub(crate) fn map_sg(&self, list: &mut [SgEntry], dir: Direction) -> usize {
        // SAFETY: as in `map_with`.
        unsafe { self.device.map_sg(list, dir, NONE) }.unwrap()
    }

    pub(crate) fn unmap_sg(&self, list: &[SgEntry], dir: Direction) -> Result<(), Quarantined> {
        // SAFETY: as in `unmap`.
        unsafe { self.device.unmap_sg(list, dir, NONE) }
    }

    pub(crate) fn alloc(&self) -> CoherentMemory {
        self.device.alloc_coherent(100, NONE).unwrap()
    }

    pub(crate) fn free(&self, memory: CoherentMemory) -> Result<(), Quarantined> {
        // SAFETY: as in `unmap`.
        unsafe { self.device.free_coherent(memory, NONE) }
    }

    pub(crate) fn for_cpu(&self, address: DmaAddr, len: usize, dir: Direction) {
        // SAFETY: as in `unmap`.
        unsafe { self.device.ops().sync_for_cpu(self.device.parms(), address, len, dir) };
    }

    pub(crate) fn for_device(&self, address: DmaAddr, len: usize, dir: Direction) {
        // SAFETY: as in `unmap`.
        unsafe { self.device.ops().sync_for_device(self.device.parms(), address, len, dir) };
    }

    pub(crate) fn ends_reached(&self) -> usize {
        let end =
            |call: &&Call| matches!(call, Call::UnmapPhys { .. } | Call::UnmapSg { .. } | Call::Free { .. });
        self.mock.take_calls().iter().filter(end).count()
    }

    pub(crate) fn sync_lists_reached(&self) -> usize {
        let sync = |call: &&Call| matches!(call, Call::SyncSgForCpu { .. } | Call::SyncSgForDevice { .. });
        self.mock.take_calls().iter().filter(sync).count()
    }

    pub(crate) fn syncs_reached(&self) -> Vec<Direction> {
        let sync = |call| match call {
            Call::SyncForCpu { dir, .. } | Call::SyncForDevice { dir, .. } => Some(dir),
            _ => None,
        };
        self.mock.take_calls().into_iter().filter_map(sync).collect()
    }
}

pub(crate) fn after(phys: PhysAddr, bytes: usize) -> PhysAddr {
    phys.wrapping_add(bytes as u64)
}

/// Pages 0 and 1, which the mock joins, and page 3: two segments.
pub(crate) fn three_elements(buffer: &DmaBuffer<u8>) -> [SgEntry; 3] {
    [0, 1, 3].map(|page| SgEntry::new(after(buffer.phys(), page * PAGE), PAGE))
}

/// Ops that map where they are told, whatever is there.
#[derive(Debug)]
pub(crate) struct Placed(pub(crate) fn(PhysAddr) -> u64);

// SAFETY: no device reaches anything through them.
unsafe impl DmaMapOps for Placed {
    fn alloc(&self, _: &DeviceParms, _: usize, _: Attrs) -> Result<CoherentMemory, DmaError> {
        Err(DmaError::OutOfMemory)
    }

    unsafe fn free(&self, _: &DeviceParms, _: CoherentMemory, _: Attrs) -> Result<(), Quarantined> {
        Ok(())
    }

    unsafe fn map_phys(
        &self,
        _: &DeviceParms,
        phys: PhysAddr,
        _: usize,
        _: Direction,
        _: Attrs,
    ) -> Result<DmaAddr, DmaError> {
        Ok(DmaAddr::new((self.0)(phys)))
    }

    unsafe fn unmap_phys(
        &self,
        _: &DeviceParms,
        _: DmaAddr,
        _: usize,
        _: Direction,
        _: Attrs,
    ) -> Result<(), Quarantined> {
        Ok(())
    }
}
