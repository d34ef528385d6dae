//! Time, of the high precision event timer.

use platform::{Instant, Mmio, PhysAddr};

use super::registers::Registers;

const PERIOD: usize = 0x04;
const CONFIGURATION: usize = 0x10;
const COUNTER: usize = 0xf0;
const ENABLE: u64 = 1;

/// The timer's counter.
#[derive(Debug)]
pub(super) struct Hpet {
    registers: Registers,
    /// Of one count, in units of 1e-15 seconds.
    period: u128,
}

impl Hpet {
    /// Starts it.
    ///
    /// # Safety
    /// Its registers are there, and it is nobody else's.
    pub(super) unsafe fn new(base: PhysAddr) -> Self {
        // SAFETY: the caller's promise.
        let registers = unsafe { Registers::new(base, 0x400) };
        registers.write64(CONFIGURATION, registers.read64(CONFIGURATION) | ENABLE);
        Self { period: registers.read32(PERIOD).into(), registers }
    }

    /// As `Clock::now`.
    pub(super) fn now(&self) -> Instant {
        const PER_NANOSECOND: u128 = 1_000_000;
        let elapsed = u128::from(self.registers.read64(COUNTER)) * self.period;
        Instant::from_nanos(u64::try_from(elapsed / PER_NANOSECOND).unwrap_or(u64::MAX))
    }
}
