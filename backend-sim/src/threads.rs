//! The two threads that a process has for the stack: one does what timers do, one what the IOMMU's interrupt asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use amd_vi::AmdVi;
use iommu_core::Iommu;
use parking_lot::Mutex;
use platform::Clock;
use sim_hardware::interrupts::Vector;

use crate::platform::SimPlatform;

/// How often the event logs are looked at without an interrupt, in case one was lost.
const POLL: Duration = Duration::from_millis(10);

/// What the IOMMU's interrupt asks for, one at a time: whoever is done with it knows that every event that was logged before
/// has been reported.
#[derive(Debug)]
pub(crate) struct InterruptHandler {
    iommu: Arc<Iommu>,
    driver: Arc<AmdVi>,
    running: Mutex<()>,
}

impl InterruptHandler {
    pub(crate) fn new(iommu: Arc<Iommu>, driver: Arc<AmdVi>) -> Self {
        Self { iommu, driver, running: Mutex::new(()) }
    }

    pub(crate) fn handle(&self) {
        let _running = self.running.lock();
        // What does not come back is tried again at the next turn.
        let _ = self.driver.handle_interrupt(&mut |fault| self.iommu.report_fault(fault));
        let _ = self.driver.handle_page_requests(&self.iommu);
    }
}

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Threads {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts them; [`Iommu::tick`] is called once every `tick`.
    pub(crate) fn start(
        tick: Duration,
        platform: Arc<SimPlatform>,
        iommu: Arc<Iommu>,
        handler: Arc<InterruptHandler>,
        interrupt: Option<Vector>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = Vec::new();
        let spawn = |name: &str, body: Box<dyn FnMut() + Send>| {
            let stop = Arc::clone(&stop);
            let mut body = body;
            std::thread::Builder::new().name(name.into()).spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    body();
                }
            })
        };
        running.push(spawn(
            "iommu-tick",
            Box::new(move || {
                // The end of the threads wakes it early.
                std::thread::park_timeout(tick);
                iommu.tick(platform.now());
            }),
        )?);
        running.push(spawn(
            "iommu-irq",
            Box::new(move || {
                match &interrupt {
                    Some(vector) => {
                        vector.wait(POLL);
                    }
                    None => std::thread::sleep(POLL),
                }
                handler.handle();
            }),
        )?);
        Ok(Self { stop, running })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.running.drain(..) {
            thread.thread().unpark();
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
    }
}
