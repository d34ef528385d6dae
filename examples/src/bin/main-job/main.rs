//! The main job: one NVMe driver reads and writes a real disk through the whole stack.

mod chain;
mod disk;
mod job;
mod options;
mod progress;
mod report;
mod rogue;
mod transfer;
mod tree;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::job::JobError;
use crate::options::Options;
use crate::report::Report;

/// Something that should hold does not.
const EXIT_CHECK_FAILED: u8 = 1;
/// The disk or the machine asked for cannot be used.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    match job::run(&options) {
        Ok(report) => {
            if let Err(error) = print(&report, options.json) {
                eprintln!("error: cannot print the result: {error}");
                return ExitCode::from(EXIT_CHECK_FAILED);
            }
            if report.all_well() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CHECK_FAILED) }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(match error {
                JobError::Disk(_) | JobError::Backend(_) => EXIT_USAGE,
                JobError::Nvme(_) | JobError::Rogue(_) => EXIT_CHECK_FAILED,
            })
        }
    }
}

/// Prints the result. A reader that has seen enough may leave.
fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let printed = if json { writeln!(out, "{}", report.json()) } else { write!(out, "{report}") };
    match printed.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}
