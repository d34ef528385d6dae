//! Time and waiting: every loop that waits has a deadline and gives way.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;

/// A moment, in nanoseconds since some start that the platform chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// A moment that never comes: a wait without a deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `nanoseconds` after the platform's start.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the platform's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Later by `rhs`; stops at [`Instant::NEVER`].
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// The time since `rhs`, zero when that is later.
    fn sub(self, rhs: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(rhs.0))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// A deadline passed before what was waited for came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("timed out")]
pub struct TimedOut;

/// The platform's clock and its way of waiting.
pub trait Clock: Send + Sync {
    /// The time now; it never goes back.
    fn now(&self) -> Instant;

    /// Called in every waiting loop: a pause on a CPU of one's own, a yield in a process.
    fn relax(&self);
}

/// Asks `done` again and again until it says true.
///
/// The clock is first read after a number of tries, so that a short wait costs none.
///
/// # Errors
/// [`TimedOut`] when `timeout` passed and `done` still says false.
pub fn poll_until(
    clock: &(impl Clock + ?Sized),
    timeout: Duration,
    mut done: impl FnMut() -> bool,
) -> Result<(), TimedOut> {
    const TRIES_PER_CLOCK_READ: u32 = 32;
    let mut deadline = None;
    loop {
        for _ in 0..TRIES_PER_CLOCK_READ {
            if done() {
                return Ok(());
            }
            clock.relax();
        }
        let now = clock.now();
        let deadline = *deadline.get_or_insert(now + timeout);
        if now >= deadline {
            return if done() { Ok(()) } else { Err(TimedOut) };
        }
    }
}

/// The process's monotonic clock; waiting yields the processor.
#[cfg(feature = "std")]
#[derive(Debug)]
pub struct StdClock {
    start: std::time::Instant,
}

#[cfg(feature = "std")]
impl StdClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

#[cfg(feature = "std")]
impl Default for StdClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "std")]
impl Clock for StdClock {
    fn now(&self) -> Instant {
        Instant(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn relax(&self) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        std::thread::yield_now();
    }
}
