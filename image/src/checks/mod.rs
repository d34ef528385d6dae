//! What is shown: that the stack works here, and that it protects.

mod dma;
mod nvme;

use alloc::format;
use alloc::string::String;
use core::fmt::Debug;
use core::ops::Range;

use platform::pci::PciAddress;

use crate::boot::StartInfo;
use crate::boot::exit::{Outcome, exit};
use crate::kernel::{AcpiTables, Machine};

const NVME: PciAddress = PciAddress::new(0, 0, 4, 0);
/// QEMU's teaching device, twice.
const EDU: PciAddress = PciAddress::new(0, 0, 5, 0);
const UNTRUSTED_EDU: PciAddress = PciAddress::new(0, 0, 6, 0);

/// On the command line: that this IOMMU logs no event, so that none is to be expected.
const SILENT: &str = "no-event-log";

/// One check.
type Check = fn(&Machine, &Expected) -> Result<(), String>;

/// Each with its name. Whoever boots the image counts them.
const CHECKS: [(&str, Check); 7] = [
    ("a blocked device is blocked, and one that is not is not", dma::canary),
    ("a device keeps every rule", dma::trusted),
    ("an untrusted device keeps every rule", dma::untrusted),
    ("what is refused is reported, by interrupt", dma::faults),
    ("the disk holds what the host put there", nvme::read),
    ("the disk takes what is written to it", nvme::write),
    ("everything was given back", nothing_is_left),
];

/// What the hardware is like, and how much was in use before.
#[derive(Debug)]
pub(crate) struct Expected {
    logs_events: bool,
    frames: u32,
}

/// Starts the stack, makes every check and ends the machine.
pub(crate) fn main(info: &StartInfo, ram: Range<u64>, free: u64) -> ! {
    // SAFETY: the loader's RSDP; from `free` on nobody uses RAM; this runs once.
    let machine = unsafe {
        let acpi = AcpiTables::new(info.rsdp);
        Machine::start(ram, free, &acpi, &|address| address == UNTRUSTED_EDU)
    };
    let machine = match machine {
        Ok(machine) => machine,
        Err(error) => {
            println!("the machine does not come up: {error}");
            exit(Outcome::Failure);
        }
    };
    let logs_events = !info.command_line.split_whitespace().any(|word| word == SILENT);
    let expected = Expected { logs_events, frames: machine.frames_in_use() };
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check(&machine, &expected) {
            Ok(()) => println!("ok: {name}"),
            Err(why) => {
                println!("FAILED: {name}: {why}");
                failed += 1;
            }
        }
    }
    println!("{} checks, {failed} failed", CHECKS.len());
    exit(if failed == 0 { Outcome::Success } else { Outcome::Failure })
}

fn nothing_is_left(machine: &Machine, expected: &Expected) -> Result<(), String> {
    let statistics = machine.iommu.statistics();
    ensure(statistics.maps == statistics.unmaps, format!("{statistics:?}"))?;
    ensure(statistics.quarantined == 0, format!("{statistics:?}"))?;
    // Page tables stay with their domains. What was read from the disk and written to it were more pages than this.
    let more = machine.frames_in_use().saturating_sub(expected.frames);
    ensure(more < 128, format!("{more} frames more in use than at the start"))
}

fn ensure(holds: bool, why: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why.into()) }
}

/// An error in words.
fn failed<E: Debug>(what: &str) -> impl Fn(E) -> String + '_ {
    move |error| format!("{what}: {error:?}")
}
