//! Address Translation Services of PCI Express: a function that asks for translations, keeps them, and uses them until it is
//! told to forget them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use platform::pci::RequesterId;

use crate::bus::BusError;
use crate::pri::{PageResponse, Pri};

/// Who makes a request, and how its address is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The function's name.
    pub requester: RequesterId,
    /// The PASID that the request carries, 20 bits.
    pub pasid: Option<u32>,
    /// Whether the function says that it has translated the address itself.
    pub translated: bool,
}

impl From<RequesterId> for Source {
    /// An ordinary request: its address is to be translated.
    fn from(requester: RequesterId) -> Self {
        Self { requester, pasid: None, translated: false }
    }
}

/// The answer to a translation request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Physical address of the first byte of the translated range.
    pub phys: u64,
    /// log2 of the bytes of the range, which is aligned to its size.
    pub shift: u32,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed. With neither nothing is there.
    pub write: bool,
}

impl Translation {
    /// Nothing is there.
    pub const NONE: Self = Self { phys: 0, shift: 12, read: false, write: false };
}

/// What an invalidation is about: addresses `first` to `last`, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invalidation {
    /// The PASID that it carries: without one it is about requests without.
    pub pasid: Option<u32>,
    /// The first address.
    pub first: u64,
    /// The last address.
    pub last: u64,
}

/// An answer that a function owes.
#[derive(Clone, Default, Debug)]
pub struct Answer(Arc<AtomicBool>);

impl Answer {
    /// Whether it is there.
    pub fn is_given(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn give(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The functions behind an IOMMU, as it sends messages to them.
pub trait Downstream: Send + Sync {
    /// Sends an invalidation request to a function. One that is not there, or keeps no translations, never answers.
    fn invalidate(&self, device: RequesterId, invalidation: Invalidation) -> Answer;

    /// Sends the answer to page requests of a function, if that is there.
    fn page_response(&self, device: RequesterId, response: PageResponse);
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    pasid: Option<u32>,
    /// The first address.
    at: u64,
    translation: Translation,
}

impl Kept {
    fn holds(&self, address: u64) -> bool {
        self.at <= address && address <= self.last()
    }

    fn last(&self) -> u64 {
        self.at | ((1 << self.translation.shift) - 1)
    }
}

#[derive(Debug, Default)]
struct Contents {
    kept: Vec<Kept>,
    /// Counts invalidations: what was asked for before one must not be kept after it.
    generation: u64,
}

/// What a function can do beyond plain requests, as its configuration space has it switched on.
#[derive(Clone, Default, Debug)]
pub struct Services {
    /// Requests go out.
    pub bus_master: Arc<AtomicBool>,
    /// Translations are kept, if it can.
    pub atc: Option<Arc<Atc>>,
    /// Requests may carry a PASID.
    pub pasids: Arc<AtomicBool>,
    /// Pages that are not there are asked for, if it can.
    pub pri: Option<Arc<Pri>>,
}

/// A function's address translation cache. What it keeps it uses until it is told to forget it, or its ATS is switched off.
///
/// An access holds the cache for reading, and an invalidation takes it for writing: when that has been answered, no access is
/// under way that used what it names.
pub struct Atc {
    enabled: AtomicBool,
    /// How many invalidations it can hold; those beyond are lost.
    depth: usize,
    contents: RwLock<Contents>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    held: bool,
    queue: VecDeque<(Invalidation, Answer)>,
}

impl Atc {
    /// An empty cache that is switched off, with an invalidate queue of `depth`.
    pub(crate) fn new(depth: usize) -> Arc<Self> {
        Arc::new(Self {
            enabled: AtomicBool::new(false),
            depth,
            contents: RwLock::default(),
            waiting: Mutex::default(),
        })
    }

    /// What configuration space says: ATS is on or off. It forgets everything when that changes.
    pub(crate) fn set_enabled(&self, on: bool) {
        if self.enabled.load(Ordering::Acquire) != on {
            let mut contents = self.contents.write();
            self.enabled.store(on, Ordering::Release);
            contents.kept.clear();
            contents.generation += 1;
        }
    }

    /// Whether ATS is on.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// How many translations it keeps.
    pub fn len(&self) -> usize {
        self.contents.read().kept.len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Misbehaves: while `held`, invalidations are not answered and have no effect. Those that it could hold are done when
    /// it is let go.
    pub fn hold_invalidations(&self, held: bool) {
        let mut waiting = self.waiting.lock();
        waiting.held = held;
        if !held {
            for (invalidation, answer) in waiting.queue.drain(..) {
                self.forget(invalidation);
                answer.give();
            }
        }
    }

    /// An invalidation request arrives.
    pub(crate) fn invalidate(&self, invalidation: Invalidation) -> Answer {
        let answer = Answer::default();
        if !self.is_enabled() {
            return answer;
        }
        let mut waiting = self.waiting.lock();
        if waiting.held {
            if waiting.queue.len() < self.depth {
                waiting.queue.push_back((invalidation, answer.clone()));
            }
        } else {
            self.forget(invalidation);
            answer.give();
        }
        answer
    }

    fn forget(&self, Invalidation { pasid, first, last }: Invalidation) {
        let mut contents = self.contents.write();
        contents.kept.retain(|kept| kept.pasid != pasid || kept.at > last || kept.last() < first);
        contents.generation += 1;
    }

    /// Calls `access` with a physical address and the number of bytes from there on, of the `len` at `address`, for which it
    /// holds. `request` asks the IOMMU.
    pub(crate) fn with_translation(
        &self,
        pasid: Option<u32>,
        address: u64,
        len: u64,
        write: bool,
        mut request: impl FnMut() -> Result<Translation, BusError>,
        access: impl FnOnce(u64, u64) -> Result<(), BusError>,
    ) -> Result<u64, BusError> {
        let allows = |translation: &Translation| if write { translation.write } else { translation.read };
        loop {
            let generation = {
                let contents = self.contents.read();
                let hit = contents.kept.iter().find(|kept| kept.pasid == pasid && kept.holds(address));
                if let Some(kept) = hit.filter(|kept| allows(&kept.translation)) {
                    let len = len.min((kept.last() - address).saturating_add(1));
                    access(kept.translation.phys + (address - kept.at), len)?;
                    return Ok(len);
                }
                contents.generation
            };
            let translation = request()?;
            if !allows(&translation) {
                return Err(BusError::TargetAbort);
            }
            let mut contents = self.contents.write();
            // What was invalidated meanwhile is asked for again.
            if contents.generation == generation {
                let kept = Kept { pasid, at: address & !((1 << translation.shift) - 1), translation };
                contents
                    .kept
                    .retain(|old| old.pasid != pasid || old.at > kept.last() || old.last() < kept.at);
                contents.kept.push(kept);
            } else if !self.is_enabled() {
                return Err(BusError::MasterAbort);
            }
        }
    }
}

impl fmt::Debug for Atc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Atc").field("enabled", &self.is_enabled()).field("kept", &self.len()).finish()
    }
}
