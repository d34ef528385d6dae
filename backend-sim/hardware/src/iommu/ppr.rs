//! Peripheral page requests: the log that they go to, and the answers that go back.

use std::sync::atomic::Ordering;

use super::Shared;
use super::event::Event;
use super::registers::{Cause, LogPlace};
use crate::bus::BusError;
use crate::pri::{PageRequest, PageResponse};

impl Shared {
    /// A page request arrives.
    pub(super) fn page_request(&self, request: PageRequest) -> Result<(), BusError> {
        if !self.enabled.load(Ordering::Acquire) {
            return Err(BusError::MasterAbort);
        }
        let device = request.requester.get();
        let allowed = self
            .entry(device)
            .is_ok_and(|dte| dte.valid() && dte.page_requests() && !dte.memory_half_reserved(&self.config));
        if !allowed || !self.registers.lock().page_requests_enabled() {
            self.log(Event::invalid_page_request(device, request.address, request.pasid));
            self.answer_by_itself(request, PageResponse::FAILURE);
            return Ok(());
        }
        let (first, second) = entry(request);
        let mut registers = self.registers.lock();
        let place = registers.next_page_request();
        let mut logged = false;
        if let LogPlace::At(at) = place {
            // The word with the code last.
            let address = self.ram.write64(at + 8, second);
            logged = address.and_then(|()| self.ram.write64(at, first)).is_ok();
        }
        if logged {
            registers.page_request_written();
        }
        let interrupt =
            registers.page_request_interrupt_enabled() && (logged || matches!(place, LogPlace::Full));
        let by_itself = registers.page_request_auto_response().filter(|_| !logged);
        drop(registers);
        if interrupt {
            self.raise_interrupt(Cause::PageRequests);
        }
        if let Some(code) = by_itself {
            self.answer_by_itself(request, code);
        }
        Ok(())
    }

    fn answer_by_itself(&self, request: PageRequest, code: u8) {
        if request.last {
            let response = PageResponse { pasid: request.pasid, group: request.group, code };
            self.answer_page_request(request.requester.get(), response);
        }
    }

    /// COMPLETE_PPR_REQUEST.
    pub(super) fn complete_page_request(&self, first: u64, second: u64) {
        const GN: u64 = 1 << 2;
        let pasid = (second & GN != 0).then_some((first >> 32) as u32 & 0xf_ffff);
        let group = (second >> 32 & 0x1ff) as u16;
        let response = PageResponse { pasid, group, code: (second >> 44 & 0xf) as u8 };
        self.answer_page_request(first as u16, response);
    }
}

/// The two words of a log entry.
fn entry(request: PageRequest) -> (u64, u64) {
    const READ: u64 = 1 << 50;
    const WRITE: u64 = 1 << 53;
    const USER: u64 = 1 << 54;
    const GN: u64 = 1 << 56;
    const LAST: u64 = 1 << 41;
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    let pasid = u64::from(request.pasid.unwrap_or(0));
    let first = 1 << 60
        | u64::from(request.requester.get())
        | (pasid & 0xffff) << 16
        | (pasid >> 16 & 0xf) << 42
        | u64::from(request.group & 0x1ff) << 32
        | flag(request.last, LAST)
        | READ
        | USER
        | flag(request.write, WRITE)
        | flag(request.pasid.is_some(), GN);
    (first, request.address & !0xfff)
}
