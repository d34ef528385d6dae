//! `cargo xtask sanitize`: the tests that have something to show to AddressSanitizer and ThreadSanitizer.

use std::process::Command;

use clap::{Args, ValueEnum};

use crate::steps::Steps;
use crate::workspace::{cargo, root, target};

#[derive(Args, Default)]
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

    fn flags(self) -> &'static str {
        match self {
            Self::Address => "-Zsanitizer=address",
            // The standard library is not instrumented.
            Self::Thread => "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer",
        }
    }

    /// The integration tests of `swiotlb` that have a device run on when nobody waits for it.
    fn tests(self) -> &'static [&'static str] {
        match self {
            Self::Address => &["forgotten", "device_thread"],
            Self::Thread => &["device_thread"],
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let host = host()?;
    let known = root().join("swiotlb/tests/common/thread_sanitizer.txt");
    let mut steps = Steps::default();
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        if options.only.is_some_and(|only| only != sanitizer) {
            continue;
        }
        let mut command = cargo();
        command
            // Sanitizers are an unstable option of a stable compiler, which brings their libraries.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", sanitizer.flags())
            .env("CARGO_TARGET_DIR", target().join("sanitize").join(sanitizer.name()))
            // What is forgotten on purpose is no leak to tell of.
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .env("TSAN_OPTIONS", format!("suppressions={}", known.display()))
            .args(["test", "--target", &host, "-p", "swiotlb"])
            .args(sanitizer.tests().iter().flat_map(|test| ["--test", test]));
        steps.run(&format!("{} sanitizer", sanitizer.name()), &mut command);
    }
    steps.finish()
}

/// What machine the compiler is for: with a target named, build scripts are not sanitized.
fn host() -> Result<String, String> {
    let output = Command::new("rustc").arg("-vV").output().map_err(|error| error.to_string())?;
    let version = String::from_utf8_lossy(&output.stdout);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.ok_or("rustc -vV names no host")?.to_owned())
}
