//! Address Translation Services: answers to devices that translate themselves, and invalidations that are sent to them.

use std::sync::atomic::Ordering;
use std::sync::{OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use platform::pci::RequesterId;

use super::device_table::Dte;
use super::event::Event;
use super::{Outcome, Shared};
use crate::ats::{Answer, Downstream, Invalidation, Source, Translation};
use crate::bus::{BusError, INTERRUPTS};
use crate::pri::PageResponse;

/// Types of INVALID_DEVICE_REQUEST with TR = 1: translation requests are not allowed; what is asked for is no memory.
const NOT_ALLOWED: u64 = 0;
const NO_MEMORY: u64 = 1;
/// Type with TR = 0: an address that the device has translated, and may not.
const PRETRANSLATED: u64 = 1;

/// Invalidations that devices have not answered yet.
#[derive(Default)]
pub(super) struct Invalidations {
    devices: OnceLock<Weak<dyn Downstream>>,
    pending: Mutex<Vec<Pending>>,
}

struct Pending {
    device: u16,
    queue: u16,
    /// Where the command was.
    at: u64,
    sent: Instant,
    answer: Answer,
}

impl Invalidations {
    /// Where the devices are; once.
    pub(super) fn connect(&self, devices: Weak<dyn Downstream>) {
        // What came first stays.
        let _ = self.devices.set(devices);
    }

    fn count(&self, queue: u16) -> usize {
        self.pending.lock().iter().filter(|pending| pending.queue == queue).count()
    }
}

impl Shared {
    /// The entry of a device, for a request that needs nothing else of it.
    pub(super) fn entry(&self, device: u16) -> Result<Dte, Option<Event>> {
        loop {
            if let Some(dte) = self.caches.read().dte(device) {
                return Ok(dte);
            }
            // Fetches the entry alone, if that is what is missing.
            self.fetch(device, 0, false)?;
        }
    }

    /// Whether a device may use addresses that it has translated itself.
    pub(super) fn check_translated(&self, device: u16, address: u64, write: bool) -> Result<(), Event> {
        let refused = Event::invalid_request(device, address, PRETRANSLATED);
        let dte = self.entry(device).map_err(|event| event.unwrap_or(refused))?;
        if dte.valid() && dte.memory_half_reserved(&self.config) {
            return Err(Event::illegal_dte(device, address, write, false, true));
        }
        if dte.valid() && dte.answers_translations() { Ok(()) } else { Err(refused) }
    }

    /// Answers a translation request.
    pub(super) fn translate(&self, source: Source, address: u64) -> Result<Translation, BusError> {
        if !self.enabled.load(Ordering::Acquire) {
            return Err(BusError::MasterAbort);
        }
        self.answer(source, address)?.map_err(|event| {
            event.into_iter().for_each(|event| self.log(event));
            BusError::TargetAbort
        })
    }

    fn answer(&self, source: Source, address: u64) -> Result<Result<Translation, Option<Event>>, BusError> {
        let device = source.requester.get();
        if INTERRUPTS.contains(&address) {
            return Ok(Err(Some(Event::invalid_translation(device, address, NO_MEMORY))));
        }
        let dte = match self.entry(device) {
            Ok(dte) => dte,
            Err(event) => return Ok(Err(event)),
        };
        if !(dte.valid() && dte.answers_translations() && dte.translation_valid()) {
            return Ok(Err(Some(Event::invalid_translation(device, address, NOT_ALLOWED))));
        }
        Ok(match self.guest_of(source, address, false)? {
            Some(guest) => self.guest_translation(guest, address),
            None => self.host_translation(dte, device, address),
        })
    }

    fn host_translation(&self, dte: Dte, device: u16, address: u64) -> Result<Translation, Option<Event>> {
        // Whether it can be read or written: either finds the page.
        for write in [false, true] {
            loop {
                let caches = self.caches.read();
                match self.answer_from_cache(&caches, device, address, 1, write) {
                    Outcome::Pass(_) => {
                        let found = caches.leaf(dte.domain(), address);
                        return Ok(found.map_or_else(
                            || Translation {
                                phys: address & !0xfff,
                                shift: 12,
                                read: dte.read_allowed(),
                                write: dte.write_allowed(),
                            },
                            |leaf| Translation {
                                phys: leaf.phys,
                                shift: leaf.shift,
                                read: leaf.read && dte.read_allowed(),
                                write: leaf.write && dte.write_allowed(),
                            },
                        ));
                    }
                    Outcome::Refuse(event) => {
                        unless_page_fault(event)?;
                        break;
                    }
                    Outcome::Miss => {}
                }
                drop(caches);
                if let Err(event) = self.fetch(device, address, write) {
                    unless_page_fault(event)?;
                    break;
                }
            }
        }
        Ok(Translation::NONE)
    }

    /// INVALIDATE_IOTLB_PAGES: sends a request to the device once its queue has room, as software says that it is long.
    pub(super) fn invalidate_iotlb(&self, at: u64, first: u64, invalidation: Invalidation) {
        let (device, queue) = (first as u16, (first >> 32) as u16);
        let most = (first >> 24 & 0xff) as usize;
        // A device whose translation requests are not answered has nothing to forget.
        let dte = self.entry(device).ok().filter(|dte| dte.valid() && dte.answers_translations());
        let Some(dte) = dte else { return };
        // Requests without a PASID that use the table of PASID 0 are kept without one.
        let pasid = invalidation.pasid.filter(|pasid| *pasid != 0 || !dte.guest_io());
        let invalidation = Invalidation { pasid, ..invalidation };
        let sent = Instant::now();
        self.settle(|state| state.count(queue) < most);
        let devices = self.invalidations.devices.get().and_then(Weak::upgrade);
        let answer = match devices {
            Some(devices) if self.invalidations.count(queue) < most => {
                devices.invalidate(RequesterId::new(device), invalidation)
            }
            // Nobody hears of it.
            _ => Answer::default(),
        };
        self.invalidations.pending.lock().push(Pending { device, queue, at, sent, answer });
    }

    /// Sends the answer to page requests.
    pub(super) fn answer_page_request(&self, device: u16, response: PageResponse) {
        if let Some(devices) = self.invalidations.devices.get().and_then(Weak::upgrade) {
            devices.page_response(RequesterId::new(device), response);
        }
    }

    /// Waits until every device has answered, or its time is up.
    pub(super) fn await_answers(&self) {
        self.settle(|state| state.pending.lock().is_empty());
    }

    /// Takes out what has been answered, and what never will be, until `enough`, or until it cannot get better.
    fn settle(&self, enough: impl Fn(&Invalidations) -> bool) {
        let state = &self.invalidations;
        let timeout = self.registers.lock().invalidation_timeout();
        while !self.stop.load(Ordering::Acquire) {
            let mut late = Vec::new();
            state.pending.lock().retain(|pending| {
                let is_late = timeout.is_some_and(|timeout| pending.sent.elapsed() >= timeout);
                if !pending.answer.is_given() && is_late {
                    late.push(Event::iotlb_timeout(pending.device, pending.at));
                }
                !pending.answer.is_given() && !is_late
            });
            late.into_iter().for_each(|event| self.log(event));
            if enough(state) || state.pending.lock().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// Page faults of translation requests are not logged: the device is told that there is nothing.
fn unless_page_fault(event: Option<Event>) -> Result<(), Option<Event>> {
    match event {
        Some(event) if !event.is_page_fault() => Err(Some(event)),
        _ => Ok(()),
    }
}
