//! Getting QEMU, from packages of newer Debian suites.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian::{Apt, read, remove, write};
use crate::workspace::target;

/// A suite that has a QEMU worth running on.
struct Suite {
    name: &'static str,
    /// The suite that it builds on.
    base: &'static str,
    /// The version that the expectations were written for; the suite may have moved on.
    wanted: &'static str,
}

/// One QEMU from before the AMD IOMMU's event log worked, and one from after. The last has the fewest faults.
const SUITES: [Suite; 2] = [
    Suite { name: "bookworm-backports", base: "bookworm", wanted: "10.0.2" },
    Suite { name: "trixie-backports", base: "trixie", wanted: "11.1.3" },
];

const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-riscv", "qemu-system-arm"];
/// What a folder has at its top, to be started.
const PROGRAMS: [&str; 3] = ["qemu-system-x86_64", "qemu-system-riscv64", "qemu-system-aarch64"];
/// The file that is there when a folder is complete; it holds the version.
const COMPLETE: &str = "version";

/// A QEMU that has been fetched.
pub(crate) struct Fetched {
    pub(crate) folder: PathBuf,
    pub(crate) version: String,
}

impl Fetched {
    /// The emulator of a PC, to be started.
    pub(crate) fn program(&self) -> PathBuf {
        let [pc, ..] = PROGRAMS;
        self.folder.join(pc)
    }
}

/// Fetches what is not there yet and says what is.
pub(super) fn all() -> Result<Vec<Fetched>, String> {
    SUITES.iter().map(suite).collect()
}

/// The newest of them alone: what runs a guest.
pub(crate) fn newest() -> Result<Fetched, String> {
    let [.., newest] = &SUITES;
    suite(newest)
}

fn suite(suite: &Suite) -> Result<Fetched, String> {
    let folder = target().join("qemu").join(suite.name);
    let needed = PROGRAMS.iter().chain([&COMPLETE]);
    if !needed.into_iter().all(|name| folder.join(name).is_file()) {
        println!("fetching {} of {}", PACKAGES.join(", "), suite.name);
        // What an interrupted run has left.
        remove(&folder)?;
        let work = target().join("qemu").join(format!("{}.apt", suite.name));
        remove(&work)?;
        let fetched = unpack(suite, &work, &folder);
        remove(&work)?;
        fetched?;
    }
    let version = read(&folder.join(COMPLETE))?.trim().to_owned();
    let note =
        if version == suite.wanted { "" } else { ", which is not the one that the tests were written for" };
    println!("QEMU {version} of {} is in {}{note}", suite.name, folder.display());
    Ok(Fetched { folder, version })
}

fn unpack(suite: &Suite, work: &Path, folder: &Path) -> Result<(), String> {
    let apt = Apt::new(&[suite.base, suite.name], work)?;
    apt.run(&["update"])?;
    let install = |packages: &[String]| {
        let how = ["install", "--yes", "--download-only", "--target-release", suite.name];
        let packages = packages.iter().map(String::as_str);
        apt.run(&how.into_iter().chain(packages).collect::<Vec<_>>())
    };
    // The version that was tried, if it is still there.
    let pinned = PACKAGES.map(|package| format!("{package}=1:{}+*", suite.wanted));
    install(&pinned).or_else(|_| install(&PACKAGES.map(String::from)))?;
    apt.unpack(folder)?;
    for program in PROGRAMS {
        let launcher = folder.join(program);
        write(&launcher, LAUNCHER)?;
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&launcher, executable).map_err(|error| error.to_string())?;
    }
    let versions = PROGRAMS.map(|program| version(&folder.join(program)));
    let [version, others @ ..] = versions;
    let version = version?;
    if others.iter().any(|other| other.as_ref() != Ok(&version)) {
        return Err(format!("the programs are not of one version: {version} and {others:?}"));
    }
    // Written last, so that a folder with it is complete.
    write(&folder.join(COMPLETE), &version)
}

/// Starts the unpacked program of its own name through the loader and the libraries that came with it. QEMU's modules too: those of an
/// installed QEMU would be of another version.
const LAUNCHER: &str = r#"#!/bin/sh
here=$(dirname "$0")
libraries=
for folder in "$here"/usr/lib/x86_64-linux-gnu "$here"/lib/x86_64-linux-gnu "$here"/usr/lib/x86_64-linux-gnu/*/; do
    libraries=$libraries:$folder
done
for loader in "$here"/usr/lib64/ld-linux-x86-64.so.2 "$here"/lib64/ld-linux-x86-64.so.2; do
    if [ -e "$loader" ]; then
        export QEMU_MODULE_DIR="$here"/usr/lib/x86_64-linux-gnu/qemu
        exec "$loader" --library-path "${libraries#:}" "$here"/usr/bin/"$(basename "$0")" \
            -L "$here"/usr/share/qemu -L "$here"/usr/share/seabios "$@"
    fi
done
echo "no dynamic loader under $here" >&2
exit 127
"#;

/// The version that a program says it is.
fn version(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("the unpacked QEMU does not start: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.split_whitespace().skip_while(|word| *word != "version").nth(1);
    version.map(str::to_owned).ok_or_else(|| {
        format!("the unpacked QEMU does not run: {}", String::from_utf8_lossy(&output.stderr).trim())
    })
}
