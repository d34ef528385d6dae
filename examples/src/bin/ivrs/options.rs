//! The command line.

use std::path::PathBuf;

use amd_vi::ivrs::Override;
use clap::Parser;

/// Decodes an IVRS table: which AMD IOMMUs firmware says there are, which devices are behind them, and what it got wrong.
///
/// A table whose checksum is wrong is decoded with a warning. Warnings do not make the program fail; a file that cannot be
/// read, or is no IVRS table, does.
#[derive(Parser, Debug)]
#[command(name = "ivrs", version)]
pub(crate) struct Options {
    /// The table, as in /sys/firmware/acpi/tables or from acpidump. Without it this machine's own is decoded and compared
    /// with its MADT, which usually takes root
    #[arg(value_name = "FILE")]
    pub(crate) table: Option<PathBuf>,

    /// The same machine's MADT (the APIC table): the IO-APICs of both are compared
    #[arg(long, value_name = "FILE")]
    pub(crate) madt: Option<PathBuf>,

    /// Correct the table first, as on Linux's command line: ivrs_ioapic=10@00:14.0, ivrs_hpet=0@00:14.0,
    /// ivrs_acpihid=AMDI0020:0@00:14.5. May be given several times
    #[arg(long = "override", value_name = "PARAMETER")]
    pub(crate) overrides: Vec<Override>,

    /// Print one JSON object: units, blocks, entries, special, hids, aliases, ivmds, warnings
    #[arg(long)]
    pub(crate) json: bool,
}
