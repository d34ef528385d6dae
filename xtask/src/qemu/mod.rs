//! `cargo xtask qemu`: the tests that run on QEMU's hardware, for each QEMU.

pub(crate) mod fetch;

use std::path::PathBuf;
use std::process::Stdio;

use clap::Args;

use self::fetch::Fetched;
use crate::steps::Steps;
use crate::workspace::cargo;

/// Names the folder with the QEMU to run. What is named so must be there: nothing is left out.
pub(crate) const VARIABLE: &str = "BACKEND_QEMU";

/// What runs on QEMU, as arguments of `cargo test`.
const TESTS: [&[&str]; 5] = [
    &["-p", "backend-qemu"],
    &["-p", "bare-metal-image"],
    &["-p", "backend", "--no-default-features", "--features", "qemu", "--tests"],
    &["-p", "backend", "--no-default-features", "--features", "sim,qemu", "--test", "agreement"],
    &["-p", "examples", "--no-default-features", "--features", "qemu", "--test", "main_job_qemu"],
];

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only get the QEMUs, run nothing
    #[arg(long)]
    fetch: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let fetched = fetch::all()?;
    if options.fetch {
        return Ok(());
    }
    let mut steps = Steps::default();
    for qemu in &fetched {
        steps.call(&format!("tests on QEMU {}", qemu.version), || tests(qemu, options.filter.as_deref()));
    }
    steps.finish()
}

/// The folder of the QEMU with the fewest faults, fetched when it is not there.
pub(crate) fn best() -> Result<PathBuf, String> {
    fetch::all()?.pop().map(|qemu| qemu.folder).ok_or_else(|| "there is no QEMU".into())
}

/// Runs the tests on one QEMU and says how many there were.
fn tests(qemu: &Fetched, filter: Option<&str>) -> Result<(), String> {
    let (mut count, mut failed) = (0, Vec::new());
    for arguments in TESTS {
        let mut command = cargo();
        command.env(VARIABLE, &qemu.folder).args(["test", "--no-fail-fast"]).args(arguments).args(filter);
        let output = command.stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        count += text.lines().filter_map(passed).sum::<usize>();
        if !output.status.success() {
            failed.push(arguments[1]);
        }
    }
    println!("QEMU {}: {count} tests passed", qemu.version);
    match (failed.is_empty(), count) {
        (true, 0) => Err("no test ran".into()),
        (true, _) => Ok(()),
        (false, _) => Err(format!("tests of {} failed", failed.join(", "))),
    }
}

/// How many tests a line of the test harness says to have passed.
fn passed(line: &str) -> Option<usize> {
    let (before, _) = line.strip_prefix("test result: ")?.split_once(" passed")?;
    before.split_whitespace().next_back()?.parse().ok()
}
