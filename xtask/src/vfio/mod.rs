//! `cargo xtask vfio`: the VFIO backend in a real kernel, on emulated IOMMUs. Everything that it takes is fetched, unpacked and
//! built under the target folder.

mod initramfs;
mod kernel;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use self::kernel::Kernel;
use crate::qemu::fetch::{self, Fetched};
use crate::steps::Steps;
use crate::workspace::{cargo, target};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only get QEMU and the kernel, run nothing
    #[arg(long)]
    fetch: bool,
    /// Only IOMMUs whose name contains this
    filter: Option<String>,
}

/// An IOMMU that QEMU emulates.
struct Iommu {
    name: &'static str,
    device: &'static str,
    parameters: &'static str,
}

/// The options without which QEMU passes requests through untranslated are among these; the guest's first check is a canary.
const IOMMUS: [Iommu; 2] = [
    Iommu { name: "AMD-Vi", device: "amd-iommu,dma-remap=on", parameters: "" },
    Iommu { name: "VT-d", device: "intel-iommu,intremap=on", parameters: " intel_iommu=on" },
];

/// How many checks the guest has. Fewer are a failure: one that does not run says nothing.
const CHECKS: usize = 31;
/// QEMU's status after a guest that says that everything passed: no other way out has it.
const PASSED: i32 = 0x10 << 1 | 1;
const TIMEOUT: Duration = Duration::from_secs(300);
const PROGRAM: &str = "vfio-guest";
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const DISK_LEN: u64 = 4 << 20;

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let qemu = fetch::newest()?;
    let kernel = kernel::fetch()?;
    if options.fetch {
        return Ok(());
    }
    let archive = target().join("vfio/initramfs");
    let program = build()?;
    write(&archive, &initramfs::archive(&program, &kernel.modules)?)?;
    let mut steps = Steps::default();
    for iommu in IOMMUS.iter().filter(|it| options.filter.as_ref().is_none_or(|name| it.name.contains(name)))
    {
        let what = format!("{} of QEMU {}, Linux {}", iommu.name, qemu.version, kernel.release);
        steps.call(&what, || boot(&qemu, &kernel, &archive, iommu));
    }
    steps.finish()
}

/// Builds the guest's program so that it needs no library of a system.
fn build() -> Result<PathBuf, String> {
    println!("building {PROGRAM}");
    // A folder of its own: the flags would have everything built anew there and back.
    let folder = target().join("vfio/build");
    let mut command = cargo();
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    command.args(["build", "--release", "--package", PROGRAM, "--target", PLATFORM]);
    let status = command.arg("--target-dir").arg(&folder).status().map_err(|error| error.to_string())?;
    let program = folder.join(PLATFORM).join("release").join(PROGRAM);
    if status.success() { Ok(program) } else { Err(format!("building {PROGRAM}: {status}")) }
}

fn boot(qemu: &Fetched, kernel: &Kernel, archive: &Path, iommu: &Iommu) -> Result<(), String> {
    let disk = target().join("vfio").join(format!("disk-{}", iommu.name));
    write(&disk, &contents(1))?;
    let mut command = Command::new(qemu.program());
    command.args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "1", "-m", "768"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-device", iommu.device]);
    for slot in [4, 6] {
        command.args(["-device", &format!("edu,addr={slot:#x},dma_mask=0xffffffffffffffff")]);
    }
    command.arg("-drive").arg(format!("file={},format=raw,if=none,id=disk", disk.display()));
    command.args(["-device", "nvme,serial=vfio-disk,drive=disk,addr=0x5"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(archive);
    // Under emulation the kernel's test of its timer depends on how busy the host is.
    let quiet = "console=ttyS0 quiet loglevel=1 no_timer_check panic=-1";
    command.arg("-append").arg(format!("{quiet}{}", iommu.parameters));
    let (status, passed) = watch(&mut command)?;
    if status.code() != Some(PASSED) {
        return Err(format!("the guest ended with {status}, after {passed} checks that passed"));
    }
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

/// Shows what the guest says, and counts the checks that passed. A guest that hangs is ended.
fn watch(command: &mut Command) -> Result<(ExitStatus, usize), String> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut guest: Child = spawned.map_err(|error| format!("QEMU: {error}"))?;
    let output = guest.stdout.take().ok_or("QEMU has no output")?;
    let start = Instant::now();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut passed = 0;
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                passed += usize::from(line.starts_with("check ok: "));
                println!("{line}");
            }
            ended.store(true, Ordering::Release);
            passed
        });
        while !ended.load(Ordering::Acquire) && start.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(100));
        }
        if !ended.load(Ordering::Acquire) {
            println!("no end after {} s", TIMEOUT.as_secs());
            // It may have ended just now.
            let _ = guest.kill();
        }
        let status = guest.wait().map_err(|error| error.to_string())?;
        let passed = reader.join().map_err(|_| "the output's reader panicked")?;
        Ok((status, passed))
    })
}

/// What the disk holds before (1) and after (2): as the guest's check has it.
fn contents(seed: u64) -> Vec<u8> {
    (0..DISK_LEN).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}
