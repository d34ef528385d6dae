//! What a device did that it may not, as its driver hears of it.

use alloc::collections::VecDeque;

use platform::DmaAddr;
use platform::sync::Mutex;

/// One refused access of the device. The program behind the driver gets more: requester, domain and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceFault {
    /// The address that the device said.
    pub address: DmaAddr,
    /// Whether it wanted to write.
    pub write: bool,
}

/// Faults on their way from the IOMMU's event log to a driver: the newest that fit, and a count of the rest.
#[derive(Debug, Default)]
pub struct FaultQueue {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    faults: VecDeque<DeviceFault>,
    lost: u64,
}

impl FaultQueue {
    /// How many faults wait at most; older ones are dropped for newer.
    pub const CAPACITY: usize = 64;

    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault, as the newest.
    pub fn push(&self, fault: DeviceFault) {
        let mut inner = self.inner.lock();
        if inner.faults.len() == Self::CAPACITY {
            inner.faults.pop_front();
            inner.lost += 1;
        }
        inner.faults.push_back(fault);
    }

    /// Takes the oldest fault.
    pub fn pop(&self) -> Option<DeviceFault> {
        self.inner.lock().faults.pop_front()
    }

    /// How many faults were dropped because nobody took them in time.
    pub fn lost(&self) -> u64 {
        self.inner.lock().lost
    }
}
