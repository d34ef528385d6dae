//! The device table of a segment, and how its entries change while the units read them.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec;

use platform::sync::Mutex;
use platform::sync::atomic::{Ordering, fence};
use platform::{OutOfFrames, PhysAddr, Platform};

use crate::command_queue::CommandError;
use crate::dte::{Dte, IntCtl, PersistentFlags, Translation};
use crate::irq_remap::InterruptTable;
use crate::memory::Region;

/// A device table (Linux: `struct amd_iommu_pci_seg`'s `dev_table`).
///
/// Entries are stored in 64-bit words. A unit may read an entry in pieces while it changes, so no two words that are in use
/// together change at once.
#[derive(Debug)]
pub struct DeviceTable {
    memory: Region,
    flags: Box<[PersistentFlags]>,
    /// Whether interrupts are remapped: then their half of an entry changes by [`DeviceTable::set_interrupt_table`] alone.
    remaps: bool,
    /// Devices whose interrupts are never aborted, unless they are remapped: IO-APICs and timers are no PCI functions that a driver takes.
    special: BTreeSet<u16>,
    /// One entry changes at a time.
    changing: Mutex<()>,
}

impl DeviceTable {
    /// A table for devices 0 to `highest` in which every device is blocked, interrupts included but those of `special`
    /// devices. The flags of a device are those of the smallest of `ranges` that contains it and has some.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no memory for it.
    pub(crate) fn new(
        platform: &Arc<dyn Platform>,
        highest: u16,
        ranges: impl Iterator<Item = (u16, u16, PersistentFlags)>,
        special: BTreeSet<u16>,
        remaps: bool,
    ) -> Result<Self, OutOfFrames> {
        let memory = Region::new(platform, (u64::from(highest) + 1) * Dte::SIZE)?;
        let entries = (memory.size() / Dte::SIZE) as usize;
        let mut flags = vec![PersistentFlags::new(); entries].into_boxed_slice();
        let mut widths = vec![u32::MAX; entries];
        // An entry without flags asks for nothing: an HPET, say, under the name of an IO-APIC that has some.
        for (first, last, kept) in ranges.filter(|(_, _, kept)| kept.into_bits() != 0) {
            let width = u32::from(last).saturating_sub(u32::from(first));
            let devices = usize::from(first)..(usize::from(last) + 1).min(entries);
            for device in devices {
                if width <= widths[device] {
                    widths[device] = width;
                    flags[device] = kept;
                }
            }
        }
        let table = Self { memory, flags, remaps, special, changing: Mutex::new(()) };
        for device in 0..=(entries - 1).min(usize::from(u16::MAX)) as u16 {
            let blocked = table.blocked(device).to_words();
            for (index, word) in blocked.into_iter().enumerate() {
                table.store(device, index, word);
            }
        }
        Ok(table)
    }

    /// Where the table is.
    pub(crate) fn base(&self) -> PhysAddr {
        self.memory.base()
    }

    /// The value of the Device Table Base Address Register: the address, and the size in 4 KiB units less one.
    pub(crate) fn base_register(&self) -> u64 {
        self.base().get() | (self.memory.size().div_ceil(0x1000) - 1)
    }

    /// How many entries it has.
    #[expect(clippy::len_without_is_empty, reason = "a table has an entry for device 0 at least")]
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    /// What the entry of a device is like before anybody has attached it.
    pub(crate) fn blocked(&self, device: u16) -> Dte {
        self.entry_for(device, Translation::Blocked, IntCtl::Abort)
    }

    /// Whether the table has an entry for `device`.
    pub fn contains(&self, device: u16) -> bool {
        usize::from(device) < self.flags.len()
    }

    /// What an entry for `device` looks like that keeps what firmware asked for (Linux: `amd_iommu_make_clear_dte`).
    #[doc(alias = "amd_iommu_make_clear_dte")]
    pub(crate) fn entry_for(&self, device: u16, translation: Translation, interrupts: IntCtl) -> Dte {
        let flags = self.flags.get(usize::from(device)).copied().unwrap_or_default();
        let spared = interrupts == IntCtl::Abort && !self.remaps && self.special.contains(&device);
        Dte::new(translation, if spared { IntCtl::Forward } else { interrupts }, flags)
    }

    /// The entry as it is in memory.
    pub fn entry(&self, device: u16) -> Dte {
        Dte::from_words([0, 1, 2, 3].map(|index| self.word(device, index).load(Ordering::Relaxed)))
    }

    fn word(&self, device: u16, index: usize) -> &platform::sync::atomic::AtomicU64 {
        self.memory.word(u64::from(device) * Dte::SIZE + index as u64 * 8)
    }

    fn store(&self, device: u16, index: usize, word: u64) {
        self.word(device, index).store(word, Ordering::Release);
    }

    /// Changes the entry of `device` to `new` while units read it (Linux: `update_dte256`).
    ///
    /// The first word holds V, TV and the root of the table, the second its domain. Whoever reads the entry in 64-bit
    /// pieces sees the old entry, the new one or a blocked one:
    /// 1. if requests pass now, the first word becomes "blocked", and the unit forgets the entry;
    /// 2. while the translation words are not looked at, the others are stored, and the unit forgets the entry again: no
    ///    read that began before is under way any more;
    /// 3. the first word becomes the new one, and the unit forgets the blocked entry.
    ///
    /// `flush` makes the unit forget the entry and waits for that.
    ///
    /// # Errors
    /// What `flush` says. The entry is then a blocked one, which the unit may not have seen yet.
    #[doc(alias = "update_dte256")]
    pub(crate) fn update(
        &self,
        device: u16,
        new: Dte,
        mut flush: impl FnMut() -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        if !self.contains(device) {
            return Ok(());
        }
        let _changing = self.changing.lock();
        let old = self.entry(device);
        // With remapping the interrupt half is `set_interrupt_table`'s, all but what it says of guest tables.
        let guest = new.interrupt.guest_paging_mode();
        let kept = Dte { interrupt: old.interrupt.with_guest_paging_mode(guest), ..new };
        let new = if self.remaps { kept } else { new };
        let (old_words, new_words) = (old.to_words(), new.to_words());
        let translates = |entry: Dte| !entry.translation.v() || entry.translation.tv();
        // One word alone changes at once.
        let differing = (0..4).filter(|&index| old_words[index] != new_words[index]);
        if differing.count() == 1 {
            (0..4).for_each(|index| self.store(device, index, new_words[index]));
        } else if old_words[1..] != new_words[1..] {
            let blocked = self.blocked(device).to_words()[0];
            if translates(old) {
                self.store(device, 0, blocked);
                flush()?;
            }
            // IV is in the third word, so the fourth goes first.
            for index in [3, 2, 1] {
                self.store(device, index, new_words[index]);
            }
            if translates(new) {
                flush().inspect_err(|_| self.store(device, 0, blocked))?;
            }
        }
        self.store(device, 0, new_words[0]);
        fence(Ordering::SeqCst);
        flush().inspect_err(|_| {
            let blocked = self.blocked(device).to_words()[0];
            self.store(device, 0, blocked);
        })
    }

    /// Leads the interrupts of `device` to a table (Linux: `set_remap_table_entry`). All that says so is one word, so memory
    /// requests of the device go on.
    ///
    /// # Errors
    /// What `flush` says, which makes the unit forget the entry. The unit may read either table then.
    #[doc(alias = "set_remap_table_entry")]
    pub(crate) fn set_interrupt_table(
        &self,
        device: u16,
        table: &InterruptTable,
        flush: impl FnOnce() -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        let _changing = self.changing.lock();
        let blocked = self.blocked(device);
        let guest = self.entry(device).interrupt.guest_paging_mode();
        let interrupt = blocked.interrupt.with_guest_paging_mode(guest);
        let interrupt = interrupt.remapped(table.base(), table.log2_entries());
        self.store(device, 2, Dte { interrupt, ..blocked }.to_words()[2]);
        fence(Ordering::SeqCst);
        flush()
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
