//! The thread that a process has for the stack: it does what timers do, and looks at the event logs, since QEMU sends the
//! IOMMU's interrupt to a processor that is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use amd_vi::AmdVi;
use iommu_core::Iommu;
use platform::Clock;
use platform::sync::Mutex;

use crate::platform::QemuPlatform;

/// Reads the event logs, one caller at a time: whoever is done with it knows that every event that was logged before has been
/// reported.
#[derive(Debug)]
pub(crate) struct EventReader {
    pub(crate) iommu: Arc<Iommu>,
    pub(crate) driver: Arc<AmdVi>,
    reading: Mutex<()>,
}

impl EventReader {
    pub(crate) fn new(iommu: Arc<Iommu>, driver: Arc<AmdVi>) -> Self {
        Self { iommu, driver, reading: Mutex::new(()) }
    }

    pub(crate) fn read(&self) {
        let _reading = self.reading.lock();
        // What does not come back is tried again at the next turn.
        let _ = self.driver.handle_interrupt(&mut |fault| self.iommu.report_fault(fault));
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts it; [`Iommu::tick`] is called once every `tick`.
    pub(crate) fn start(
        tick: Duration,
        platform: Arc<QemuPlatform>,
        events: Arc<EventReader>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("iommu-tick".into()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // The end of the thread wakes it early.
                std::thread::park_timeout(tick);
                events.iommu.tick(platform.now());
                events.read();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
    }
}
