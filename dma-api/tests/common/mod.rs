//! A machine without hardware for the tests: RAM, and operations that a test can watch.
// Each test file uses its part.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod host;
mod mock;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma_api::{Device, DeviceBuilder, DmaBuffer, DmaMapOps};
use platform::Platform;

pub use host::{BASE, Cache, Host, LOW, SIZE};
pub use mock::{Call, MAX_MAPPING, MERGE_BOUNDARY, Mock, OPT_MAPPING, REQUIRED_MASK, Required, UNSUPPORTED};

pub const PAGE: usize = 4096;

/// A device over the mock.
#[derive(Debug)]
pub struct Bench {
    pub host: Arc<Host>,
    pub mock: Arc<Mock>,
    pub device: Arc<Device>,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(|builder| builder, |mock| mock)
    }

    /// A device whose accesses do not agree with the caches.
    pub fn noncoherent() -> Self {
        Self::with(|builder| builder.coherent(false), |mock| mock)
    }

    /// A device over the default members of `DmaMapOps`.
    pub fn with_defaults() -> Self {
        Self::with(|builder| builder, |mock| Arc::new(Required(mock)))
    }

    fn with(
        configure: impl FnOnce(DeviceBuilder) -> DeviceBuilder,
        ops: impl FnOnce(Arc<Mock>) -> Arc<dyn DmaMapOps>,
    ) -> Self {
        let host = Arc::new(Host::new());
        let mock = Mock::new(&host);
        let builder = configure(DeviceBuilder::new("0000:00:03.0"));
        let device = Arc::new(builder.build(ops(mock.clone()), host.clone()));
        Self { host, mock, device }
    }

    /// RAM that holds `bytes`.
    pub fn buffer(&self, bytes: &[u8]) -> DmaBuffer<u8> {
        let mut buffer = DmaBuffer::zeroed(&self.device, bytes.len()).unwrap();
        buffer.copy_from_slice(bytes);
        buffer
    }

    pub fn platform(&self) -> Arc<dyn Platform> {
        self.host.clone()
    }

    /// From now on so many maps and allocations succeed.
    pub fn maps_left(&self, count: usize) {
        self.mock.maps_left.store(count, Ordering::Relaxed);
    }

    /// From now on unmaps and frees fail, or do not.
    pub fn unmaps_fail(&self, fail: bool) {
        self.mock.unmaps_fail.store(fail, Ordering::Relaxed);
    }
}

/// Bytes in which each place differs from its neighbours.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31) ^ (index >> 8) as u8 ^ seed).collect()
}
