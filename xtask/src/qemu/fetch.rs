//! Getting QEMU: packages of newer Debian suites, unpacked under the target folder. Nothing is installed, and the machine's
//! own package lists are left alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

const PACKAGE: &str = "qemu-system-x86";
/// What a folder has at its top, to be started.
const PROGRAM: &str = "qemu-system-x86_64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The file that is there when a folder is complete; it holds the version.
const COMPLETE: &str = "version";

/// A QEMU that has been fetched.
pub(super) struct Fetched {
    pub(super) folder: PathBuf,
    pub(super) version: String,
}

/// Fetches what is not there yet and says what is.
pub(super) fn all() -> Result<Vec<Fetched>, String> {
    SUITES.iter().map(suite).collect()
}

fn suite(suite: &Suite) -> Result<Fetched, String> {
    let folder = target().join("qemu").join(suite.name);
    if !folder.join(COMPLETE).is_file() {
        println!("fetching {PACKAGE} of {}", suite.name);
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
    let apt = Apt::new(suite, work)?;
    apt.run(&["update"])?;
    let install = |package: &str| {
        apt.run(&["install", "--yes", "--download-only", "--target-release", suite.name, package])
    };
    // The version that was tried, if it is still there.
    install(&format!("{PACKAGE}=1:{}+*", suite.wanted)).or_else(|_| install(PACKAGE))?;
    make(folder)?;
    let archives = apt.archives();
    let entries = fs::read_dir(&archives).map_err(|error| format!("{}: {error}", archives.display()))?;
    let packages = entries.flatten().map(|entry| entry.path());
    for package in packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb")) {
        quiet(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
    }
    let launcher = folder.join(PROGRAM);
    write(&launcher, LAUNCHER)?;
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    let version = version(&launcher)?;
    // Written last, so that a folder with it is complete.
    write(&folder.join(COMPLETE), &version)
}

/// Starts the unpacked program through the loader and the libraries that came with it. QEMU's modules too: those of an
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
        exec "$loader" --library-path "${libraries#:}" "$here"/usr/bin/qemu-system-x86_64 \
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

/// An apt that sees one suite and its base, with all its state in a folder of its own.
struct Apt {
    config: PathBuf,
    work: PathBuf,
}

impl Apt {
    fn new(suite: &Suite, work: &Path) -> Result<Self, String> {
        let mirror = mirror()?;
        make(&work.join("lists/partial"))?;
        make(&work.join("archives/partial"))?;
        // Nothing is installed as far as this apt knows, so the libraries come along.
        write(&work.join("status"), "")?;
        let line = |suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        write(&work.join("sources.list"), &(line(suite.base) + &line(suite.name)))?;
        let at = work.display();
        let config = format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::State::lists \"{at}/lists\";\n\
             Dir::State::status \"{at}/status\";\n\
             Dir::Cache::archives \"{at}/archives\";\n\
             Dir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n\
             APT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"\";\n\
             Acquire::Languages \"none\";\n\
             Debug::NoLocking \"true\";\n"
        );
        let path = work.join("apt.conf");
        write(&path, &config)?;
        Ok(Self { config: path, work: work.to_owned() })
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        quiet(Command::new("apt-get").env("APT_CONFIG", &self.config).arg("--quiet=2").args(arguments))
    }

    fn archives(&self) -> PathBuf {
        self.work.join("archives")
    }
}

/// The Debian mirror that this machine itself uses.
fn mirror() -> Result<String, String> {
    let format = ["indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"];
    let output = Command::new("apt-get").args(format).output().map_err(|error| {
        format!("apt-get: {error}; without it, name a QEMU in the environment variable BACKEND_QEMU")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let uris = text.lines().filter_map(|line| line.split_whitespace().next());
    let debian = uris.map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    debian.map(str::to_owned).ok_or_else(|| {
        "this machine's apt sources name no Debian mirror; name a QEMU in the environment variable BACKEND_QEMU"
            .into()
    })
}

fn quiet(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn remove(folder: &Path) -> Result<(), String> {
    if !folder.exists() {
        return Ok(());
    }
    fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
