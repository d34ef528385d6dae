//! An interrupt remapping table: which of its entries are somebody's, and how they change while units read them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use iommu_core::IrqRemapError;
use platform::sync::Mutex;
use platform::sync::atomic::Ordering;
use platform::{OutOfFrames, PhysAddr, Platform};

use super::irte::{Irte, IrteFormat};
use crate::memory::Region;

/// A requester ID, and the unit that its requests meet.
pub(crate) type Name = (u16, usize);

/// The table of a device, or of several whose messages cannot be told apart (Linux: `struct irq_remap_table`).
#[derive(Debug)]
#[doc(alias = "irq_remap_table")]
pub(crate) struct InterruptTable {
    memory: Region,
    format: IrteFormat,
    log2_entries: u8,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    taken: Box<[bool]>,
    /// Where the search for free entries begins: those below are for an IO-APIC's pins (Linux: `min_index`).
    first_free: u16,
    /// The names whose device table entries lead, or may lead, here.
    names: Vec<Name>,
}

impl InterruptTable {
    /// A table without entries, which no unit knows yet. The first `pins` entries are taken by their numbers only.
    pub(crate) fn new(
        platform: &Arc<dyn Platform>,
        format: IrteFormat,
        log2_entries: u8,
        pins: u16,
    ) -> Result<Self, OutOfFrames> {
        // Aligned to a page, so to the 128 bytes that the specification asks for.
        let memory = Region::new(platform, format.size() << log2_entries)?;
        let taken = vec![false; 1 << log2_entries].into_boxed_slice();
        let state = Mutex::new(State { taken, first_free: pins, names: Vec::new() });
        Ok(Self { memory, format, log2_entries, state })
    }

    pub(crate) fn base(&self) -> PhysAddr {
        self.memory.base()
    }

    pub(crate) fn log2_entries(&self) -> u8 {
        self.log2_entries
    }

    /// Says that requests of `name` may lead here from now on.
    pub(crate) fn add_name(&self, name: Name) {
        let names = &mut self.state.lock().names;
        if !names.contains(&name) {
            names.push(name);
        }
    }

    /// Who may remember entries. An entry that was stored before is seen by every name that is added later.
    pub(crate) fn names(&self) -> Vec<Name> {
        self.state.lock().names.clone()
    }

    /// Takes the entry of a pin.
    pub(crate) fn take_pin(&self, pin: u8) -> Result<u16, IrqRemapError> {
        let mut state = self.state.lock();
        let taken = state.taken.get_mut(usize::from(pin)).ok_or(IrqRemapError::Pin(pin))?;
        if core::mem::replace(taken, true) { Err(IrqRemapError::Busy) } else { Ok(pin.into()) }
    }

    /// Takes `count` entries in a row, the first at a multiple of the next power of two (Linux: `alloc_irq_index`).
    #[doc(alias = "alloc_irq_index")]
    pub(crate) fn take(&self, count: u16) -> Result<u16, IrqRemapError> {
        let mut state = self.state.lock();
        let entries = state.taken.len();
        let align = usize::from(count).checked_next_power_of_two().filter(|align| *align <= entries);
        let align = align.filter(|_| count != 0).ok_or(IrqRemapError::Count(count))?;
        let start = usize::from(state.first_free).next_multiple_of(align);
        let free = |first: &usize| state.taken[*first..first + usize::from(count)].iter().all(|taken| !taken);
        let last = entries - usize::from(count);
        let first = (start..=last).step_by(align).find(free).ok_or(IrqRemapError::Exhausted)?;
        state.taken[first..first + usize::from(count)].fill(true);
        Ok(first as u16)
    }

    /// Gives back what `take` or `take_pin` gave, once no unit remembers it.
    pub(crate) fn give_back(&self, first: u16, count: u16) {
        let first = usize::from(first);
        let mut state = self.state.lock();
        if let Some(taken) = state.taken.get_mut(first..first + usize::from(count)) {
            taken.fill(false);
        }
    }

    /// Changes an entry at once for whoever reads it (Linux: `modify_irte`, `modify_irte_ga`). Units may remember the old one.
    #[doc(alias = "modify_irte_ga")]
    pub(crate) fn write(&self, index: u16, entry: Irte) {
        let at = u64::from(index) * self.format.size();
        // Two entries of 32 bits are one word.
        let _state = self.state.lock();
        match self.format {
            IrteFormat::Bits32 => {
                let (word, shift) = (self.memory.word(at), 8 * (at & 4));
                let others = word.load(Ordering::Relaxed) & !(u64::from(u32::MAX) << shift);
                word.store(others | u64::from(entry.to_32().into_bits()) << shift, Ordering::Release);
            }
            IrteFormat::Bits128 => {
                let bits = entry.to_128().into_bits();
                self.memory.store_pair(at, [bits as u64, (bits >> 64) as u64]);
            }
        }
    }

    /// The entry as it is in memory, in 128 bits.
    pub(crate) fn entry(&self, index: u16) -> u128 {
        let at = u64::from(index) * self.format.size();
        let low = self.memory.word(at).load(Ordering::Relaxed);
        match self.format {
            IrteFormat::Bits32 => u128::from((low >> (8 * (at & 4))) as u32),
            IrteFormat::Bits128 => {
                u128::from(low) | u128::from(self.memory.word(at + 8).load(Ordering::Relaxed)) << 64
            }
        }
    }

    /// Entries that are somebody's.
    pub(crate) fn taken(&self) -> Vec<u16> {
        let state = self.state.lock();
        (0..).zip(&state.taken).filter(|(_, taken)| **taken).map(|(index, _)| index).collect()
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No unit reads the table any more.
    pub(crate) unsafe fn free(self) {
        // SAFETY: handed on.
        unsafe { self.memory.free() };
    }
}
