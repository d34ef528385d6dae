//! The driver as a kernel's interrupts see it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_core::{IrqRemap, IrqRemapError, IrqSource, IrqTarget, RemappedIrqs, SyncError};
use platform::pci::{MsiMessage, PciAddress};
use platform::sync::atomic::Ordering;

use super::irte::Irte;
use super::table::{InterruptTable, Name};
use super::{IrqTables, Link};
use crate::command::Command;
use crate::command_queue::CommandError;
use crate::driver::Shared;
use crate::ivrs::SpecialKind;
use crate::segment::Segment;

/// Pins of an IO-APIC that have an entry of their number each (Linux: the first 32 entries of its table).
const PINS: u16 = 32;

/// [`IrqRemap`] of the driver.
#[derive(Debug)]
// Fields are dropped in this order: the last reference to the driver frees the tables.
pub(crate) struct Remapper {
    pub(crate) tables: Arc<IrqTables>,
    pub(crate) shared: Arc<Shared>,
}

/// A source's names, its own first, in a segment.
struct Names<'a> {
    segment: &'a Segment,
    id: u16,
    names: Vec<Name>,
}

impl Remapper {
    fn names(&self, source: IrqSource<'_>) -> Option<Names<'_>> {
        let special = |kind, handle| self.tables.specials.get(&(kind, handle)).copied();
        match source {
            IrqSource::Msi { function, aliases } => {
                // The units' own messages are never remapped.
                if self.shared.units().iter().any(|unit| unit.address() == function) {
                    return None;
                }
                self.names_of(function.segment, function.id.get(), aliases)
            }
            IrqSource::IoApic { id, .. } => {
                let (segment, device) = special(SpecialKind::IoApic, id)?;
                self.names_of(segment, device, &[])
            }
            IrqSource::Hpet { number } => {
                let (segment, device) = special(SpecialKind::Hpet, number)?;
                self.names_of(segment, device, &[])
            }
        }
    }

    fn names_of(&self, id: u16, device: u16, aliases: &[PciAddress]) -> Option<Names<'_>> {
        let segment = self.shared.segments().get(&id)?;
        let own = segment.unit_of(device)?;
        let given = aliases.iter().filter(|alias| alias.segment == id).map(|alias| alias.id.get());
        let mut names = Vec::new();
        for name in core::iter::once(device).chain(segment.alias_of(device)).chain(given) {
            let name = (name, segment.unit_of(name).unwrap_or(own));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        // What is beyond the table the unit refuses.
        let all_there = names.iter().all(|(name, _)| segment.table.contains(*name));
        all_there.then_some(Names { segment, id, names })
    }

    /// The table of a source, to which all its names lead (Linux: `alloc_irq_table`).
    #[doc(alias = "alloc_irq_table")]
    fn table_of(&self, source: &Names<'_>) -> Result<Arc<InterruptTable>, IrqRemapError> {
        let Names { segment, id, ref names } = *source;
        let mut links = self.tables.links.lock();
        let mut found = names.iter().filter_map(|(name, _)| links.get(&(id, *name))).map(|link| &link.table);
        let table = match found.next() {
            Some(first) if found.all(|other| Arc::ptr_eq(first, other)) => first.clone(),
            Some(_) => return Err(IrqRemapError::Aliases),
            None => {
                let mut io_apics =
                    self.tables.specials.iter().filter(|((kind, _), _)| *kind == SpecialKind::IoApic);
                let has_pins = io_apics.any(|(_, at)| names.iter().any(|(name, _)| *at == (id, *name)));
                let (mode, pins) = (self.tables.mode, if has_pins { PINS } else { 0 });
                let table = InterruptTable::new(self.shared.platform(), mode.format, mode.log2_entries, pins);
                Arc::new(table.map_err(|_| IrqRemapError::OutOfMemory)?)
            }
        };
        for &(name, unit) in names {
            let link = links.entry((id, name)).or_insert_with(|| Link { table: table.clone(), known: false });
            if !link.known {
                // First, so that whoever changes an entry from now on tells the unit.
                table.add_name((name, unit));
                let flush = || match self.shared.units().get(unit) {
                    Some(unit) => unit.flush_dte(name),
                    None => Ok(()),
                };
                // A unit that has not answered may read the table for ever: it stays, and is said again next time.
                segment.table.set_interrupt_table(name, &table, flush).map_err(|_| SyncError)?;
                link.known = true;
            }
        }
        Ok(table)
    }
}

// SAFETY: a device's entry has IV set and IntCtl = 0, which aborts its messages, until `set_interrupt_table`; then its messages
// name entries of its table, all of which are zero, so not valid, but those that `set_target` was called for.
unsafe impl IrqRemap for Remapper {
    fn name(&self) -> &str {
        "AMD-Vi"
    }

    fn last_destination(&self) -> u32 {
        if self.tables.mode.is_x2apic() { u32::MAX } else { 0xff }
    }

    #[doc(alias = "irq_remapping_alloc")]
    fn alloc(&self, source: IrqSource<'_>, count: u16) -> Result<Box<dyn RemappedIrqs>, IrqRemapError> {
        let pin = match source {
            IrqSource::IoApic { pin, .. } if u16::from(pin) >= PINS => return Err(IrqRemapError::Pin(pin)),
            IrqSource::IoApic { .. } if count != 1 => return Err(IrqRemapError::Count(count)),
            IrqSource::IoApic { pin, .. } => Some(pin),
            IrqSource::Msi { .. } | IrqSource::Hpet { .. } => None,
        };
        let names = self.names(source).ok_or(IrqRemapError::NoSuchSource)?;
        let table = self.table_of(&names)?;
        let first = match pin {
            Some(pin) => table.take_pin(pin)?,
            None => table.take(count)?,
        };
        let (shared, tables) = (self.shared.clone(), self.tables.clone());
        Ok(Box::new(Irqs { shared, tables, table, first, count }))
    }

    fn quarantined(&self) -> u64 {
        self.tables.quarantined()
    }
}

/// Entries of a table.
#[derive(Debug)]
// Fields are dropped in this order, as above.
struct Irqs {
    table: Arc<InterruptTable>,
    tables: Arc<IrqTables>,
    shared: Arc<Shared>,
    first: u16,
    count: u16,
}

impl Irqs {
    fn entry(&self, index: u16) -> Result<u16, IrqRemapError> {
        if index < self.count { Ok(self.first + index) } else { Err(IrqRemapError::Index(index)) }
    }

    /// Makes every unit forget the table's entries (Linux: `iommu_flush_irt_and_complete`).
    #[doc(alias = "iommu_flush_irt_and_complete")]
    fn flush(&self) -> Result<(), CommandError> {
        let names = self.table.names();
        for (index, unit) in self.shared.units().iter().enumerate() {
            let of_unit = names.iter().filter(|(_, of)| *of == index);
            let commands: Vec<Command> =
                of_unit.map(|(name, _)| Command::invalidate_interrupt_table(*name)).collect();
            if !commands.is_empty() {
                unit.run(&commands)?;
            }
        }
        Ok(())
    }

    fn write(&self, index: u16, entry: Irte) -> Result<(), IrqRemapError> {
        self.table.write(self.entry(index)?, entry);
        self.flush().map_err(|_| SyncError.into())
    }
}

// SAFETY: as for `Remapper`.
unsafe impl RemappedIrqs for Irqs {
    fn count(&self) -> u16 {
        self.count
    }

    fn message(&self, index: u16) -> Result<MsiMessage, IrqRemapError> {
        const INTERRUPTS: u64 = 0xfee0_0000;
        const LOGICAL: u64 = 1 << 2;
        // Bits 10:8 of the data would be another delivery mode than fixed if the destination were not logical.
        let mode = if self.tables.mode.is_2k() { LOGICAL } else { 0 };
        Ok(MsiMessage { address: INTERRUPTS | mode, data: self.entry(index)?.into() })
    }

    #[doc(alias = "amd_ir_set_affinity")]
    fn set_target(&self, index: u16, target: IrqTarget) -> Result<(), IrqRemapError> {
        if target.vector < IrqTarget::FIRST_VECTOR {
            return Err(IrqRemapError::Vector(target.vector));
        }
        if target.destination > 0xff && !self.tables.mode.is_x2apic() {
            return Err(IrqRemapError::Destination(target.destination));
        }
        self.write(index, Irte::Remapped(target))
    }

    fn mask(&self, index: u16) -> Result<(), IrqRemapError> {
        self.write(index, Irte::Masked)
    }
}

impl Drop for Irqs {
    #[doc(alias = "irq_remapping_free")]
    fn drop(&mut self) {
        (self.first..self.first + self.count).for_each(|entry| self.table.write(entry, Irte::Free));
        // A unit that is off remembers nothing.
        if self.shared.is_stopped() || self.flush().is_ok() {
            self.table.give_back(self.first, self.count);
        } else {
            self.tables.quarantined.fetch_add(self.count.into(), Ordering::Relaxed);
        }
    }
}
