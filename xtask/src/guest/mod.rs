//! A guest with Debian's kernel and programs of ours on a machine that QEMU emulates. Everything that it takes is fetched,
//! unpacked and built under the target folder.

mod initramfs;
mod kernel;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::kernel::Kernel;
use crate::qemu::fetch::{self, Fetched};
use crate::workspace::{cargo, target};

/// An IOMMU that QEMU emulates.
pub(crate) struct Iommu {
    pub(crate) name: &'static str,
    device: &'static str,
    parameters: &'static str,
}

/// The options without which QEMU passes requests through untranslated are among these.
pub(crate) const IOMMUS: [Iommu; 2] = [
    Iommu { name: "AMD-Vi", device: "amd-iommu,dma-remap=on", parameters: "" },
    Iommu { name: "VT-d", device: "intel-iommu,intremap=on", parameters: " intel_iommu=on" },
];

/// QEMU's status after a guest that says that everything went well: no other way out has it.
const PASSED: i32 = 0x10 << 1 | 1;
const TIMEOUT: Duration = Duration::from_secs(300);
/// What the guest has: the names there, and the packages' programs.
const PROGRAMS: [(&str, &str); 2] = [("init", "vfio-guest"), ("main-job", "main-job")];
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What it takes to boot one.
pub(crate) struct Guest {
    qemu: Fetched,
    kernel: Kernel,
    /// The programs, and the modules that they may load.
    archive: PathBuf,
}

/// Gets QEMU and the kernel unless they are there.
pub(crate) fn fetch() -> Result<(), String> {
    fetch::newest()?;
    kernel::fetch().map(drop)
}

impl Guest {
    /// Gets QEMU and the kernel, and builds the programs.
    pub(crate) fn new() -> Result<Self, String> {
        let (qemu, kernel) = (fetch::newest()?, kernel::fetch()?);
        let archive = target().join("vfio/initramfs");
        let bytes = initramfs::archive(&build()?, &kernel.modules)?;
        fs::write(&archive, bytes).map_err(|error| format!("{}: {error}", archive.display()))?;
        Ok(Self { qemu, kernel, archive })
    }

    /// What is run, in words.
    pub(crate) fn versions(&self) -> String {
        format!("QEMU {}, Linux {}", self.qemu.version, self.kernel.release)
    }

    /// A machine with an IOMMU, so much memory in MiB, and what the kernel's command line is to say besides. Further arguments make
    /// its devices.
    pub(crate) fn machine(&self, iommu: &Iommu, memory: u32, parameters: &str) -> Command {
        let mut command = Command::new(self.qemu.program());
        command.args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "1"]);
        command.args(["-m", &memory.to_string(), "-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        command.args(["-device", iommu.device]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&self.archive);
        // Under emulation the kernel's test of its timer depends on how busy the host is.
        let quiet = "console=ttyS0 quiet loglevel=1 no_timer_check panic=-1";
        command.arg("-append").arg(format!("{quiet}{} {parameters}", iommu.parameters));
        command
    }
}

/// Builds the guest's programs so that they need no library of a system.
fn build() -> Result<Vec<(&'static str, PathBuf)>, String> {
    println!("building what the guest runs");
    // A folder of its own: the flags would have everything built anew there and back.
    let folder = target().join("vfio/build");
    let mut command = cargo();
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    command.args(["build", "--release", "--package", "vfio-guest", "--package", "examples"]);
    command.args(["--bin", "vfio-guest", "--bin", "main-job", "--target", PLATFORM]);
    command.args(["--no-default-features", "--features", "examples/vfio"]);
    let status = command.arg("--target-dir").arg(&folder).status().map_err(|error| error.to_string())?;
    let built = folder.join(PLATFORM).join("release");
    let programs = PROGRAMS.map(|(name, program)| (name, built.join(program)));
    if status.success() {
        Ok(programs.into())
    } else {
        Err(format!("building what the guest runs: {status}"))
    }
}

/// Runs a machine and hands on each line that its guest says. A guest that hangs is ended.
///
/// # Errors
/// When the guest ended otherwise than saying that everything went well.
pub(crate) fn run(machine: &mut Command, mut line: impl FnMut(&str) + Send) -> Result<(), String> {
    let spawned = machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut guest: Child = spawned.map_err(|error| format!("QEMU: {error}"))?;
    let output = guest.stdout.take().ok_or("QEMU has no output")?;
    let start = Instant::now();
    let ended = AtomicBool::new(false);
    let status: ExitStatus = std::thread::scope(|scope| {
        scope.spawn(|| {
            for said in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                line(String::from_utf8_lossy(&said).trim_end());
            }
            ended.store(true, Ordering::Release);
        });
        while !ended.load(Ordering::Acquire) && start.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(100));
        }
        if !ended.load(Ordering::Acquire) {
            println!("no end after {} s", TIMEOUT.as_secs());
            // It may have ended just now.
            let _ = guest.kill();
        }
        guest.wait()
    })
    .map_err(|error| error.to_string())?;
    if status.code() == Some(PASSED) { Ok(()) } else { Err(format!("the guest ended with {status}")) }
}
