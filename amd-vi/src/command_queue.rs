//! The command buffer: a ring with many producers. Waiting for what was put in never happens under its lock.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use platform::sync::CpuLock;
use platform::sync::atomic::Ordering;
use platform::{Instant, OutOfFrames, Platform, time};

use crate::command::Command;
use crate::completion::{Semaphore, Ticket};
use crate::control::ControlRegister;
use crate::memory::Region;
use crate::registers::{LOG2_ENTRIES, Registers, offset, ring_base};

/// Why commands did not do what they should. Nothing that they were to invalidate may be used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The ring stayed full: the unit fetches no commands.
    #[error("the command buffer stayed full")]
    Full,
    /// The commands were put in and their completion never came.
    #[error("a completion wait timed out")]
    Timeout,
    /// The unit stopped at an illegal command, and the ring was reset: whether these commands were executed is not known.
    #[error("the command buffer was reset before the commands were known to be done")]
    Reset,
    /// The ring is not running: the unit was shut down, or could not be restarted.
    #[error("the command buffer is stopped")]
    Stopped,
}

/// What went through the ring so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommandStatistics {
    /// Commands that drop something from the unit's caches.
    pub invalidations: u64,
    /// COMPLETION_WAIT commands.
    pub completion_waits: u64,
    /// How often the head register was read because the ring looked full.
    pub head_reads: u64,
    /// How often the ring was reset after the unit had stopped.
    pub resets: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Stopped,
    Running,
    /// Being brought back after the unit had stopped: producers wait.
    Resetting,
    /// Could not be brought back: producers fail, and the next recovery tries again.
    Broken,
}

#[derive(Debug)]
struct Producer {
    state: State,
    /// Byte offset of the oldest command that may still be in use, as last read from the unit.
    head: u64,
    /// Byte offset of the next command.
    tail: u64,
    /// The last number given to a COMPLETION_WAIT.
    sequence: u64,
    statistics: CommandStatistics,
}

/// The command buffer of a unit.
#[derive(Debug)]
pub struct CommandQueue {
    ring: Region,
    semaphore: Semaphore,
    registers: Registers,
    platform: Arc<dyn Platform>,
    timeout: Duration,
    producer: CpuLock<Producer>,
}

/// The most commands that are put in under one hold of the lock.
const BATCH: usize = 16;

/// How often the completion word is looked at before anything else is done: most waits end here. Once in a
/// model, which gains nothing by looking again.
const SPINS: u32 = if cfg!(loom) { 1 } else { 64 };

impl CommandQueue {
    /// A stopped ring of `2^log2_entries` commands (8 to 15). `timeout` is how long a full ring or a completion may take.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no memory for it.
    pub(crate) fn new(
        platform: &Arc<dyn Platform>,
        registers: Registers,
        log2_entries: u32,
        timeout: Duration,
    ) -> Result<Self, OutOfFrames> {
        let log2_entries = log2_entries.clamp(LOG2_ENTRIES.0, LOG2_ENTRIES.1);
        Ok(Self {
            ring: Region::new(platform, Command::SIZE << log2_entries)?,
            semaphore: Semaphore::new(platform)?,
            registers,
            platform: platform.clone(),
            timeout,
            producer: CpuLock::new(Producer {
                state: State::Stopped,
                head: 0,
                tail: 0,
                sequence: 0,
                statistics: CommandStatistics::default(),
            }),
        })
    }

    /// Tells the unit where the ring is and empties it. The unit must not be fetching commands (CmdBufRun = 0).
    #[doc(alias = "iommu_enable_command_buffer")]
    pub(crate) fn program(&self) {
        let log2_entries = (self.ring.size() / Command::SIZE).trailing_zeros();
        self.registers.write(offset::COMMAND_BUFFER_BASE, ring_base(self.ring.base(), log2_entries));
        self.rewind();
    }

    fn rewind(&self) {
        // Not every unit does this by itself when the base is written.
        self.registers.write(offset::COMMAND_HEAD, 0);
        self.registers.write(offset::COMMAND_TAIL, 0);
    }

    /// Lets producers in: the unit has been told to fetch commands.
    pub(crate) fn start(&self) {
        let mut producer = self.producer.lock();
        producer.head = 0;
        producer.tail = 0;
        producer.state = State::Running;
    }

    /// Keeps producers out from now on. What is in the ring may or may not be executed.
    pub(crate) fn stop(&self) {
        let mut producer = self.producer.lock();
        producer.state = State::Stopped;
        self.semaphore.lose(producer.sequence);
    }

    /// What went through so far.
    pub fn statistics(&self) -> CommandStatistics {
        self.producer.lock().statistics
    }

    /// The commands that the unit has not executed yet, oldest first, as far as its head says.
    pub fn pending(&self) -> Vec<Command> {
        let mask = self.ring.size() - 1;
        let tail = self.producer.lock().tail;
        let mut at = self.registers.read(offset::COMMAND_HEAD) & mask & !(Command::SIZE - 1);
        let mut commands = Vec::new();
        while at != tail {
            let word = |offset| self.ring.word(at + offset).load(Ordering::Relaxed);
            // SAFETY: it is only looked at: who takes it from here is told by `from_words` what it would do.
            commands.push(unsafe { Command::from_words([word(0), word(8)]) });
            at = (at + Command::SIZE) & mask;
        }
        commands
    }

    /// Puts `commands` and a COMPLETION_WAIT into the ring, in this order; others' commands may come between. Returns
    /// without waiting for them.
    ///
    /// # Errors
    /// [`CommandError::Full`] when no room came in time, [`CommandError::Stopped`]; [`CommandError::Reset`] when the ring was
    /// reset while more commands than fit at once were put in, so that the first ones are lost.
    #[doc(alias = "iommu_queue_command")]
    #[inline]
    pub fn submit(&self, commands: &[Command]) -> Result<Ticket, CommandError> {
        if commands.len() <= BATCH { self.put(commands, true, None) } else { self.submit_many(commands) }
    }

    #[cold]
    fn submit_many(&self, commands: &[Command]) -> Result<Ticket, CommandError> {
        let resets = self.statistics().resets;
        let mut commands = commands;
        while commands.len() > BATCH {
            let (now, later) = commands.split_at(BATCH);
            // The wait comes with the last ones. In a ring that was reset meanwhile it would say nothing of the first ones.
            let _ = self.put(now, false, Some(resets))?;
            commands = later;
        }
        self.put(commands, true, Some(resets))
    }

    /// Puts `commands`, at most [`BATCH`], and with `wait` a COMPLETION_WAIT into the ring, if that has been reset no more
    /// than `resets` times.
    #[inline]
    fn put(&self, commands: &[Command], wait: bool, resets: Option<u64>) -> Result<Ticket, CommandError> {
        let needed = (commands.len() as u64 + u64::from(wait)) * Command::SIZE;
        let mut deadline = None;
        loop {
            let mut producer = self.producer.lock();
            if matches!(producer.state, State::Stopped | State::Broken) {
                return Err(CommandError::Stopped);
            }
            if resets.is_some_and(|resets| resets != producer.statistics.resets) {
                return Err(CommandError::Reset);
            }
            if producer.state == State::Running && self.has_room(&mut producer, needed) {
                return Ok(self.write(&mut producer, commands, wait));
            }
            drop(producer);
            self.wait_for_room(&mut deadline)?;
        }
    }

    /// Whether `needed` bytes are free. Asks the unit only when the answer was no.
    #[inline]
    fn has_room(&self, producer: &mut Producer, needed: u64) -> bool {
        let mask = self.ring.size() - 1;
        // One entry stays empty, since head = tail means that the ring is.
        let room = |producer: &Producer| producer.head.wrapping_sub(producer.tail + Command::SIZE) & mask;
        if room(producer) >= needed {
            return true;
        }
        producer.statistics.head_reads += 1;
        producer.head = self.registers.read(offset::COMMAND_HEAD) & mask & !(Command::SIZE - 1);
        room(producer) >= needed
    }

    #[inline]
    fn write(&self, producer: &mut Producer, commands: &[Command], wait: bool) -> Ticket {
        let mask = self.ring.size() - 1;
        let mut tail = producer.tail;
        let mut put = |command: Command| {
            let [q0, q1] = command.words();
            self.ring.word(tail).store(q0, Ordering::Relaxed);
            self.ring.word(tail + 8).store(q1, Ordering::Relaxed);
            tail = (tail + Command::SIZE) & mask;
        };
        for command in commands {
            put(*command);
        }
        producer.statistics.invalidations += commands.len() as u64;
        if wait {
            producer.sequence = producer.sequence.wrapping_add(1);
            producer.statistics.completion_waits += 1;
            // SAFETY: the semaphore's memory is there for it, and stays until the unit is disabled.
            put(unsafe { Command::completion_wait(self.semaphore.address(), producer.sequence) });
        }
        producer.tail = tail;
        // The register write is a release: the unit sees the commands above.
        self.registers.write(offset::COMMAND_TAIL, tail);
        Ticket(producer.sequence)
    }

    #[cold]
    fn wait_for_room(&self, deadline: &mut Option<Instant>) -> Result<(), CommandError> {
        let now = self.platform.now();
        if now >= *deadline.get_or_insert(now + self.timeout) {
            return Err(CommandError::Full);
        }
        self.platform.relax();
        Ok(())
    }

    /// Waits until everything before `ticket` has been executed.
    ///
    /// # Errors
    /// [`CommandError::Timeout`] or [`CommandError::Reset`].
    #[doc(alias = "wait_on_sem")]
    #[inline]
    pub fn wait(&self, ticket: Ticket) -> Result<(), CommandError> {
        for _ in 0..SPINS {
            if self.semaphore.is_stored(ticket) {
                return self.unless_lost(ticket);
            }
            core::hint::spin_loop();
        }
        self.wait_long(ticket)
    }

    #[cold]
    fn wait_long(&self, ticket: Ticket) -> Result<(), CommandError> {
        let ended = || self.semaphore.is_stored(ticket) || self.semaphore.is_lost(ticket);
        match time::poll_until(&*self.platform, self.timeout, ended) {
            Ok(()) => self.unless_lost(ticket),
            Err(time::TimedOut) => Err(CommandError::Timeout),
        }
    }

    #[inline]
    fn unless_lost(&self, ticket: Ticket) -> Result<(), CommandError> {
        if self.semaphore.is_lost(ticket) { Err(CommandError::Reset) } else { Ok(()) }
    }

    /// Resets the ring when the unit has stopped fetching from it, as it does at an illegal command. Returns whether it had.
    ///
    /// What was in the ring is lost: its waiters get [`CommandError::Reset`].
    ///
    /// # Errors
    /// [`CommandError::Stopped`] when the unit could not be brought back; another try may do it.
    pub(crate) fn recover(&self, control: &ControlRegister) -> Result<bool, CommandError> {
        let mut control = control.lock();
        if control.status().cmd_buf_run() {
            return Ok(false);
        }
        {
            let mut producer = self.producer.lock();
            match producer.state {
                State::Running | State::Broken => producer.state = State::Resetting,
                State::Stopped | State::Resetting => return Ok(false),
            }
            producer.statistics.resets += 1;
            // Before the unit runs again, so that nobody takes a later number for his own.
            self.semaphore.lose(producer.sequence);
        }
        control.update(|control| control.with_cmd_buf_en(false));
        let clock = &*self.platform;
        let stopped = control.wait(clock, |status| !status.cmd_buf_run());
        let running = stopped.and_then(|()| {
            self.rewind();
            control.update(|control| control.with_cmd_buf_en(true));
            control.wait(clock, |status| status.cmd_buf_run())
        });
        let mut producer = self.producer.lock();
        producer.head = 0;
        producer.tail = 0;
        producer.state = if running.is_ok() { State::Running } else { State::Broken };
        running.map(|()| true).map_err(|_| CommandError::Stopped)
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The unit does not fetch or execute commands any more.
    pub(crate) unsafe fn free(self) {
        // SAFETY: handed on.
        unsafe {
            self.ring.free();
            self.semaphore.free();
        }
    }
}
