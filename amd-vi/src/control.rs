//! The control register, changed by one at a time.

use core::time::Duration;

use platform::sync::{Mutex, MutexGuard};
use platform::{Clock, TimedOut};

use crate::registers::{Control, Registers, Status};

/// How long the unit may take to stop or start one of its engines.
pub(crate) const RUN_TIMEOUT: Duration = Duration::from_millis(500);

/// The control register of a unit. Its holder may turn engines off and on; restarts of different engines exclude each other.
#[derive(Debug)]
pub(crate) struct ControlRegister {
    registers: Registers,
    lock: Mutex<()>,
}

impl ControlRegister {
    pub(crate) fn new(registers: Registers) -> Self {
        Self { registers, lock: Mutex::new(()) }
    }

    pub(crate) fn lock(&self) -> ControlGuard<'_> {
        ControlGuard { registers: &self.registers, _held: self.lock.lock() }
    }
}

/// The control register, held.
#[derive(Debug)]
pub(crate) struct ControlGuard<'a> {
    registers: &'a Registers,
    _held: MutexGuard<'a, ()>,
}

impl ControlGuard<'_> {
    /// Reads, changes and writes it.
    pub(crate) fn update(&mut self, change: impl FnOnce(Control) -> Control) {
        self.registers.set_control(change(self.registers.control()));
    }

    /// The status register.
    pub(crate) fn status(&self) -> Status {
        self.registers.status()
    }

    /// Waits until the status says what `done` asks for.
    pub(crate) fn wait(
        &self,
        clock: &(impl Clock + ?Sized),
        done: impl Fn(Status) -> bool,
    ) -> Result<(), TimedOut> {
        self.registers.wait_status(clock, RUN_TIMEOUT, done)
    }
}
