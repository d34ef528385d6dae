//! What becomes of a message interrupt (AMD I/O Virtualization Technology, section 2.2.5): aborted, forwarded as it is, or
//! remapped by an entry of the device's interrupt table.

use super::Shared;
use super::device_table::Dte;
use super::event::{Event, Refusal};
use super::registers::InterruptMode;
use crate::ram::Ram;

/// The type of INVALID_DEVICE_REQUEST for a message that the device's entry does not let through: with IntCtl = 0, or of a kind
/// that it does not pass. (For the latter the specification names no event; a real unit may log another or none.)
const INTERRUPTS_OFF: u64 = 5;

/// Delivery modes, in bits 10:8 of a message's data.
mod delivery {
    pub(crate) const FIXED: u32 = 0;
    pub(crate) const ARBITRATED: u32 = 1;
    pub(crate) const SMI: u32 = 2;
    pub(crate) const NMI: u32 = 4;
    pub(crate) const INIT: u32 = 5;
    pub(crate) const EXT_INT: u32 = 7;
}

/// Where messages are written.
const ADDRESS: u64 = 0xfee0_0000;

/// An entry of an interrupt table that is valid: what the interrupt becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Irte {
    vector: u8,
    destination: u32,
    logical: bool,
    delivery: u32,
}

/// Why an entry is not used.
enum Unusable {
    /// RemapEn is clear; with SupIOPF set that is not logged.
    NotPresent { quiet: bool },
    /// A reserved bit, or an IntType that is reserved.
    Reserved,
    /// Memory did not answer.
    Unreadable(u64),
}

/// The message of an interrupt: bits 31:8 of its destination are in bits 63:40 of the address.
fn message(vector: u8, destination: u32, logical: bool, delivery: u32) -> (u64, u32) {
    let destination = u64::from(destination & 0xff) << 12 | u64::from(destination >> 8) << 40;
    (ADDRESS | destination | u64::from(logical) << 2, u32::from(vector) | delivery << 8)
}

/// What the unit itself sends when an XT interrupt control register says so.
pub(super) fn xt_message(register: u64) -> (u64, u32) {
    let destination = (register >> 8 & 0x00ff_ffff | register >> 56 << 24) as u32;
    message((register >> 32) as u8, destination, register >> 2 & 1 != 0, (register >> 40 & 1) as u32)
}

impl Irte {
    /// Entry `index` of the table at `root`.
    fn read(ram: &Ram, root: u64, index: u32, mode: InterruptMode) -> Result<Self, Unusable> {
        let (low, high) = if mode.wide {
            let at = root + 16 * u64::from(index);
            read_16_bytes(ram, at).ok_or(Unusable::Unreadable(at))?
        } else {
            let at = root + 4 * u64::from(index);
            let word = ram.read64(at & !7).map_err(|_| Unusable::Unreadable(at))?;
            (word >> (8 * (at & 4)) & 0xffff_ffff, 0)
        };
        if low & 1 == 0 {
            return Err(Unusable::NotPresent { quiet: low & 2 != 0 });
        }
        // GuestMode is reserved in a unit that has no guest interrupts.
        let reserved = if mode.wide {
            low & 0xffff_ffff_0000_0080 != 0 || high & 0x00ff_ffff_ffff_ff00 != 0
        } else {
            low & 0xff00_0080 != 0
        };
        let delivery = (low >> 2 & 7) as u32;
        if reserved || !matches!(delivery, delivery::FIXED | delivery::ARBITRATED) {
            return Err(Unusable::Reserved);
        }
        let (vector, destination) = match (mode.wide, mode.x2apic) {
            (false, _) => ((low >> 16) as u8, (low >> 8 & 0xff) as u32),
            (true, false) => (high as u8, (low >> 8 & 0xff) as u32),
            (true, true) => (high as u8, (low >> 8 & 0x00ff_ffff | high >> 56 << 24) as u32),
        };
        Ok(Self { vector, destination, logical: low >> 6 & 1 != 0, delivery })
    }
}

/// Reads sixteen bytes at once, as hardware does: again, as long as the first half changes meanwhile.
fn read_16_bytes(ram: &Ram, at: u64) -> Option<(u64, u64)> {
    /// Somebody who changes an entry without end is not waited for.
    const TRIES: usize = 64;
    let mut low = ram.read64(at).ok()?;
    let mut high = 0;
    for _ in 0..TRIES {
        high = ram.read64(at + 8).ok()?;
        let again = ram.read64(at).ok()?;
        if again == low {
            break;
        }
        low = again;
    }
    Some((low, high))
}

/// What a device table entry says of a message.
enum Ruling {
    Forward,
    /// By the entry of this index.
    Remap(u32),
}

impl Shared {
    /// Delivers a message of `device`, or says what is to be logged of it.
    pub(super) fn interrupt(
        &self,
        device: u16,
        address: u64,
        data: u32,
        deliver: &mut dyn FnMut(u64, u32),
    ) -> Result<(), Option<Event>> {
        loop {
            let caches = self.caches.read();
            let known = caches.dte(device).map(|dte| self.rule(dte, device, address, data)).transpose()?;
            // The caches stay held while it is delivered: a command waits for it.
            match known {
                Some(Ruling::Forward) => {
                    deliver(address, data);
                    return Ok(());
                }
                Some(Ruling::Remap(index)) => {
                    if let Some(irte) = caches.irte(device, index) {
                        let (address, data) =
                            message(irte.vector, irte.destination, irte.logical, irte.delivery);
                        deliver(address, data);
                        return Ok(());
                    }
                }
                None => {}
            }
            drop(caches);
            self.fetch_for_interrupt(device, address, data)?;
        }
    }

    /// What the device table entry says.
    fn rule(&self, dte: Dte, device: u16, address: u64, data: u32) -> Result<Ruling, Option<Event>> {
        if !dte.interrupts_valid() {
            return Ok(Ruling::Forward);
        }
        let illegal = |reserved| Err(Some(Event::illegal_dte(device, address, true, true, reserved)));
        if dte.interrupt_half_reserved() {
            return illegal(true);
        }
        if dte.interrupt_table_len() >= 12 {
            return illegal(false);
        }
        let passes = |passes| {
            if passes {
                Ok(Ruling::Forward)
            } else {
                Err(Some(Event::invalid_request(device, address, INTERRUPTS_OFF)))
            }
        };
        // Other kinds than these two are for one processor by its own name.
        let logical = address >> 2 & 1 != 0;
        match data >> 8 & 7 {
            _ if logical => {}
            delivery::FIXED | delivery::ARBITRATED => {}
            delivery::SMI => return Ok(Ruling::Forward),
            delivery::NMI => return passes(dte.nmi_passes()),
            delivery::INIT => return passes(dte.init_passes()),
            delivery::EXT_INT => return passes(dte.ext_int_passes()),
            _ => return passes(false),
        }
        match dte.interrupt_control() {
            0 => passes(false),
            1 => Ok(Ruling::Forward),
            2 => Ok(Ruling::Remap(data & 0x7ff)),
            _ => illegal(true),
        }
    }

    /// Fetches what the caches miss for a message. `Err` is its end.
    fn fetch_for_interrupt(&self, device: u16, address: u64, data: u32) -> Result<(), Option<Event>> {
        let mut caches = self.caches.write();
        let Some(dte) = caches.dte(device) else {
            let Some(at) = self.registers.lock().dte_address(device) else {
                return Err(Some(Event::interrupt_fault(device, 0, address, Refusal::NotPresent)));
            };
            let dte = Dte::read(&self.ram, at);
            let dte = dte.ok_or_else(|| Some(Event::device_table_error(device, at, true, true)))?;
            caches.insert_dte(device, dte);
            return Ok(());
        };
        let Ruling::Remap(index) = self.rule(dte, device, address, data)? else { return Ok(()) };
        let domain = if dte.valid() { dte.domain() } else { 0 };
        let fault = |refusal| Event::interrupt_fault(device, domain, address, refusal);
        let mode = self.registers.lock().interrupt_mode();
        let beyond = index >> dte.interrupt_table_len() != 0 || !mode.many && index >= 512;
        let entry = if beyond {
            Err(Unusable::NotPresent { quiet: false })
        } else {
            Irte::read(&self.ram, dte.interrupt_table(), index, mode)
        };
        match entry {
            Ok(irte) => {
                caches.insert_irte(device, index, irte);
                Ok(())
            }
            Err(Unusable::NotPresent { quiet }) => {
                let quiet = quiet || dte.ignores_unmapped_interrupts();
                Err((!quiet).then(|| fault(Refusal::NotPresent)))
            }
            Err(Unusable::Reserved) => Err(Some(fault(Refusal::ReservedBit))),
            Err(Unusable::Unreadable(at)) => Err(Some(fault(Refusal::TableUnreadable(at)))),
        }
    }
}
