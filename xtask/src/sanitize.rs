//! `cargo xtask sanitize`: the tests that have something to show to AddressSanitizer and ThreadSanitizer.
//!
//! Sanitizers are an unstable option of the compiler, and ThreadSanitizer understands only what it has instrumented, the
//! standard library too: this takes a nightly toolchain with the sources of that library.

use std::path::PathBuf;
use std::process::Command;

use clap::{Args, ValueEnum};

use crate::steps::Steps;
use crate::workspace::{root, target};

#[derive(Args)]
pub(crate) struct Options {
    /// Only this one
    only: Option<Sanitizer>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sanitizer {
    /// Memory that is touched after it was freed, or beside its ends
    Address,
    /// Accesses that race with another thread's
    Thread,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }
}

/// The integration tests of `swiotlb` that have a device run on when nobody waits for it.
const TESTS: [&str; 2] = ["forgotten", "device_thread"];

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let host = nightly()?;
    let mut steps = Steps::default();
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        if options.only.is_some_and(|only| only != sanitizer) {
            continue;
        }
        let mut command = cargo();
        command
            .env("RUSTFLAGS", format!("-Zsanitizer={}", sanitizer.name()))
            .env("CARGO_TARGET_DIR", target().join("sanitize").join(sanitizer.name()))
            // What is forgotten on purpose is no leak to tell of.
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .args(["test", "-Zbuild-std", "--target", &host, "-p", "swiotlb"])
            .args(TESTS.iter().flat_map(|test| ["--test", test]));
        steps.run(&format!("{} sanitizer", sanitizer.name()), &mut command);
    }
    steps.finish()
}

/// The nightly cargo, by way of rustup. The variables of the cargo that runs this are not for it.
fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").arg("+nightly");
    command
}

/// What machine the nightly toolchain is for, when it has all that is needed.
fn nightly() -> Result<String, String> {
    const WANTED: &str = "sanitizers take a nightly toolchain with the standard library's sources: \
        rustup toolchain install nightly --component rust-src";
    let rustc = |arguments: &[&str]| {
        let mut command = Command::new("rustc");
        command.env_remove("RUSTUP_TOOLCHAIN").arg("+nightly").args(arguments);
        let output = command.output().ok().filter(|output| output.status.success()).ok_or(WANTED)?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml").exists() {
        return Err(WANTED.into());
    }
    let version = rustc(&["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or(WANTED)?;
    Ok(host.to_owned())
}
