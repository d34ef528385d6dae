//! `cargo xtask loom`: every model, that is every integration test whose name begins with `loom`.

use clap::Args;

use crate::steps::Steps;
use crate::workspace::{cargo, packages, target};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only models whose name contains this
    filter: Option<String>,
    /// How many preemptions loom tries at most [default: 3]
    #[arg(long)]
    preemptions: Option<u32>,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let mut steps = Steps::default();
    for package in packages()? {
        for model in package.tests.iter().filter(|test| test.starts_with("loom")) {
            if options.filter.as_ref().is_some_and(|filter| !model.contains(filter.as_str())) {
                continue;
            }
            // The flag changes every crate, so models have a target folder of their own.
            steps.run(
                &format!("loom: {} {model}", package.name),
                cargo()
                    .env("RUSTFLAGS", "--cfg loom")
                    .env("CARGO_TARGET_DIR", target().join("loom"))
                    .env("LOOM_MAX_PREEMPTIONS", options.preemptions.unwrap_or(3).to_string())
                    .args(["test", "--release", "-p", &package.name, "--test", model]),
            );
        }
    }
    steps.finish()
}
