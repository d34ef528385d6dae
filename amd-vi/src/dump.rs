//! The state of the units as text, for a person (Linux: the files below `/sys/kernel/debug/iommu/amd`).

use core::fmt;

use iommu_core::DomainOps;
use platform::pci::{PciAddress, RequesterId};

use crate::device_table::DeviceTable;
use crate::driver::AmdVi;
use crate::irq_remap::InterruptTable;
use crate::registers::{Control, Status, offset};
use crate::unit::Unit;

/// The registers that are shown, by their offsets.
const REGISTERS: [(usize, &str); 13] = [
    (offset::DEVICE_TABLE_BASE, "DeviceTableBase"),
    (offset::COMMAND_BUFFER_BASE, "CommandBufferBase"),
    (offset::EVENT_LOG_BASE, "EventLogBase"),
    (offset::CONTROL, "Control"),
    (offset::EXCLUSION_BASE, "ExclusionBase"),
    (offset::EXCLUSION_LIMIT, "ExclusionLimit"),
    (offset::EXTENDED_FEATURE, "ExtendedFeature"),
    (offset::EXTENDED_FEATURE_2, "ExtendedFeature2"),
    (offset::COMMAND_HEAD, "CommandHead"),
    (offset::COMMAND_TAIL, "CommandTail"),
    (offset::EVENT_HEAD, "EventHead"),
    (offset::EVENT_TAIL, "EventTail"),
    (offset::STATUS, "Status"),
];

/// What [`AmdVi::dump`] shows.
#[derive(Clone, Copy, Debug)]
pub struct Dump<'a>(&'a AmdVi);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for unit in self.0.units() {
            unit_state(f, unit)?;
        }
        self.0.device_tables().try_for_each(|(segment, table)| device_table(f, segment, table))?;
        self.0.interrupt_tables().iter().try_for_each(|((segment, device), table)| {
            let device = PciAddress { segment: *segment, id: RequesterId::new(*device) };
            interrupt_table(f, device, table)
        })
    }
}

impl AmdVi {
    /// All units' registers, the commands that wait in their rings and the events in their logs, the device table entries
    /// that are not as they were at the start, and the interrupt tables (Linux: `mmio`, `cmdbuf`, `devtbl` and `irqtbl` in
    /// debugfs). It only looks: nothing is
    /// taken out of a log. What units and other CPUs do meanwhile may be shown in part.
    #[doc(alias = "iommu_debugfs_devtbl_show")]
    #[doc(alias = "iommu_irqtbl_show")]
    #[doc(alias = "iommu_mmio_show")]
    #[doc(alias = "iommu_cmdbuf_show")]
    pub fn dump(&self) -> Dump<'_> {
        Dump(self)
    }

    /// Writes the pages of the domain that a device is attached to, one a line, those that follow each other in both address
    /// spaces together. A device that is in no paging domain has none.
    ///
    /// # Errors
    /// What `out` says.
    ///
    /// # Safety
    /// Nobody unmaps anything from that domain meanwhile.
    pub unsafe fn dump_pages(&self, dev: PciAddress, out: &mut dyn fmt::Write) -> fmt::Result {
        let Some(domain) = self.paging_domain_of(dev) else {
            return writeln!(out, "{dev} is in no paging domain");
        };
        let (first, last) = domain.aperture();
        writeln!(out, "{dev} is in domain {}, {} table pages", domain.id(), domain.table_pages())?;
        let mut result = Ok(());
        let mut run: Option<Run> = None;
        // SAFETY: the caller's promise.
        unsafe {
            domain.for_each_page(first, last, &mut |iova, page| {
                let next =
                    Run { iova: iova.get(), phys: page.phys.get(), len: page.page_size, prot: page.prot };
                run = Some(match run {
                    Some(run) if run.goes_on(&next) => Run { len: run.len + next.len, ..run },
                    Some(run) => {
                        result = result.and_then(|()| run.write(out));
                        next
                    }
                    None => next,
                });
            });
        }
        result?;
        run.map_or(Ok(()), |run| run.write(out))
    }
}

/// Pages that follow each other.
#[derive(Clone, Copy)]
struct Run {
    iova: u64,
    phys: u64,
    len: u64,
    prot: platform::Prot,
}

impl Run {
    fn goes_on(&self, next: &Self) -> bool {
        self.prot == next.prot
            && self.iova.checked_add(self.len) == Some(next.iova)
            && self.phys.checked_add(self.len) == Some(next.phys)
    }

    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Self { iova, phys, len, prot } = self;
        writeln!(out, "  {iova:#018x} -> {phys:#018x}  {len:#x} bytes  {prot:?}")
    }
}

fn unit_state(f: &mut fmt::Formatter<'_>, unit: &Unit) -> fmt::Result {
    let np_cache = if unit.np_cache() { ", remembers absence (NpCache)" } else { "" };
    writeln!(f, "IOMMU {}, registers at {:#x}{np_cache}", unit.address(), unit.ivhd().mmio_base.get())?;
    for (at, name) in REGISTERS {
        let value = unit.registers().read(at);
        write!(f, "  {at:04x} {name:<17} {value:#018x}")?;
        match at {
            offset::CONTROL => bits(f, value, Control::NAMES)?,
            offset::STATUS => bits(f, value, Status::NAMES)?,
            _ => {}
        }
        writeln!(f)?;
    }
    let (commands, statistics) = (unit.commands().pending(), unit.commands().statistics());
    writeln!(
        f,
        "  command buffer: {} waiting; {} invalidations, {} completion waits, {} resets so far",
        commands.len(),
        statistics.invalidations,
        statistics.completion_waits,
        statistics.resets
    )?;
    commands.iter().try_for_each(|command| writeln!(f, "    {command}"))?;
    let (events, statistics) = (unit.events().pending(), unit.events().statistics());
    writeln!(
        f,
        "  event log: {} waiting; {} read, {} overflows so far",
        events.len(),
        statistics.events,
        statistics.overflows
    )?;
    events.iter().try_for_each(|event| writeln!(f, "    {event}"))
}

fn bits(f: &mut fmt::Formatter<'_>, value: u64, names: &[(u32, &str)]) -> fmt::Result {
    names.iter().filter(|(bit, _)| value >> bit & 1 != 0).try_for_each(|(_, name)| write!(f, " {name}"))
}

fn device_table(f: &mut fmt::Formatter<'_>, segment: u16, table: &DeviceTable) -> fmt::Result {
    writeln!(f, "device table of segment {segment} at {:#x}, {} entries", table.base().get(), table.len())?;
    let mut untouched = 0;
    for device in 0..=u16::MAX {
        if !table.contains(device) {
            break;
        }
        let entry = table.entry(device);
        if entry == table.blocked(device) {
            untouched += 1;
            continue;
        }
        let [q0, q1, q2, q3] = entry.to_words();
        writeln!(f, "  {} {q3:016x} {q2:016x} {q1:016x} {q0:016x} {entry}", RequesterId::new(device))?;
    }
    writeln!(f, "  {untouched} blocked as at the start")
}

fn interrupt_table(f: &mut fmt::Formatter<'_>, device: PciAddress, table: &InterruptTable) -> fmt::Result {
    let (base, entries, taken) = (table.base().get(), 1 << table.log2_entries(), table.taken());
    writeln!(f, "interrupt table of {device} at {base:#x}, {} of {entries} entries taken", taken.len())?;
    taken.iter().try_for_each(|&index| writeln!(f, "  {index:#05x} {:032x}", table.entry(index)))
}
