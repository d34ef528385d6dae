//! The table for a person.

use std::collections::BTreeMap;
use std::fmt;

use amd_vi::dte::PersistentFlags;
use amd_vi::ivrs::{DeviceEntry, Ivhd, IvhdFlags, Ivmd, IvmdScope, Uid};
use amd_vi::registers::ExtendedFeatures;
use platform::Prot;
use platform::pci::RequesterId;

use crate::Decoded;

/// A table to be shown.
pub(crate) struct Text<'a>(pub(crate) &'a Decoded);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ivrs = &self.0.ivrs;
        let info = ivrs.info;
        writeln!(
            f,
            "IVRS revision {}, OEM {}, IVinfo {:#x}: physical addresses of {} bits, virtual of {}{}{}",
            ivrs.revision,
            name(&ivrs.oem_id),
            info.bits(),
            info.pa_size(),
            info.va_size(),
            if info.efr_sup() { ", images of the feature registers are valid" } else { "" },
            if info.preboot_dma_protection() { ", protected before the system starts" } else { "" },
        )?;
        writeln!(f, "blocks   {}", Counts(&ivrs.blocks))?;
        writeln!(f, "entries  {}", Counts(&ivrs.entries))?;
        for unit in ivrs.units() {
            let described = ivrs.ivhds.iter().filter(|ivhd| ivhd.address == unit.address).count();
            write_unit(f, unit, described)?;
        }
        for ivmd in &ivrs.ivmds {
            write_memory(f, ivmd)?;
        }
        match self.0.warnings.len() {
            0 => writeln!(f, "\nno warnings")?,
            1 => writeln!(f, "\n1 warning")?,
            count => writeln!(f, "\n{count} warnings")?,
        }
        self.0.warnings.iter().try_for_each(|warning| writeln!(f, "  {warning}"))
    }
}

/// How often each type occurs.
struct Counts<'a>(&'a BTreeMap<u8, usize>);

impl fmt::Display for Counts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(|(kind, count)| format!("{kind:#x}×{count}")).collect();
        f.write_str(if words.is_empty() { "none".into() } else { words.join(" ") }.as_str())
    }
}

fn write_unit(f: &mut fmt::Formatter<'_>, ivhd: &Ivhd, described: usize) -> fmt::Result {
    writeln!(
        f,
        "\nIOMMU {}, registers at {:#x}, capability at {:#x}, MSI number {} (block of type {:#x}, one of {described})",
        ivhd.address,
        ivhd.mmio_base.get(),
        ivhd.capability_offset,
        ivhd.msi_number(),
        ivhd.kind,
    )?;
    let flags: Vec<_> = ivhd.flags.iter_names().map(|(flag, _)| flag).collect();
    let flags = if flags.is_empty() { "none".into() } else { flags.join(" ") };
    writeln!(f, "  flags     {:#04x}: {flags}", ivhd.flags.bits() & IvhdFlags::all().bits())?;
    if let Some(efr) = ivhd.efr {
        writeln!(f, "  features  {:#018x}: {}", efr.into_bits(), features(efr))?;
    }
    if let Some(efr2) = ivhd.efr2 {
        writeln!(f, "  features2 {:#018x}", efr2.into_bits())?;
    }
    if ivhd.host_translation_disabled() {
        writeln!(f, "  host translation is disabled")?;
    }
    ivhd.entries.iter().try_for_each(|entry| write_entry(f, entry))
}

/// What the extended feature register offers, by the specification's names.
fn features(efr: ExtendedFeatures) -> String {
    let named = [
        (efr.pref_sup(), "PreF"),
        (efr.ppr_sup(), "PPR"),
        (efr.xt_sup(), "XT"),
        (efr.nx_sup(), "NX"),
        (efr.gt_sup(), "GT"),
        (efr.ia_sup(), "IA"),
        (efr.ga_sup(), "GA"),
        (efr.he_sup(), "HE"),
        (efr.pc_sup(), "PC"),
        (efr.ha_sup(), "HA"),
        (efr.hd_sup(), "HD"),
        (efr.gio_sup(), "GIo"),
    ];
    let mut words: Vec<String> =
        named.iter().filter(|(offered, _)| *offered).map(|(_, name)| (*name).to_string()).collect();
    words.push(match efr.host_levels() {
        Some(levels) => format!("host tables of {levels} levels"),
        None => "no host tables".into(),
    });
    words.join(" ")
}

fn write_entry(f: &mut fmt::Formatter<'_>, entry: &DeviceEntry) -> fmt::Result {
    let (first, last) = entry.devices();
    let devices = range(first, last);
    let flags = flags(entry.flags());
    match entry {
        DeviceEntry::All { .. } => writeln!(f, "  devices   all{flags}"),
        DeviceEntry::Devices { extended, .. } => {
            let no_ats = extended.is_some_and(|setting| setting >> 31 != 0);
            writeln!(f, "  devices   {devices}{flags}{}", if no_ats { ", no ATS" } else { "" })
        }
        DeviceEntry::Alias { alias, .. } => {
            writeln!(f, "  alias     {devices} use the name {}{flags}", RequesterId::new(*alias))
        }
        DeviceEntry::Special { kind, handle, .. } => {
            writeln!(f, "  special   {kind}[{handle}] at {devices}{flags}")
        }
        DeviceEntry::Acpi { hid, cid, uid, .. } => {
            write!(f, "  ACPI      {}", name(hid))?;
            if cid[0] != 0 {
                write!(f, " ({})", name(cid))?;
            }
            if *uid != Uid::None {
                write!(f, ":{uid}")?;
            }
            writeln!(f, " at {devices}{flags}")
        }
    }
}

fn write_memory(f: &mut fmt::Formatter<'_>, ivmd: &Ivmd) -> fmt::Result {
    let what = match ivmd.unity() {
        _ if ivmd.is_exclusion() => "excluded, mapped directly for reading and writing",
        Some(prot) if prot == Prot::READ => "mapped directly for reading",
        Some(prot) if prot == Prot::WRITE => "mapped directly for writing",
        Some(_) => "mapped directly for reading and writing",
        None => "not mapped",
    };
    let who = match ivmd.scope {
        IvmdScope::All => "all devices".into(),
        IvmdScope::Device(device) => range(device, device),
        IvmdScope::Range(first, last) => range(first, last),
    };
    let segment = ivmd.segment;
    writeln!(f, "\nmemory {:#x}, {:#x} bytes, for {who} of segment {segment}: {what}", ivmd.start, ivmd.len)
}

fn range(first: u16, last: u16) -> String {
    let (start, end) = (RequesterId::new(first), RequesterId::new(last));
    if first == last { start.to_string() } else { format!("{start}–{end}") }
}

/// The interrupts and messages that firmware wants passed.
fn flags(flags: PersistentFlags) -> String {
    let named = [
        (flags.init_pass(), "INIT"),
        (flags.eint_pass(), "ExtInt"),
        (flags.nmi_pass(), "NMI"),
        (flags.lint0_pass(), "LINT0"),
        (flags.lint1_pass(), "LINT1"),
    ];
    let mut words: Vec<String> =
        named.iter().filter(|(passes, _)| *passes).map(|(_, name)| (*name).to_string()).collect();
    if flags.sys_mgt() != 0 {
        words.push(format!("SysMgt {}", flags.sys_mgt()));
    }
    if words.is_empty() { String::new() } else { format!(", passes {}", words.join(" ")) }
}

/// An identifier that is padded with zeros or spaces. What is no text is shown in escapes.
pub(crate) fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
    bytes[..end].escape_ascii().to_string()
}
