//! The Page Request Interface of PCI Express: a function that meets a page which is not there asks for it, waits for the answer,
//! and tries again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use platform::pci::RequesterId;

/// A request for one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// The function.
    pub requester: RequesterId,
    /// The PASID that the request carries.
    pub pasid: Option<u32>,
    /// The address; bits 11:0 do not count.
    pub address: u64,
    /// It wants to write, not only to read.
    pub write: bool,
    /// The function's number for requests that are answered together, 9 bits.
    pub group: u16,
    /// It is the last of its group.
    pub last: bool,
}

/// The answer to a group of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageResponse {
    /// The PASID that it carries.
    pub pasid: Option<u32>,
    /// The number of the group.
    pub group: u16,
    /// 0: the pages are there; 1: they will not be; 15: nobody answers any more. Others are reserved.
    pub code: u8,
}

impl PageResponse {
    /// The pages are there.
    pub const SUCCESS: u8 = 0;
    /// They will not be.
    pub const INVALID: u8 = 1;
    /// Nobody answers any more.
    pub const FAILURE: u8 = 15;
}

/// How long a function waits for an answer before it gives up.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct State {
    next_group: u16,
    /// Groups that wait, with the PASID that the answer carries, and what the answer was.
    waiting: HashMap<u16, (Option<u32>, Option<u8>)>,
    /// Answers that belonged to nothing.
    unexpected: u64,
}

/// A function's page requests.
#[derive(Debug, Default)]
pub struct Pri {
    enabled: AtomicBool,
    state: Mutex<State>,
    answered: Condvar,
}

impl Pri {
    /// What configuration space says.
    pub(crate) fn set_enabled(&self, on: bool) {
        if self.enabled.swap(on, Ordering::AcqRel) != on {
            // Who waits is answered no more.
            self.state.lock().waiting.clear();
            self.answered.notify_all();
        }
    }

    /// Whether requests may be made.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// How many answers came that belonged to no request.
    pub fn unexpected(&self) -> u64 {
        self.state.lock().unexpected
    }

    /// How many groups wait for their answer.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Takes a number for a group whose answer must carry `pasid`.
    pub(crate) fn begin(&self, pasid: Option<u32>) -> u16 {
        let mut state = self.state.lock();
        let group = state.next_group;
        state.next_group = (group + 1) & 0x1ff;
        state.waiting.insert(group, (pasid, None));
        group
    }

    /// Waits for the answer to a group; `None` when there is none.
    pub(crate) fn wait(&self, group: u16) -> Option<u8> {
        let mut state = self.state.lock();
        loop {
            match state.waiting.get(&group) {
                Some((_, Some(code))) => {
                    let code = *code;
                    state.waiting.remove(&group);
                    return Some(code);
                }
                Some((_, None)) => {}
                None => return None,
            }
            if self.answered.wait_for(&mut state, PATIENCE).timed_out() {
                state.waiting.remove(&group);
                return None;
            }
        }
    }

    /// An answer arrives.
    pub(crate) fn respond(&self, response: PageResponse) {
        let mut state = self.state.lock();
        match state.waiting.get_mut(&response.group) {
            Some((pasid, answer @ None)) if *pasid == response.pasid => *answer = Some(response.code),
            _ => state.unexpected += 1,
        }
        if response.code == PageResponse::FAILURE {
            self.enabled.store(false, Ordering::Release);
        }
        self.answered.notify_all();
    }
}
