//! Who is told by name what a domain has unmapped: devices that keep translations themselves.

use alloc::vec::Vec;

use iommu_core::SyncError;
use platform::pci::PciAddress;
use platform::sync::Mutex;
use platform::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::command::Command;
use crate::command_queue::CommandError;
use crate::completion::Ticket;
use crate::driver::Shared;
use crate::invalidate::Cover;
use crate::unit::Unit;

/// A device that is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener {
    dev: PciAddress,
    /// Its unit's index.
    unit: usize,
    /// How many invalidations it can hold; `None` for one that is told nothing any more.
    depth: Option<u8>,
    /// How many it had left without an answer before.
    unanswered: u64,
}

impl Listener {
    pub(crate) fn new(dev: PciAddress, unit: &Unit, depth: u8) -> Self {
        let unanswered = unit.events().unanswered(dev.id.get());
        Self { dev, unit: unit.index(), depth: Some(depth), unanswered }
    }

    fn command(&self, cover: Cover) -> Option<Command> {
        Some(Command::invalidate_iotlb_pages(self.dev.id.get(), self.depth?, cover))
    }

    /// Whether it has left an invalidation without an answer since it is listed, as far as the log has been looked at.
    pub(crate) fn is_silent(&self, unit: &Unit) -> bool {
        unit.events().unanswered(self.dev.id.get()) != self.unanswered
    }
}

/// Commands that are put in together.
const BATCH: usize = 15;
/// Units that are waited for together.
const UNITS: usize = 16;

/// The listeners of a domain.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    list: Mutex<Vec<Listener>>,
    count: AtomicUsize,
}

impl Listeners {
    /// From now on `listener` is told. Before it can keep anything.
    pub(crate) fn add(&self, listener: Listener) {
        let mut list = self.list.lock();
        list.push(listener);
        self.count.store(list.len(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The device is told nothing any more; commands to it may still be under way. It stays listed, so that whoever has sent
    /// them sees whether it has answered.
    pub(crate) fn mute(&self, dev: PciAddress) {
        let mut list = self.list.lock();
        list.iter_mut().filter(|listener| listener.dev == dev).for_each(|listener| listener.depth = None);
    }

    /// The device can use nothing any more that it has kept.
    pub(crate) fn remove(&self, dev: PciAddress) {
        let mut list = self.list.lock();
        list.retain(|listener| listener.dev != dev);
        self.count.store(list.len(), Ordering::SeqCst);
    }

    /// Tells every listener to forget what is in `cover`, and waits for their answers. The units have forgotten it already, so
    /// no device can ask for it anew.
    ///
    /// # Errors
    /// [`SyncError`] when a unit or a device does not answer; such a device keeps no translations from then on.
    #[inline]
    pub(crate) fn flush(&self, shared: &Shared, cover: Cover) -> Result<(), SyncError> {
        // A device that is on its way in either sees the table as it is now, or is seen here (the other half is in `add`).
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) == 0 { Ok(()) } else { self.tell(shared, cover) }
    }

    #[cold]
    fn tell(&self, shared: &Shared, cover: Cover) -> Result<(), SyncError> {
        let mut result = Ok(());
        for units in shared.units().chunks(UNITS) {
            let mut sent = [None; UNITS];
            {
                // Who mutes a device then waits for what is in the rings: so commands are put in under the lock.
                let list = self.list.lock();
                for (unit, sent) in units.iter().zip(&mut sent) {
                    let of_unit = list.iter().filter(|listener| listener.unit == unit.index());
                    let overflows = unit.events().overflows();
                    match submit(unit, of_unit.filter_map(|listener| listener.command(cover))) {
                        Ok(ticket) => *sent = ticket.map(|ticket| (ticket, overflows)),
                        Err(_) => result = Err(SyncError),
                    }
                }
            }
            for (unit, sent) in units.iter().zip(&sent) {
                let Some((ticket, overflows)) = *sent else { continue };
                // The wait ends when every device has answered, or when its time is up: then there is an event, unless the
                // log has lost it.
                if unit.wait(ticket).is_err() || !unit.events().look_ahead(overflows) {
                    result = Err(SyncError);
                }
            }
        }
        while let Some(silent) = self.silent(shared) {
            shared.silence(silent);
            self.remove(silent);
            result = Err(SyncError);
        }
        result
    }

    fn silent(&self, shared: &Shared) -> Option<PciAddress> {
        let list = self.list.lock();
        let silent = |listener: &&Listener| {
            shared.units().get(listener.unit).is_some_and(|unit| listener.is_silent(unit))
        };
        list.iter().find(silent).map(|listener| listener.dev)
    }
}

/// Puts commands in; the last wait stands for all. `None` when there are none.
fn submit(unit: &Unit, commands: impl Iterator<Item = Command>) -> Result<Option<Ticket>, CommandError> {
    let mut batch = [Command::completion_interrupt(); BATCH];
    let (mut count, mut ticket) = (0, None);
    for command in commands {
        batch[count] = command;
        count += 1;
        if count == BATCH {
            ticket = Some(unit.submit(&batch)?);
            count = 0;
        }
    }
    if count != 0 {
        ticket = Some(unit.submit(&batch[..count])?);
    }
    Ok(ticket)
}
