//! `cargo xtask qemu`: the tests that run on QEMU's hardware, for each QEMU.

mod fetch;

use std::process::Stdio;

use clap::Args;

use self::fetch::Fetched;
use crate::steps::Steps;
use crate::workspace::cargo;

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

/// Runs the tests on one QEMU and says how many there were.
fn tests(qemu: &Fetched, filter: Option<&str>) -> Result<(), String> {
    let mut command = cargo();
    // Named so, it must be there: nothing is left out.
    command.env("BACKEND_QEMU", &qemu.folder);
    command.args(["test", "-p", "backend-qemu", "--tests", "--no-fail-fast"]).args(filter);
    let output = command.stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let passed: usize = text.lines().filter_map(passed).sum();
    println!("QEMU {}: {passed} tests passed", qemu.version);
    match (output.status.success(), passed) {
        (true, 0) => Err("no test ran".into()),
        (true, _) => Ok(()),
        (false, _) => Err(output.status.to_string()),
    }
}

/// How many tests a line of the test harness says to have passed.
fn passed(line: &str) -> Option<usize> {
    let (before, _) = line.strip_prefix("test result: ")?.split_once(" passed")?;
    before.split_whitespace().next_back()?.parse().ok()
}
