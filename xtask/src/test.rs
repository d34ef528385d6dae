//! `cargo xtask test`: everything that must be true before a change lands.

use clap::Args;

use crate::steps::Steps;
use crate::workspace::{Package, cargo, packages};
use crate::{loom, mutate, named_files};

#[derive(Args)]
pub(crate) struct Options {
    /// How many mutations to run, drawn by date; that all of them apply is always checked
    #[arg(long, default_value_t = 5)]
    mutations: usize,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let packages = packages()?;
    let mut steps = Steps::default();
    steps.call("docs name files that exist", named_files::run);
    steps.run("format", cargo().args(["fmt", "--all", "--check"]));
    steps.run(
        "lints, all features",
        cargo().args(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
    );
    for package in packages.iter().filter(|package| package.library) {
        steps.run(
            &format!("lints, {} without features", package.name),
            cargo().args(["clippy", "-p", &package.name, "--no-default-features", "--", "-D", "warnings"]),
        );
    }
    steps.run(
        "docs",
        cargo().env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--workspace",
            "--no-deps",
            "--all-features",
        ]),
    );
    steps.run("tests", cargo().args(["test", "--workspace", "--all-features"]));
    each_alone(&mut steps, &packages);
    steps.call("loom", || loom::run(&loom::Options::default()));
    steps.call("mutations", || mutate::run(&mutate::Options::drawn(options.mutations)));
    steps.finish()
}

/// Builds each crate by itself: in the workspace one crate's features are every crate's, which hides what is missing.
fn each_alone(steps: &mut Steps, packages: &[Package]) {
    for package in packages {
        let name = &package.name;
        let mut check = |what: &str, arguments: &[&str]| {
            steps.run(
                &format!("{name} alone, {what}"),
                cargo().args(["check", "-q", "-p", name]).args(arguments),
            );
        };
        check("default features", &[]);
        if package.features.is_empty() {
            continue;
        }
        check("all features", &["--all-features"]);
        // Programs need a backend to be of use; every other crate stands without features.
        if name != "examples" {
            check("no features", &["--no-default-features"]);
        }
        for feature in &package.features {
            check(&format!("only {feature}"), &["--no-default-features", "--features", feature]);
        }
    }
}
