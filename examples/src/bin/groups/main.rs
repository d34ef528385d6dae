//! Which PCI functions share an IOMMU group, and why: on this machine, or on one that a file describes.

mod classes;
mod machine;
mod options;
mod show;
mod sysfs;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::machine::{Machine, MachineError};
use crate::options::Options;
use crate::show::Show;

/// The result could not be printed.
const EXIT_OUTPUT: u8 = 1;
/// The machine or the file cannot be used.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    let text = match answer(&options) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot print the result: {error}");
            ExitCode::from(EXIT_OUTPUT)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn answer(options: &Options) -> Result<String, MachineError> {
    let machine = match &options.file {
        Some(path) => Machine::from_file(path)?,
        None => sysfs::read(&options.sysfs)?,
    };
    let show = Show::new(&machine);
    if options.json {
        // What is missing must not be overlooked, nor be in the way of who reads the groups.
        machine.notes.iter().for_each(|note| eprintln!("note: {note}"));
        return Ok(format!("{}\n", show.json()));
    }
    match options.why.as_deref() {
        Some(&[one, other]) => Ok(format!("{}\n", show.why(one, other)?)),
        _ => Ok(show.to_string()),
    }
}
