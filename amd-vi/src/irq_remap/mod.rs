//! Interrupt remapping: tables of their own for devices, and the messages that lead through them.
//!
//! A device has a table from its first interrupt on; until then its messages are aborted.

pub mod irte;
mod remapper;
mod table;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use platform::sync::atomic::{AtomicU64, Ordering};
use platform::sync::{Mutex, pair};

use crate::ivrs::{DeviceEntry, Ivrs, Madt, SpecialKind, Warning};
use crate::unit::Unit;
use irte::IrteFormat;
pub(crate) use remapper::Remapper;
pub(crate) use table::InterruptTable;

/// How interrupts are remapped (Linux: the `intremap=` parameter, and `x2apic_mode`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IrqRemapConfig {
    /// Whether the processors' local APICs are in x2APIC mode. Then destinations have 32 bits, where every unit can do that
    /// (XTSup) and the processor can change an entry of 128 bits at once; [`iommu_core::IrqRemap::last_destination`] tells.
    pub x2apic: bool,
    /// The machine's MADT, if the kernel has it. IO-APICs that it lists and the IVRS does not cannot be remapped, and then
    /// nothing is.
    pub madt: Option<Madt>,
}

/// Why interrupts are not remapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoIrqRemap {
    /// The driver was set up without.
    #[error("interrupt remapping was not asked for")]
    NotAskedFor,
    /// An IO-APIC is missing in the firmware's table: with remapping its interrupts would not arrive (Linux:
    /// `check_ioapic_information`). An [`Override`](crate::ivrs::Override) can add it.
    #[error("firmware does not let interrupts be remapped: {0}")]
    Firmware(Warning),
}

/// How all units of the machine remap: devices may share a table and be behind different units (Linux: `amd_iommu_guest_ir`,
/// `amd_iommu_xt_mode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "amd_iommu_xt_mode")]
pub(crate) struct IrqMode {
    /// The width of entries: 128 bits for x2APIC alone, since an entry of 32 bits changes at once on every processor.
    pub(crate) format: IrteFormat,
    /// 9 or 11: with more than 512 the low three bits of the message's delivery mode are a part of the index.
    pub(crate) log2_entries: u8,
}

impl IrqMode {
    /// What the firmware's table and the units allow.
    pub(crate) fn choose(
        config: Option<&IrqRemapConfig>,
        ivrs: &Ivrs,
        units: &[Unit],
    ) -> Result<Self, NoIrqRemap> {
        let config = config.ok_or(NoIrqRemap::NotAskedFor)?;
        let stops = |warning: &Warning| {
            matches!(warning, Warning::IoApicNotListed { .. } | Warning::NoSouthbridgeIoApic)
        };
        if let Some(warning) = ivrs.check_io_apics(config.madt.as_ref()).into_iter().find(stops) {
            return Err(NoIrqRemap::Firmware(warning));
        }
        let all = |has: fn(&Unit) -> bool| units.iter().all(has);
        let xt = all(|unit| unit.features().xt_sup() && unit.features().ga_sup());
        let wide = config.x2apic && xt && pair::is_available();
        let many = all(|unit| unit.features2().num_int_remap_sup() == 1);
        Ok(Self {
            format: if wide { IrteFormat::Bits128 } else { IrteFormat::Bits32 },
            log2_entries: if many { 11 } else { 9 },
        })
    }

    /// Whether destinations have 32 bits (XTEn).
    pub(crate) fn is_x2apic(self) -> bool {
        self.format == IrteFormat::Bits128
    }

    /// Whether tables have 2048 entries (NumIntRemapMode).
    pub(crate) fn is_2k(self) -> bool {
        self.log2_entries > 9
    }
}

/// A device's way to its table.
#[derive(Debug)]
struct Link {
    table: Arc<InterruptTable>,
    /// Every unit knows that the device table entry leads there.
    known: bool,
}

/// The tables of all devices.
#[derive(Debug)]
pub(crate) struct IrqTables {
    mode: IrqMode,
    /// Where IO-APICs and timers are: segment and requester ID.
    specials: BTreeMap<(SpecialKind, u8), (u16, u16)>,
    /// By segment and requester ID (Linux: `irq_lookup_table`).
    links: Mutex<BTreeMap<(u16, u16), Link>>,
    quarantined: AtomicU64,
}

impl IrqTables {
    pub(crate) fn new(mode: IrqMode, ivrs: &Ivrs) -> Self {
        let mut specials = BTreeMap::new();
        for unit in ivrs.units() {
            for entry in &unit.entries {
                if let DeviceEntry::Special { kind, handle, device, .. } = *entry {
                    // Of two, the first, as in Linux: it is the southbridge's on a machine that has two of one number.
                    specials.entry((kind, handle)).or_insert((unit.address.segment, device));
                }
            }
        }
        Self { mode, specials, links: Mutex::default(), quarantined: AtomicU64::new(0) }
    }

    /// Entries that a unit may still remember.
    fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// The tables with the devices that lead to them, by segment and requester ID.
    pub(crate) fn tables(&self) -> Vec<((u16, u16), Arc<InterruptTable>)> {
        self.links.lock().iter().map(|(device, link)| (*device, link.table.clone())).collect()
    }

    /// Gives the tables' memory back.
    ///
    /// # Safety
    /// Every unit is disabled, and stays so.
    pub(crate) unsafe fn free(self) {
        for link in core::mem::take(&mut *self.links.lock()).into_values() {
            // The last of those that share it.
            if let Some(table) = Arc::into_inner(link.table) {
                // SAFETY: a disabled unit reads no table.
                unsafe { table.free() };
            }
        }
    }
}
