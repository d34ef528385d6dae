//! The event log and the log of page requests: rings that the unit fills and the driver empties.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::time::Duration;

use platform::sync::Mutex;
use platform::sync::atomic::Ordering;
use platform::{OutOfFrames, Platform, TimedOut, time};

use crate::control::ControlRegister;
use crate::event::{Event, EventCode};
use crate::memory::Region;
use crate::ppr::PprEntry;
use crate::registers::{Control, LOG2_ENTRIES, Registers, Status, offset, ring_base};

/// How long an entry that the tail has passed may stay unwritten (errata 732 and 733).
const ENTRY_TIMEOUT: Duration = Duration::from_millis(10);

/// How many entries are taken out under one hold of the lock.
const BATCH: usize = 16;

/// Which of a unit's logs.
#[derive(Debug)]
pub struct Kind {
    base: usize,
    head: usize,
    tail: usize,
    /// The control register with the log and its interrupt on or off.
    switch: fn(Control, bool, bool) -> Control,
    interrupts: fn(&Control) -> bool,
    runs: fn(&Status) -> bool,
    overflowed: fn(&Status) -> bool,
    /// What keeps it from running after an overflow, and says that there are entries.
    clear: Status,
}

/// An entry of a log: sixteen bytes, of which bits 63:60 are 0 until it is written.
pub trait LogEntry: Copy {
    /// The log that has such entries.
    const LOG: Kind;

    /// From its two words.
    fn from_words(q0: u64, q1: u64) -> Self;

    /// The device that has left an invalidation without an answer, if it says that.
    fn unanswered(self) -> Option<u16> {
        None
    }
}

impl LogEntry for Event {
    const LOG: Kind = Kind {
        base: offset::EVENT_LOG_BASE,
        head: offset::EVENT_HEAD,
        tail: offset::EVENT_TAIL,
        switch: |control, log, interrupt| control.with_event_log_en(log).with_event_int_en(interrupt),
        interrupts: Control::event_int_en,
        runs: Status::event_log_run,
        overflowed: Status::event_overflow,
        clear: Status::new().with_event_overflow(true).with_event_log_int(true),
    };

    fn from_words(q0: u64, q1: u64) -> Self {
        Self::from_words(q0, q1)
    }

    fn unanswered(self) -> Option<u16> {
        (self.code() == EventCode::IotlbInvTimeout).then_some(self.header.device())
    }
}

impl LogEntry for PprEntry {
    const LOG: Kind = Kind {
        base: offset::PPR_LOG_BASE,
        head: offset::PPR_HEAD,
        tail: offset::PPR_TAIL,
        switch: |control, log, interrupt| control.with_ppr_log_en(log).with_ppr_int_en(interrupt),
        interrupts: Control::ppr_int_en,
        runs: Status::ppr_log_run,
        overflowed: Status::ppr_overflow,
        clear: Status::new().with_ppr_overflow(true).with_ppr_int(true),
    };

    fn from_words(q0: u64, q1: u64) -> Self {
        Self::from_words(q0, q1)
    }
}

/// Bytes in an entry.
const SIZE: u64 = 16;

/// What went through the log so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogStatistics {
    /// Entries read.
    pub events: u64,
    /// Entries that the tail had passed and that were never written.
    pub unwritten: u64,
    /// How often the log overflowed and was restarted.
    pub overflows: u64,
}

#[derive(Debug, Default)]
struct Reader {
    /// Byte offset of the next entry to read.
    head: u64,
    /// Byte offset of the next entry to look at: from the head on, entries have been looked at up to here.
    looked: u64,
    /// How many invalidations each device has left without an answer (IOTLB_INV_TIMEOUT).
    unanswered: BTreeMap<u16, u64>,
    statistics: LogStatistics,
}

/// The event log of a unit.
pub type EventLog = Log<Event>;
/// The log of page requests of a unit.
pub type PprLog = Log<PprEntry>;

/// A log of a unit.
#[derive(Debug)]
pub struct Log<E> {
    ring: Region,
    registers: Registers,
    platform: Arc<dyn Platform>,
    reader: Mutex<Reader>,
    entries: PhantomData<fn() -> E>,
}

impl<E: LogEntry> Log<E> {
    /// A log of `2^log2_entries` entries (8 to 15), which the unit does not know yet.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no memory for it.
    pub(crate) fn new(
        platform: &Arc<dyn Platform>,
        registers: Registers,
        log2_entries: u32,
    ) -> Result<Self, OutOfFrames> {
        let ring = Region::new(platform, SIZE << log2_entries.clamp(LOG2_ENTRIES.0, LOG2_ENTRIES.1))?;
        Ok(Self {
            ring,
            registers,
            platform: platform.clone(),
            reader: Mutex::new(Reader::default()),
            entries: PhantomData,
        })
    }

    /// Tells the unit where the log is and empties it. The unit must not be logging (EventLogRun = 0).
    #[doc(alias = "iommu_enable_event_buffer")]
    pub(crate) fn program(&self) {
        let log2_entries = (self.ring.size() / SIZE).trailing_zeros();
        self.registers.write(E::LOG.base, ring_base(self.ring.base(), log2_entries));
        self.rewind(&mut self.reader.lock());
    }

    fn rewind(&self, reader: &mut Reader) {
        self.registers.write(E::LOG.head, 0);
        self.registers.write(E::LOG.tail, 0);
        (reader.head, reader.looked) = (0, 0);
    }

    /// What went through so far.
    pub fn statistics(&self) -> LogStatistics {
        self.reader.lock().statistics
    }

    /// The entries that are there now, oldest first; they stay. One that is not written yet has code 0.
    pub fn pending(&self) -> Vec<E> {
        let mask = self.ring.size() - 1;
        let mut at = self.reader.lock().head;
        let tail = self.tail();
        let mut events = Vec::new();
        while at != tail {
            let first = self.ring.word(at).load(Ordering::Acquire);
            events.push(E::from_words(first, self.ring.word(at + 8).load(Ordering::Relaxed)));
            at = (at + SIZE) & mask;
        }
        events
    }

    /// How often the log has been restarted after an overflow.
    pub(crate) fn overflows(&self) -> u64 {
        self.reader.lock().statistics.overflows
    }

    /// How many invalidations a device has left without an answer so far, as far as the log has been looked at.
    pub(crate) fn unanswered(&self, device: u16) -> u64 {
        self.reader.lock().unanswered.get(&device).copied().unwrap_or(0)
    }

    /// Looks at every entry that is there now, and leaves it for who takes it out. False when entries may have been lost since
    /// there were `overflows`.
    pub(crate) fn look_ahead(&self, overflows: u64) -> bool {
        let mut reader = self.reader.lock();
        let tail = self.tail();
        self.look(&mut reader, tail);
        reader.statistics.overflows == overflows && !(E::LOG.overflowed)(&self.registers.status())
    }

    fn tail(&self) -> u64 {
        self.registers.read(E::LOG.tail) & (self.ring.size() - 1) & !(SIZE - 1)
    }

    /// Waits until the entry at `at` is there: the tail may be seen before it, and its code is still 0 then.
    fn is_written(&self, at: u64) -> bool {
        let written = || self.ring.word(at).load(Ordering::Acquire) >> 60 != 0;
        time::poll_until(&*self.platform, ENTRY_TIMEOUT, written).is_ok()
    }

    fn look(&self, reader: &mut Reader, tail: u64) {
        while reader.looked != tail {
            if self.is_written(reader.looked) {
                let word = |at| self.ring.word(reader.looked + at).load(Ordering::Acquire);
                if let Some(device) = E::from_words(word(0), word(8)).unanswered() {
                    *reader.unanswered.entry(device).or_default() += 1;
                }
            }
            reader.looked = (reader.looked + SIZE) & (self.ring.size() - 1);
        }
    }

    /// Takes out every entry that is there now and hands it to `sink`, oldest first (Linux: `iommu_poll_events`). Returns
    /// how many. `sink` runs without a lock held.
    #[doc(alias = "iommu_poll_events")]
    pub(crate) fn drain(&self, sink: &mut dyn FnMut(E)) -> usize {
        // What is logged meanwhile raises the status bit again; so one round of the ring is enough, and it ends.
        let mut left = (self.ring.size() / SIZE) as usize;
        let mut drained = 0;
        while left > 0 {
            let mut batch = [None; BATCH];
            let taken = self.take(&mut batch[..BATCH.min(left)]);
            batch.iter().flatten().for_each(|event| sink(*event));
            drained += batch.iter().flatten().count();
            if taken == 0 {
                break;
            }
            left -= taken;
        }
        drained
    }

    /// Moves up to `batch.len()` entries out of the ring. Returns how many the head moved over.
    fn take(&self, batch: &mut [Option<E>]) -> usize {
        let mask = self.ring.size() - 1;
        let mut reader = self.reader.lock();
        let tail = self.tail();
        self.look(&mut reader, tail);
        let mut taken = 0;
        while reader.head != tail && taken < batch.len() {
            let (first, second) = (self.ring.word(reader.head), self.ring.word(reader.head + 8));
            if self.is_written(reader.head) {
                batch[taken] =
                    Some(E::from_words(first.load(Ordering::Acquire), second.load(Ordering::Relaxed)));
                reader.statistics.events += 1;
            } else {
                reader.statistics.unwritten += 1;
            }
            // So that the next round through the ring can tell whether it has been written.
            first.store(0, Ordering::Relaxed);
            second.store(0, Ordering::Relaxed);
            reader.head = (reader.head + SIZE) & mask;
            taken += 1;
        }
        if taken != 0 {
            self.registers.write(E::LOG.head, reader.head);
        }
        taken
    }

    /// Restarts the log after an overflow: until then the unit drops every event (Linux: `amd_iommu_restart_log`). Entries
    /// that are still in it are lost, so drain first.
    ///
    /// # Errors
    /// [`TimedOut`] when the unit does not stop logging.
    #[doc(alias = "amd_iommu_restart_log")]
    pub(crate) fn restart(&self, control: &ControlRegister) -> Result<(), TimedOut> {
        let mut control = control.lock();
        let clock: &dyn Platform = &*self.platform;
        let mut interrupts = false;
        control.update(|value| {
            interrupts = (E::LOG.interrupts)(&value);
            (E::LOG.switch)(value, false, false)
        });
        if let Err(late) = control.wait(clock, |status| !(E::LOG.runs)(&status)) {
            // The next try must find the interrupt as it was.
            control.update(|value| (E::LOG.switch)(value, false, interrupts));
            return Err(late);
        }
        self.registers.clear_status(E::LOG.clear);
        {
            let mut reader = self.reader.lock();
            reader.statistics.overflows += 1;
            // Old entries must not be taken for new ones once the ring comes round.
            for offset in (0..self.ring.size()).step_by(8) {
                self.ring.word(offset).store(0, Ordering::Relaxed);
            }
            self.rewind(&mut reader);
        }
        control.update(|value| (E::LOG.switch)(value, true, interrupts));
        Ok(())
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The unit does not log any more.
    pub(crate) unsafe fn free(self) {
        // SAFETY: handed on.
        unsafe { self.ring.free() };
    }
}
