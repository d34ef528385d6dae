//! The main job on QEMU's hardware.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Runs the main job on QEMU with a disk. `None` where there is no QEMU, which is said, and which is a failure when one was
/// asked for by name.
fn run(disk: &std::path::Path, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_main-job"));
    command.args(["--backend", "qemu", "--json", "--disk"]).arg(disk).args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.starts_with("error: no qemu-system-x86_64") && std::env::var_os("BACKEND_QEMU").is_none() {
        // Not by `eprintln`, which the test harness swallows when a test passes.
        let _ = writeln!(std::io::stderr(), "not run: the main job on QEMU: {}", said.trim());
        return None;
    }
    Some(output)
}

fn check(arguments: &[&str], confinement: &str) {
    let folder = TempDir::new().unwrap();
    let disk = folder.path().join("disk");
    let bytes: Vec<u8> = (0..2 << 20).map(|at: usize| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
    fs::write(&disk, &bytes).unwrap();
    let Some(output) = run(&disk, arguments) else { return };
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["ok"], true, "{value:#}");
    assert_eq!(value["backend"], "qemu");
    let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(value["sha256"]["driver"], sha256);
    assert_eq!(value["write"]["read_back"], true, "{value:#}");
    assert_eq!(value["write"]["on_host"], true);
    assert_eq!(value["rogue"]["confinement"], confinement);
    let attempts = value["rogue"]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    // The first is a page just unmapped, which is the device's no more where anything confines it.
    for attempt in attempts {
        assert_eq!(attempt["memory_unchanged"], confinement == "strict", "{attempt}");
    }
    assert_eq!(value["statistics"]["maps"], value["statistics"]["unmaps"]);
    assert_eq!(value["statistics"]["quarantined_bytes"], 0);
    assert_eq!(value["free_memory_changed"], Value::Array(Vec::new()));
    // The user's own file is left alone.
    assert!(fs::read(&disk).unwrap() == bytes);
}

#[test]
fn the_whole_program_runs_behind_an_iommu_that_nobody_here_wrote() {
    check(&["--write"], "strict");
}

#[test]
fn in_an_identity_domain_nothing_stops_the_rogue() {
    check(&["--write", "--domain", "identity"], "none");
}
