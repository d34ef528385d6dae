//! Where reports arrive.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use platform::sync::Mutex;

use super::report::{Mapping, Mistake, Report};
use super::watch::Watched;

/// Where the reports of any number of [`Checked`](crate::Checked) devices arrive, and what is asked about them (Linux: the
/// debugfs directory `dma-api`).
#[doc(alias = "dma-debug")]
#[derive(Debug, Default)]
pub struct DmaDebug {
    only: Option<Box<str>>,
    reports: Mutex<Reports>,
    devices: Mutex<Vec<Weak<Watched>>>,
}

#[derive(Debug, Default)]
struct Reports {
    kept: Vec<Report>,
    lost: u64,
}

impl DmaDebug {
    /// How many reports are kept until somebody takes them. The first ones stay: later mistakes often follow from them.
    pub const CAPACITY: usize = 64;

    /// How many ranges are remembered of each device; a scatter list is as many as it has elements (Linux:
    /// `PREALLOC_DMA_DEBUG_ENTRIES`). A device with more is not checked any more, and a report says so.
    pub const MAX_MAPPINGS: usize = 65536;

    /// Hears of every device.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hears of the device called `name` alone (Linux: `dma_debug_driver=`).
    pub fn only(name: impl Into<Box<str>>) -> Self {
        Self { only: Some(name.into()), ..Self::default() }
    }

    /// The reports since the last call, oldest first.
    pub fn take_reports(&self) -> Vec<Report> {
        core::mem::take(&mut self.reports.lock().kept)
    }

    /// How many reports did not fit.
    pub fn lost(&self) -> u64 {
        self.reports.lock().lost
    }

    /// Every live mapping of every device that is heard of, with the device's name, in the order that they were made for it
    /// (Linux: debugfs `dump`).
    pub fn dump(&self) -> Vec<(Box<str>, Mapping)> {
        let devices: Vec<_> = self.devices.lock().iter().filter_map(Weak::upgrade).collect();
        let heard = devices.iter().filter(|device| self.hears(device.name()));
        heard
            .flat_map(|device| device.live().into_iter().map(|mapping| (device.name().into(), mapping)))
            .collect()
    }

    pub(super) fn watch(&self, device: &Arc<Watched>) {
        let mut devices = self.devices.lock();
        devices.retain(|device| device.strong_count() != 0);
        devices.push(Arc::downgrade(device));
    }

    pub(super) fn report(&self, device: &str, mistake: Mistake) {
        if !self.hears(device) {
            return;
        }
        let mut reports = self.reports.lock();
        if reports.kept.len() == Self::CAPACITY {
            reports.lost += 1;
        } else {
            reports.kept.push(Report { device: device.into(), mistake });
        }
    }

    fn hears(&self, device: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == device)
    }
}
