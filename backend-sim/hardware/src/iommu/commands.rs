//! The command processor.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Shared;
use super::cache::Tag;
use super::event::Event;
use super::registers::{Cause, STATUS_COM_WAIT_INT};
use crate::ats::Invalidation;

/// How long the processor looks for more before it sleeps: waking it takes longer than most commands.
const IDLE: Duration = Duration::from_micros(100);

/// GN of an invalidation: it is about translations of a PASID.
const GN: u64 = 1 << 2;

/// What became of a command.
enum Executed {
    Done,
    /// Not a command, or one that this unit does not have.
    Illegal,
    /// Memory did not answer.
    BusError,
}

impl Shared {
    /// The processor's thread.
    pub(super) fn process_commands(&self) {
        while !self.stop.load(Ordering::Acquire) {
            self.doorbell.store(false, Ordering::SeqCst);
            while self.execute_next() {}
            self.await_doorbell();
        }
    }

    fn await_doorbell(&self) {
        let start = Instant::now();
        while start.elapsed() < IDLE {
            if self.doorbell.load(Ordering::SeqCst) {
                return;
            }
            std::thread::yield_now();
        }
        let mut asleep = self.asleep.lock();
        *asleep = true;
        while !self.doorbell.load(Ordering::SeqCst) {
            self.wake.wait(&mut asleep);
        }
        *asleep = false;
    }

    /// Takes and executes one command; false when there is none.
    fn execute_next(&self) -> bool {
        if self.held.load(Ordering::Acquire) {
            return false;
        }
        let Some(at) = self.registers.lock().next_command() else { return false };
        let command = self.ram.read64(at).and_then(|first| Ok((first, self.ram.read64(at + 8)?)));
        let executed = match command {
            Ok((first, second)) => {
                // The head moves on when a command is taken, before it has an effect. One that is bad stays there.
                let legal = self.is_legal(first, second);
                if legal {
                    let time = self.command_time.load(Ordering::Relaxed);
                    if time != 0 {
                        std::thread::sleep(Duration::from_nanos(time));
                    }
                    self.registers.lock().command_taken();
                    self.counters.commands[(first >> 60) as usize].fetch_add(1, Ordering::Relaxed);
                    self.execute(at, first, second)
                } else {
                    Executed::Illegal
                }
            }
            Err(_) => Executed::BusError,
        };
        self.registers.lock().command_ended(!matches!(executed, Executed::Done));
        let event = match executed {
            Executed::Done => return !self.stop.load(Ordering::Acquire),
            Executed::Illegal => Event::illegal_command(at),
            Executed::BusError => Event::command_hardware_error(at),
        };
        self.log(event);
        false
    }

    /// Whether the opcode is one of this unit's and all bits that must be zero are.
    fn is_legal(&self, first: u64, second: u64) -> bool {
        let (first_valid, second_valid) = match first >> 60 {
            1 => (0xf00f_ffff_ffff_ffff, u64::MAX),
            2 | 5 => (0xf000_0000_0000_ffff, 0),
            3 => (0xf000_ffff_000f_ffff, 0xffff_ffff_ffff_f007),
            4 if self.config.iotlb_sup => (u64::MAX, 0xffff_ffff_ffff_f005),
            7 if self.config.has_page_requests() => (0xf00f_ffff_0000_ffff, 0x0000_ffff_0000_0004),
            8 if self.config.has_invalidate_all() => (0xf000_0000_0000_0000, 0),
            _ => return false,
        };
        first & !first_valid == 0 && second & !second_valid == 0
    }

    fn execute(&self, at: u64, first: u64, second: u64) -> Executed {
        match first >> 60 {
            1 => return self.completion_wait(first, second),
            2 => self.caches.write().drop_dte(first as u16),
            3 => {
                let (start, last) = address_range(second);
                let domain = (first >> 32) as u16;
                let tag = match second & GN {
                    0 => Tag::from(domain),
                    _ => Tag::guest(domain, first as u32 & 0xf_ffff),
                };
                let pointers = second & 2 != 0;
                let lenient = self.config.lenient_invalidation;
                self.caches.write().drop_pages(tag, start, last, pointers, lenient);
            }
            4 => {
                let (start, last) = address_range(second);
                // The PASID is in three pieces: its middle, low and high bits.
                let pasid = (first >> 16 & 0xff) << 8 | first >> 48 & 0xff | (first >> 56 & 0xf) << 16;
                let pasid = (second & GN != 0).then_some(pasid as u32);
                self.invalidate_iotlb(at, first, Invalidation { pasid, first: start, last });
            }
            5 => self.caches.write().drop_irtes(first as u16),
            7 => self.complete_page_request(first, second),
            _ => self.caches.write().drop_all(),
        }
        Executed::Done
    }

    fn completion_wait(&self, first: u64, data: u64) -> Executed {
        const STORE: u64 = 1 << 0;
        const INTERRUPT: u64 = 1 << 1;
        // Every access that began before an earlier command took effect has ended: that command took the caches alone.
        self.await_answers();
        if first & STORE != 0 {
            let lost = self.lost_completions.load(Ordering::Relaxed);
            if lost > 0 {
                self.lost_completions.store(lost - 1, Ordering::Relaxed);
            } else if self.ram.write64(first & 0x000f_ffff_ffff_fff8, data).is_err() {
                return Executed::BusError;
            }
        }
        if first & INTERRUPT != 0 {
            let mut registers = self.registers.lock();
            registers.raise(STATUS_COM_WAIT_INT);
            let enabled = registers.completion_interrupt_enabled();
            drop(registers);
            if enabled {
                self.raise_interrupt(Cause::General);
            }
        }
        Executed::Done
    }
}

/// First and last address (inclusive) that an invalidation names.
fn address_range(second: u64) -> (u64, u64) {
    const SIZE: u64 = 1;
    let address = second & !0xfff;
    if second & SIZE == 0 {
        return (address, address | 0xfff);
    }
    // The lowest zero from bit 12 on is the size's bit less one; none below bit 51 means everything.
    let lowest_zero = (address | 0xfff).trailing_ones();
    if lowest_zero >= 51 {
        return (0, u64::MAX);
    }
    let size = 1u64 << (lowest_zero + 1);
    (address & !(size - 1), address | (size - 1))
}
