//! The first and only program of a guest that `cargo xtask vfio` boots: it loads VFIO, gives it the devices, runs every check
//! and ends the machine with a status that nothing else ends it with.
//!
//! Started again by itself with a name of [`alone`], it does one thing in a process of its own.

mod alone;
mod checks;
mod edu;
mod limits;
mod nvme;
mod system;

use std::process::ExitCode;

/// Why a check does not hold.
type Failure = Box<dyn std::error::Error>;

fn ensure(holds: bool, why: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(why.into()) }
}

fn main() -> ExitCode {
    if let Some(name) = std::env::args().nth(1) {
        return alone::run(&name);
    }
    if std::process::id() != 1 {
        eprintln!("this program is the first of a guest; `cargo xtask vfio` boots it");
        return ExitCode::FAILURE;
    }
    let passed = system::start().map_err(|error| println!("guest: {error}")).is_ok() && checks::run();
    system::end(passed)
}
