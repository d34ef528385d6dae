//! The two threads that a process has for the stack: one does what timers do, one what the IOMMU's interrupt asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use amd_vi::AmdVi;
use iommu_core::Iommu;
use platform::Clock;
use sim_hardware::interrupts::Vector;

use crate::platform::SimPlatform;

/// How often [`Iommu::tick`] is called (Linux: the flush queue's timeout).
const TICK: Duration = Duration::from_millis(10);

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Threads {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn start(
        platform: Arc<SimPlatform>,
        iommu: Arc<Iommu>,
        driver: Arc<AmdVi>,
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
        let ticked = Arc::clone(&iommu);
        running.push(spawn(
            "iommu-tick",
            Box::new(move || {
                std::thread::sleep(TICK);
                ticked.tick(platform.now());
            }),
        )?);
        running.push(spawn(
            "iommu-irq",
            Box::new(move || {
                // Without an interrupt, and in case one was lost, the log is looked at from time to time.
                match &interrupt {
                    Some(vector) => {
                        vector.wait(TICK);
                    }
                    None => std::thread::sleep(TICK),
                }
                // What does not come back is tried again at the next turn.
                let _ = driver.handle_interrupt(&mut |fault| iommu.report_fault(fault));
            }),
        )?);
        Ok(Self { stop, running })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.running.drain(..) {
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
    }
}
