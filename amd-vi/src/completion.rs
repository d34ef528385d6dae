//! How the unit says that commands are done: a 64-bit number in memory that only grows (Linux: `cmd_sem`).

use platform::sync::atomic::{AtomicU64, Ordering};
use platform::{OutOfFrames, PhysAddr, Platform};

use crate::memory::Region;
use alloc::sync::Arc;

/// Proof that a COMPLETION_WAIT is in the ring: the number that it stores. Higher numbers are stored later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "nothing is known to be done until it has been waited for"]
pub struct Ticket(pub(crate) u64);

/// The word that COMPLETION_WAIT commands store to.
#[derive(Debug)]
pub(crate) struct Semaphore {
    memory: Region,
    /// Numbers up to this one were in the ring when it was reset: whether their commands were executed is not known.
    lost: AtomicU64,
}

/// Whether `number` is at or after `ticket`, across a wrap of the 64 bits.
#[inline]
fn reached(number: u64, ticket: Ticket) -> bool {
    number.wrapping_sub(ticket.0) as i64 >= 0
}

impl Semaphore {
    pub(crate) fn new(platform: &Arc<dyn Platform>) -> Result<Self, OutOfFrames> {
        Ok(Self { memory: Region::new(platform, 8)?, lost: AtomicU64::new(0) })
    }

    /// Where commands store.
    pub(crate) fn address(&self) -> PhysAddr {
        self.memory.base()
    }

    /// Whether the unit has stored `ticket` or a later number.
    #[inline]
    pub(crate) fn is_stored(&self, ticket: Ticket) -> bool {
        reached(self.memory.word(0).load(Ordering::Acquire), ticket)
    }

    /// Whether `ticket` was lost in a reset. Ask again after [`Semaphore::is_stored`] said yes: after a reset a later number
    /// is stored although the lost commands were not executed. The unit stores it only after `lose`, so it is seen here.
    #[inline]
    pub(crate) fn is_lost(&self, ticket: Ticket) -> bool {
        reached(self.lost.load(Ordering::Acquire), ticket)
    }

    /// Says that every number up to `last` may never be stored. Called while the unit fetches no commands.
    pub(crate) fn lose(&self, last: u64) {
        self.lost.store(last, Ordering::Release);
    }

    /// Gives the word back.
    ///
    /// # Safety
    /// The unit does not execute commands any more.
    pub(crate) unsafe fn free(self) {
        // SAFETY: handed on.
        unsafe { self.memory.free() };
    }
}
