//! `cargo xtask mutate`: faults put in on purpose, each of which a named test must catch.
//!
//! A file of `mutations/` is a patch with two lines above it:
//!
//! ```text
//! Fault: what is wrong, in a sentence
//! Caught-by: PACKAGE TEST-TARGET NAME-OF-THE-TEST
//! ```
//!
//! The target is the name of an integration test, or `lib` for unit tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::qemu;
use crate::steps::Steps;
use crate::workspace::{cargo, root, target};

#[derive(Args)]
pub(crate) struct Options {
    /// Only faults whose file name contains this
    filter: Option<String>,
    /// Run only this many, drawn by date
    #[arg(long)]
    drawn: Option<usize>,
}

impl Options {
    /// `count` faults, drawn by date.
    pub(crate) fn drawn(count: usize) -> Self {
        Self { filter: None, drawn: Some(count) }
    }
}

struct Mutation {
    name: String,
    patch: PathBuf,
    fault: String,
    package: String,
    test_target: String,
    test: String,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    let mut mutations = read_all()?;
    mutations.retain(|mutation| {
        options.filter.as_ref().is_none_or(|filter| mutation.name.contains(filter.as_str()))
    });
    if mutations.is_empty() {
        return Err("no such mutation".into());
    }
    let tree = scratch_worktree()?;
    let mut steps = Steps::default();
    for mutation in &mutations {
        steps.call(&format!("{} applies", mutation.name), || apply(&tree, mutation, &["--check"]));
    }
    for mutation in draw(&mutations, options.drawn) {
        println!("\n{}: {}", mutation.name, mutation.fault);
        steps.call(&format!("{} is caught", mutation.name), || caught(&tree, mutation));
    }
    steps.finish()
}

fn read_all() -> Result<Vec<Mutation>, String> {
    let folder = root().join("mutations");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut patches: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    patches.sort();
    patches.into_iter().map(read).collect()
}

fn read(patch: PathBuf) -> Result<Mutation, String> {
    let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(&patch).map_err(|error| format!("{}: {error}", patch.display()))?;
    let header = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.map(str::trim).ok_or_else(|| format!("mutations/{name}.patch has no line \"{key}\""))
    };
    let fault = header("Fault:")?.to_owned();
    let caught_by: Vec<String> = header("Caught-by:")?.split_whitespace().map(String::from).collect();
    let [package, test_target, test] = <[String; 3]>::try_from(caught_by)
        .map_err(|_| format!("mutations/{name}.patch: Caught-by wants a package, a target and a test"))?;
    Ok(Mutation { name, patch, fault, package, test_target, test })
}

/// A checkout of the last commit that patches may be applied to, at the same place each time so that builds are reused.
fn scratch_worktree() -> Result<PathBuf, String> {
    let tree = target().join("mutations").join("tree");
    let git = |arguments: &[&str]| quiet(Command::new("git").current_dir(root()).args(arguments));
    let path = tree.to_string_lossy().into_owned();
    if tree.exists() {
        git(&["-C", &path, "checkout", "--quiet", "--force", "--detach", &head()?])?;
    } else {
        git(&["worktree", "prune"])?;
        git(&["worktree", "add", "--quiet", "--force", "--detach", &path, "HEAD"])?;
    }
    Ok(tree)
}

fn head() -> Result<String, String> {
    let output = Command::new("git").current_dir(root()).args(["rev-parse", "HEAD"]).output();
    let output = output.map_err(|error| format!("git: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn quiet(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

fn apply(tree: &Path, mutation: &Mutation, flags: &[&str]) -> Result<(), String> {
    quiet(Command::new("git").current_dir(tree).arg("apply").args(flags).arg(&mutation.patch))
}

/// The test passes without the fault, the fault compiles, and the test fails with it.
fn caught(tree: &Path, mutation: &Mutation) -> Result<(), String> {
    // Without QEMU its tests run nothing, and would pass.
    let on_qemu = ["backend-qemu", "bare-metal-image"].contains(&mutation.package.as_str());
    let qemu = if on_qemu { Some(qemu::best()?) } else { None };
    let test = |flags: &[&str]| {
        let mut command = cargo();
        command.current_dir(tree);
        if let Some(folder) = &qemu {
            command.env(qemu::VARIABLE, folder);
        }
        if mutation.test_target.starts_with("loom") {
            command.env("RUSTFLAGS", "--cfg loom").env("LOOM_MAX_PREEMPTIONS", "3");
            command.env("CARGO_TARGET_DIR", target().join("mutations").join("loom"));
            command.args(["test", "--release", "--quiet", "-p", &mutation.package]);
        } else {
            command.env("CARGO_TARGET_DIR", target().join("mutations").join("build"));
            command.args(["test", "--quiet", "-p", &mutation.package]);
        }
        match mutation.test_target.as_str() {
            "lib" => command.arg("--lib"),
            name => command.args(["--test", name]),
        };
        command.args(flags);
        command
    };
    let run_it = ["--", "--exact", mutation.test.as_str()];
    let clean = test(&run_it).output().map_err(|error| error.to_string())?;
    if !clean.status.success() || !String::from_utf8_lossy(&clean.stdout).contains("1 passed") {
        return Err(format!("{} does not pass without the fault, or is not there", mutation.test));
    }
    apply(tree, mutation, &[])?;
    let compiles = quiet(&mut test(&["--no-run"]));
    let outcome = compiles.and_then(|()| match quiet(&mut test(&run_it)) {
        Ok(()) => Err(format!("{} passes with the fault", mutation.test)),
        Err(_) => Ok(()),
    });
    apply(tree, mutation, &["--reverse"])?;
    outcome
}

/// `count` of them, different ones each day, in turn.
fn draw(mutations: &[Mutation], count: Option<usize>) -> Vec<&Mutation> {
    let day = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let count = count.unwrap_or(mutations.len()).min(mutations.len());
    let first = (day as usize).wrapping_mul(count) % mutations.len();
    mutations.iter().cycle().skip(first).take(count).collect()
}
