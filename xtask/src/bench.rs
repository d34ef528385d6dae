//! `cargo xtask bench`: the benchmarks of all crates. Each measures the machine's own limit beside ours in one process,
//! so that ratios hold on a noisy machine.

use clap::Args;

use crate::steps::Steps;
use crate::workspace::{cargo, packages};

#[derive(Args)]
pub(crate) struct Options {
    /// Only this package
    #[arg(short, long)]
    package: Option<String>,
    /// Only benchmarks whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let mut steps = Steps::default();
    for package in packages()? {
        if options.package.as_ref().is_some_and(|only| *only != package.name) {
            continue;
        }
        for bench in &package.benches {
            let mut command = cargo();
            command.args(["bench", "-p", &package.name, "--bench", bench]);
            command.args(["--"]).args(&options.filter);
            steps.run(&format!("bench: {} {bench}", package.name), &mut command);
        }
    }
    steps.finish()
}
