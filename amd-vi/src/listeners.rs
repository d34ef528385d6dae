//! Who is told by name what a domain has unmapped: devices that keep translations themselves, and units for each device and
//! PASID that uses a guest table.

use alloc::vec::Vec;

use iommu_core::SyncError;
use platform::pci::PciAddress;
use platform::sync::atomic::{AtomicUsize, Ordering, fence};
use platform::sync::{Mutex, MutexGuard};

use crate::command::Command;
use crate::command_queue::CommandError;
use crate::completion::Ticket;
use crate::driver::Shared;
use crate::invalidate::Cover;
use crate::unit::Unit;

/// What a listener's device keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keeps {
    /// Nothing, or nothing any more: it would not answer.
    Nothing,
    /// It is being switched on or off under the lock of the devices: whoever has something to tell waits for that.
    Soon,
    /// Translations; it can hold so many invalidations.
    Translations(u8),
}

/// A device that is told, or its unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener {
    dev: PciAddress,
    /// Its unit's index.
    unit: usize,
    /// With a guest table: the tag of what the unit has cached, and the PASID.
    guest: Option<(u16, u32)>,
    keeps: Keeps,
    /// How many it had left without an answer before.
    unanswered: u64,
}

impl Listener {
    /// A device of a domain with a host table; its unit is told by domain.
    pub(crate) fn new(dev: PciAddress, unit: &Unit, keeps: Keeps) -> Self {
        let unanswered = unit.events().unanswered(dev.id.get());
        Self { dev, unit: unit.index(), guest: None, keeps, unanswered }
    }

    /// The same for a PASID of a device, or 0, with a guest table.
    pub(crate) fn of_guest(self, tag: u16, pasid: u32) -> Self {
        Self { guest: Some((tag, pasid)), ..self }
    }

    fn pasid(&self) -> Option<u32> {
        self.guest.map(|(_, pasid)| pasid)
    }

    /// What is put into the unit's ring: the unit forgets first, or the device could ask for the old translation anew.
    fn commands(&self, cover: Cover) -> impl Iterator<Item = Command> + use<> {
        let of_unit = self.guest.map(|(tag, pasid)| Command::invalidate_guest_pages(tag, pasid, cover));
        let (device, pasid) = (self.dev.id.get(), self.pasid());
        let of_device = match self.keeps {
            Keeps::Translations(depth) => Some(Command::invalidate_iotlb_pages(device, depth, pasid, cover)),
            Keeps::Nothing | Keeps::Soon => None,
        };
        of_unit.into_iter().chain(of_device)
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
    /// From now on `listener` is told; it takes the place of one for the same PASID of the device. Before it can keep anything.
    pub(crate) fn add(&self, listener: Listener) {
        let mut list = self.list.lock();
        let same = |old: &&mut Listener| {
            (old.dev, old.unit, old.pasid()) == (listener.dev, listener.unit, listener.pasid())
        };
        match list.iter_mut().find(same) {
            Some(old) => *old = listener,
            None => list.push(listener),
        }
        self.count.store(list.len(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The device is being switched off ([`Keeps::Soon`]), or is off; commands to it may still be under way. It stays listed, so that
    /// whoever has sent them sees whether it has answered.
    pub(crate) fn mute(&self, dev: PciAddress, keeps: Keeps) {
        let mut list = self.list.lock();
        list.iter_mut().filter(|listener| listener.dev == dev).for_each(|listener| listener.keeps = keeps);
    }

    /// The device can use nothing any more that it has kept, and keeps nothing from now on.
    pub(crate) fn end_ats(&self, dev: PciAddress, shared: &Shared) {
        let mut list = self.list.lock();
        list.retain_mut(|listener| {
            if listener.dev == dev {
                listener.keeps = Keeps::Nothing;
                let unit = shared.units().get(listener.unit);
                listener.unanswered = unit.map_or(0, |unit| unit.events().unanswered(dev.id.get()));
            }
            listener.dev != dev || listener.guest.is_some()
        });
        self.count.store(list.len(), Ordering::SeqCst);
    }

    /// The device, or that PASID of it, has left the domain: it can use nothing any more that it has kept.
    pub(crate) fn remove(&self, dev: PciAddress, pasid: Option<u32>) {
        let mut list = self.list.lock();
        list.retain(|listener| listener.dev != dev || listener.pasid() != pasid);
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
                let list = self.settled(shared);
                for (unit, sent) in units.iter().zip(&mut sent) {
                    let of_unit = list.iter().filter(|listener| listener.unit == unit.index());
                    let overflows = unit.events().overflows();
                    match submit(unit, of_unit.flat_map(|listener| listener.commands(cover))) {
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
            self.end_ats(silent, shared);
            result = Err(SyncError);
        }
        result
    }

    /// The list, when no device in it is being switched on: before, it answers nothing, and after, it must be told.
    fn settled(&self, shared: &Shared) -> MutexGuard<'_, Vec<Listener>> {
        loop {
            let list = self.list.lock();
            if list.iter().all(|listener| listener.keeps != Keeps::Soon) {
                return list;
            }
            drop(list);
            drop(shared.devices().lock());
        }
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
