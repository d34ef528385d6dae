//! `cargo xtask test`: everything that must be true before a change lands.

use clap::Args;

use crate::steps::Steps;
use crate::workspace::{Package, cargo, packages};
use crate::{loom, mutate, named_files, qemu, qemu_groups, sanitize, vfio};

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
    // What `cfg(baremetal)` alone shows.
    steps.run(
        "lints, the bare-metal image",
        cargo().env("RUSTFLAGS", "--cfg baremetal -Cpanic=abort").args([
            "clippy",
            "-p",
            "bare-metal-image",
            "--bins",
            "--target",
            "x86_64-unknown-linux-gnu",
            "--",
            "-D",
            "warnings",
        ]),
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
    for package in packages.iter().filter(|package| package.library) {
        steps
            .call(&format!("{} without features needs no std", package.name), || needs_no_std(&package.name));
    }
    each_alone(&mut steps, &packages);
    // Says so where callgrind is not there.
    steps.run(
        "instructions of a page-table operation",
        cargo().args(["bench", "-p", "io-pgtable", "--bench", "instructions"]),
    );
    steps.run(
        "instructions of the DMA API over an IOMMU that does nothing",
        cargo().args(["bench", "-p", "iommu-core", "--bench", "instructions"]),
    );
    steps.call("loom", || loom::run(&loom::Options::default()));
    steps.call("sanitizers", || sanitize::run(&sanitize::Options::default()));
    steps.call("QEMU", || qemu::run(&qemu::Options::default()));
    steps.call("groups that Linux forms", || qemu_groups::run(&qemu_groups::Options::default()));
    steps.call("VFIO", || vfio::run(&vfio::Options::default()));
    steps.call("mutations", || mutate::run(&mutate::Options::drawn(options.mutations)));
    steps.finish()
}

/// A library that is `no_std` brings it back when anything below it asks for a feature called `std`.
fn needs_no_std(package: &str) -> Result<(), String> {
    let tree = ["tree", "-p", package, "--no-default-features", "-e", "normal,features", "--prefix", "none"];
    let output = cargo().args(tree).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find(|line| line.contains("feature \"std\"")) {
        Some(line) => Err(format!("{package} without features still has {line}")),
        None => Ok(()),
    }
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
