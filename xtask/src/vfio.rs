//! `cargo xtask vfio`: the VFIO backend in a real kernel, on emulated IOMMUs.

use std::fs;
use std::path::Path;

use clap::Args;

use crate::guest::{self, Guest, IOMMUS, Iommu};
use crate::steps::Steps;
use crate::workspace::target;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only get QEMU and the kernel, run nothing
    #[arg(long)]
    fetch: bool,
    /// Only IOMMUs whose name contains this
    filter: Option<String>,
}

/// How many checks the guest has (the first is a canary). Fewer are a failure: one that does not run says nothing.
const CHECKS: usize = 49;
/// MiB.
const MEMORY: u32 = 768;
const DISK_LEN: u64 = 4 << 20;

pub(crate) fn run(options: &Options) -> Result<(), String> {
    if options.fetch {
        return guest::fetch();
    }
    let guest = Guest::new()?;
    let mut steps = Steps::default();
    for iommu in IOMMUS.iter().filter(|it| options.filter.as_ref().is_none_or(|name| it.name.contains(name)))
    {
        steps.call(&format!("{}: {}", iommu.name, guest.versions()), || boot(&guest, iommu));
    }
    steps.finish()
}

fn boot(guest: &Guest, iommu: &Iommu) -> Result<(), String> {
    let disk = target().join("vfio").join(format!("disk-{}", iommu.name));
    write(&disk, &contents(1))?;
    let mut machine = guest.machine(iommu, MEMORY, "");
    for slot in [4, 6] {
        machine.args(["-device", &format!("edu,addr={slot:#x},dma_mask=0xffffffffffffffff")]);
    }
    machine.arg("-drive").arg(format!("file={},format=raw,if=none,id=disk", disk.display()));
    machine.args(["-device", "nvme,serial=vfio-disk,drive=disk,addr=0x5"]);
    let mut passed = 0;
    let ended = guest::run(&mut machine, |line| {
        passed += usize::from(line.starts_with("check ok: "));
        println!("{line}");
    });
    ended.map_err(|why| format!("{why}, after {passed} checks that passed"))?;
    if passed != CHECKS {
        return Err(format!("{passed} checks passed, and there are {CHECKS}"));
    }
    let found = fs::read(&disk).map_err(|error| error.to_string())?;
    if found != contents(2) {
        return Err("the disk holds something else than the guest wrote".into());
    }
    println!("{passed} checks passed, and the disk holds what the guest wrote");
    Ok(())
}

/// What the disk holds before (1) and after (2): as the guest's check has it.
fn contents(seed: u64) -> Vec<u8> {
    (0..DISK_LEN).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}
