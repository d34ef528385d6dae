//! An AMD IOMMU, written from the specification: registers, device-table and translation caches, a command processor on a
//! thread of its own, an event log, its interrupt.
//!
//! It remembers as much as hardware may: a translation stays in use until the command that names it. A device's access holds
//! the caches for reading and a command takes them for writing, so when a command's effect is there, no access that began
//! before it is still under way; a completion wait comes after the effects of all commands before it.

mod ats;
mod cache;
mod commands;
mod config;
mod device_table;
mod event;
mod guest;
mod interrupts;
mod ppr;
mod registers;
mod several;
mod walker;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use platform::Mmio;
use platform::pci::RequesterId;

use self::ats::Invalidations;
use self::cache::{Caches, Leaf};
pub use self::config::Config;
use self::device_table::Dte;
use self::event::{Event, Refusal};
use self::registers::{Cause, LogPlace, REGION, Registers, offset};
pub use self::several::Units;
use crate::ats::{Downstream, Source, Translation};
use crate::bus::{BusError, INTERRUPTS, MessageSink, Remapper, Translated};
use crate::pri::PageRequest;
use crate::ram::Ram;

/// The type of INVALID_DEVICE_REQUEST for what is no message in the interrupt range.
const NO_INTERRUPT: u64 = 0;

/// What the unit has done since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Memory requests of devices, in the pieces that were translated for themselves.
    pub requests: u64,
    /// Requests whose translation was cached.
    pub iotlb_hits: u64,
    /// Requests that walked a table.
    pub iotlb_misses: u64,
    /// Commands executed, by opcode.
    pub commands: [u64; 16],
    /// Events written to the log.
    pub events: u64,
    /// Events that found no room.
    pub dropped_events: u64,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    untranslated: AtomicU64,
    commands: [AtomicU64; 16],
    events: AtomicU64,
    dropped_events: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Msi {
    address: u64,
    data: u32,
    enabled: bool,
}

/// The unit.
pub struct AmdIommu {
    shared: Arc<Shared>,
    processor: Mutex<Option<JoinHandle<()>>>,
}

/// What the unit and its command processor share.
struct Shared {
    config: Config,
    ram: Arc<Ram>,
    sink: Arc<dyn MessageSink>,
    registers: Mutex<Registers>,
    /// IommuEn, to be read without the lock.
    enabled: AtomicBool,
    caches: RwLock<Caches>,
    counters: Counters,
    msi: Mutex<Msi>,
    invalidations: Invalidations,
    /// Completion waits whose store will be lost.
    lost_completions: AtomicU64,
    /// Events whose store will be lost.
    lost_events: AtomicU64,
    /// How long each command takes at least, in nanoseconds.
    command_time: AtomicU64,
    /// Commands are left in the ring for now.
    held: AtomicBool,
    doorbell: AtomicBool,
    asleep: Mutex<bool>,
    wake: Condvar,
    stop: AtomicBool,
}

impl AmdIommu {
    /// A unit after reset. Its interrupt goes to `sink`.
    pub fn new(config: Config, ram: Arc<Ram>, sink: Arc<dyn MessageSink>) -> Arc<Self> {
        let shared = Arc::new(Shared {
            registers: Mutex::new(Registers::new(config.efr, config.efr2)),
            config,
            ram,
            sink,
            enabled: AtomicBool::new(false),
            caches: RwLock::default(),
            counters: Counters::default(),
            msi: Mutex::default(),
            invalidations: Invalidations::default(),
            lost_completions: AtomicU64::new(0),
            lost_events: AtomicU64::new(0),
            command_time: AtomicU64::new(0),
            held: AtomicBool::new(false),
            doorbell: AtomicBool::new(false),
            asleep: Mutex::new(false),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let processor = std::thread::Builder::new().name("iommu".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.process_commands()
        });
        Arc::new(Self { shared, processor: Mutex::new(processor.ok()) })
    }

    /// What its PCI function's MSI capability says now.
    pub fn set_msi(&self, address: u64, data: u32, enabled: bool) {
        *self.shared.msi.lock() = Msi { address, data, enabled };
    }

    /// Where the devices are that keep translations; called once. Before that their invalidations are never answered.
    pub fn connect(&self, devices: Weak<dyn Downstream>) {
        self.shared.invalidations.connect(devices);
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (hits, misses) = (load(&counters.hits), load(&counters.misses));
        Stats {
            requests: hits + misses + load(&counters.untranslated),
            iotlb_hits: hits,
            iotlb_misses: misses,
            commands: std::array::from_fn(|opcode| load(&counters.commands[opcode])),
            events: load(&counters.events),
            dropped_events: load(&counters.dropped_events),
        }
    }

    /// Misbehaves: the stores of the next `count` completion waits are lost.
    pub fn drop_completions(&self, count: u64) {
        self.shared.lost_completions.store(count, Ordering::Relaxed);
    }

    /// Misbehaves: of the next `count` events nothing is stored; the tail moves on all the same.
    pub fn drop_events(&self, count: u64) {
        self.shared.lost_events.store(count, Ordering::Relaxed);
    }

    /// Misbehaves: interrupts for which there is no reason.
    pub fn interrupt_for_nothing(&self) {
        self.shared.raise_interrupt(Cause::General);
    }

    /// Is slow: each command takes `time` at least.
    pub fn slow_down(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.shared.command_time.store(time, Ordering::Relaxed);
    }

    /// Takes its time: while `held`, no command is taken from the ring. One that was taken before is executed.
    pub fn hold_commands(&self, held: bool) {
        self.shared.held.store(held, Ordering::Release);
        self.shared.ring_doorbell();
    }

    /// Misbehaves: the log of page requests is full from now on, whatever is in it, until software restarts it.
    pub fn overflow_page_requests(&self) {
        let interrupt = {
            let mut registers = self.shared.registers.lock();
            registers.overflow_page_requests();
            registers.page_request_interrupt_enabled()
        };
        if interrupt {
            self.shared.raise_interrupt(Cause::PageRequests);
        }
    }

    /// Stops the command processor and waits for it.
    pub fn shutdown(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring_doorbell();
        if let Some(processor) = self.processor.lock().take() {
            // A processor that has panicked has said so.
            let _ = processor.join();
        }
    }
}

impl Drop for AmdIommu {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for AmdIommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmdIommu").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// What becomes of a memory request.
enum Outcome {
    Pass(Translated),
    /// Refused, with what is to be logged of it.
    Refuse(Option<Event>),
    /// Not cached: it takes a look at memory.
    Miss,
}

impl Shared {
    /// Answers a request from the caches alone.
    fn answer_from_cache(
        &self,
        caches: &Caches,
        device: u16,
        address: u64,
        len: u64,
        write: bool,
    ) -> Outcome {
        let Some(dte) = caches.dte(device) else { return Outcome::Miss };
        if let Some(outcome) = self.without_table(caches, dte, device, address, len, write) {
            return outcome;
        }
        let Some(leaf) = caches.leaf(dte.domain(), address) else {
            if caches.is_absent(dte.domain(), address) {
                return Outcome::Refuse(page_fault(caches, dte, device, address, write, Refusal::NotPresent));
            }
            return Outcome::Miss;
        };
        if write && leaf.write && dte.write_allowed() && !leaf.marked {
            // The first write through a leaf marks the entry, which takes a look at it.
            return Outcome::Miss;
        }
        self.use_leaf(caches, dte, leaf, device, address, len, write)
    }

    /// What needs no table: an entry that is not valid, does not translate, or is illegal.
    fn without_table(
        &self,
        caches: &Caches,
        dte: Dte,
        device: u16,
        address: u64,
        len: u64,
        write: bool,
    ) -> Option<Outcome> {
        let untranslated = Outcome::Pass(Translated { phys: address, len });
        if !dte.valid() {
            return Some(untranslated);
        }
        if dte.memory_half_reserved(&self.config) || !self.config.allows_had(dte.had()) {
            return Some(Outcome::Refuse(Some(Event::illegal_dte(device, address, write, false, true))));
        }
        let fault = |refusal| Outcome::Refuse(page_fault(caches, dte, device, address, write, refusal));
        if !dte.translation_valid() {
            return Some(fault(Refusal::NotPresent));
        }
        match dte.mode() {
            0 => {
                let allowed = if write { dte.write_allowed() } else { dte.read_allowed() };
                Some(if allowed { untranslated } else { fault(Refusal::Permission) })
            }
            mode if mode > self.config.max_levels() => {
                Some(Outcome::Refuse(Some(Event::illegal_dte(device, address, write, false, false))))
            }
            _ => None,
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn use_leaf(
        &self,
        caches: &Caches,
        dte: Dte,
        leaf: Leaf,
        device: u16,
        address: u64,
        len: u64,
        write: bool,
    ) -> Outcome {
        let allowed = if write { leaf.write && dte.write_allowed() } else { leaf.read && dte.read_allowed() };
        if !allowed {
            return Outcome::Refuse(page_fault(caches, dte, device, address, write, Refusal::Permission));
        }
        let offset = address & ((1 << leaf.shift) - 1);
        Outcome::Pass(Translated { phys: leaf.phys + offset, len: len.min((1 << leaf.shift) - offset) })
    }

    /// Fetches what the caches miss. `Err` is the request's end.
    fn fetch(&self, device: u16, address: u64, write: bool) -> Result<(), Option<Event>> {
        let mut caches = self.caches.write();
        let dte = match caches.dte(device) {
            Some(dte) => dte,
            None => {
                let Some(at) = self.registers.lock().dte_address(device) else {
                    return Err(Some(Event::page_fault(device, 0, address, write, Refusal::NotPresent)));
                };
                let Some(dte) = Dte::read(&self.ram, at) else {
                    return Err(Some(Event::device_table_error(device, at, write, false)));
                };
                caches.insert_dte(device, dte);
                return Ok(());
            }
        };
        // Since the caches were last looked at, a command or another request may have changed what they hold.
        match self.answer_from_cache(&caches, device, address, 1, write) {
            Outcome::Miss => {}
            Outcome::Pass(_) => return Ok(()),
            Outcome::Refuse(event) => return Err(event),
        }
        match walker::walk(&self.ram, &mut caches, dte, address, write) {
            Ok(leaf) => {
                // One that was not marked as written yet: the page may be of another size by now.
                caches.drop_leaf(dte.domain(), address);
                caches.insert_leaf(dte.domain(), address, leaf, self.config.iotlb_capacity);
                Ok(())
            }
            Err(refusal) => {
                if refusal == Refusal::NotPresent && self.config.np_cache {
                    caches.insert_absent(dte.domain(), address);
                }
                Err(page_fault(&caches, dte, device, address, write, refusal))
            }
        }
    }

    /// Writes an event to the log, and raises the unit's interrupt.
    fn log(&self, event: Event) {
        let mut registers = self.registers.lock();
        let place = registers.next_event();
        let mut logged = false;
        let lost = |count: u64| count.checked_sub(1);
        if matches!(place, LogPlace::At(_))
            && self.lost_events.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lost).is_ok()
        {
            logged = true;
        } else if let LogPlace::At(at) = place {
            // The word with the code last: who sees it sees the address. A log that is no memory loses its events.
            let address = self.ram.write64(at + 8, event.second);
            logged = address.and_then(|()| self.ram.write64(at, event.first)).is_ok();
        }
        let counter = if logged {
            registers.event_written();
            &self.counters.events
        } else {
            &self.counters.dropped_events
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let interrupt = registers.event_interrupt_enabled() && (logged || matches!(place, LogPlace::Full));
        drop(registers);
        if interrupt {
            self.raise_interrupt(Cause::General);
        }
    }

    /// Raises the unit's interrupt, which is never remapped: where its XT register says, or by its MSI.
    fn raise_interrupt(&self, cause: Cause) {
        let xt_interrupt = self.registers.lock().xt_interrupt(cause);
        if let Some(register) = xt_interrupt {
            let (address, data) = interrupts::xt_message(register);
            self.sink.message(address, data);
            return;
        }
        let msi = *self.msi.lock();
        if msi.enabled {
            self.sink.message(msi.address, msi.data);
        }
    }

    fn ring_doorbell(&self) {
        self.doorbell.store(true, Ordering::SeqCst);
        if *self.asleep.lock() {
            self.wake.notify_one();
        }
    }
}

/// A page fault, unless the entry keeps it out of the log. Errors of memory are always logged.
fn page_fault(
    caches: &Caches,
    dte: Dte,
    device: u16,
    address: u64,
    write: bool,
    refusal: Refusal,
) -> Option<Event> {
    let suppressed = !matches!(refusal, Refusal::TableUnreadable(_))
        && (dte.suppress_all() || dte.suppress_repeats() && !caches.is_first_fault(device));
    (!suppressed).then(|| Event::page_fault(device, dte.domain(), address, write, refusal))
}

impl Remapper for AmdIommu {
    fn with_translation(
        &self,
        source: Source,
        address: u64,
        len: u64,
        write: bool,
        access: &mut dyn FnMut(Translated) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        let shared = &*self.shared;
        if !shared.enabled.load(Ordering::Acquire) {
            return access(Translated { phys: address, len });
        }
        let device = source.requester.get();
        if INTERRUPTS.contains(&address) {
            shared.log(Event::invalid_request(device, address, NO_INTERRUPT));
            return Err(BusError::TargetAbort);
        }
        let len = if address < *INTERRUPTS.start() { len.min(*INTERRUPTS.start() - address) } else { len };
        if source.translated {
            return match shared.check_translated(device, address, write) {
                Ok(()) => access(Translated { phys: address, len }),
                Err(event) => {
                    shared.log(event);
                    Err(BusError::TargetAbort)
                }
            };
        }
        if (source.pasid.is_some() || shared.config.has_guest_translation())
            && let Some(guest) = shared.guest_of(source, address, write)?
        {
            return shared.with_guest_translation(guest, address, len, write, access);
        }
        let mut walked = false;
        loop {
            let caches = shared.caches.read();
            match shared.answer_from_cache(&caches, device, address, len, write) {
                Outcome::Pass(translated) => {
                    let translates =
                        caches.dte(device).is_some_and(|dte| dte.translation_valid() && dte.mode() != 0);
                    let counter = match (translates, walked) {
                        (false, _) => &shared.counters.untranslated,
                        (true, true) => &shared.counters.misses,
                        (true, false) => &shared.counters.hits,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    // The caches stay held: a command waits for the access.
                    return access(translated);
                }
                Outcome::Refuse(event) => {
                    drop(caches);
                    event.into_iter().for_each(|event| shared.log(event));
                    return Err(BusError::TargetAbort);
                }
                Outcome::Miss => {}
            }
            drop(caches);
            walked = true;
            if let Err(event) = shared.fetch(device, address, write) {
                shared.counters.misses.fetch_add(1, Ordering::Relaxed);
                if let Some(event) = event {
                    shared.log(event);
                }
                return Err(BusError::TargetAbort);
            }
        }
    }

    fn translate(&self, source: Source, address: u64) -> Result<Translation, BusError> {
        self.shared.translate(source, address)
    }

    fn page_request(&self, request: PageRequest) -> Result<(), BusError> {
        self.shared.page_request(request)
    }

    fn interrupt(
        &self,
        requester: RequesterId,
        address: u64,
        data: u32,
        deliver: &mut dyn FnMut(u64, u32),
    ) -> Result<(), BusError> {
        let shared = &*self.shared;
        if !shared.enabled.load(Ordering::Acquire) {
            deliver(address, data);
            return Ok(());
        }
        shared.interrupt(requester.get(), address, data, deliver).map_err(|event| {
            event.into_iter().for_each(|event| shared.log(event));
            BusError::TargetAbort
        })
    }
}

// SAFETY: the region is this value's registers, nothing else.
unsafe impl Mmio for AmdIommu {
    fn len(&self) -> usize {
        REGION
    }

    fn read32(&self, at: usize) -> u32 {
        if !at.is_multiple_of(4) || at + 4 > REGION {
            return u32::MAX;
        }
        (self.shared.registers.lock().read(at & !7) >> (8 * (at & 4))) as u32
    }

    fn write32(&self, at: usize, value: u32) {
        if at.is_multiple_of(4) && at + 4 <= REGION {
            let shift = 8 * (at & 4);
            self.write(at & !7, u64::from(value) << shift, 0xffff_ffff << shift);
        }
    }

    fn read64(&self, at: usize) -> u64 {
        if !at.is_multiple_of(8) || at + 8 > REGION {
            return u64::MAX;
        }
        self.shared.registers.lock().read(at)
    }

    fn write64(&self, at: usize, value: u64) {
        if at.is_multiple_of(8) && at + 8 <= REGION {
            self.write(at, value, u64::MAX);
        }
    }
}

impl AmdIommu {
    fn write(&self, at: usize, value: u64, mask: u64) {
        let mut registers = self.shared.registers.lock();
        registers.write(at, value, mask);
        self.shared.enabled.store(registers.enabled(), Ordering::Release);
        drop(registers);
        if at == offset::COMMAND_TAIL || at == offset::CONTROL {
            self.shared.ring_doorbell();
        }
    }
}
