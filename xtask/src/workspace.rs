//! What is in the workspace: packages, features, models and benches, as cargo itself says.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// One package of the workspace.
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its features, `default` left out.
    pub(crate) features: Vec<String>,
    /// Whether it is a library that is `no_std` without its features.
    pub(crate) library: bool,
    /// Names of its integration tests.
    pub(crate) tests: Vec<String>,
    /// Names of its benches.
    pub(crate) benches: Vec<String>,
}

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// All packages.
pub(crate) fn packages() -> Result<Vec<Package>, String> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    Ok(packages.iter().map(package).collect())
}

fn package(value: &Value) -> Package {
    let features: Vec<String> = value["features"]
        .as_object()
        .map(|features| features.keys().filter(|name| *name != "default").cloned().collect())
        .unwrap_or_default();
    let targets = |kind: &str| -> Vec<String> {
        let targets = value["targets"].as_array().map_or(&[][..], Vec::as_slice);
        let of_kind = targets.iter().filter(|target| target["kind"][0] == kind);
        of_kind.filter_map(|target| target["name"].as_str()).map(String::from).collect()
    };
    Package {
        name: value["name"].as_str().unwrap_or_default().into(),
        library: features.iter().any(|name| name == "std"),
        tests: targets("test"),
        benches: targets("bench"),
        features,
    }
}
