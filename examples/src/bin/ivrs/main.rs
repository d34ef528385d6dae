//! Decodes the table in which firmware describes the machine's AMD IOMMUs.

mod json;
mod options;
mod text;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use amd_vi::ivrs::{Ivrs, IvrsError, Madt, MadtError, Warning};
use clap::Parser;

use crate::options::Options;
use crate::text::Text;

/// Where Linux shows this machine's tables.
const OWN_TABLES: &str = "/sys/firmware/acpi/tables";
/// More than any table has: a file that never ends is not read to its end.
const MOST_BYTES: u64 = 16 << 20;
/// The result could not be printed.
const EXIT_PRINT: u8 = 1;
/// The table cannot be used.
const EXIT_USAGE: u8 = 2;

/// Why a table could not be decoded.
#[derive(Debug, thiserror::Error)]
enum IvrsToolError {
    #[error(
        "this machine has no IVRS table, so no AMD IOMMU that firmware tells of; name a FILE to decode another's"
    )]
    NoOwnTable,
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    #[error("{0} is no IVRS table: {1}")]
    Ivrs(PathBuf, IvrsError),
    #[error("{0} is no MADT: {1}")]
    Madt(PathBuf, MadtError),
}

/// A table, and everything that is wrong with it.
struct Decoded {
    ivrs: Ivrs,
    warnings: Vec<Warning>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match decode(&options) {
        Ok(decoded) => match print(&decoded, options.json) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: cannot print the result: {error}");
                ExitCode::from(EXIT_PRINT)
            }
        },
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn decode(options: &Options) -> Result<Decoded, IvrsToolError> {
    let own = |name| Path::new(OWN_TABLES).join(name);
    let path = options.table.clone().unwrap_or_else(|| own("IVRS"));
    let bytes = match read(&path) {
        Err(error) if options.table.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Err(IvrsToolError::NoOwnTable);
        }
        read => read.map_err(|error| IvrsToolError::Unreadable(path.clone(), error))?,
    };
    let mut ivrs = Ivrs::decode(&bytes).map_err(|error| IvrsToolError::Ivrs(path, error))?;
    ivrs.apply(&options.overrides);
    let madt = options.madt.clone().or_else(|| options.table.is_none().then(|| own("APIC")));
    let madt = madt.map(read_madt).transpose()?;
    let mut warnings = ivrs.warnings.clone();
    warnings.extend(ivrs.check_io_apics(madt.as_ref()));
    Ok(Decoded { ivrs, warnings })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_madt(path: PathBuf) -> Result<Madt, IvrsToolError> {
    let bytes = read(&path).map_err(|error| IvrsToolError::Unreadable(path.clone(), error))?;
    Madt::parse(&bytes).map_err(|error| IvrsToolError::Madt(path, error))
}

/// Prints the result. A reader that has seen enough may leave.
fn print(decoded: &Decoded, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let printed =
        if json { writeln!(out, "{}", json::object(decoded)) } else { write!(out, "{}", Text(decoded)) };
    match printed.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}
