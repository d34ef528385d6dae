//! Debian's packages, fetched from the mirror that this machine uses and unpacked under the target folder. Nothing is installed,
//! and the machine's own package lists are left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt that sees a few suites, with all its state in a folder of its own.
pub(crate) struct Apt {
    config: PathBuf,
    work: PathBuf,
}

impl Apt {
    /// `suites`: the one that packages come from, and what it builds on. `work`: a folder that nobody else uses.
    pub(crate) fn new(suites: &[&str], work: &Path) -> Result<Self, String> {
        let mirror = mirror()?;
        make(&work.join("lists/partial"))?;
        make(&work.join("archives/partial"))?;
        // Nothing is installed as far as this apt knows, so the libraries come along.
        write(&work.join("status"), "")?;
        let line = |suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        write(&work.join("sources.list"), &suites.iter().map(|suite| line(suite)).collect::<String>())?;
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

    /// Runs `apt-get`, in the folder of the archives.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new("apt-get");
        command.current_dir(self.archives()).env("APT_CONFIG", &self.config).arg("--quiet=2");
        quiet(command.args(arguments))
    }

    /// What `apt-cache` says.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("apt-cache");
        let output = command.env("APT_CONFIG", &self.config).args(arguments).output();
        let output = output.map_err(|error| format!("apt-cache: {error}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Unpacks every package that has been fetched.
    pub(crate) fn unpack(&self, folder: &Path) -> Result<(), String> {
        make(folder)?;
        let archives = self.archives();
        let entries = fs::read_dir(&archives).map_err(|error| format!("{}: {error}", archives.display()))?;
        let packages = entries.flatten().map(|entry| entry.path());
        for package in packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb")) {
            quiet(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
        }
        Ok(())
    }

    fn archives(&self) -> PathBuf {
        self.work.join("archives")
    }
}

/// The Debian mirror that this machine itself uses.
fn mirror() -> Result<String, String> {
    let format = ["indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"];
    let output =
        Command::new("apt-get").args(format).output().map_err(|error| format!("apt-get: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let uris = text.lines().filter_map(|line| line.split_whitespace().next());
    let debian = uris.map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    debian.map(str::to_owned).ok_or_else(|| "this machine's apt sources name no Debian mirror".into())
}

pub(crate) fn quiet(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

pub(crate) fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

pub(crate) fn remove(folder: &Path) -> Result<(), String> {
    if !folder.exists() {
        return Ok(());
    }
    fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

pub(crate) fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
