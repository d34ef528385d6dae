//! Which QEMU runs, and of what version it is.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Which of QEMU's programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Emulator {
    /// The one that emulates x86-64 machines.
    X86_64,
    /// The one that emulates 64-bit RISC-V machines.
    RiscV64,
    /// The one that emulates 64-bit ARM machines.
    Aarch64,
}

impl Emulator {
    const fn file_name(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::RiscV64 => "qemu-system-riscv64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }
}

/// The environment variable that names the folder with the programs.
const VARIABLE: &str = "BACKEND_QEMU";
/// What `cargo xtask qemu --fetch` makes under the target folder: one folder for each suite of Debian's.
const FETCHED: &str = "qemu";

/// A version of QEMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub micro: u32,
}

impl Version {
    /// Version `major.minor.micro`.
    pub const fn new(major: u32, minor: u32, micro: u32) -> Self {
        Self { major, minor, micro }
    }

    /// From what `--version` prints, or `None` when that is something else.
    fn parse(said: &str) -> Option<Self> {
        let numbers = said.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
        let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self { major: next()?, minor: next()?, micro: next().unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Why there is no QEMU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// There is none in any of the places.
    #[error(
        "no {} in the folder that {VARIABLE} names, in PATH or under the target folder; `cargo xtask qemu --fetch` gets one",
        .0.file_name()
    )]
    NotFound(Emulator),
    /// It does not start.
    #[error("{program} does not start: {error}")]
    DoesNotStart {
        /// Its path.
        program: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It does not say which version it is.
    #[error("{program} does not say its version: {said:?}")]
    NoVersion {
        /// Its path.
        program: PathBuf,
        /// What it says instead.
        said: String,
    },
}

/// A QEMU that can be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    path: PathBuf,
    version: Version,
}

impl Program {
    /// Finds one: in the folder that the environment variable `BACKEND_QEMU` names and, without that variable, in `PATH` or
    /// where `cargo xtask qemu --fetch` puts it (of several, the newest).
    ///
    /// # Errors
    /// [`ProgramError`] with the reason.
    pub fn find(emulator: Emulator) -> Result<Self, ProgramError> {
        let name = emulator.file_name();
        let at = |path| Self::at(emulator, path);
        if let Some(folder) = std::env::var_os(VARIABLE) {
            return at(Path::new(&folder).join(name));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(found) = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|it| it.is_file()) {
            return at(found);
        }
        let fetched: Vec<Self> = fetched(name).into_iter().map(at).collect::<Result<_, _>>()?;
        fetched.into_iter().max_by_key(|program| program.version).ok_or(ProgramError::NotFound(emulator))
    }

    /// Whether `BACKEND_QEMU` is set: then whoever runs tests wants them on QEMU, and its absence is a failure.
    pub fn is_demanded() -> bool {
        std::env::var_os(VARIABLE).is_some()
    }

    /// The one at `path`, which is that emulator.
    ///
    /// # Errors
    /// [`ProgramError`] when it is none.
    pub fn at(emulator: Emulator, path: PathBuf) -> Result<Self, ProgramError> {
        let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
        let said = match output {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ProgramError::NotFound(emulator));
            }
            Err(error) => return Err(ProgramError::DoesNotStart { program: path, error }),
        };
        match Version::parse(&said) {
            Some(version) => Ok(Self { path, version }),
            None => Err(ProgramError::NoVersion { program: path, said }),
        }
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A command that starts it. It is killed when the thread that starts it ends, however that ends: nobody is left to end it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        let parent = std::process::id();
        let die_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have gone before.
            let alive = getppid().is_some_and(|pid| pid.as_raw_nonzero().get().unsigned_abs() == parent);
            if alive { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
        };
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe { command.pre_exec(die_with_parent) };
        command
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What has been fetched, of the target folder that this program was built in or that belongs to the folder it runs in.
fn fetched(name: &str) -> Vec<PathBuf> {
    let built = std::env::current_exe().unwrap_or_default();
    let runs = std::env::current_dir().unwrap_or_default();
    let around = built.ancestors().map(|dir| dir.join(FETCHED));
    let around = around.chain(runs.ancestors().map(|dir| dir.join("target").join(FETCHED)));
    let suites = around.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    // The file is written when a folder is complete.
    let complete = suites.map(|suite| suite.path()).filter(|suite| suite.join("version").is_file());
    complete.map(|suite| suite.join(name)).filter(|program| program.is_file()).collect()
}
