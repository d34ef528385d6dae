//! The first and only program of a guest that `cargo xtask vfio` and `cargo xtask qemu-groups` boot. It loads VFIO, gives it the
//! devices and runs every check; told `pci-tree` by the kernel's command line, it shows the PCI tree and nothing else. Then it ends
//! the machine with a status that nothing else ends it with.
//!
//! Started again by itself with a name of [`alone`], it does one thing in a process of its own.

mod alone;
mod checks;
mod edu;
mod job;
mod limits;
mod nvme;
mod pci_tree;
mod registered;
mod system;

use std::process::ExitCode;

/// Why a check does not hold.
type Failure = Box<dyn std::error::Error>;

fn ensure(holds: bool, why: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(why.into()) }
}

fn main() -> ExitCode {
    let name = std::env::args().nth(1);
    let outcome = match (std::process::id(), name.as_deref()) {
        (1, None) => system::start().and_then(|()| system::give_to_vfio()).and_then(|()| checks::run()),
        (1, Some("pci-tree")) => system::start().and_then(|()| pci_tree::show()),
        (1, Some(other)) => Err(format!("the kernel's command line says {other}").into()),
        (_, Some(name)) => return alone::run(name),
        (_, None) => {
            eprintln!("this program is the first of a guest; `cargo xtask vfio` boots it");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = &outcome {
        println!("guest: {error}");
    }
    system::end(outcome.is_ok())
}
