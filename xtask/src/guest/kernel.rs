//! Getting a kernel: Debian's own, with VFIO's modules.

use std::fs;
use std::path::{Path, PathBuf};

use crate::debian::{Apt, read, remove, write};
use crate::workspace::target;

/// The suite that has it.
const SUITE: &str = "trixie";
/// The package that names the newest kernel of the suite.
const NEWEST: &str = "linux-image-amd64";
/// The kernel that the checks were written for; the suite may have moved on.
const WANTED: &str = "6.12";
/// The file that is there when the folder is complete; it holds the kernel's release.
const COMPLETE: &str = "release";
/// What the guest loads, in this order. (What they need beside is built in.)
const MODULES: [&str; 5] = ["irqbypass", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci"];

/// A kernel that has been fetched.
pub(crate) struct Kernel {
    pub(crate) release: String,
    /// What QEMU boots.
    pub(crate) image: PathBuf,
    /// Files of modules, in the order in which they are loaded.
    pub(crate) modules: Vec<PathBuf>,
}

/// Fetches it unless it is there.
pub(crate) fn fetch() -> Result<Kernel, String> {
    let folder = target().join("vfio/kernel");
    if !folder.join(COMPLETE).is_file() {
        println!("fetching the kernel of {SUITE}");
        // What an interrupted run has left.
        remove(&folder)?;
        let work = target().join("vfio/kernel.apt");
        remove(&work)?;
        let fetched = unpack(&work, &folder);
        remove(&work)?;
        fetched?;
    }
    let release = read(&folder.join(COMPLETE))?.trim().to_owned();
    let note = if release.starts_with(WANTED) {
        ""
    } else {
        ", which is not the one that the checks were written for"
    };
    println!("Linux {release} of {SUITE} is in {}{note}", folder.display());
    let image = folder.join(format!("boot/vmlinuz-{release}"));
    let tree = folder.join("usr/lib/modules").join(&release).join("kernel");
    let modules = MODULES.iter().filter_map(|name| find(&tree, name)).collect();
    Ok(Kernel { release, image, modules })
}

fn unpack(work: &Path, folder: &Path) -> Result<(), String> {
    let apt = Apt::new(&[SUITE], work)?;
    apt.run(&["update"])?;
    let depends = apt.ask(&["depends", NEWEST])?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.ok_or_else(|| format!("{NEWEST} of {SUITE} depends on nothing"))?;
    // It alone: what it depends on is for a machine that it is installed on.
    apt.run(&["download", package])?;
    apt.unpack(folder)?;
    let release = package.strip_prefix("linux-image-").unwrap_or(package);
    // Written last, so that a folder with it is complete.
    write(&folder.join(COMPLETE), release)
}

/// The file of a module, wherever it is in the tree, packed or not. What is built in has none.
fn find(folder: &Path, module: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name()?.to_str()?.split_once(".ko").is_some_and(|(name, _)| name == module) {
                return Some(path);
            }
        }
    }
    None
}
