//! A device under watch.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use platform::DmaAddr;
use platform::sync::Mutex;

use super::debug::DmaDebug;
use super::ledger::{Ended, Ledger, Record};
use super::report::{Mapping, Mistake};
use crate::{DeviceParms, Direction, SgEntry};

/// A device's name, what it has mapped, and who hears of its mistakes.
#[derive(Debug)]
pub(super) struct Watched {
    name: Box<str>,
    debug: Arc<DmaDebug>,
    ledger: Mutex<Ledger>,
}

/// What becomes of an unmap or a free.
pub(super) enum Verdict {
    /// Nothing is known about it: it goes on as it is.
    Unknown,
    /// It ends this, with the arguments that it was made with.
    Ends(Record),
    /// It ends nothing, and does not go on.
    Refused,
}

/// What becomes of a sync.
pub(super) enum SyncVerdict {
    /// It goes on, in this direction.
    In(Direction),
    /// It does not go on.
    Refused,
}

impl Watched {
    pub(super) fn new(name: Box<str>, debug: Arc<DmaDebug>) -> Arc<Self> {
        let watched = Arc::new(Self { name, debug, ledger: Mutex::default() });
        watched.debug.watch(&watched);
        watched
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn live(&self) -> Vec<Mapping> {
        self.ledger.lock().live()
    }

    pub(super) fn report(&self, mistake: Mistake) {
        self.debug.report(&self.name, mistake);
    }

    /// Enters what was mapped.
    pub(super) fn made(&self, dev: &DeviceParms, record: Record) {
        self.with(|ledger, mistakes| ledger.made(dev, record, mistakes));
    }

    /// Takes out what is unmapped or freed: before it is, since afterwards somebody else may get the address.
    pub(super) fn ends(&self, ended: Ended<'_>) -> Verdict {
        self.with(|ledger, mistakes| ledger.ends(ended, mistakes))
    }

    pub(super) fn synced_whole(&self, list: &[SgEntry]) -> bool {
        self.with(|ledger, mistakes| ledger.synced_whole(list, mistakes))
    }

    pub(super) fn synced(&self, address: DmaAddr, len: usize, dir: Direction, for_cpu: bool) -> SyncVerdict {
        self.with(|ledger, mistakes| ledger.synced(address, len, dir, for_cpu, mistakes))
    }

    /// Takes out the links in the first `len` bytes at `address`, which must be all links in `within` bytes there; their
    /// direction, or `None` when they are not.
    pub(super) fn unlinked(
        &self,
        address: DmaAddr,
        len: usize,
        within: usize,
        dir: Direction,
    ) -> Option<Direction> {
        self.with(|ledger, mistakes| ledger.unlinked(address, len, within, dir, mistakes))
    }

    /// The device is gone.
    pub(super) fn gone(&self) {
        let live = self.live();
        if let Some(&first) = live.first() {
            let bytes = live.iter().map(|mapping| mapping.len).sum();
            self.report(Mistake::Leaked { count: live.len(), bytes, first });
        }
    }

    /// Reports after the ledger is let go.
    fn with<R>(&self, body: impl FnOnce(&mut Ledger, &mut Vec<Mistake>) -> R) -> R {
        let mut mistakes = Vec::new();
        let result = body(&mut self.ledger.lock(), &mut mistakes);
        mistakes.into_iter().for_each(|mistake| self.report(mistake));
        result
    }
}
